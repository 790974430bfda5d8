"""The metric in Hugging Face's form."""

from __future__ import annotations

import jiwer
import pytest

from edge_asr.evaluation.metric import SpeechErrors

REFERENCES = ["the cold rain", "two cats", "", "so"]
HYPOTHESES = ["the old rain", "", "thank you", "so so so so so so so so so so so so"]


def test_rates_and_counts() -> None:
    found = SpeechErrors().compute(predictions=HYPOTHESES, references=REFERENCES, protocol="plain")
    scored = [REFERENCES[0], REFERENCES[1], REFERENCES[3]]
    heard = [HYPOTHESES[0], HYPOTHESES[1], HYPOTHESES[3]]
    assert found["wer"] == pytest.approx(100 * jiwer.wer(scored, heard))
    assert found["cer"] == pytest.approx(100 * jiwer.cer(scored, heard))
    assert (found["substitutions"], found["deletions"], found["insertions"]) == (1, 2, 11)
    assert (found["scored"], found["dropped"], found["hits"], found["words"]) == (3, 1, 3, 6)
    assert (found["empty"], found["looping"], found["over_long"]) == (1, 1, 1)
    assert (found["invented_clips"], found["invented_words"]) == (1, 2)


def test_it_takes_batches_as_others_do() -> None:
    metric = SpeechErrors()
    for reference, hypothesis in zip(REFERENCES, HYPOTHESES, strict=True):
        metric.add(prediction=hypothesis, reference=reference)
    assert metric.compute()["words"] == 6
