"""Normalizers that know no language."""

from __future__ import annotations

import re
import unicodedata

import regex

from edge_asr.evaluation.normalizers.characters import (
    CharacterMap,
    symbol_to_space,
    without_diacritics,
)

_BRACKETS = re.compile(r"[<\[][^>\]]*[>\]]")
_PARENTHESES = re.compile(r"\(([^)]+?)\)")
_SPACES = re.compile(r"\s+")
_APOSTROPHES = "'’‘ʼ＇`´"

_SYMBOLS = CharacterMap(symbol_to_space)
_SYMBOLS_AND_DIACRITICS = CharacterMap(without_diacritics)


def without_asides(text: str) -> str:
    """The text without what stands in brackets or parentheses: tags, noises, comments."""
    return _PARENTHESES.sub("", _BRACKETS.sub("", text))


def single_spaced(text: str) -> str:
    """Every run of white space as one space; also at either end, where Whisper leaves it."""
    return _SPACES.sub(" ", text)


def basic(text: str, *, remove_diacritics: bool = False, split_letters: bool = False) -> str:
    """Whisper's normalizer for every language but English (Radford et al. 2022, appendix C).

    Lower case; asides in brackets go; marks, symbols and punctuation become spaces. Marks are also
    the vowel signs of Hindi and the tones of Thai: words fall apart at them, as they do in
    Whisper. The result may begin or end with a space.

    Args:
        text: Any text.
        remove_diacritics: Whether accents go as well, by compatibility decomposition.
        split_letters: Whether every character a reader sees becomes a word, for languages
            written without spaces.
    """
    text = without_asides(text.lower())
    if remove_diacritics:
        text = unicodedata.normalize("NFKD", text).translate(_SYMBOLS_AND_DIACRITICS)
    else:
        text = unicodedata.normalize("NFKC", text).translate(_SYMBOLS)
    text = text.lower()
    if split_letters:
        text = " ".join(regex.findall(r"\X", text))
    return single_spaced(text)


def _plain_character(character: str) -> str:
    if character in _APOSTROPHES:
        return "'"
    category = unicodedata.category(character)
    if category == "Cf":  # a byte-order mark, joiners: nothing that is seen
        return ""
    return character if category[0] in "LMN" else " "


_PLAIN = CharacterMap(_plain_character)


def plain(text: str) -> str:
    """Lower case without punctuation; nothing is expanded, translated or respelled.

    Letters with their marks, and digits, of every script are kept; so is an apostrophe within a
    word, a curly one written straight. Everything else parts words: `3.14` and `well-known` are
    two words each. Characters without a width go, composed characters are composed (NFC). One
    space between words, none at the ends.
    """
    text = unicodedata.normalize("NFC", text.lower().translate(_PLAIN))
    words = (word.strip("'") for word in text.replace("''", " ").split())
    return " ".join(word for word in words if word)
