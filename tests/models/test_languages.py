"""Languages by all that they are called."""

from __future__ import annotations

import pytest
from transformers.models.whisper.tokenization_whisper import LANGUAGES as OF_WHISPER
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from edge_asr.models.languages import (
    LANGUAGES,
    language_code,
    language_conflict,
    nearest_language,
)


def test_the_table_is_whispers() -> None:
    assert LANGUAGES == OF_WHISPER
    for name, code in TO_LANGUAGE_CODE.items():
        assert language_code(name) == code


@pytest.mark.parametrize("code", OF_WHISPER)
def test_a_language_is_found_by_code_name_token_and_locale(code: str) -> None:
    for word in (code, code.upper(), f"<|{code}|>", f" {OF_WHISPER[code].title()} ", f"{code}_XX"):
        assert language_code(word) == code


@pytest.mark.parametrize("word", ["", "xx", "klingon", "germ", "de german", "<|xx|>", "e", "1"])
def test_what_is_no_language_is_none(word: str) -> None:
    assert language_code(word) is None


def test_a_misspelt_name_has_a_nearest() -> None:
    assert nearest_language("Greman").startswith("did you mean german?")
    assert nearest_language("qqqqqq") == "give a code or an English name, such as de or german"


# What is decoded, and what rows of published corpora say: Common Voice (locale), FLEURS (code and
# name), VoxPopuli (a number), Multilingual LibriSpeech, NeMo and hand-made manifests.
SAME = (
    ("en", ("en", "EN", "en-US", "en_us", "en_US", "English", "english", "eng", "<|en|>",
            "English (India)", "British English", "en-Latn-GB", " en ")),
    ("de", ("de", "ger", "deu", "de_de", "German", "German (Austria)")),
    ("zh", ("zh-CN", "zh-TW", "cmn_hans_cn", "Mandarin Chinese", "zho")),
    ("yue", ("yue_hant_hk", "zh-HK", "Cantonese Chinese")),
    ("no", ("nb_no", "nn-NO", "Norwegian")),
    ("es", ("es_419", "Latin American Spanish")),
    ("pt", ("pt-BR", "Brazilian Portuguese")),
    ("tl", ("fil_ph", "Filipino")),
    ("jw", ("jv_id", "Javanese")),
    ("he", ("iw", "he_il")),
    # Nobody says anything.
    ("en", ("", " ", "0", "17", "-1", "und", "unknown", "None", "nan", "N/A", "mul", "--")),
)  # fmt: skip
OTHER = (
    ("en", ("de", "de-DE", "German", "deu", "fr_fr", "nl", "Dutch", "ckb_iq", "ast_es", "xx",
            "Klingon", "Deutsch", "Swiss German")),
    ("de", ("en", "en_us", "English", "nl", "lb")),
    ("zh", ("ja", "Japanese")),
    ("es", ("pt", "ca", "Latin")),
)  # fmt: skip


@pytest.mark.parametrize(("language", "rows"), SAME)
def test_a_row_of_the_decoded_language_is_no_conflict(language: str, rows: tuple[str, ...]) -> None:
    assert [row for row in rows if language_conflict(language, row)] == []


@pytest.mark.parametrize(("language", "rows"), OTHER)
def test_a_row_of_another_language_is_one(language: str, rows: tuple[str, ...]) -> None:
    assert [row for row in rows if not language_conflict(language, row)] == []
