"""The shipped corpora: complete, decodable, and with disjoint speakers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edge_asr.data.corpus import Utterance
from edge_asr.data.embedded import embedded_calibration, embedded_test
from edge_asr.data.manifest import ManifestCorpus
from edge_asr.errors import UserError


def test_conditions_halve_the_test_set() -> None:
    assert len(embedded_test()) == 800
    assert set(embedded_test().conditions) == {"clean", "noisy"}
    for condition in ("clean", "noisy"):
        half = embedded_test(condition)
        assert (len(half), half.conditions, half.name) == (
            400,
            (condition,),
            f"embedded-{condition}",
        )
    assert len(embedded_test("clean", limit=10)) == 10


def test_unknown_condition_is_named() -> None:
    with pytest.raises(UserError, match=r"condition='loud'.*all, clean, noisy"):
        embedded_test("loud")  # type: ignore[arg-type]


def test_speakers_are_disjoint() -> None:
    calibration, test = (
        {row.metadata["speaker"] for row in corpus.rows}
        for corpus in (embedded_calibration(), embedded_test())
    )
    assert len(embedded_calibration()) == 128
    assert calibration
    assert test
    assert not calibration & test


def test_calibration_clips_can_be_selected() -> None:
    some = embedded_calibration(where={"kind": "command"})
    assert 0 < len(some) < len(embedded_calibration())
    assert {row.metadata["kind"] for row in some.rows} == {"command"}
    with pytest.raises(UserError, match="kind"):
        embedded_calibration(where={"kind": "song"})


def test_noisy_rows_state_their_noise() -> None:
    assert all({"snr_db", "noise"} <= row.metadata.keys() for row in embedded_test("noisy").rows)
    assert not any("snr_db" in row.metadata for row in embedded_test("clean").rows)


@pytest.mark.parametrize("shipped", [embedded_test, embedded_calibration])
def test_every_clip_decodes_to_its_stated_length(shipped: Callable[[], ManifestCorpus]) -> None:
    for item in shipped():
        assert isinstance(item, Utterance), item
        assert item.text
        assert item.seconds == pytest.approx(float(item.metadata["duration"]), abs=0.05)
        assert abs(item.samples).max() > 0.01, f"{item.source} is silent"
