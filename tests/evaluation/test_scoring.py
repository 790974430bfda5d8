"""From hypotheses to result rows: conditions, and the pairing with the float run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_asr.config import ProtocolSettings
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import Hypothesis, Transcription
from edge_asr.evaluation.scoring import score_run

SETTINGS = ProtocolSettings("open_asr_2024", resamples=100)


def clip(
    name: str, text: str, transcribed: str, condition: str = "clean", **changes: bool
) -> Hypothesis:
    plain = Hypothesis(
        id=name,
        audio_filepath=f"{name}.wav",
        duration=1.5,
        time=0.1,
        text=text,
        pred_text=transcribed,
        samples=24_000,
        generated_tokens=3,
        hit_limit=False,
        truncated=False,
        metadata={"condition": condition},
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


CLIPS = (
    clip("a", "one dog", "one cat", hit_limit=True),
    clip("b", "two cats", "two cats", truncated=True),
    clip("c", "[noise]", "hello", "noise", hit_limit=True),
    clip("d", "um", "", "noise"),
)


@pytest.mark.parametrize("baseline", [None, CLIPS])
def test_a_condition_without_references_has_a_row_without_rates(
    baseline: tuple[Hypothesis, ...] | None,
) -> None:
    results, (average,) = score_run(SETTINGS, "speech", Transcription(CLIPS, ()), baseline)
    whole, clean, noise = results
    assert [row.condition for row in results] == ["all", "clean", "noise"]
    assert whole.wer == clean.wer == average.interval.estimate == 25
    assert (noise.wer, noise.interval, noise.float_wer, noise.difference) == (None,) * 4
    assert (noise.utterances, noise.dropped, noise.seconds) == (2, 2, 3.0)
    assert [row.hit_limit for row in results] == [2, 1, 1]
    assert (clean.difference is None) == (baseline is None)


def test_pairs_are_found_whatever_their_order() -> None:
    floats = [replace(row, pred_text=row.text) for row in reversed(CLIPS)]
    results, _ = score_run(SETTINGS, "speech", Transcription(CLIPS, ()), floats)
    assert (results[0].wer, results[0].float_wer) == (25, 0)


@pytest.mark.parametrize(
    ("floats", "first"),
    [
        (CLIPS[1:], "a"),
        ((*CLIPS, clip("e", "five", "five")), "e"),
        ((CLIPS[0], replace(CLIPS[1], text="two dogs"), *CLIPS[2:]), "b"),
        ((*CLIPS[:2], replace(CLIPS[2], samples=9), CLIPS[3]), "c"),
    ],
)
def test_a_float_run_on_other_clips_is_a_user_error(
    floats: tuple[Hypothesis, ...], first: str
) -> None:
    with pytest.raises(
        UserError, match=rf"not of the same clips.* the first '{first}'; .* rerun=true"
    ):
        score_run(SETTINGS, "speech", Transcription(CLIPS, ()), floats)
