"""SIGKILL at any moment: the same command goes on, and ends in the same record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from tiny import tiny_whisper, tone

TIMEOUT = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("model") / "whisper")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for index in range(24):
        soundfile.write(folder / f"{index}.wav", tone(0.5 + index / 40), 16_000)
        text = "she sells sea shells"
        rows.append({"audio": f"{index}.wav", "text": text, "set": "ab"[index % 2]})
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(model: Path, manifest: Path, folder: Path) -> list[str]:
    """A learned method, slow enough to be caught in every step, and two data sets."""
    return [
        sys.executable, "-m", "edge_asr.run",
        "model=custom", f"model.path={model}", "data=manifest", f"data.path={manifest}",
        "data.split_by=set",
        "calibration=manifest", "calibration.allow_overlap=true",
        f"calibration.path={manifest}", "calibration.clips=8",
        "method=autoround", "bits=2", "method.rounding.iterations=120",
        f"results={folder / 'runs'}", "protocol.resamples=100", "batch_size=1", "threads=1",
    ]  # fmt: skip


def start(model: Path, manifest: Path, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(model, manifest, folder),
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not reached():
        assert process.poll() is None, (process.communicate()[1] or b"").decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def finish(process: subprocess.Popen[bytes]) -> None:
    _, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, error.decode()


def without_times(folder: Path) -> dict[str, Any]:
    """The record of the quantized run, and what was heard, but for seconds and memory."""
    (path,) = (folder / "runs").rglob("autoround*/record.json")
    record: dict[str, Any] = json.loads(path.read_text())
    for name in ("created", "stages"):
        del record[name]
    for block in record["method"]["blocks"]:
        del block["seconds"], block["phases"]
    for data in record["data"]:
        del data["seconds"]
    transcribed = {
        manifest.name: [
            {**json.loads(line), "time": None} for line in manifest.read_text().splitlines()
        ]
        for manifest in path.parent.glob("MODEL_*.jsonl")
    }
    assert len(transcribed) == 2
    return {"record": record, "heard": transcribed}


def heard_lines(store: Path) -> int:
    files = store.glob("unfinished/transcribe-*/heard.jsonl")
    return sum(file.read_text().count("\n") for file in files)


def blocks(store: Path) -> int:
    return len(list(store.glob("unfinished/quantize-*/block-*.json")))


def made(store: Path, step: str) -> int:
    return len(list(store.glob(f"{step}/*/artefact.json")))


def test_a_run_that_is_killed_in_every_step_ends_in_the_same_record(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    store = disturbed / ".edge_asr"
    moments: list[Callable[[], bool]] = [
        lambda: heard_lines(store) >= 3,  # the float model transcribes
        lambda: made(store, "calibrate") == 1,  # quantizing begins
        lambda: blocks(store) >= 2,  # a block is done; then in the middle of the next
        lambda: made(store, "quantize") == 1,  # the quantized model is published
        # Both data sets are transcribed by one model, one by the other.
        lambda: made(store, "transcribe") == 3 and heard_lines(store) >= 3,
    ]
    kept: dict[Path, int] = {}
    for moment in moments:
        process = start(model, manifest, disturbed)
        wait_until(moment, process)
        if blocks(store):
            time.sleep(0.1)  # into the training of the block that comes next
        kill(process)
        for path, changed in kept.items():
            assert not path.exists() or path.stat().st_mtime_ns == changed, "made again"
        files = store.glob("unfinished/quantize-*/block-*.json")
        kept |= {path: path.stat().st_mtime_ns for path in files}
    assert len(kept) >= 2
    finish(start(model, manifest, disturbed))
    finish(start(model, manifest, undisturbed))
    assert without_times(disturbed) == without_times(undisturbed)
    assert not list(store.glob("unfinished/*"))


def test_of_two_on_one_store_the_other_finishes_when_one_is_killed(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    store = tmp_path / ".edge_asr"
    first = start(model, manifest, tmp_path)
    wait_until(lambda: blocks(store) >= 1, first)
    second = start(model, manifest, tmp_path)
    time.sleep(1)
    kill(first)
    finish(second)
    assert without_times(tmp_path)["record"]["results"]
