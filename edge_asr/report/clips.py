"""Which clips a record's rates are of: rows on different ones share no table."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from edge_asr.store.record import ALL, Record, Result

NAMED = 3  # data sets that a heading names
LONGEST = 60  # characters of them in a file's name


@dataclass(frozen=True, order=True)
class DataSet:
    """One data set as it was scored; `audio_digest` is empty in records up to schema 3."""

    name: str
    utterances: int
    scored: int
    reference_words: int
    seconds: float
    audio_digest: str


@dataclass(frozen=True, order=True)
class Clips:
    """A protocol and the data sets that rates are of: what makes two rows comparable.

    Attributes:
        protocol: Its name.
        data_sets: By name.
        limits: What all rows have in common of `data.limit` and the caps on tokens, in words.
    """

    protocol: str
    data_sets: tuple[DataSet, ...]
    limits: tuple[str, ...] = ()

    @property
    def utterances(self) -> int:
        return sum(one.utterances for one in self.data_sets)

    @property
    def title(self) -> str:
        """`open_asr_2024: librispeech_clean, librispeech_other; 5559 clips`."""
        names = [one.name for one in self.data_sets]
        shown = ", ".join(names[:NAMED])
        if len(names) > NAMED:
            shown += f" and {len(names) - NAMED} more data sets"
        parts = (f"{self.protocol}: {shown}", f"{self.utterances} clips", *self.limits)
        return "; ".join(parts)

    @property
    def slug(self) -> str:
        """The same as part of a file's name; two that differ at all have different ones."""
        names = "+".join(one.name for one in self.data_sets)
        names = names if len(names) <= LONGEST else f"{len(self.data_sets)}-data-sets"
        parts = (self.protocol, names, str(self.utterances), self.digest[:6])
        return "_".join(re.sub(r"[^A-Za-z0-9+-]+", "_", part)[:LONGEST] for part in parts)

    @property
    def digest(self) -> str:
        """32 hex digits over all that tells these clips from others."""
        content = repr((self.protocol, self.data_sets))
        return hashlib.sha256(content.encode(errors="backslashreplace")).hexdigest()[:32]


def scored(result: Result) -> int:
    """Clips that count. Records up to schema 3 do not say it."""
    return result.utterances - result.dropped if result.scored is None else result.scored


def clips_of(record: Record, protocol: str) -> Clips:
    """The clips of a record's results under a protocol."""
    digests = {one.name: one.audio_digest for one in record.data}
    data_sets = [
        DataSet(
            result.dataset,
            result.utterances,
            scored(result),
            result.reference_words,
            round(result.seconds, 2),
            digests.get(result.dataset, ""),
        )
        for result in record.results
        if (result.protocol, result.by, result.condition) == (protocol, "condition", ALL)
    ]
    return Clips(protocol, tuple(sorted(data_sets)))
