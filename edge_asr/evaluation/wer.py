"""Word error rate under a protocol, with the counts behind it. Rates are in percent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
import numpy.typing as npt

from edge_asr.errors import UserError
from edge_asr.evaluation.protocols import Protocol

Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

LONGEST_LOOP = 16
"""Words in the longest repeated sequence that counts as a loop."""
LOOP_REPEATS = 4
"""Times in a row from which a repeated sequence is a loop."""
LOOP_EXCESS = 3
"""Times in a row by which it must exceed the reference, where people do say 'no no no no'."""


@dataclass(frozen=True, eq=False)
class Score:
    """Counts of one data set under one protocol; arrays have one entry per scored utterance.

    Attributes:
        protocol: Name of the protocol.
        scored: Position of each scored utterance in the input, ascending.
        hits, substitutions, deletions, insertions: Words, from a minimum edit distance
            alignment. The total of the last three is unique; the split between them is
            jiwer's choice among equally short alignments.
        empty_outputs: Whether the normalized hypothesis has no word.
        looping_outputs: Whether the hypothesis loops, see `is_looping`.
        dropped: Utterances left out because their normalized reference is empty or ignored.

    Raises:
        ValueError: Arrays of different length, or an utterance without reference words.
    """

    protocol: str
    scored: Counts
    hits: Counts
    substitutions: Counts
    deletions: Counts
    insertions: Counts
    empty_outputs: Flags
    looping_outputs: Flags
    dropped: int

    def __post_init__(self) -> None:
        per_utterance = (self.hits, self.substitutions, self.deletions, self.insertions)
        for array in (*per_utterance, self.empty_outputs, self.looping_outputs):
            if array.shape != self.scored.shape:
                raise ValueError(f"per-utterance array {array.shape}, not {self.scored.shape}")
        if not self.scored.size or self.words.min() < 1:
            raise ValueError("every scored utterance needs at least one reference word")

    @property
    def words(self) -> Counts:
        """Reference words per scored utterance."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> Counts:
        """Word errors per scored utterance."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Corpus word error rate in percent: all errors over all reference words."""
        return 100.0 * float(self.errors.sum()) / float(self.words.sum())

    @property
    def empty(self) -> int:
        """Number of scored utterances with an empty output."""
        return int(self.empty_outputs.sum())

    @property
    def looping(self) -> int:
        """Number of scored utterances with a looping output."""
        return int(self.looping_outputs.sum())

    def select(self, utterances: Iterable[int]) -> Score:
        """The score of a subset, given as positions in the input of `score`.

        Raises:
            UserError: No utterance of the subset was scored.
        """
        wanted = np.unique(np.fromiter(utterances, dtype=np.int64))
        keep = np.isin(self.scored, wanted)
        if not keep.any():
            raise UserError(
                f"references: none of {wanted.size} chosen utterances has a word left under "
                f"{self.protocol}; choose utterances with transcripts"
            )
        return Score(
            protocol=self.protocol,
            scored=self.scored[keep],
            hits=self.hits[keep],
            substitutions=self.substitutions[keep],
            deletions=self.deletions[keep],
            insertions=self.insertions[keep],
            empty_outputs=self.empty_outputs[keep],
            looping_outputs=self.looping_outputs[keep],
            dropped=int(wanted.size - keep.sum()),
        )


def _longest_runs(words: Sequence[str], length: int) -> dict[tuple[str, ...], int]:
    """Most repetitions in a row of every sequence of `length` words, rotations taken as one."""
    runs: dict[tuple[str, ...], int] = {}
    start = 0
    for end in range(length, len(words) + 1):
        if end < len(words) and words[end] == words[end - length]:
            continue
        unit = tuple(words[start : start + length])
        # "a b a b" and "b a b a" are the same loop entered at another word.
        key = min(unit[shift:] + unit[:shift] for shift in range(length))
        runs[key] = max(runs.get(key, 0), (end - start) // length)
        start = end - length + 1
    return runs


def is_looping(hypothesis: Sequence[str], reference: Sequence[str]) -> bool:
    """Whether a recogniser got stuck repeating itself.

    It did when a sequence of 1 to `LONGEST_LOOP` words stands `LOOP_REPEATS` or more times in a
    row anywhere in `hypothesis`, and at least `LOOP_EXCESS` times more in a row than in
    `reference`. Both are normalized words. A loop inside one word ("hahahaha", or digits that
    the normalizer joins) is not seen.
    """
    for length in range(1, LONGEST_LOOP + 1):
        if len(hypothesis) < LOOP_REPEATS * length:
            return False
        spoken = _longest_runs(reference, length)
        for unit, repeats in _longest_runs(hypothesis, length).items():
            if repeats >= LOOP_REPEATS and repeats - spoken.get(unit, 0) >= LOOP_EXCESS:
                return True
    return False


def _edit_counts(chunks: Iterable[jiwer.AlignmentChunk]) -> tuple[int, int, int, int]:
    counts: Counter[str] = Counter()
    for chunk in chunks:
        inserted = chunk.hyp_end_idx - chunk.hyp_start_idx
        counts[chunk.type] += chunk.ref_end_idx - chunk.ref_start_idx or inserted
    return counts["equal"], counts["substitute"], counts["delete"], counts["insert"]


def score(references: Sequence[str], hypotheses: Sequence[str], protocol: Protocol) -> Score:
    """Count the word errors of a data set.

    Args:
        references: Transcripts as the corpus gives them.
        hypotheses: Recognised text, in the same order.
        protocol: Normalizer and the references it leaves out.

    Raises:
        ValueError: The two differ in length.
        UserError: No reference has a word left after normalization.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")
    spoken = [protocol.words(text) for text in references]
    scored = [
        index
        for index, words in enumerate(spoken)
        if words and " ".join(words) not in protocol.ignored_references
    ]
    if not scored:
        raise UserError(
            f"references: none of {len(references)} has a word left under {protocol.name}; "
            "give transcripts, or a protocol for their language"
        )
    transcribed = {index: protocol.words(hypotheses[index]) for index in scored}
    output = jiwer.process_words(
        [" ".join(spoken[index]) for index in scored],
        [" ".join(transcribed[index]) for index in scored],
    )
    counts = np.array([_edit_counts(chunks) for chunks in output.alignments], dtype=np.int64)
    return Score(
        protocol=protocol.name,
        scored=np.array(scored, dtype=np.int64),
        hits=counts[:, 0],
        substitutions=counts[:, 1],
        deletions=counts[:, 2],
        insertions=counts[:, 3],
        empty_outputs=np.array([not transcribed[index] for index in scored]),
        looping_outputs=np.array([is_looping(transcribed[i], spoken[i]) for i in scored]),
        dropped=len(references) - len(scored),
    )
