"""How a recogniser fails beyond single words: loops, runaway outputs, rare words lost.

Low-bit models fail so first, and a word error rate alone does not tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from edge_asr.evaluation.normalizers import frequent_words
from edge_asr.evaluation.pairs import Alignment, reference_fates

LOOP_REPEATS = 4
"""Times in a row from which a repeated sequence of words is a loop."""
LOOP_EXCESS = 3
"""Times in a row by which it must exceed the reference, where people do say 'no no no no'."""
WORD_LOOP_REPEATS = 5
"""The same of letters inside one word, such as `hahahahaha`."""
WORD_LOOP_LETTERS = 8
"""Letters that such a loop fills at least."""
OVER_LONG_RATIO = 2
"""An output is over-long from this many times the reference's length ..."""
OVER_LONG_LETTERS = 20
"""... and this many letters more than it."""
FREQUENT_WORDS = 5000
"""Words of English that are not rare: so many of the most frequent."""

# Scripts that put no space between words: Han, Hiragana, Katakana, Thai, Lao, Myanmar, Khmer.
UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff])"
)


def is_looping(hypothesis: Sequence[str], reference: Sequence[str]) -> bool:
    """Whether a recogniser got stuck repeating itself.

    It did when a sequence of words, of any length, stands `LOOP_REPEATS` or more times in a row in
    `hypothesis`, and at least `LOOP_EXCESS` times more in a row than in `reference`; or a sequence
    of letters within a word `WORD_LOOP_REPEATS` times. Both are normalized words; of scripts
    without spaces every character counts as one.
    """
    spoken, heard = _characters_apart(reference), _characters_apart(hypothesis)
    for unit, repeats in _repeats(heard, LOOP_REPEATS).items():
        if repeats - _most_repeats(spoken, unit) >= LOOP_EXCESS:
            return True
    for word in heard:
        if len(word) < WORD_LOOP_LETTERS:
            continue
        for unit, repeats in _repeats(word, WORD_LOOP_REPEATS).items():
            said = max((_most_repeats(one, unit) for one in spoken), default=0)
            if repeats * len(unit) >= WORD_LOOP_LETTERS and repeats - said >= LOOP_EXCESS:
                return True
    return False


def is_over_long(hypothesis: Sequence[str], reference: Sequence[str]) -> bool:
    """Whether far more was written than was said."""
    heard, spoken = len("".join(hypothesis)), len("".join(reference))
    return heard >= OVER_LONG_RATIO * spoken and heard - spoken >= OVER_LONG_LETTERS


def is_rare(word: str) -> bool:
    """Whether an English word is none of the `FREQUENT_WORDS` most frequent.

    Words without a letter, such as numbers, are neither.
    """
    return word not in _frequent() and any(letter.isalpha() for letter in word)


def rare_words(alignment: Alignment) -> tuple[int, int]:
    """Rare words of the reference, and how many of them were not recognised."""
    fates = [recognised for word, recognised in reference_fates(alignment) if is_rare(word)]
    return len(fates), len(fates) - sum(fates)


@cache
def _frequent() -> frozenset[str]:
    return frozenset(frequent_words(FREQUENT_WORDS))


def _characters_apart(words: Sequence[str]) -> list[str]:
    return " ".join(UNSPACED.sub(r" \1 ", word) for word in words).split()


def _repeats(tokens: Sequence[str], least: int) -> Mapping[tuple[str, ...], int]:
    """Every sequence that stands `least` or more times in a row, and how often it does at most.

    "a b a b" and "b a b a" are the same sequence entered at another word, told once.
    """
    found: dict[tuple[str, ...], int] = {}
    numbers = np.unique(np.array(list(tokens), dtype=object), return_inverse=True)[1]
    for length in range(1, len(tokens) // least + 1):
        # Where a stretch of tokens equals the one before it, starts and ends in turn.
        edges = np.flatnonzero(np.diff(np.r_[0, numbers[length:] == numbers[:-length], 0]))
        for start, end in edges.reshape(-1, 2):
            repeats = int(end - start) // length + 1
            if repeats >= least:
                unit = _entered_first(tokens[start : start + length])
                found[unit] = max(found.get(unit, 0), repeats)
    return found


def _most_repeats(tokens: Sequence[str], unit: tuple[str, ...]) -> int:
    """How often `unit`, entered at any of its tokens, stands in a row in `tokens` at most."""
    length, most = len(unit), 0
    for start in range(len(tokens) - length + 1):
        entered = tokens[start : start + length]
        if _entered_first(entered) == unit:
            count = 1
            while tokens[start + count * length :][:length] == entered:
                count += 1
            most = max(most, count)
    return most


def _entered_first(unit: Sequence[str]) -> tuple[str, ...]:
    return min((*unit[shift:], *unit[:shift]) for shift in range(len(unit)))
