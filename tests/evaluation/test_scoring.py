"""From hypotheses to result rows: conditions, lengths, means, pairing with the float run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from evaluation.texts import clip

from edge_asr.config import ProtocolSettings
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import Hypothesis, Transcription
from edge_asr.evaluation.protocols import protocol_named
from edge_asr.evaluation.scoring import (
    DataSetScore,
    average_of,
    results_of,
    score_data_set,
    worst_utterances,
)

SETTINGS = ProtocolSettings("open_asr_2024", resamples=100)
PROTOCOL = protocol_named(SETTINGS.name)
CLIPS = (
    replace(clip("one dog", "one cat", "a", condition="clean"), hit_limit=True),
    replace(clip("two cats", "two cats", "b", condition="clean"), truncated=True),
    replace(clip("[noise]", "hello", "c", condition="noise"), hit_limit=True, flags=("silent",)),
    clip("um", "", "d", condition="noise"),
)


def scored(
    clips: Sequence[Hypothesis] = CLIPS,
    floats: Sequence[Hypothesis] | None = None,
    name: str = "speech",
) -> DataSetScore:
    return score_data_set(PROTOCOL, name, Transcription(tuple(clips)), floats)


@pytest.mark.parametrize("floats", [None, CLIPS])
def test_a_condition_without_references_has_a_row_without_rates(
    floats: tuple[Hypothesis, ...] | None,
) -> None:
    one = scored(floats=floats)
    whole, clean, noise, short = results_of(SETTINGS, one)
    assert [row.condition for row in (whole, clean, noise, short)] == [
        "all",
        "clean",
        "noise",
        "0-5 s",
    ]
    assert (noise.by, short.by) == ("condition", "duration")
    assert whole.wer == clean.wer == short.wer == average_of(SETTINGS, [one]).interval.estimate
    assert whole.wer == 25
    assert (noise.wer, noise.interval, noise.float_wer, noise.difference) == (None,) * 4
    assert (noise.utterances, noise.scored, noise.dropped, noise.seconds) == (2, 0, 2, 3.0)
    assert [row.hit_limit for row in (whole, clean, noise)] == [2, 1, 1]
    assert (whole.truncated, whole.flagged, whole.scored) == (1, 1, 2)
    assert (clean.difference is None) == (floats is None)


def test_words_on_references_without_any_are_counted() -> None:
    whole = results_of(SETTINGS, scored())[0]
    assert (whole.dropped, whole.invented_clips, whole.invented_words) == (2, 1, 1)


def test_lengths_part_the_clips() -> None:
    long = [replace(CLIPS[0], id=str(n), duration=seconds) for n, seconds in enumerate((5, 19, 40))]
    rows = results_of(SETTINGS, scored([CLIPS[1], *long]))
    assert {row.condition: (row.utterances, row.wer) for row in rows if row.by == "duration"} == {
        "0-5 s": (1, 0),
        "5-10 s": (1, 50),
        "10-20 s": (1, 50),
        "20+ s": (1, 50),
    }


def test_speakers_are_drawn_together_where_all_are_known() -> None:
    named = [
        replace(CLIPS[0], id=str(n), metadata={"speaker": speaker})
        for n, speaker in enumerate("aabbb")
    ]
    assert results_of(SETTINGS, scored(named))[0].clusters == 2
    assert results_of(SETTINGS, scored([*named, CLIPS[1]]))[0].clusters is None


def test_pairs_are_found_whatever_their_order() -> None:
    floats = [replace(row, pred_text=row.text) for row in reversed(CLIPS)]
    result = results_of(SETTINGS, scored(floats=floats))[0]
    assert (result.wer, result.float_wer) == (25, 0)
    assert result.difference is not None
    assert result.difference.estimate == 25


@pytest.mark.parametrize(
    ("floats", "first"),
    [
        (CLIPS[1:], "a"),
        ((*CLIPS, clip("five", "five", "e")), "e"),
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
        scored(floats=floats)


def test_a_published_reference_may_be_normalized_already() -> None:
    floats = [replace(row, text=PROTOCOL.normalize(row.text), samples=0) for row in CLIPS]
    assert results_of(SETTINGS, scored(floats=floats))[0].float_wer == 25


def test_the_mean_is_rounded_as_the_leaderboard_does() -> None:
    """Rates to two decimals first, then their mean: 33.33 and 14.29 give 23.81."""
    thirds = [clip("red green blue", "red green x", "a")]
    sevenths = [clip("a b c d e f g", "a b c d e f", "b")]
    both = [scored(thirds, name="ami"), scored(sevenths, name="tedlium")]
    average = average_of(SETTINGS, both)
    assert average.rounded == 23.81
    assert average.interval.estimate == pytest.approx((100 / 3 + 100 / 7) / 2)
    assert average.complete is False
    whole = [scored(thirds, name=name) for name in PROTOCOL.data_sets]
    assert average_of(SETTINGS, whole).complete is True
    own = average_of(replace(SETTINGS, name="plain"), both)
    assert (own.rounded, own.complete) == (None, None)


def test_the_worst_utterances_come_first() -> None:
    first, second = worst_utterances([scored([*CLIPS, clip("a b c", "x y z", "e")])])
    assert (first.id, first.errors, first.words, first.hypothesis) == ("e", 3, 3, "x y z")
    assert second.id == "a"
