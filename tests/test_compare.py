"""Two finished runs against one another, from their folders or manifests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from edge_asr.compare import adjusted, compare, label_of, main
from edge_asr.config import ProtocolSettings
from edge_asr.evaluation.hypotheses import Hypothesis, Transcription
from edge_asr.evaluation.protocols import protocol_named
from edge_asr.evaluation.scoring import average_of, results_of, score_data_set
from edge_asr.evaluation.stored import read_stored
from edge_asr.experiments.files import write_manifest
from edge_asr.quant.formats import ActivationGrid
from edge_asr.store.record import SCHEMA_VERSION, DataSection, read_record, write_record

RESULTS = Path(__file__).resolve().parent.parent / "results" / "embedded"
SPOKEN = ("red green blue", "horse", "cold rain", "bread milk eggs cheese")
POOR = ("red green", "house", "cold", SPOKEN[3])
OPEN = protocol_named("open_asr_2024")


def rows_of(transcribed: Sequence[str], order: Sequence[int]) -> tuple[Hypothesis, ...]:
    return tuple(
        Hypothesis(f"{index}.wav", SPOKEN[index], transcribed[index], 1.0, 0.1, str(index), 16_000)
        for index in order
    )


def stored(
    folder: Path,
    method: str,
    transcribed: Sequence[str],
    order: Sequence[int] = range(4),
    protocol: str = "open_asr_2024",
    more: Mapping[str, Sequence[str]] | None = None,
    **changes: object,
) -> Path:
    """A run's folder: a record of this code made over for other hypotheses; `more` are those of
    further data sets."""
    record = read_record(next(iter(sorted(RESULTS.glob("moonshine-micro/gptq-w2-*/record.json")))))
    settings = ProtocolSettings(protocol, resamples=100)
    scored = [
        score_data_set(protocol_named(protocol), name, Transcription(rows_of(texts, order)), None)
        for name, texts in {"speech": transcribed, **(more or {})}.items()
    ]
    files = {one.name: f"MODEL_x_DATASET_{one.name}.jsonl" for one in scored}
    section = replace(record.method, name=method, **changes)  # type: ignore[arg-type]
    write_record(
        folder,
        replace(
            record,
            method=section,
            results=tuple(row for one in scored for row in results_of(settings, one)),
            averages=(average_of(settings, scored),),
            run_id=method,
            hypotheses_file=None,
            data=tuple(DataSection(name, 4, "", {}, file) for name, file in files.items()),
            schema_version=SCHEMA_VERSION,
        ),
    )
    for one in scored:
        write_manifest(folder / files[one.name], one)
    return folder


def test_the_difference_is_that_of_the_error_counts(tmp_path: Path) -> None:
    """1 and 3 errors in 10 words, clips in another order; the interval over all 4^4 draws."""
    good = stored(tmp_path / "good", "quarot", ["red green", *SPOKEN[1:]])
    poor = stored(tmp_path / "poor", "rtn", POOR, order=(2, 0, 3, 1))
    (found,) = compare(read_stored(good), read_stored(poor), OPEN, resamples=20_000)
    assert (found.wer, found.against_wer, found.utterances) == (10, 30, 4)
    assert found.difference == pytest.approx(-20)
    changes, words = np.array([0, -1, -1, 0]), np.array([3, 1, 2, 4])
    draws = np.array(list(product(range(4), repeat=4)))
    rates = 100 * changes[draws].sum(1) / words[draws].sum(1)
    assert rates.min() <= found.low < found.difference < found.high <= rates.max()
    # Of the clips that one alone has right, both are the better run's.
    assert found.mcnemar == binomtest(0, 2).pvalue


def test_several_data_sets_have_a_row_each_and_one_of_their_mean(tmp_path: Path) -> None:
    good = read_stored(stored(tmp_path / "good", "awq", SPOKEN, more={"calls": SPOKEN}))
    poor = read_stored(stored(tmp_path / "poor", "rtn", SPOKEN, more={"calls": POOR}))
    speech, calls, mean = compare(poor, good, OPEN)
    assert [row.dataset for row in (speech, calls, mean)] == ["speech", "calls", "mean"]
    assert (speech.difference, calls.difference, mean.difference) == (0, 30, 15)
    assert (speech.mapsswe, mean.utterances) == (1, 8)
    first, second, third = adjusted([speech, calls, mean])
    assert first.mapsswe_holm == 1
    assert min(second.mapsswe_holm, third.mapsswe_holm) == pytest.approx(
        3 * min(calls.mapsswe, mean.mapsswe)
    )


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
    # The last run is the one to compare with.
    assert main([*map(str, runs), str(poor), "--out", str(table)]) == 0
    assert set(pd.read_csv(table)["difference"]) == {-30.0}


def test_manifests_compare_with_runs(tmp_path: Path) -> None:
    """As the leaderboard publishes them: other names of the data set, normalized references."""
    run = stored(tmp_path / "run", "rtn", POOR)
    (ours,) = run.glob("*.jsonl")
    theirs = tmp_path / "MODEL_a-b_DATASET_esb_speech_test.jsonl"
    text = ours.read_text().replace('"samples": 16000, ', "").replace("house", "horse")
    theirs.write_text(text.replace('"text": "cold rain"', '"text": "Cold rain!"'))
    table = tmp_path / "table.csv"
    assert main([str(run), str(theirs), "--out", str(table)]) == 0
    frame = pd.read_csv(table)
    assert frame["difference"][0] == pytest.approx(10)
    assert frame["against"][0] == theirs.stem


def test_a_label_tells_runs_apart(tmp_path: Path) -> None:
    def label(folder: Path) -> str:
        return label_of(read_stored(folder))

    activation = asdict(ActivationGrid(8))
    settings = {"bits": 4, "group_size": 32, "symmetric": True, "activation": activation}
    folder = stored(tmp_path / "old", "awq", SPOKEN, **settings)  # type: ignore[arg-type]
    assert label(folder) == "moonshine-micro awq W4 g32 sym A8"
    # A record that has its scheme in words shows those.
    folder = stored(tmp_path / "new", "awq", SPOKEN, scheme="W4 g32 sym A8, encoder W8", bits=5.3)
    assert label(folder) == "moonshine-micro awq W4 g32 sym A8, encoder W8"
    assert label(stored(tmp_path / "float", "float", SPOKEN)) == "moonshine-micro float"


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
    two = stored(tmp_path / "two", "awq", SPOKEN, more={"calls": SPOKEN})
    other = stored(tmp_path / "other", "awq", SPOKEN, protocol="plain")
    for folder, named in (
        (fewer, "same clips"),
        (stale, "rerun=true"),
        (numeric, f"{hypotheses.name}, line 2: text=3: "),
        (bare, "rerun=true"),
        (two, "of other data sets: speech, calls, and speech"),
        (other, "two protocols do not compare; score all by one, --protocol NAME"),
        (tmp_path / "no", "is no folder of a run"),
    ):
        assert main([str(folder), "--against", str(whole)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert named in line
    assert main([str(other), str(whole), "--protocol", "open_asr_2026"]) == 0
    capsys.readouterr()
    assert main([str(whole)]) == 2
    assert "give two runs" in capsys.readouterr().err
    assert main([str(whole), "--against", str(whole), "--out", str(tmp_path)]) == 2
    assert f"--out={tmp_path}" in capsys.readouterr().err
