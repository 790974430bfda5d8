"""Loops, over-long outputs and rare words against hand-made and brute-force answers."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_asr.evaluation.failures import FREQUENT_WORDS, is_looping, is_over_long, is_rare
from edge_asr.evaluation.normalizers import english_2024


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
        # Of any period.
        (" ".join(f"w{n}" for n in range(40)) * 1 + " x", "", False),
        (" ".join([*(f"w{n}" for n in range(40))] * 4), "w1", True),
        # Inside words, digits too, unless that was said.
        ("oh hahahahahaha", "oh", True),
        ("oh hahahahahaha", "oh hahahahahaha", False),
        ("aaaaaaaaaaaa", "a", True),
        ("100000000000000000", "1", True),
        ("1000000000", "1000000000", False),
        ("it is hmmmmm", "it is", False),
        ("mississippi banana couscous", "x", False),
        # Scripts without spaces.
        ("谢谢大家谢谢大家谢谢大家谢谢大家", "谢谢大家", True),
        ("今日は今日は今日は今日は", "今日は", True),
        ("谢谢大家", "谢谢大家", False),
        ("ขอบคุณขอบคุณขอบคุณขอบคุณ", "ขอบคุณ", True),
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
    assert is_looping(list(hypothesis), list(reference)) == slow_is_looping(hypothesis, reference)


@pytest.mark.parametrize(
    ("hypothesis", "reference", "over_long"),
    [
        ("thank you very much for watching this video", "hello", True),
        ("hello there", "hello", False),
        ("a" * 39, "a" * 20, False),
        ("a" * 40, "a" * 20, True),
    ],
)
def test_over_long(hypothesis: str, reference: str, over_long: bool) -> None:
    assert is_over_long(hypothesis.split(), reference.split()) is over_long


def test_rare_words() -> None:
    common = english_2024("The doctor's house can't be mine; it is a colour that people like.")
    assert not [word for word in common.split() if is_rare(word)]
    assert all(map(is_rare, english_2024("Keaton quixotic Przybylski metoprolol").split()))
    assert not is_rare("1984")
    assert not is_rare("$5")
    assert FREQUENT_WORDS == 5000
