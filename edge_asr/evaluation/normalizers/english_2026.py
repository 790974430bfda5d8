"""The Open ASR leaderboard's English normalizer since 2026-07-08."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import groupby

from edge_asr.evaluation.normalizers.english import (
    FILLERS,
    expand,
    respelled,
    spoken_words,
    whole_words,
    without_stray_symbols,
    without_symbols,
)
from edge_asr.evaluation.normalizers.numbers import digits_for_number_words
from edge_asr.evaluation.normalizers.tables import spelling_table, word_table

SPELLING_DATE = "2026-07-08"
"""The day whose spelling table `english_2026` uses."""

_MORE_FILLERS = "ah aha ahh ahm eh ehehe em hm huh hum mhum uhm umm uhuh"
_BEFORE_IS = "it he she what that who here there how when where why this"

_FILLERS = whole_words([*FILLERS, *_MORE_FILLERS.split()])
# After any other word 's is a possessive, and becomes a word `s`.
_IS = re.compile(r"'s\b(?:" + "|".join(rf"(?<=\b{word}'s)" for word in _BEFORE_IS.split()) + ")")
_WORDS_OF_ONE_LETTER = {"a", "i"}


@cache
def _names() -> dict[str, str]:
    return word_table("names")


@cache
def _compounds() -> tuple[re.Pattern[str], dict[str, str]]:
    table = word_table("compounds")
    return whole_words(table), table


def _joined_compounds(text: str) -> str:
    pattern, table = _compounds()
    return pattern.sub(lambda match: table[" ".join(match[0].split())], text)


def _is_character(word: str) -> bool:
    return len(word) == 1 and word.isalnum()


def _joined_acronyms(words: list[str]) -> Iterator[str]:
    """Runs of single letters and digits as one word: "b b c", "5 g"; but not "a 5"."""
    for single, group in groupby(words, _is_character):
        run = list(group)
        shortest = 2 if _WORDS_OF_ONE_LETTER.isdisjoint(run) else 3
        if single and len(run) >= shortest:
            yield "".join(run)
        else:
            yield from run


def english_2026(text: str) -> str:
    """The Open ASR leaderboard's normalizer since 2026-07-08 (huggingface/open_asr_leaderboard).

    As of commit d1e99b2, 2026-08-21, unchanged since 2026-06-22. What it adds to `english_2024`:
    fourteen more fillers; 's is `is` only after it, he, she, what and the like; sixteen compounds
    ("wi fi"), spellings of 152 names and runs of single letters become one word; and the
    spelling table of that time.

    The result may begin or end with a space, and a second pass may change it again.
    """
    text = expand(spoken_words(text, _FILLERS), _IS)
    text = digits_for_number_words(_joined_compounds(without_symbols(text)))
    text = respelled(respelled(text, spelling_table(SPELLING_DATE)), _names())
    return without_stray_symbols(" ".join(_joined_acronyms(text.split())))
