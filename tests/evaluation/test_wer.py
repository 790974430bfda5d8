import itertools

import jiwer
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_asr.errors import UserError
from edge_asr.evaluation.protocols import Protocol, normalize_english, protocol_named
from edge_asr.evaluation.wer import is_looping, score


class Plain(Protocol):
    """Words as they are."""

    name = "plain"  # type: ignore[assignment]

    def normalize(self, text: str) -> str:
        return text


PLAIN = Plain()
OPEN = protocol_named("open_asr_2024")
texts = st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join)
spoken_texts = st.lists(st.sampled_from("abcd"), min_size=1, max_size=9).map(" ".join)


def edit_distance(reference: list[str], hypothesis: list[str]) -> int:
    """Textbook recursion over a full table, independent of jiwer."""
    table = {(i, 0): i for i in range(len(reference) + 1)}
    table |= {(0, j): j for j in range(len(hypothesis) + 1)}
    for i, j in itertools.product(range(len(reference)), range(len(hypothesis))):
        table[i + 1, j + 1] = min(
            table[i, j] + (reference[i] != hypothesis[j]),
            table[i, j + 1] + 1,
            table[i + 1, j] + 1,
        )
    return table[len(reference), len(hypothesis)]


@settings(deadline=None)
@given(st.lists(st.tuples(spoken_texts, texts), min_size=1, max_size=6))
def test_counts_agree_with_brute_force(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = zip(*pairs, strict=True)
    result = score(references, hypotheses, PLAIN)
    for index, (reference, hypothesis) in enumerate(pairs):
        said, transcribed = reference.split(), hypothesis.split()
        assert result.errors[index] == edit_distance(said, transcribed)
        assert result.words[index] == len(said)
        heard_words = result.hits[index] + result.substitutions[index] + result.insertions[index]
        assert heard_words == len(transcribed)
    wrong = sum(edit_distance(r.split(), h.split()) for r, h in pairs)
    assert result.wer == pytest.approx(100 * wrong / sum(len(r.split()) for r in references))


def test_counts_of_a_known_pair() -> None:
    result = score(["a b c d", "e f"], ["a x c d y", ""], PLAIN)
    assert result.hits.tolist() == [3, 0]
    assert result.substitutions.tolist() == [1, 0]
    assert result.insertions.tolist() == [1, 0]
    assert result.deletions.tolist() == [0, 2]
    assert result.wer == pytest.approx(100 * 4 / 6)
    assert (result.empty, result.looping, result.dropped) == (1, 0, 0)


def test_open_asr_2024_equals_jiwer_on_normalized_text() -> None:
    references = ["Mr. Smith's colour, um, is £5.", "I can't go: twenty one [laughs] dogs"]
    hypotheses = ["mister smith is color is 5 pounds", "I cannot go 21 dog"]
    expected = 100 * jiwer.wer(
        [normalize_english(text) for text in references],
        [normalize_english(text) for text in hypotheses],
    )
    assert score(references, hypotheses, OPEN).wer == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hmm, mm, mhm, mmm, uh, um", ""),
        ("It's a colour; he'd gone.", "it is a color he had gone"),
        ("twenty-one dollars", "$21"),
        ("[noise] (aside) Mr. Jones won't", "mister jones will not"),
    ],
)
def test_english_normalizer_is_the_2022_one(text: str, expected: str) -> None:
    assert " ".join(OPEN.words(text)) == expected


def test_references_without_words_are_dropped_and_counted() -> None:
    references = ["a b", "[noise] um", "", "ignore_time_segment_in_scoring"]
    result = score(references, ["a c", "hallucination", "more", "x"], OPEN)
    assert result.scored.tolist() == [0]
    assert result.dropped == 3
    assert result.wer == pytest.approx(50)


def test_no_scorable_reference_is_a_user_error() -> None:
    with pytest.raises(UserError, match="none of 1 has a word left"):
        score(["um"], ["a"], OPEN)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        score(["a", "b"], ["a"], PLAIN)


def test_output_that_normalizes_to_nothing_is_empty() -> None:
    result = score(["one dog", "one dog"], ["((((((", "um"], OPEN)
    assert result.empty == 2


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=2, max_size=8), st.data())
def test_a_selection_equals_scoring_the_subset(
    pairs: list[tuple[str, str]], data: st.DataObject
) -> None:
    pairs = [("a b", "a"), *pairs]
    chosen = sorted({0, *data.draw(st.sets(st.integers(0, len(pairs) - 1)))})
    whole = score([r for r, _ in pairs], [h for _, h in pairs], PLAIN)
    part = whole.select(chosen)
    alone = score([pairs[i][0] for i in chosen], [pairs[i][1] for i in chosen], PLAIN)
    assert part.wer == alone.wer
    assert (part.dropped, part.empty, part.looping) == (alone.dropped, alone.empty, alone.looping)
    np.testing.assert_array_equal(part.errors, alone.errors)


def test_selecting_nothing_scored_is_a_user_error() -> None:
    with pytest.raises(UserError, match="choose utterances with transcripts"):
        score(["a", ""], ["a", "b"], PLAIN).select([1])


@pytest.mark.parametrize(
    ("hypothesis", "reference", "looping"),
    [
        ("go go go go", "go", True),
        ("go go go", "go", False),
        ("so thank you for watching " * 4, "so", True),
        ("and then we went home " * 3, "and", False),
        ("x a b a b a b a b y", "x y", True),
        ("no no no no", "no no no no", False),
        ("no no no no no no", "no no no no", False),
        ("no no no no no no no", "no no no no", True),
        ("x b a b a b a b a", "a b a b a b a b", False),
        ("", "a", False),
    ],
)
def test_looping(hypothesis: str, reference: str, looping: bool) -> None:
    assert is_looping(hypothesis.split(), reference.split()) is looping


def slow_is_looping(hypothesis: str, reference: str) -> bool:
    """Over one-letter words, so that a repetition is a substring."""

    def most(text: str, unit: str) -> int:
        """Repetitions in the longest stretch made of `unit`, entered at any of its words."""
        turns = [unit[shift:] + unit[:shift] for shift in range(len(unit))]
        counts = range(len(text) // len(unit) + 1)
        return max(n for n in counts if any(turn * n in text for turn in turns))

    units = {
        hypothesis[start : start + length]
        for length in range(1, 17)
        for start in range(len(hypothesis) - length + 1)
    }
    return any(
        most(hypothesis, unit) >= 4 and most(hypothesis, unit) - most(reference, unit) >= 3
        for unit in units
    )


letters = st.text("ab", max_size=16)


@settings(deadline=None)
@given(letters, letters)
@example("babababa", "abababab")
@example("aabaabaabaab", "")
def test_looping_agrees_with_brute_force(hypothesis: str, reference: str) -> None:
    assert is_looping(hypothesis, reference) == slow_is_looping(hypothesis, reference)


@settings(deadline=None)
@given(spoken_texts)
def test_a_perfect_output_has_no_errors_and_never_loops(text: str) -> None:
    result = score([text], [text], PLAIN)
    assert (result.wer, result.empty, result.looping) == (0, 0, 0)


def test_unknown_protocol_names_the_choices() -> None:
    with pytest.raises(UserError, match=r"protocol=esb: known are open_asr_2024"):
        protocol_named("esb")
    assert protocol_named("open_asr_2024") == OPEN
    assert OPEN.name == "open_asr_2024"
