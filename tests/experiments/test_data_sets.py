"""Several data sets in one run, and clips that must not be calibrated on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
from options import composed
from tiny import tiny_whisper, tone

from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import read_hypotheses
from edge_asr.experiments.ptq import run_experiment


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("model") / "whisper")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two sets of two clips, and a silent one without words."""
    rows = [
        {"audio": f"{n}.wav", "text": "" if n == 4 else f"clip number {n}", "set": "ab"[n % 2]}
        for n in range(5)
    ]
    for n, row in enumerate(rows):
        soundfile.write(tmp_path / row["audio"], tone(0.4 + n / 10, 100.0 * n), 16_000)
    path = tmp_path / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(model: Path, manifest: Path, *more: str) -> list[str]:
    return [
        "model=custom", f"model.path={model}", "data=manifest", f"data.path={manifest}",
        "data.split_by=set", f"results={manifest.parent / 'runs'}", "protocol.resamples=100",
        "method=rtn", "bits=3", *more,
    ]  # fmt: skip


def test_every_data_set_has_its_results_and_hypotheses(model: Path, manifest: Path) -> None:
    outcome = run_experiment(composed(*options(model, manifest)))
    record = outcome.record
    first, second = (one.name for one in record.data)
    assert (first[-2:], second[-2:]) == ("-a", "-b")
    whole = [row for row in record.results if row.condition == "all"]
    assert [(row.dataset, row.utterances, row.dropped) for row in whole] == [
        (first, 3, 1),
        (second, 2, 0),
    ]
    (average,) = record.averages
    assert average.interval.estimate == pytest.approx(sum(row.wer or 0 for row in whole) / 2)
    assert average.difference is not None
    assert average.complete is False
    assert [stage.name for stage in record.stages].count("quantize") == 1
    for name, file in record.hypotheses_files.items():
        rows = read_hypotheses(outcome.folder / file)
        assert len(rows) == next(row.utterances for row in whole if row.dataset == name)
        # What does not count lies in no file that the leaderboard's tools read.
        assert all(json.loads(line)["text"] for line in (outcome.folder / file).open())
    alignments = json.loads((outcome.folder / "alignments.json").read_text())
    assert {name: len(clips) for name, clips in alignments.items()} == {first: 2, second: 2}
    assert run_experiment(composed(*options(model, manifest))).stored


def test_a_copy_of_an_evaluated_clip_is_refused_as_calibration(model: Path, manifest: Path) -> None:
    """In another format, under another name."""
    samples, rate = soundfile.read(manifest.parent / "3.wav")
    soundfile.write(manifest.parent / "copy.flac", samples, rate)
    other = manifest.parent / "calibration.jsonl"
    other.write_text(json.dumps({"audio": "copy.flac", "text": "three"}) + "\n")
    words = options(model, manifest, "method=gptq", "calibration=manifest")
    words += [f"calibration.path={other}"]
    with pytest.raises(UserError, match=r"1 clips are transcribed too.*allow_overlap=true"):
        run_experiment(composed(*words))
    outcome = run_experiment(composed(*words, "calibration.allow_overlap=true"))
    assert any("allow_overlap" in warning for warning in outcome.record.warnings)
