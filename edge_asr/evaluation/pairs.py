"""A reference and a hypothesis as they are compared, word by word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jiwer
import kaldialign
import numpy as np
import numpy.typing as npt

Kind = Literal["equal", "substitute", "delete", "insert"]
KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
# A word that no normalizer leaves: what kaldialign puts where a side has no word.
NOTHING = "\0"


@dataclass(frozen=True)
class Pair:
    """What is compared, in normalized words.

    Attributes:
        rows: Positions of the transcribed clips that it is made of: one, or the chunks of a
            recording whose reference is that of the whole.
        reference, hypothesis: Words.
    """

    rows: tuple[int, ...]
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]


class Edit(NamedTuple):
    """A run of words with one fate, on both sides in order; one side is empty where it has none.

    Both sides of an `equal` one hold the same words, or the same letters where a protocol takes
    `white paper` for `whitepaper`; a `substitute` has as many words on one side as on the other.
    """

    kind: Kind
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]


Alignment = tuple[Edit, ...]


def align_words(pairs: Sequence[Pair]) -> list[Alignment]:
    """Alignments of least edit distance, as jiwer finds them.

    The number of errors is unique; which of equally short alignments is taken is jiwer's choice.
    """
    if not pairs:
        return []
    output = jiwer.process_words(
        [" ".join(pair.reference) for pair in pairs],
        [" ".join(pair.hypothesis) for pair in pairs],
    )
    return [
        tuple(
            Edit(
                KINDS[chunk.type],
                pair.reference[chunk.ref_start_idx : chunk.ref_end_idx],
                pair.hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx],
            )
            for chunk in chunks
        )
        for pair, chunks in zip(pairs, output.alignments, strict=True)
    ]


def align_merging_compounds(pairs: Sequence[Pair]) -> list[Alignment]:
    """The same where neighbouring words of either side may be written as one word of the other:
    kaldialign with `merge_compounds`."""
    return [
        tuple(
            _edit(reference, hypothesis)
            for reference, hypothesis in kaldialign.align(
                pair.reference, pair.hypothesis, NOTHING, merge_compounds=True
            )
        )
        for pair in pairs
    ]


def _edit(reference: str, hypothesis: str) -> Edit:
    spoken, heard = (
        () if side == NOTHING else tuple(side.split()) for side in (reference, hypothesis)
    )
    if not spoken or not heard:
        return Edit("delete" if spoken else "insert", spoken, heard)
    # A merged compound stands as its words with spaces between them, opposite the joined word.
    same = "".join(spoken) == "".join(heard)
    return Edit("equal" if same else "substitute", spoken, heard)


def reference_fates(alignment: Alignment) -> Iterator[tuple[str, bool]]:
    """Every reference word, in order, and whether it was recognised."""
    for edit in alignment:
        for word in edit.reference:
            yield word, edit.kind == "equal"


def marks_of(alignment: Alignment) -> npt.NDArray[np.int64]:
    """Where the errors are, [words + 1, 2]: words inserted before every reference word, and 1 where
    it was not recognised; last, the words inserted at the end and 0."""
    marks = [[0, 0]]
    for edit in alignment:
        if edit.kind == "insert":
            marks[-1][0] += len(edit.hypothesis)
            continue
        for _ in edit.reference:
            marks[-1][1] = int(edit.kind != "equal")
            marks.append([0, 0])
    return np.array(marks, dtype=np.int64)
