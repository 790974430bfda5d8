"""Word error rate under a protocol, with the counts behind it. Rates are in percent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

from edge_asr.errors import UserError
from edge_asr.evaluation.failures import is_looping, is_over_long, rare_words
from edge_asr.evaluation.hypotheses import Hypothesis
from edge_asr.evaluation.pairs import Alignment, Kind, Pair
from edge_asr.evaluation.protocols import Protocol

Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Score:
    """Counts of one data set under one protocol; arrays have one entry per scored pair.

    Attributes:
        protocol: Name of the protocol.
        pairs: What was compared, in the order of the clips.
        alignments: Of every pair.
        hits, substitutions, deletions, insertions: Words. The total of the last three is unique;
            the split between them is the aligner's choice among equally short alignments.
        characters, character_errors: Of the reference, spaces between words included, and the
            edit distance to it.
        rare, rare_missed: Rare words of the reference and those not recognised, see `is_rare`;
            none where the protocol is not for English.
        empty_outputs, looping_outputs, over_long_outputs: Whether the normalized hypothesis has no
            word, loops or is far too long, see `edge_asr.evaluation.failures`.
        dropped: Clips left out because their normalized reference is empty or ignored.
        invented: Words written for each of those.

    Raises:
        ValueError: Arrays of different length, or a pair without reference words.
    """

    protocol: str
    pairs: tuple[Pair, ...]
    alignments: tuple[Alignment, ...]
    hits: Counts
    substitutions: Counts
    deletions: Counts
    insertions: Counts
    characters: Counts
    character_errors: Counts
    rare: Counts
    rare_missed: Counts
    empty_outputs: Flags
    looping_outputs: Flags
    over_long_outputs: Flags
    dropped: tuple[int, ...]
    invented: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, array in self._arrays().items():
            if array.shape != (len(self.pairs),):
                raise ValueError(f"{name} {array.shape}, not {(len(self.pairs),)}")
        if not self.pairs or self.words.min() < 1:
            raise ValueError("every scored pair needs at least one reference word")

    def _arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    @property
    def scored(self) -> Counts:
        """Position of every pair's (first) clip in the input, ascending."""
        return np.array([pair.rows[0] for pair in self.pairs], dtype=np.int64)

    @property
    def words(self) -> Counts:
        """Reference words per scored pair."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> Counts:
        """Word errors per scored pair."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Corpus word error rate in percent: all errors over all reference words."""
        return 100.0 * float(self.errors.sum()) / float(self.words.sum())

    @property
    def cer(self) -> float:
        """Corpus character error rate in percent."""
        return 100.0 * float(self.character_errors.sum()) / float(self.characters.sum())

    @property
    def rare_wer(self) -> float | None:
        """Rare words of the references that were not recognised, in percent of them; or None."""
        rare = int(self.rare.sum())
        return 100.0 * int(self.rare_missed.sum()) / rare if rare else None

    def select(self, clips: Iterable[int]) -> Score:
        """The score of a subset, given as positions in the input; of joined clips, all are needed.

        Raises:
            UserError: No clip of the subset was scored.
        """
        wanted = frozenset(clips)
        keep = [index for index, pair in enumerate(self.pairs) if wanted.issuperset(pair.rows)]
        if not keep:
            raise UserError(
                f"references: none of {len(wanted)} chosen utterances has a word left under "
                f"{self.protocol}; choose utterances with transcripts"
            )
        left_out = [index for index, clip in enumerate(self.dropped) if clip in wanted]
        return Score(
            protocol=self.protocol,
            pairs=tuple(self.pairs[index] for index in keep),
            alignments=tuple(self.alignments[index] for index in keep),
            dropped=tuple(self.dropped[index] for index in left_out),
            invented=tuple(self.invented[index] for index in left_out),
            **{name: array[keep] for name, array in self._arrays().items()},  # type: ignore[arg-type]
        )


def score(clips: Sequence[Hypothesis], protocol: Protocol) -> Score:
    """Count the errors of a data set's hypotheses.

    Raises:
        UserError: No reference has a word left after normalization.
    """
    prepared = protocol.prepare(clips)
    pairs = [pair for pair in prepared if protocol.scores(pair)]
    left_out = [pair for pair in prepared if not protocol.scores(pair)]
    if not pairs:
        raise UserError(
            f"references: none of {len(clips)} has a word left under {protocol.name}; "
            "give transcripts, or a protocol for their language"
        )
    alignments = protocol.align(pairs)
    texts = [(" ".join(pair.reference), " ".join(pair.hypothesis)) for pair in pairs]
    rare = [rare_words(one) if protocol.language == "en" else (0, 0) for one in alignments]
    return Score(
        protocol=protocol.name,
        pairs=tuple(pairs),
        alignments=tuple(alignments),
        hits=_counts([_words(one, "equal") for one in alignments]),
        substitutions=_counts([_words(one, "substitute") for one in alignments]),
        deletions=_counts([_words(one, "delete") for one in alignments]),
        insertions=_counts([_words(one, "insert") for one in alignments]),
        characters=_counts([len(reference) for reference, _ in texts]),
        character_errors=_counts([Levenshtein.distance(*both) for both in texts]),
        rare=_counts([words for words, _ in rare]),
        rare_missed=_counts([missed for _, missed in rare]),
        empty_outputs=np.array([not pair.hypothesis for pair in pairs]),
        looping_outputs=np.array([is_looping(one.hypothesis, one.reference) for one in pairs]),
        over_long_outputs=np.array([is_over_long(one.hypothesis, one.reference) for one in pairs]),
        dropped=tuple(row for pair in left_out for row in pair.rows),
        invented=tuple(
            len(protocol.words(clips[row].pred_text)) for pair in left_out for row in pair.rows
        ),
    )


def _words(alignment: Alignment, kind: Kind) -> int:
    """Words in edits of that kind: the reference's, of insertions the hypothesis's."""
    return sum(len(edit.reference or edit.hypothesis) for edit in alignment if edit.kind == kind)


def _counts(values: Sequence[int]) -> Counts:
    return np.array(values, dtype=np.int64)
