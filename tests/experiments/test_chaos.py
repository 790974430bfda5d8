"""kill -9 of the workers of a sweep, at any moment: its table is that of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from options import composed
from tiny import tiny_whisper, write_tones

from edge_asr.experiments.ptq import run_experiment

TIMEOUT = 600


@pytest.fixture(scope="module", autouse=True)
def launcher() -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("parts")
    clips = write_tones(folder, 12, 1 / 40, "she sells sea shells")
    return [
        "model=custom", f"model.path={tiny_whisper(folder / 'model')}", "data=manifest",
        f"data.path={clips}", "calibration=manifest", f"calibration.path={clips}",
        "calibration.allow_overlap=true", "calibration.clips=8", "protocol.resamples=100",
        "batch_size=1", "threads=1",
    ]  # fmt: skip


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "edge_asr.run", "-m", *words, f"results={folder / 'runs'}",
            "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Processes of joblib that make runs."""
    found = []
    for line in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        command = Path(f"/proc/{line}/cmdline")
        if command.exists() and b"loky.backend.popen_loky" in command.read_bytes():
            found.append(int(line))
    return found


def kill_one(process: subprocess.Popen[str], chance: random.Random) -> bool:
    alive = workers(process)
    if alive:
        os.kill(chance.choice(alive), signal.SIGKILL)
    return bool(alive)


def finished_steps(store: Path) -> dict[str, int]:
    """Artefacts and blocks that are done, and when each was written."""
    found = [*store.glob("*/*/artefact.json"), *store.glob("unfinished/*/block-*.json")]
    made = {}
    for path in found:
        if path.exists():  # blocks go when the model is published
            content = json.loads(path.read_text()).get("created") or path.stat().st_mtime_ns
            made[str(path)] = content
    return made


def table(folder: Path) -> dict[str, Any]:
    """Every record but for times."""
    rows = {}
    for path in (folder / "runs").rglob("record.json"):
        record = json.loads(path.read_text())
        rows[record["run_id"]] = [record["results"], record["cost"], record["keys"]]
    return rows


def check(disturbed: Path, undisturbed: Path, runs: int) -> None:
    assert len(table(disturbed)) == runs
    assert table(disturbed) == table(undisturbed)
    store = disturbed / ".edge_asr"
    assert not list(store.glob("unfinished/*"))
    assert not list(disturbed.rglob("error.json"))
    for path in store.glob("locks/*.lock"):
        FileLock(path).acquire(timeout=0)  # raises where it is held


def test_a_sweep_survives_a_worker_that_is_killed(words: list[str], tmp_path: Path) -> None:
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    own = ["method=autoround", "method.rounding.iterations=60"]
    process = start([*words, *own, "bits=3,2"], disturbed)
    deadline = time.monotonic() + TIMEOUT
    while len(done := finished_steps(disturbed / ".edge_asr")) < 3:  # in the middle of blocks
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert kill_one(process, random.Random(0))
    said, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, said
    assert said.count("WER ") >= 2
    for path, made in finished_steps(disturbed / ".edge_asr").items():
        assert done.get(path, made) == made, "a finished step is made again"
    for bits in (3, 2):
        folder = f"results={undisturbed / 'runs'}"
        run_experiment(composed(*words, *own, f"bits={bits}", folder))
    check(disturbed, undisturbed, runs=3)


@pytest.mark.chaos
def test_ten_kills_at_random_moments(words: list[str], tmp_path: Path) -> None:
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    own = ["method=rtn,gptq,autoround,tesseraq", "bits=4,3,2"]
    chance, kills, launches = random.Random(23), 0, 0
    store, kept = disturbed / ".edge_asr", dict[str, int]()
    while True:
        process = start([*words, *own], disturbed)
        launches += 1
        while process.poll() is None and kills < 10:
            time.sleep(chance.uniform(3, 25))
            before = finished_steps(store)
            for path, made in kept.items():
                assert before.get(path, made) == made, "a finished step is made again"
            kept = before
            kills += kill_one(process, chance)
        said, _ = process.communicate(timeout=TIMEOUT)
        if process.returncode == 0:
            break
        assert process.returncode == 1, said
        assert launches < 10, said
    plain = start([*words, *own], undisturbed)
    said, _ = plain.communicate(timeout=TIMEOUT)
    assert plain.returncode == 0, said
    print(f"{kills} kills, {launches} launches")
    assert kills == 10, "the sweep ended too soon"
    check(disturbed, undisturbed, runs=13)
