"""What a corpus is: a named stream of utterances, damaged clips among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from edge_asr.audio import SAMPLE_RATE
from edge_asr.store.fingerprint import Digests


@dataclass(frozen=True, eq=False)
class Utterance:
    """One decoded clip and its reference.

    Attributes:
        id: Unique within the corpus.
        samples: float32 mono 16 kHz, shape [samples], at least one.
        text: Reference transcript; empty where a calibration corpus has none.
        seconds: Length of `samples`.
        source: Where the clip came from, as its corpus names it (a path, a row of a data set).
        metadata: Whatever else the corpus says about the clip.
        flags: What is doubtful about its audio, a few words each, such as "12 bytes behind the
            data chunk"; it is transcribed and scored all the same.
    """

    id: str
    samples: np.ndarray
    text: str
    seconds: float
    source: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.samples.ndim != 1 or self.samples.dtype != np.float32 or not len(self.samples):
            raise ValueError(
                f"utterance {self.id!r}: samples must be float32 of shape [samples], got "
                f"{self.samples.dtype} {self.samples.shape}"
            )
        if abs(self.seconds * SAMPLE_RATE - len(self.samples)) > 1:
            raise ValueError(f"utterance {self.id!r}: seconds={self.seconds} is not its length")


@dataclass(frozen=True)
class DamagedClip:
    """A clip that cannot be used, and why; it takes its utterance's place in the stream."""

    id: str
    source: str
    reason: str


@dataclass(frozen=True)
class ClipEntry:
    """What a corpus says of a clip before it is decoded; fields as of `Utterance`."""

    id: str
    source: str
    text: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Corpus(Protocol):
    """A stream of utterances. Iterating decodes one clip at a time and can be repeated."""

    @property
    def name(self) -> str:
        """Short name for tables."""

    @property
    def origin(self) -> Mapping[str, str]:
        """Where it was published: `path` (owner/name on the hub, or a folder), `config`, `split`
        and the resolved `revision`, as far as they are known; empty for a list of files."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """The values that `metadata["condition"]` takes, in order; empty without conditions."""

    @property
    def entries(self) -> Sequence[ClipEntry]:
        """Every clip, in order, damaged ones included."""

    def audio_digests(self, digests: Digests, indices: Sequence[int] | None = None) -> list[str]:
        """What tells the audio of every clip (or of those at `indices`) from any other's."""

    def __len__(self) -> int:
        """Number of clips, damaged ones included."""

    def __iter__(self) -> Iterator[Utterance | DamagedClip]: ...


@runtime_checkable
class IndexedCorpus(Corpus, Protocol):
    """A corpus that can decode single clips, so that a sample needs no pass over all of it."""

    def __getitem__(self, index: int) -> Utterance | DamagedClip: ...
