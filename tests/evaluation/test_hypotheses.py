"""What a file writes beside its simulation."""

from __future__ import annotations

from dataclasses import replace

from edge_asr.evaluation.hypotheses import Hypothesis, differing_texts, same_clips
from edge_asr.store.file_texts import DifferingText, FileTexts

CLIPS = [
    Hypothesis("a.wav", "one", "One.", id="a", near_ties=1),
    Hypothesis("b.wav", "two", "Two.", id="b"),
    Hypothesis("c.wav", "three", "Three.", id="c", near_ties=2),
]


def test_texts_that_differ_are_told_with_their_near_ties() -> None:
    file = [CLIPS[0], *(replace(one, pred_text="Other.", near_ties=0) for one in CLIPS[1:])]
    found = differing_texts("set", same_clips(file, reversed(CLIPS)))
    assert found == [
        DifferingText("set", "b", "Other.", "Two.", near_ties=0),
        DifferingText("set", "c", "Other.", "Three.", near_ties=2),
    ]
    assert same_clips(file, CLIPS[1:]) == list(zip(file[1:], CLIPS[1:], strict=True))
    said = FileTexts(3, tuple(found)).in_words
    assert said == (
        "2 of 3 texts of the file differ from the simulation's, 1 of them with near ties"
    )
    assert FileTexts(3).in_words == "0 of 3 texts of the file differ from the simulation's"
