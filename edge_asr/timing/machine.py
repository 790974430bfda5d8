"""The machine that times hold for."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CPUINFO, MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
# What kernels for integers and halves choose by, as Linux names it.
INSTRUCTIONS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Null where the system does not tell.

    Attributes:
        processor: Its name.
        instructions: Those it has of the ones that matter here.
        processors: How many this process may use.
        memory_bytes: Of the machine.
        system: And the architecture.
        load: Processes that were running on average in the last minute, when it began.
    """

    processor: str
    instructions: tuple[str, ...]
    processors: int
    memory_bytes: int | None
    system: str
    load: float | None


def this_machine() -> Machine:
    """The machine that this process runs on."""
    described = _fields(CPUINFO)
    words = described.get("flags", described.get("Features", "")).split()
    memory = _fields(MEMINFO).get("MemTotal", "").split()
    load = None
    with suppress(OSError, AttributeError):  # as other systems refuse it
        load = os.getloadavg()[0]
    return Machine(
        processor=described.get("model name") or platform.processor() or platform.machine(),
        instructions=tuple(name for name in INSTRUCTIONS if name in words),
        processors=usable_processors(),
        memory_bytes=int(memory[0]) * 1024 if memory else None,
        system=f"{platform.system()} {platform.machine()}",
        load=load,
    )


def usable_processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _fields(path: Path) -> dict[str, str]:
    """The first value of every `name: value` of a file of the system's."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    return found
