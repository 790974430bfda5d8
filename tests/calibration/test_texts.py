"""Transcripts as a model could write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.calibration.texts import clean_text, is_too_long

TEXTS = {
    "THE FOX <COMMA> THE DOG <PERIOD>": "THE FOX, THE DOG.",  # GigaSpeech
    "WHO <QUESTIONMARK> ME <EXCLAMATIONPOINT>": "WHO? ME!",
    "<SIL>": "",
    "<MUSIC> <PERIOD>": "",
    "and <unk> so on": "and so on",  # TED-LIUM, AMI
    "ignore_time_segment_in_scoring": "",
    "well <laugh> yes <inaudible>": "well yes",  # Earnings-22
    "{BREATH} yes {SMACK}": "yes",
    "uh [noise] right [laughter]": "uh right",
    "(hesitation) right": "right",
    "((mumbled)) right": "right",
    "(()) right": "right",
    "%hesitation right": "right",
    "<|startoftranscript|><|en|> right <|endoftext|>": "right",
    "yes [noise], no": "yes, no",
    "[ silence ]": "",
    "...": "",
    "": "",
    # What was said stays.
    "50% off, at 10 a.m.": "50% off, at 10 a.m.",
    "a < b and c > d": "a < b and c > d",
    "I ate 3.5 (": "I ate 3.5 (",
    "it's  5\n o'clock": "it's 5 o'clock",
    "猫が好きです。": "猫が好きです。",
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts(text: str) -> None:
    assert clean_text(text) == TEXTS[text]


@given(st.text(max_size=80))
def test_cleaning_twice_changes_nothing(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once


@given(st.lists(st.from_regex(r"[a-z']{0,3}[a-z][a-z']{0,3}", fullmatch=True), min_size=1))
def test_plain_words_are_left_alone(words: list[str]) -> None:
    assert clean_text(" ".join(words)) == " ".join(words)


def test_nobody_says_twenty_thousand_words_in_ten_seconds() -> None:
    assert is_too_long("word " * 20_000, 10.0)
    # 9 words a second, of an auctioneer.
    assert not is_too_long("going going gone " * 3 * 10, 10.0)
    assert not is_too_long("stop", 0.05)
