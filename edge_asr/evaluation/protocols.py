"""How hypotheses are scored, by name: what `protocol=` chooses.

A word error rate means nothing without its text normalizer, its alignment, the references that it
leaves out and the data sets that its mean is over, so all of them travel together as a protocol.
How a model decodes is no part of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from edge_asr.evaluation.hypotheses import Hypothesis
from edge_asr.evaluation.normalizers import basic, english_2024, english_2026, plain
from edge_asr.evaluation.pairs import Alignment, Pair, align_merging_compounds, align_words
from edge_asr.registry import Registry
from edge_asr.settings import Checked


class Protocol(Checked, ABC):
    """What is compared with what, how it is aligned, rounded and averaged.

    Attributes:
        version: Raised when the same hypotheses get other rates.
        ignored_references: Normalized references that mark a clip as not to be scored; an empty
            one always is.
        language: Code of the language that the normalizer is made for; None: any.
        suppression: What its leaderboard decodes with (`decode.suppression`); None: not said.
        data_sets: Those whose mean it reports; empty: of whatever was transcribed.
        decimals: Of every rate before rates are averaged, and of their mean; None: all.
    """

    version: ClassVar[int] = 1
    ignored_references: ClassVar[frozenset[str]] = frozenset()
    language: ClassVar[str | None] = None
    suppression: ClassVar[Literal["library", "none"] | None] = None
    data_sets: ClassVar[tuple[str, ...]] = ()
    decimals: ClassVar[int | None] = None

    @property
    def name(self) -> str:
        """What it is registered as; printed beside every rate and part of file names."""
        return protocols.name_of(self)

    @abstractmethod
    def normalize(self, text: str) -> str:
        """The text as it is compared, of reference and hypothesis alike."""

    def words(self, text: str) -> tuple[str, ...]:
        """The normalized words of `text`."""
        return tuple(self.normalize(text).split())

    def prepare(self, clips: Sequence[Hypothesis]) -> list[Pair]:
        """What is compared: every clip, or its whole recording where clips are chunks of one.

        The hypotheses of such chunks are joined in their order, the reference is the recording's.
        """
        recordings: dict[tuple[str, str], list[int]] = defaultdict(list)
        for row, clip in enumerate(clips):
            whole = clip.parent_id is not None
            recordings["parent" if whole else "row", clip.parent_id or str(row)].append(row)
        pairs = []
        for rows in recordings.values():
            rows.sort(key=lambda row: clips[row].chunk_index or 0)
            heard = [clips[row].pred_text.strip() for row in rows]
            pairs.append(
                Pair(
                    tuple(rows),
                    self.words(clips[rows[0]].text),
                    self.words(" ".join(filter(None, heard))),
                )
            )
        return pairs

    def scores(self, pair: Pair) -> bool:
        """Whether the pair counts: its reference has words and is none of the ignored."""
        return bool(pair.reference) and " ".join(pair.reference) not in self.ignored_references

    def align(self, pairs: Sequence[Pair]) -> list[Alignment]:
        """The alignment of every pair; by least edit distance unless a protocol says otherwise."""
        return align_words(pairs)


protocols: Registry[Protocol] = Registry("protocol", "protocol")


def protocol_named(name: str) -> Protocol:
    """The protocol of that name. Raises UserError where there is none."""
    return protocols.build({"name": name})


@protocols.register("open_asr_2024")
@dataclass(frozen=True)
class OpenAsr2024(Protocol):
    """Open ASR leaderboard, July 2024 to March 2026: Whisper's English normalizer, jiwer."""

    # What some corpora put in place of a transcript, as normalized.
    ignored_references: ClassVar[frozenset[str]] = frozenset({"ignore time segment in scoring"})
    language: ClassVar[str | None] = "en"
    suppression: ClassVar[Literal["library", "none"] | None] = "library"
    data_sets: ClassVar[tuple[str, ...]] = (
        "ami",
        "earnings22",
        "gigaspeech",
        "librispeech_clean",
        "librispeech_other",
        "spgispeech",
        "tedlium",
        "voxpopuli",
    )
    decimals: ClassVar[int | None] = 2

    def normalize(self, text: str) -> str:
        return english_2024(text)


@protocols.register("open_asr_2026")
@dataclass(frozen=True)
class OpenAsr2026(Protocol):
    """The same since July 2026: names, acronyms and compounds folded, kaldialign, whole calls."""

    ignored_references: ClassVar[frozenset[str]] = OpenAsr2024.ignored_references
    language: ClassVar[str | None] = "en"
    suppression: ClassVar[Literal["library", "none"] | None] = "none"
    data_sets: ClassVar[tuple[str, ...]] = (
        "ami_cleaned",
        "earnings22_cleaned_aa_chunked",
        "gigaspeech_cleaned",
        "librispeech_clean",
        "librispeech_other",
        "spgispeech",
        "voxpopuli_cleaned_aa",
    )
    decimals: ClassVar[int | None] = 2

    def normalize(self, text: str) -> str:
        return english_2026(text)

    def align(self, pairs: Sequence[Pair]) -> list[Alignment]:
        return align_merging_compounds(pairs)


@protocols.register("multilingual")
@dataclass(frozen=True)
class Multilingual(Protocol):
    """Any language: Whisper's basic normalizer; look at the CER where words have no spaces."""

    def normalize(self, text: str) -> str:
        return basic(text)


@protocols.register("plain")
@dataclass(frozen=True)
class Plain(Protocol):
    """Any language: case and punctuation do not count, nothing else is changed."""

    def normalize(self, text: str) -> str:
        return plain(text)
