"""What every runtime can do: hear clips, write texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edge_asr.audio import SAMPLE_RATE
from edge_asr.models.decoding import StackDtypes
from edge_asr.registry import Registry
from edge_asr.store.phases import PhaseSeconds


@dataclass(frozen=True)
class Transcript:
    """What a model wrote for one clip.

    Attributes:
        text: Without special tokens.
        tokens: Token ids after the prompt, the end token excluded.
        steps: Tokens generated, the end token included.
        hit_limit: The limit came before an end token did.
        near_ties: Steps at which a second token was almost as likely, so that other hardware or
            another batch may write another one.
    """

    text: str
    tokens: tuple[int, ...]
    steps: int
    hit_limit: bool
    near_ties: int = 0


@dataclass(frozen=True)
class DecodedBatch:
    """What a model wrote for a batch of clips, and the seconds of its phases."""

    transcripts: tuple[Transcript, ...]
    seconds: PhaseSeconds


class Runtime(ABC):
    """A model ready to transcribe.

    A batch passes two calls, `prepare` and `decode`, so that the next one is prepared by another
    thread meanwhile.

    Attributes:
        version: Part of every hypothesis's key: raised when the same model may write other texts,
            through what an exporter changed too.
        simulates: A quantized model's integers are multiplied as floats, so that its seconds say
            nothing of a file's.
        targets: Those whose files it runs; None: it simulates any.
        families: Those whose models it runs; None: all.
    """

    version: ClassVar[int] = 1
    simulates: ClassVar[bool] = True
    targets: ClassVar[tuple[str, ...] | None] = None
    families: ClassVar[tuple[str, ...] | None] = None

    @classmethod
    def check(cls, dtypes: StackDtypes, device: str) -> None:
        """Raises UserError where it could not compute so, before anything is loaded."""
        del dtypes, device

    @abstractmethod
    def window(self, samples: np.ndarray) -> np.ndarray:
        """The part of a clip, shape [samples], that the model can hear at once."""

    @abstractmethod
    def token_limit(self, samples: int, max_new_tokens: int | None = None) -> int:
        """Most tokens that a clip of `samples` samples may generate, the end token included."""

    @abstractmethod
    def prepare(self, clips: Sequence[np.ndarray]) -> Any:
        """What `decode` needs of clips that are decoded together.

        Args:
            clips: float32 mono 16 kHz, each of shape [samples], none longer than the window.
        """

    @abstractmethod
    def decode(self, prepared: Any, limits: Sequence[int]) -> DecodedBatch:
        """Decode the clips that were prepared, greedily in one batch.

        Args:
            prepared: What `prepare` returned.
            limits: Most tokens each clip may generate.
        """

    def transcribe(self, clips: Sequence[np.ndarray], limits: Sequence[int]) -> list[Transcript]:
        """Prepare and decode clips in one batch; see there."""
        return list(self.decode(self.prepare(clips), limits).transcripts)

    def warm_up(self) -> None:
        """Transcribe a second of silence, so that no clip pays for what happens only once."""
        self.transcribe([np.zeros(SAMPLE_RATE, np.float32)], [2])


runtimes: Registry[Runtime] = Registry("runtime", "runtime")
