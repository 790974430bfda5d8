"""The processes of one run: several where `accelerate launch` or torchrun starts it.

All of them make the same plan. The main one makes and writes whatever there is one of, and tells
the others what came of it; clips are split. Nothing here imports torch before it is needed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

# The others wait while the main process quantizes.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """Which one of how many this is.

    Attributes:
        index: From 0, the main one.
        count: How many there are.
        local_index: The same on this machine alone, which has a GPU for each.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0

    @classmethod
    def of_environment(cls) -> Processes:
        """As a launcher has said it; without one, a process of its own."""
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
            return cls()
        index, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return cls(index, count, int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def device(self, device: str) -> str:
        """`device`, and of GPUs that are all meant, this process's own."""
        return f"cuda:{self.local_index}" if device == "cuda" and self.count > 1 else device

    def gathered(self, value: T) -> list[T]:
        """What every process gives, by index; all must call it."""
        if self.count == 1:
            return [value]
        import torch.distributed as group

        if not group.is_initialized():
            group.init_process_group("gloo", timeout=PATIENCE)
        values: list[T] = [value] * self.count
        group.all_gather_object(values, value)
        return values

    def from_main(self, value: T) -> T:
        """What the main process gives; all must call it."""
        return self.gathered(value if self.is_main else None)[0]  # type: ignore[return-value]
