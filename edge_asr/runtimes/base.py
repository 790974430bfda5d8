"""What every runtime can do: hear clips, write texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edge_asr.registry import Registry


@dataclass(frozen=True)
class Transcript:
    """What a model wrote for one clip.

    Attributes:
        text: Without special tokens.
        tokens: Token ids after the prompt, the end token excluded.
        steps: Tokens generated, the end token included.
        hit_limit: The limit came before an end token did.
    """

    text: str
    tokens: tuple[int, ...]
    steps: int
    hit_limit: bool


class Runtime(ABC):
    """A model ready to transcribe.

    `version` is part of every hypothesis's key: raised when the same model may write other texts.
    """

    version: ClassVar[int] = 1

    @abstractmethod
    def window(self, samples: np.ndarray) -> np.ndarray:
        """The part of a clip, shape [samples], that the model can hear at once."""

    @abstractmethod
    def token_limit(self, samples: int, max_new_tokens: int | None = None) -> int:
        """Most tokens that a clip of `samples` samples may generate, the end token included."""

    @abstractmethod
    def transcribe(self, clips: Sequence[np.ndarray], limits: Sequence[int]) -> list[Transcript]:
        """Decode clips greedily in one batch.

        Args:
            clips: float32 mono 16 kHz, each of shape [samples], none longer than the window.
            limits: Most tokens each clip may generate.
        """


runtimes: Registry[Runtime] = Registry("runtime", "runtime")
