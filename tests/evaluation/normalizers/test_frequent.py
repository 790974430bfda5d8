"""The list of frequent words, looked up as normalized references are."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edge_asr.evaluation.normalizers import (
    basic,
    english_2024,
    english_2026,
    frequent_words,
    plain,
)

SENTENCES = [
    "The people didn't know what it's like, but they've had twenty years.",
    "I can't say he's wrong; let's go home, Mr. President, and don't travel on Thursday.",
    "The colour of the favourite centre, the color of the favorite center.",
    "Okay, that'll do: the government's fifth programme cannot go on.",
]


@pytest.mark.parametrize("normalize", [english_2024, english_2026, plain, basic])
def test_usual_words_are_frequent_under_every_normalizer(normalize: Callable[[str], str]) -> None:
    frequent = frequent_words(9999, normalize)
    rare = {word for text in SENTENCES for word in normalize(text).split()} - frequent
    # Only `plain` leaves a possessive whole.
    assert rare == ({"government's"} if normalize is plain else set())


def test_names_and_terms_are_rare() -> None:
    assert not frequent_words(9999) & {
        "kaliko",
        "quilter",
        "london",
        "mary",
        "lobster",
        "spectrogram",
    }


def test_words_come_by_frequency() -> None:
    few, some, all_words = frequent_words(10), frequent_words(5000), frequent_words(9999)
    assert few < some < all_words
    assert {"the", "of", "and", "to", "a", "in", "that", "is"} <= few
    assert "advisor" in all_words - some


def test_number_words_are_looked_up_as_digits() -> None:
    assert {"2", "20", "100", "5th", "one"} <= frequent_words(5000)
    assert "two" not in frequent_words(5000)
    assert "two" in frequent_words(5000, plain)


@pytest.mark.parametrize("count", [0, -1, 10000])
def test_a_count_beyond_the_list_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"count {count} is not between 1 and 9999"):
        frequent_words(count)
