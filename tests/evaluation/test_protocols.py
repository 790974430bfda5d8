"""Protocols: their alignments against the libraries that the leaderboards use."""

from __future__ import annotations

import random

import jiwer
import kaldialign
import numpy as np
import pytest
from evaluation.texts import clips
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.data.sources import sources
from edge_asr.errors import UserError
from edge_asr.evaluation.pairs import (
    Pair,
    align_merging_compounds,
    align_words,
    marks_of,
    reference_fates,
)
from edge_asr.evaluation.protocols import protocol_named, protocols
from edge_asr.evaluation.wer import score

WORDS = ["a", "white", "paper", "whitepaper", "data", "base", "database", "on", "ongoing", "5"]


def random_texts(count: int, seed: int) -> list[tuple[str, str]]:
    """References, and hypotheses that are references with errors."""
    chooser = random.Random(seed)
    pairs = []
    for _ in range(count):
        reference = chooser.choices(WORDS, k=chooser.randint(1, 25))
        heard = list(reference)
        for _ in range(chooser.randint(0, 8)):
            place = chooser.randrange(len(heard) + 1)
            fate = chooser.choice(["insert", "delete", "substitute"])
            heard[place : place + (fate != "insert")] = (
                [] if fate == "delete" else [chooser.choice(WORDS)]
            )
        pairs.append((" ".join(reference), " ".join(heard)))
    return pairs


def test_the_names_that_people_type() -> None:
    assert {"open_asr_2024", "open_asr_2026", "multilingual", "plain"} <= set(protocols)
    with pytest.raises(UserError, match="protocol=esb"):
        protocol_named("esb")


@pytest.mark.parametrize("name", list(protocols))
def test_totals_are_jiwers_or_kaldialigns(name: str) -> None:
    """On 1,000 random pairs."""
    pairs, protocol = random_texts(1000, seed=0), protocol_named(name)
    counted = score(clips(*zip(*pairs, strict=True)), protocol)
    references, hypotheses = (
        [" ".join(getattr(pair, side)) for pair in counted.pairs]
        for side in ("reference", "hypothesis")
    )
    if name == "open_asr_2026":
        expected = kaldialign.batch_error_rate(
            [tuple(text.split()) for text in references],
            [tuple(text.split()) for text in hypotheses],
            merge_compounds=True,
        )
        found = expected["ins"], expected["del"], expected["sub"]
        errors = counted.insertions.sum(), counted.deletions.sum(), counted.substitutions.sum()
        assert found == errors
        assert counted.wer == pytest.approx(100 * expected["err_rate"])
    else:
        output = jiwer.process_words(references, hypotheses)
        assert counted.wer == pytest.approx(100 * output.wer)
        assert counted.errors.sum() == (output.substitutions + output.deletions + output.insertions)


def test_only_the_newer_leaderboard_forgives_split_compounds() -> None:
    texts = clips(["the data base grew"], ["the database grew"])
    assert score(texts, protocol_named("open_asr_2024")).errors.sum() == 2
    newer = score(texts, protocol_named("open_asr_2026"))
    assert (newer.errors.sum(), newer.words.sum()) == (0, 4)


words = st.lists(st.sampled_from(["ab", "a", "b", "c"]), max_size=7).map(tuple)


@pytest.mark.parametrize("align", [align_words, align_merging_compounds])
@given(reference=words, hypothesis=words)
def test_an_alignment_holds_both_texts_in_order(
    align: type, reference: tuple[str, ...], hypothesis: tuple[str, ...]
) -> None:
    if not reference:
        return
    (alignment,) = align([Pair((0,), reference, hypothesis)])
    assert sum((edit.reference for edit in alignment), ()) == reference
    assert sum((edit.hypothesis for edit in alignment), ()) == hypothesis
    fates = list(reference_fates(alignment))
    assert [word for word, _ in fates] == list(reference)
    marks = marks_of(alignment)
    assert marks.shape == (len(reference) + 1, 2)
    np.testing.assert_array_equal(marks[:-1, 1], [not right for _, right in fates])
    assert marks[-1, 1] == 0
    inserted = sum(len(edit.hypothesis) for edit in alignment if edit.kind == "insert")
    assert marks[:, 0].sum() == inserted


def test_insertions_are_marked_at_the_word_behind_them() -> None:
    (alignment,) = align_words([Pair((0,), ("a", "b"), ("x", "a", "y", "z", "b", "w"))])
    assert marks_of(alignment).tolist() == [[1, 0], [2, 0], [1, 0]]


@pytest.mark.parametrize("name", ["open_asr_2024", "open_asr_2026"])
def test_the_data_sets_of_a_leaderboard_can_be_chosen(name: str) -> None:
    assert set(protocol_named(name).data_sets) <= set(sources)
    assert len(protocol_named(name).data_sets) == {"open_asr_2024": 8, "open_asr_2026": 7}[name]
