"""Processes of their own, and what they print."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from bench_common import draw, measured_alone, run, subject_of, write_measurements

from edge_asr.errors import UserError
from edge_asr.models.loading import Checkpoint


def test_the_last_line_is_the_measurement() -> None:
    script = "print('words before'); print('{\"seconds\": 2.5}')"
    assert measured_alone([sys.executable, "-c", script]) == {"seconds": 2.5}


def test_a_failing_process_is_named() -> None:
    with pytest.raises(UserError, match=r"exit code 3 of .* sys\.exit\(3\)"):
        measured_alone([sys.executable, "-c", "import sys; sys.exit(3)"])


@dataclass(frozen=True)
class Numbers:
    seconds: float
    names: tuple[str, ...]


def test_measurements_are_plain_json(tmp_path: Path) -> None:
    write_measurements(tmp_path / "new" / "made.json", Numbers(float("nan"), ("a",)))
    made = json.loads((tmp_path / "new" / "made.json").read_text())
    assert made == {"seconds": None, "names": ["a"]}


def refused(action: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        run(argparse.ArgumentParser(prog="bench"), action)
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().err


def test_mistakes_and_interruptions_end_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def mistake() -> None:
        raise UserError("--x=1: give 2")

    def interruption() -> None:
        raise KeyboardInterrupt

    code, said = refused(mistake, capsys)
    assert code == 2
    assert said.splitlines()[-1] == "bench: error: --x=1: give 2"
    code, said = refused(interruption, capsys)
    assert code == 130
    assert said.startswith("interrupted")


def test_clips_that_cannot_be_had_are_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    missing = argparse.Namespace(manifest=tmp_path / "none.jsonl", threads=1, where=["speaker"])
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        subject_of(missing, checkpoint.files)
    with pytest.raises(UserError, match="--where speaker: give FIELD=VALUE"):
        draw(missing, checkpoint)
