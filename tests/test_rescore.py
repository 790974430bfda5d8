"""Stored and published hypotheses, scored without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from edge_asr.evaluation.hypotheses import Hypothesis, write_hypotheses
from edge_asr.rescore import main

NAME = "MODEL_openai-whisper-tiny.en_DATASET_hf-audio-esb_ami_test.jsonl"


def manifest(folder: Path) -> Path:
    """As the leaderboard publishes them."""
    rows = [
        {"audio_filepath": f"{n}", "duration": 3.0 + n, "time": 0.1, "text": text, "pred_text": out}
        for n, (text, out) in enumerate(
            [("the data base grew", "the database grew"), ("um", "bye"), ("Joel Keaton", "Jo")]
        )
    ]
    path = folder / NAME
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_a_published_manifest_by_two_protocols(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = manifest(tmp_path), tmp_path / "rows.csv"
    found = {}
    for protocol in ("open_asr_2024", "open_asr_2026"):
        words = [str(path), "--protocol", protocol, "--out", str(out), "--worst", "2"]
        assert main(words) == 0
        printed = capsys.readouterr().out
        assert "hf-audio-esb_ami_test" in printed
        assert "1 invented" in printed
        assert "joel keaton" in printed
        frame = pd.read_csv(out)
        found[protocol] = frame["wer"][0]
        assert list(frame["condition"]) == ["all", "0-5 s", "5-10 s"]
    assert found["open_asr_2024"] == pytest.approx(100 * 4 / 6)
    assert found["open_asr_2026"] == pytest.approx(100 * 2 / 6)


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(tmp_path)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    silent = tmp_path / "silent.jsonl"
    write_hypotheses(silent, [Hypothesis("a.wav", "", "x")])
    for words, said in (
        ([str(tmp_path / "no")], "no folder of a run and no manifest"),
        ([str(tmp_path)], "record.json"),
        ([str(empty)], "holds no hypotheses"),
        ([str(silent)], "none of 1 has a word left"),
        ([str(path), "--protocol", "esb"], "protocol=esb"),
        ([str(path), "--out", str(tmp_path)], f"--out={tmp_path}"),
    ):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line


def test_no_model_is_loaded(tmp_path: Path) -> None:
    """Torch takes seconds to import."""
    code = (
        "import sys; from edge_asr.rescore import main; main([sys.argv[1]]); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(manifest(tmp_path))], check=True)
