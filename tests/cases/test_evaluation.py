"""Scores that went wrong: words on silence, a normalizer that changes words."""

from __future__ import annotations

import json

import pytest
from shared import shared

from edge_asr import api
from edge_asr.evaluation.normalizers import english_2024, english_2026
from edge_asr.report.cells import failures


def test_no_word_is_rewritten_that_whisper_leaves() -> None:
    pairs = shared("cases", "normalizer-four-words", "pairs.jsonl")
    for line in pairs.read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        assert english_2024(pair["text"]).split() == pair["whisper"].split()


@pytest.mark.parametrize("word", ["cause", "kinda", "sorta", "dunno", "gonna", "lemme", "coz"])
def test_the_same_of_other_words_that_are_half_contractions(word: str) -> None:
    """Whisper has `gonna` and `wanna` in its list, and nothing else of the kind."""
    expected = {"gonna": "going to"}.get(word, word)
    for normalize in (english_2024, english_2026):
        assert normalize(f"they {word} it").split() == f"they {expected} it".split()


def test_words_on_silence_are_counted_and_shown() -> None:
    manifest = shared("cases", "silence-empty-ref", "m.jsonl")
    found = api.evaluate(api.load("moonshine_micro"), manifest)
    whole = found.results[0]
    assert (whole.utterances, whole.scored, whole.dropped) == (3, 1, 2)
    assert whole.invented_clips == 2
    assert whole.invented_words >= 2
    assert "2 invented" in failures(vars(whole))
    assert any(clip.flags for clip in found.transcription.hypotheses), "digital silence is told"
