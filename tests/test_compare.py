"""Two finished runs against one another, from their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from edge_asr.compare import compare, main, read_run
from edge_asr.experiment import HYPOTHESES_NAME
from edge_asr.record import read_record, write_record
from edge_asr.transcribe import Hypothesis

RESULTS = Path(__file__).resolve().parent.parent / "results"
SPOKEN = ("red green blue", "horse", "cold rain", "bread milk eggs cheese")


def stored(folder: Path, method: str, heard: Sequence[str]) -> Path:
    """A run's folder: a record of this code with other hypotheses, in another order."""
    source = next(iter(sorted(RESULTS.glob("*/gptq-w2-*/record.json"))))
    record = read_record(source)
    write_record(folder, replace(record, method=replace(record.method, name=method)))
    rows = [
        Hypothesis(
            id=str(index), audio_filepath=f"{index}.wav", duration=1.0, time=0.1, text=text,
            pred_text=guess, samples=16_000, generated_tokens=3, hit_limit=False, truncated=False,
        )
        for index, (text, guess) in enumerate(zip(SPOKEN, heard, strict=True))
    ]  # fmt: skip
    lines = [json.dumps(asdict(row)) + "\n" for row in reversed(rows)]
    (folder / HYPOTHESES_NAME).write_text("".join(lines))
    return folder


def test_the_difference_is_that_of_the_error_counts(tmp_path: Path) -> None:
    """By hand: 1 and 3 errors in 10 words; the interval by all draws of a plain bootstrap."""
    good = stored(tmp_path / "good", "quarot", ["red green", *SPOKEN[1:]])
    poor = stored(tmp_path / "poor", "rtn", ["red green", "house", "cold", SPOKEN[3]])
    found = compare(read_run(good), read_run(poor))
    assert (found.wer, found.against_wer) == (10, 30)
    assert found.difference.estimate == pytest.approx(-20)
    changes, words = np.array([0, -1, -1, 0]), np.array([3, 1, 2, 4])
    draws = np.random.default_rng(1).integers(0, 4, (20_000, 4))
    rates = 100 * changes[draws].sum(1) / words[draws].sum(1)
    expected = np.quantile(rates, [0.025, 0.975])
    np.testing.assert_allclose([found.difference.low, found.difference.high], expected, atol=3)


def test_the_command_prints_and_writes_every_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [stored(tmp_path / name, name, SPOKEN) for name in ("awq", "quik")]
    poor = stored(tmp_path / "poor", "rtn", ["red green", "house", "cold", SPOKEN[3]])
    table = tmp_path / "new" / "table.csv"
    assert main([*map(str, runs), "--against", str(poor), "--out", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "micro awq W2" in printed
    assert "-30.0 [" in printed
    frame = pd.read_csv(table)
    assert [run.split()[1] for run in frame["run"]] == ["awq", "quik"]
    assert set(frame["difference"]) == {-30.0}


def test_runs_that_cannot_be_compared_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = stored(tmp_path / "whole", "rtn", SPOKEN)
    short = stored(tmp_path / "short", "awq", SPOKEN)
    lines = (short / HYPOTHESES_NAME).read_text().splitlines(keepends=True)
    (short / HYPOTHESES_NAME).write_text("".join(lines[1:]))
    bare = stored(tmp_path / "bare", "awq", SPOKEN)
    (bare / HYPOTHESES_NAME).unlink()
    for folder, named in ((short, "same clips"), (bare, "rerun=true"), (tmp_path / "no", "no/")):
        assert main([str(folder), "--against", str(whole)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert named in line
