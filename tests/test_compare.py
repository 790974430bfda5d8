"""Two finished runs against one another, from their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from edge_asr.compare import compare, main, read_run
from edge_asr.config import ProtocolSettings
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import Hypothesis, Transcription
from edge_asr.evaluation.scoring import score_run
from edge_asr.quant.formats import ActivationGrid
from edge_asr.store.record import read_record, write_record

RESULTS = Path(__file__).resolve().parent.parent / "results" / "embedded"
SPOKEN = ("red green blue", "horse", "cold rain", "bread milk eggs cheese")
POOR = ("red green", "house", "cold", SPOKEN[3])


def stored(
    folder: Path,
    method: str,
    transcribed: Sequence[str],
    order: Sequence[int] = range(4),
    **changes: object,
) -> Path:
    """A run's folder: a record of this code made over for other hypotheses."""
    record = read_record(next(iter(sorted(RESULTS.glob("moonshine-micro/gptq-w2-*/record.json")))))
    rows = [
        Hypothesis(
            id=str(index), audio_filepath=f"{index}.wav", duration=1.0, time=0.1,
            text=SPOKEN[index], pred_text=transcribed[index], samples=16_000, generated_tokens=3,
            hit_limit=False, truncated=False,
        )
        for index in order
    ]  # fmt: skip
    settings = ProtocolSettings("open_asr_2024", resamples=100)
    results, averages = score_run(settings, "speech", Transcription(tuple(rows), ()), None)
    section = replace(record.method, name=method, **changes)  # type: ignore[arg-type]
    write_record(
        folder,
        replace(record, method=section, results=results, averages=averages, run_id=method),
    )
    assert record.hypotheses_file is not None
    lines = [json.dumps(asdict(row)) + "\n" for row in rows]
    (folder / record.hypotheses_file).write_text("".join(lines))
    return folder


def test_the_difference_is_that_of_the_error_counts(tmp_path: Path) -> None:
    """1 and 3 errors in 10 words, clips in another order; the interval over all 4^4 draws."""
    good = stored(tmp_path / "good", "quarot", ["red green", *SPOKEN[1:]])
    poor = stored(tmp_path / "poor", "rtn", POOR, order=(2, 0, 3, 1))
    found = compare(read_run(good), read_run(poor), resamples=20_000)
    assert (found.wer, found.against_wer, found.utterances) == (10, 30, 4)
    assert found.difference == pytest.approx(-20)
    changes, words = np.array([0, -1, -1, 0]), np.array([3, 1, 2, 4])
    draws = np.array(list(product(range(4), repeat=4)))
    rates = 100 * changes[draws].sum(1) / words[draws].sum(1)
    low, high = np.quantile(rates, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=2)


def test_the_command_prints_and_writes_every_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [stored(tmp_path / name, name, SPOKEN) for name in ("awq", "quik")]
    poor = stored(tmp_path / "poor", "rtn", POOR)
    table = tmp_path / "new" / "table.csv"
    assert main([*map(str, runs), "--against", str(poor), "--out", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "moonshine-micro awq W2" in printed
    assert "-30.0 [" in printed
    frame = pd.read_csv(table)
    assert list(frame["run_id"]) == ["awq", "quik"]
    assert set(frame["difference"]) == {-30.0}
    assert set(frame["protocol"]) == {"open_asr_2024"}


def test_a_label_tells_runs_apart(tmp_path: Path) -> None:
    activation = asdict(ActivationGrid(8))
    settings = {"bits": 4, "group_size": 32, "symmetric": True, "activation": activation}
    folder = stored(tmp_path / "old", "awq", SPOKEN, **settings)
    assert read_run(folder).label == "moonshine-micro awq W4 g32 sym A8"
    # A record that has its scheme in words shows those.
    folder = stored(tmp_path / "new", "awq", SPOKEN, scheme="W4 g32 sym A8, encoder W8", bits=5.3)
    assert read_run(folder).label == "moonshine-micro awq W4 g32 sym A8, encoder W8"
    assert read_run(stored(tmp_path / "float", "float", SPOKEN)).label == "moonshine-micro float"


def test_runs_that_cannot_be_compared_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = stored(tmp_path / "whole", "rtn", SPOKEN)
    fewer = stored(tmp_path / "fewer", "awq", SPOKEN, order=(0, 1))
    stale = stored(tmp_path / "stale", "awq", SPOKEN)
    (hypotheses,) = stale.glob("*.jsonl")
    hypotheses.write_text(hypotheses.read_text().replace('"pred_text": "horse"', '"pred_text": ""'))
    numeric = stored(tmp_path / "numeric", "awq", SPOKEN)
    rows = (numeric / hypotheses.name).read_text()
    (numeric / hypotheses.name).write_text(rows.replace('"text": "horse"', '"text": 3'))
    bare = stored(tmp_path / "bare", "awq", SPOKEN)
    (bare / hypotheses.name).unlink()
    for folder, named in (
        (fewer, "same clips"),
        (stale, "rerun=true"),
        (numeric, f"{hypotheses.name}, line 2: text=3: "),
        (bare, "rerun=true"),
        (tmp_path / "no", "is no folder of a run"),
    ):
        assert main([str(folder), "--against", str(whole)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert named in line
    assert main([str(whole), "--against", str(whole), "--out", str(tmp_path)]) == 2
    assert f"--out={tmp_path}" in capsys.readouterr().err


def test_protocols_are_not_mixed(tmp_path: Path) -> None:
    run = read_run(stored(tmp_path, "rtn", SPOKEN))
    other = replace(run, result=replace(run.result, protocol="another"))
    with pytest.raises(UserError, match=r"^protocol: .* another; .* protocol="):
        compare(run, other)
