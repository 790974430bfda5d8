from __future__ import annotations

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
    names = ["leaderboard_open_asr_2024.csv", "leaderboard_open_asr_2024.md"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert pd.read_csv(out / names[0])["method"].tolist() == ["float", "rtn"]
    assert "rtn" in (out / names[1]).read_text()


def test_making_the_tables_again_changes_nothing(make_record: RecordMaker, tmp_path: Path) -> None:
    write_record(tmp_path / "a", make_record())
    contents = []
    for _ in range(2):
        assert main(["--results", str(tmp_path)]) == 0
        contents.append({p.name: p.read_bytes() for p in tmp_path.glob("leaderboard*")})
    assert len(contents[0]) == 2
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


def test_a_broken_record_is_not_passed_over(
    make_record: RecordMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "a", make_record())
    broken = tmp_path / "b" / "record.json"
    broken.parent.mkdir()
    broken.write_text("{}")
    assert main(["--results", str(tmp_path)]) == 2
    assert str(broken) in capsys.readouterr().err
    assert not list(tmp_path.glob("leaderboard*"))


def test_help_has_a_sentence_for_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "Folder searched" in shown
    assert "Folder that receives" in shown
