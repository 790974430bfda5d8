"""`basic` and `plain`."""

from __future__ import annotations

import itertools
import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from edge_asr.evaluation.normalizers import basic, plain

# What the leaderboard's code makes of these (normalizer/normalizer.py at commit d1e99b2).
BASIC = [
    ("Hello, World!", "hello world "),
    ("  two  spaces  ", " two spaces "),
    ("(aside) kept", " kept"),
    ("[tag] kept <unk>", " kept "),
    ("(a(b)c)", "c "),
    ("don't", "don t"),
    ("don’t", "don t"),
    ("U.S.A.", "u s a "),
    ("3.14", "3 14"),
    ("$5", " 5"),
    ("50%", "50 "),
    ("naïve", "naïve"),
    ("été", "été"),
    ("Ça va?", "ça va "),
    ("¿Qué tal?", " qué tal "),
    ("Über", "über"),
    ("Straße", "straße"),
    ("ß", "ß"),
    ("Œuvre", "œuvre"),
    ("Øresund", "øresund"),
    ("Łódź", "łódź"),
    ("İstanbul", "i stanbul"),
    ("ΟΔΟΣ", "οδος"),
    ("Привет, мир!", "привет мир "),
    ("Ёлка", "ёлка"),
    ("Київ — столиця", "київ столиця"),
    ("日本語。", "日本語 "),
    ("你好，世界", "你好 世界"),
    ("한국어!", "한국어 "),
    ("ภาษาไทย", "ภาษาไทย"),
    ("हिन्दी", "ह न द "),
    ("مرحبا، بالعالم", "مرحبا بالعالم"),
    ("שָׁלוֹם", "ש לו ם"),
    ("ﬁne", "fine"),
    ("１２３", "123"),
    ("№ 5", "no 5"),
    ("½", "1 2"),
    ("m²", "m2"),
    ("a_b", "a b"),
    ("a-b", "a b"),
    ("a/b", "a b"),
    ("👍 ok", " ok"),
    ("℡", "tel"),
    ("™", "tm"),
    ("tab\tand\nline", "tab and line"),
    ("\ufeffmark", "\ufeffmark"),
    ("no\xa0break", "no break"),
    ("zero\u200bwidth", "zero\u200bwidth"),
    ('"quoted"', " quoted "),
    ("«guillemets»", " guillemets "),
    ("…", " "),
    ("", ""),
    ("HELLO", "hello"),
    ("Don't stop!", "don t stop "),
    ("a  b", "a b"),
    ("<|en|> hi", " hi"),
    ("[music] [noise] so", " so"),
    ("x (y", "x y"),
    ("x] y", "x y"),
    ("1,000", "1 000"),
    ("10:30", "10 30"),
    ("e-mail", "e mail"),
    ("Zürich, 8°", "zürich 8 "),
]
WITHOUT_DIACRITICS = [
    ("naïve", "naive"),
    ("été", "ete"),
    ("Ça va?", "ca va "),
    ("¿Qué tal?", " que tal "),
    ("Über", "uber"),
    ("Straße", "strasse"),
    ("ß", "ss"),
    ("Œuvre", "oeuvre"),
    ("Øresund", "oresund"),
    ("Łódź", "lodz"),
    ("İstanbul", "istanbul"),
    ("Ёлка", "елка"),
    ("Київ — столиця", "киів столиця"),
    ("한국어!", "한국어 "),
    ("हिन्दी", "ह नद "),
    ("שָׁלוֹם", "שלום"),
    ("ẞ", "ss"),
    ("Þing", "thing"),
    ("Đà Nẵng", "da nang"),
    ("ǿ", "o"),
]
SPLIT = [
    ("hi you", "h i y o u"),
    ("你好，世界", "你 好 世 界"),
    ("한국어!", "한 국 어 "),
    ("été", "é t é"),
    ("İstanbul", "i s t a n b u l"),
    ("👍🏽 ok", " o k"),
]
PLAIN = [
    ("Hello, World!", "hello world"),
    ("  two  spaces  ", "two spaces"),
    ("tab\tand\nline", "tab and line"),
    ("", ""),
    (" \n", ""),
    ("...", ""),
    ("(aside) kept", "aside kept"),
    ("[tag] <unk>", "tag unk"),
    ("don't", "don't"),
    ("don’t", "don't"),
    ("donʼt", "don't"),
    ("don`t", "don't"),
    ("don´t", "don't"),
    ("rock 'n' roll", "rock n roll"),
    ("the dogs' dinner", "the dogs dinner"),
    ("'tis 'twas", "tis twas"),
    ("'quoted'", "quoted"),
    ("‘quoted’", "quoted"),
    ("''quoted''", "quoted"),
    ("a''b", "a b"),
    ("a'''b", "a b"),
    ("' '' '", ""),
    ("o'clock's", "o'clock's"),
    ("I'd've", "i'd've"),
    ("l'été", "l'été"),
    ("U.S.A.", "u s a"),
    ("3.14", "3 14"),
    ("1,000", "1 000"),
    ("10:30", "10 30"),
    ("$5", "5"),
    ("50%", "50"),
    ("#1", "1"),
    ("5°", "5"),
    ("m²", "m²"),
    ("½", "½"),
    ("Ⅻ", "ⅻ"),
    ("２０", "２０"),
    ("a_b", "a b"),
    ("a-b", "a b"),
    ("well–known—yes", "well known yes"),
    ("a/b", "a b"),
    ("a+b=c", "a b c"),
    ("Mr. Smith", "mr smith"),
    ("twenty one", "twenty one"),
    ("colour", "colour"),
    ("Um, yes", "um yes"),
    ("naïve", "naïve"),
    ("nai\u0308ve", "naïve"),
    ("Straße", "straße"),
    ("ŒUVRE", "œuvre"),
    ("İ", "i\u0307"),
    ("¿Qué tal?", "qué tal"),
    ("«Ça va»", "ça va"),
    ("Привет, мир!", "привет мир"),
    ("Ёлка", "ёлка"),
    ("ΟΔΟΣ", "οδος"),
    ("日本語。", "日本語"),
    ("你好，世界", "你好 世界"),
    ("한국어!", "한국어"),
    ("ไทยนี้", "ไทยนี้"),
    ("हिन्दी।", "हिन्दी"),
    ("مرحبا، ١٢", "مرحبا ١٢"),
    ("שָׁלוֹם", "שָׁלוֹם"),
    ("\ufeffmark", "mark"),
    ("zero\u200bwidth", "zerowidth"),
    ("no\u00a0break", "no break"),
    ("👍 ok", "ok"),
    ("half \ud83d", "half"),
]


@pytest.mark.parametrize(("text", "expected"), BASIC)
def test_basic(text: str, expected: str) -> None:
    assert basic(text) == expected


@pytest.mark.parametrize(("text", "expected"), WITHOUT_DIACRITICS)
def test_basic_without_diacritics(text: str, expected: str) -> None:
    assert basic(text, remove_diacritics=True) == expected


@pytest.mark.parametrize(("text", "expected"), SPLIT)
def test_basic_with_letters_split(text: str, expected: str) -> None:
    assert basic(text, split_letters=True) == expected


@pytest.mark.parametrize(
    ("remove_diacritics", "split_letters"), itertools.product([False, True], repeat=2)
)
def test_basic_agrees_with_transformers(remove_diacritics: bool, split_letters: bool) -> None:
    peer = BasicTextNormalizer(remove_diacritics, split_letters)
    generator = random.Random(0)
    blocks = [(32, 127), (128, 0x250), (0x300, 0x600), (0x900, 0xE80), (0x2000, 0x2200)]
    characters = [chr(code) for low, high in blocks for code in range(low, high)] + list("<[()]> '")
    for _ in range(2000):
        text = "".join(generator.choices(characters, k=12))
        ours = basic(text, remove_diacritics=remove_diacritics, split_letters=split_letters)
        assert ours == peer(text)


@pytest.mark.parametrize(("text", "expected"), PLAIN)
def test_plain(text: str, expected: str) -> None:
    assert plain(text) == expected


@given(st.text())
def test_plain_has_words_of_letters_and_needs_no_second_pass(text: str) -> None:
    result = plain(text)
    assert plain(result) == result == " ".join(result.split())
    assert all(unicodedata.category(c)[0] in "LMN" for c in result if c not in "' ")


@given(st.text(st.characters(categories=["Lu", "Ll", "Nd", "Po", "Sc", "Zs"])))
def test_plain_loses_no_letter_and_no_digit(text: str) -> None:
    kept = [c for c in unicodedata.normalize("NFC", text.lower()) if c.isalnum()]
    assert [c for c in plain(text) if c.isalnum()] == kept
