"""Word and character errors against independent counts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields

import jiwer
import numpy as np
import pytest
from evaluation.texts import clip, clips
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.errors import UserError
from edge_asr.evaluation.protocols import Protocol, protocol_named
from edge_asr.evaluation.wer import Score, score


@dataclass(frozen=True)
class Bare(Protocol):
    """Words as they are."""

    name = "bare"  # type: ignore[assignment]

    def normalize(self, text: str) -> str:
        return text


BARE = Bare()
OPEN = protocol_named("open_asr_2024")
texts = st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join)
spoken_texts = st.lists(st.sampled_from("abcd"), min_size=1, max_size=9).map(" ".join)


def edit_distance(reference: str | list[str], hypothesis: str | list[str]) -> int:
    """Textbook recursion over a full table, independent of any library."""
    table = {(i, 0): i for i in range(len(reference) + 1)}
    table |= {(0, j): j for j in range(len(hypothesis) + 1)}
    for i, j in itertools.product(range(len(reference)), range(len(hypothesis))):
        table[i + 1, j + 1] = min(
            table[i, j] + (reference[i] != hypothesis[j]),
            table[i, j + 1] + 1,
            table[i + 1, j] + 1,
        )
    return table[len(reference), len(hypothesis)]


def assert_equal(one: Score, other: Score) -> None:
    for field in fields(Score):
        if isinstance(getattr(one, field.name), np.ndarray):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


@settings(deadline=None)
@given(st.lists(st.tuples(spoken_texts, texts), min_size=1, max_size=6))
def test_counts_agree_with_brute_force(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = zip(*pairs, strict=True)
    result = score(clips(references, hypotheses), BARE)
    for index, (reference, hypothesis) in enumerate(pairs):
        said, transcribed = reference.split(), hypothesis.split()
        assert result.errors[index] == edit_distance(said, transcribed)
        assert result.words[index] == len(said)
        heard_words = result.hits[index] + result.substitutions[index] + result.insertions[index]
        assert heard_words == len(transcribed)
        assert result.character_errors[index] == edit_distance(reference, hypothesis)
    wrong = sum(edit_distance(r.split(), h.split()) for r, h in pairs)
    assert result.wer == pytest.approx(100 * wrong / sum(len(r.split()) for r in references))
    assert result.cer == pytest.approx(100 * jiwer.cer(list(references), list(hypotheses)))


def test_counts_of_a_known_pair() -> None:
    result = score(clips(["a b c d", "e f"], ["a x c d y", ""]), BARE)
    assert result.hits.tolist() == [3, 0]
    assert result.substitutions.tolist() == [1, 0]
    assert result.insertions.tolist() == [1, 0]
    assert result.deletions.tolist() == [0, 2]
    assert result.wer == pytest.approx(100 * 4 / 6)
    assert result.empty_outputs.tolist() == [False, True]
    assert not result.dropped


def test_references_without_words_are_dropped_and_what_was_invented_for_them_counted() -> None:
    references = ["a b", "[noise] um", "", "ignore_time_segment_in_scoring", "[hiss]"]
    result = score(clips(references, ["a c", "a hallucination", "more", "x", ""]), OPEN)
    assert result.scored.tolist() == [0]
    assert result.dropped == (1, 2, 3, 4)
    assert result.invented == (2, 1, 1, 0)
    assert result.wer == pytest.approx(50)


def test_no_scorable_reference_is_a_user_error() -> None:
    with pytest.raises(UserError, match="none of 1 has a word left"):
        score(clips(["um"], ["a"]), OPEN)


def test_output_that_normalizes_to_nothing_is_empty() -> None:
    result = score(clips(["one dog", "one dog"], ["((((((", "um"]), OPEN)
    assert result.empty_outputs.all()


def test_rare_words_are_those_that_few_people_say() -> None:
    result = score(
        clips(["the dog saw Joel Keaton in 1984", "colour me"], ["the dog saw Jo Kitson", "me"]),
        OPEN,
    )
    assert (result.rare.tolist(), result.rare_missed.tolist()) == ([2, 0], [2, 0])
    assert result.rare_wer == 100
    plain = score(clips(["Joel Keaton"], ["x"]), protocol_named("plain"))
    assert plain.rare_wer is None, "the list is of English"


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=2, max_size=8), st.data())
def test_a_selection_equals_scoring_the_subset(
    pairs: list[tuple[str, str]], data: st.DataObject
) -> None:
    pairs = [("a b", "a"), *pairs]
    chosen = sorted({0, *data.draw(st.sets(st.integers(0, len(pairs) - 1)))})
    whole = score(clips([r for r, _ in pairs], [h for _, h in pairs]), BARE)
    part = whole.select(chosen)
    alone = score(clips([pairs[i][0] for i in chosen], [pairs[i][1] for i in chosen]), BARE)
    assert_equal(part, alone)
    assert part.invented == alone.invented


def test_selecting_nothing_scored_is_a_user_error() -> None:
    with pytest.raises(UserError, match="choose utterances with transcripts"):
        score(clips(["a", ""], ["a", "b"]), BARE).select([1])


def test_chunks_of_a_recording_are_joined_in_their_order() -> None:
    call = "we met in june and left in may"
    result = score(
        [
            clip(call, " and left ", "c1", parent_id="call", chunk_index="1"),
            clip("other words", "other words", "x"),
            clip(call, "in may", "c2", parent_id="call", chunk_index="2"),
            clip(call, "we met in june", "c0", parent_id="call", chunk_index="0"),
        ],
        OPEN,
    )
    assert [pair.rows for pair in result.pairs] == [(3, 0, 2), (1,)]
    assert result.wer == 0
    # A part of a recording has no reference of its own.
    assert len(result.select([0, 1, 2]).pairs) == 1
