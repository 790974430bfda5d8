from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from edge_asr.report.__main__ import main
from edge_asr.store.record import Record, write_record

RecordMaker = Callable[..., Record]


def test_the_command_writes_and_prints_the_tables(make_record: RecordMaker, tmp_path: Path) -> None:
    for record in (make_record("float", 32, 20.0), make_record()):
        write_record(tmp_path / "runs" / record.run_id, record)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "edge_asr.report", "--results", tmp_path, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "26.8 [25.1, 28.6]" in done.stdout
    (table,) = out.glob("leaderboard_open_asr_2024_speech_100_*.csv")
    assert pd.read_csv(table)["method"].tolist() == ["float", "rtn"]
    assert "rtn" in table.with_suffix(".md").read_text()
    results = pd.read_parquet(out / "results.parquet")
    assert results["wer"].tolist() == [20.0, 26.8]
    assert results["difference_low"].tolist()[1] == pytest.approx(5.3)
    layers = pd.read_parquet(out / "layers.parquet")
    assert layers[["method", "name", "effective_bits"]].to_numpy().tolist() == [
        ["rtn", "head", 4.5]
    ]


def test_making_the_tables_again_changes_nothing(make_record: RecordMaker, tmp_path: Path) -> None:
    write_record(tmp_path / "a", make_record())
    contents = []
    for _ in range(2):
        assert main(["--results", str(tmp_path)]) == 0
        contents.append({p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()})
    assert len(contents[0]) == 5
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("name", "message"), [("absent", "is not a folder"), ("", "holds no record.json")]
)
def test_nothing_to_report_is_one_line(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--results", str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_unwritable_folder_is_one_line(
    make_record: RecordMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "a", make_record())
    out = tmp_path / "file"
    out.touch()
    assert main(["--results", str(tmp_path), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert f"out: {out} cannot be written to" in captured.err
    assert captured.err.count("\n") == 1


def test_a_broken_record_costs_a_line_and_the_exit_code(
    make_record: RecordMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "a", make_record())
    broken = tmp_path / "b" / "record.json"
    broken.parent.mkdir()
    broken.write_text("{}")
    assert main(["--results", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "26.8 [25.1, 28.6]" in captured.out
    assert captured.err.count("\n") == 1
    assert f"passed over: {broken}: schema_version: None" in captured.err
    assert len(list(tmp_path.glob("leaderboard*"))) == 2


def test_runs_can_be_chosen(
    make_record: RecordMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = dataclasses.replace(make_record().model, name="small")
    for record in (make_record("float", 32), make_record(), make_record("awq", model=small)):
        write_record(tmp_path / "runs" / record.run_id, record)
    chosen = ["--model", "whisper-micro", "--method", "rtn", "--method", "awq"]
    assert main(["--results", str(tmp_path), *chosen]) == 0
    (table,) = tmp_path.glob("*.csv")
    assert pd.read_csv(table)["method"].tolist() == ["float", "rtn"]
    capsys.readouterr()
    assert main(["--results", str(tmp_path), "--method", "rtm"]) == 2
    assert "--method=rtm: no run has it; did you mean rtn?" in capsys.readouterr().err


def test_help_has_a_sentence_for_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "Folder searched" in shown
    assert "Folder that receives" in shown
