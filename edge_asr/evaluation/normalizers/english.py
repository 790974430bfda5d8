"""Whisper's English normalizer, and the steps that later ones share with it.

Facts are those of openai/whisper, whisper/normalizers/english.py, and of the Open ASR
leaderboard, huggingface/open_asr_leaderboard, normalizer/normalizer.py.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

from edge_asr.evaluation.normalizers.basic import single_spaced, without_asides
from edge_asr.evaluation.normalizers.characters import CharacterMap, without_diacritics
from edge_asr.evaluation.normalizers.numbers import digits_for_number_words
from edge_asr.evaluation.normalizers.tables import spelling_table

SPELLING_DATE = "2024-07-03"
"""The day whose spelling table `english_2024` uses where no other is named."""

FILLERS = ("hmm", "mm", "mhm", "mmm", "uh", "um")

_WHOLE_WORDS = {
    "won't": "will not",
    "can't": "can not",
    "let's": "let us",
    "ain't": "aint",
    "y'all": "you all",
    "wanna": "want to",
    "gotta": "got to",
    "gonna": "going to",
    "i'ma": "i am going to",
    "imma": "i am going to",
    "woulda": "would have",
    "coulda": "could have",
    "shoulda": "should have",
    "ma'am": "madam",
} | {
    # The space parts a title from a full stop or an apostrophe behind it.
    title: f"{meaning} "
    for title, meaning in {
        "mr": "mister",
        "mrs": "missus",
        "st": "saint",
        "dr": "doctor",
        "prof": "professor",
        "capt": "captain",
        "gov": "governor",
        "ald": "alderman",
        "gen": "general",
        "sen": "senator",
        "rep": "representative",
        "pres": "president",
        "rev": "reverend",
        "hon": "honorable",
        "asst": "assistant",
        "assoc": "associate",
        "lt": "lieutenant",
        "col": "colonel",
        "jr": "junior",
        "sr": "senior",
        "esq": "esquire",
    }.items()
}
_PERFECT_TENSES = {
    "'d been": " had been",
    "'s been": " has been",
    "'d gone": " had gone",
    "'s gone": " has gone",
    "'d done": " had done",
    "'s got": " has got",
}
_ENDINGS = {
    "'re": " are",
    "'d": " would",
    "'ll": " will",
    "'t": " not",
    "'ve": " have",
    "'m": " am",
}


def whole_words(words: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the words or phrases, white space in them of any kind."""
    alternatives = (r"\s+".join(map(re.escape, word.split())) for word in words)
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b")


def _word_ends(endings: Iterable[str]) -> re.Pattern[str]:
    return re.compile(rf"(?:{'|'.join(map(re.escape, endings))})\b")


_FILLERS = whole_words(FILLERS)
_SPACE_BEFORE_APOSTROPHE = re.compile(r"\s+'")
_WHOLE_WORD = whole_words(_WHOLE_WORDS)
_PERFECT_TENSE = _word_ends(_PERFECT_TENSES)
_NOT = _word_ends(["n't"])
_IS = _word_ends(["'s"])
_ENDING = _word_ends(_ENDINGS)

_COMMA_IN_NUMBER = re.compile(r"(\d),(\d)")
_FULL_STOP = re.compile(r"\.([^0-9]|$)")
_SYMBOL_WITHOUT_NUMBER = re.compile(r"[.$¢€£]([^0-9])")
_PERCENT_WITHOUT_NUMBER = re.compile(r"([^0-9])%")

_SYMBOLS_OF_NUMBERS = ".%$¢€£"
_LETTERS = CharacterMap(lambda c: c if c in _SYMBOLS_OF_NUMBERS else without_diacritics(c))


def spoken_words(text: str, fillers: re.Pattern[str]) -> str:
    """Lower case, without asides in brackets and without fillers."""
    text = fillers.sub("", without_asides(text.lower()))
    return _SPACE_BEFORE_APOSTROPHE.sub("'", text)


def expand(text: str, is_ending: re.Pattern[str]) -> str:
    """Contractions and titles written out. `is_ending` matches each 's that means `is`."""
    text = _WHOLE_WORD.sub(lambda match: _WHOLE_WORDS[match[0]], text)
    if "'" not in text:
        return text
    # One after the other: each sees word ends that the one before it made.
    text = _PERFECT_TENSE.sub(lambda match: _PERFECT_TENSES[match[0]], text)
    text = _NOT.sub(" not", text)
    text = is_ending.sub(" is", text)
    return _ENDING.sub(lambda match: _ENDINGS[match[0]], text)


def without_symbols(text: str) -> str:
    """Letters without accents; of the symbols only those that belong to numbers."""
    text = _COMMA_IN_NUMBER.sub(r"\1\2", text)
    text = _FULL_STOP.sub(r" \1", text)
    return unicodedata.normalize("NFKD", text).translate(_LETTERS)


def respelled(text: str, table: Mapping[str, str]) -> str:
    """Every word as the table has it, single spaces between them."""
    return " ".join(table.get(word, word) for word in text.split())


def without_stray_symbols(text: str) -> str:
    """Without currencies, full stops and percent signs that stand at no number."""
    text = _SYMBOL_WITHOUT_NUMBER.sub(r" \1", text)
    text = _PERCENT_WITHOUT_NUMBER.sub(r"\1 ", text)
    return single_spaced(text)


def english_2024(text: str, *, spelling_date: str = SPELLING_DATE) -> str:
    """Whisper's English normalizer, the Open ASR leaderboard's from July 2024 to March 2026.

    Radford et al. 2022, appendix C. The spelling table changed within that time: nine pairs on
    2025-09-11 (leaderboard commit 6a3e6d4). Pinned is the one before (754a8dc, 2023-07-12, which
    is Whisper's own and `mm`), in force when the leaderboard took up Whisper and Moonshine and
    when the Edge-ASR paper was written (arXiv 2507.07877). A rate depends on the choice only
    where `archaeology` meets `archeology`, or in forms of `pummel` and `snowplough`.

    The result may begin or end with a space, and a second pass may change it again.

    Args:
        text: Any text.
        spelling_date: Another day of the table: `2025-09-11` is the later one of that time.
    """
    text = expand(spoken_words(text, _FILLERS), _IS)
    text = digits_for_number_words(without_symbols(text))
    return without_stray_symbols(respelled(text, spelling_table(spelling_date)))
