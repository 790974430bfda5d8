"""Processes of their own, and what they print."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from bench_common import measured_alone, write_measurements

from edge_asr.errors import UserError


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
