"""Which characters a text keeps, by their Unicode category, and what stands in for the others."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

# Letters that decomposition leaves whole, as Whisper writes them: the capital thorn, too, in small
# letters (openai/whisper, whisper/normalizers/basic.py).
LETTERS_WITHOUT_DECOMPOSITION = {
    "œ": "oe",
    "Œ": "OE",
    "ø": "o",
    "Ø": "O",
    "æ": "ae",
    "Æ": "AE",
    "ß": "ss",
    "ẞ": "SS",
    "đ": "d",
    "Đ": "D",
    "ð": "d",
    "Ð": "D",
    "þ": "th",
    "Þ": "th",
    "ł": "l",
    "Ł": "L",
}


class CharacterMap(dict[int, str]):
    """A table for `str.translate` that works out each character the first time it is met."""

    def __init__(self, replace: Callable[[str], str]) -> None:
        super().__init__()
        self._replace = replace

    def __missing__(self, code: int) -> str:
        self[code] = self._replace(chr(code))
        return self[code]


def symbol_to_space(character: str) -> str:
    """A space for a mark, symbol or punctuation (categories M, S, P), else the character."""
    return " " if unicodedata.category(character)[0] in "MSP" else character


def without_diacritics(character: str) -> str:
    """Of a decomposed text: the letter without its accents, a space for a symbol."""
    if character in LETTERS_WITHOUT_DECOMPOSITION:
        return LETTERS_WITHOUT_DECOMPOSITION[character]
    return "" if unicodedata.category(character) == "Mn" else symbol_to_space(character)
