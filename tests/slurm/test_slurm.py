"""Sweeps on a Slurm cluster: job arrays, requeued tasks, time limits.

`scripts/slurm_local.sh up` starts one on this machine. Minutes, most of which is waiting.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from tiny import tiny_whisper, tone

pytestmark = pytest.mark.slurm

LOCAL = Path("/var/lib/slurm_local/slurm.conf")
PATIENCE = 600  # seconds
# Of a task that waits in the queue, this has Slurm start it at once rather than in two minutes.
NOW = "StartTime=now"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> None:
    """Skips where there is no cluster."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    if "SLURM_CONF" not in os.environ and LOCAL.exists():
        os.environ["SLURM_CONF"] = str(LOCAL)
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no Slurm here; scripts/slurm_local.sh up starts one")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("parts")
    rows = []
    for index in range(8):
        soundfile.write(folder / f"{index}.wav", tone(0.5 + index / 10), 16_000)
        rows.append({"audio": f"{index}.wav", "text": "she sells sea shells"})
    clips = folder / "clips.jsonl"
    clips.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "model=custom", f"model.path={tiny_whisper(folder / 'model')}", "data=manifest",
        f"data.path={clips}", "calibration=manifest", f"calibration.path={clips}",
        "calibration.allow_overlap=true", "calibration.clips=4", "protocol.resamples=100",
        "threads=1", "hydra/launcher=slurm", "hydra.launcher.mem_gb=2",
    ]  # fmt: skip


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edge_asr.run", "-m", *words],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said


def wait_until(reached: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def job_of(results: Path) -> str:
    """The job array of the only sweep."""
    (folder, *_) = results.glob("sweeps/*/slurm/*_*")
    return folder.name.partition("_")[0]


def tasks(job: str) -> list[tuple[str, str, str]]:
    """Task, node and state of everything that a job array was, what was requeued too."""
    columns = ["sacct", "-n", "-P", "-X", "-D", "-j", job, "-o", "JobID,NodeList,State"]
    said = subprocess.run(columns, capture_output=True, text=True, check=True).stdout
    shown = subprocess.run(
        ["sacct", "-X", "-D", "-j", job, "-o", "JobID%10,JobName,NodeList,State,ExitCode,Elapsed"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    print(shown)
    return [(one, node, state) for one, node, state in (row.split("|") for row in said.split())]


def settled(job: str) -> list[tuple[str, str, str]]:
    """The same once accounting knows the end of every task."""
    deadline = time.monotonic() + 60
    while any(state in ("RUNNING", "PENDING") for *_, state in tasks(job)):
        assert time.monotonic() < deadline
        time.sleep(1)
    return tasks(job)


def blocks(store: Path) -> dict[str, int]:
    """Finished blocks of the model that is being quantized, and when each was written."""
    found = store.glob("unfinished/quantize-*/block-*.json")
    return {path.name: path.stat().st_mtime_ns for path in found if path.exists()}


def test_a_sweep_is_a_job_array_on_several_nodes(words: list[str], tmp_path: Path) -> None:
    results = tmp_path / "runs"
    own = ["method=rtn,gptq", "bits=4,3", f"results={results}"]
    # A node each: as many processors as a node has.
    said = finish(start(*words, *own, f"hydra.launcher.cpus_per_task={os.cpu_count()}"))
    assert said.splitlines()[0].startswith("4 runs, 4 new")
    assert sum(" of 4: model " in line for line in said.splitlines()) == 4
    ended = settled(job_of(results))
    assert [state for *_, state in ended] == ["COMPLETED"] * 4
    assert len({node for _, node, _ in ended}) >= 2
    assert len(list(results.rglob("record.json"))) == 5
    assert finish(start(*words, *own)).startswith("4 runs, 0 new"), "nothing is queued again"


@pytest.mark.parametrize("ended_by", ["requeue", "time limit"])
def test_a_task_that_is_put_back_goes_on_where_it_was(
    ended_by: str, words: list[str], tmp_path: Path
) -> None:
    results, store = tmp_path / "runs", tmp_path / ".edge_asr"
    own = ["method=autoround", "bits=2", "method.rounding.iterations=2500", f"results={results}"]
    if ended_by == "time limit":
        # Of a minute: the signal comes some time in it.
        own += ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=20"]
    process = start(*words, *own)
    wait_until(lambda: blocks(store), process)
    job = job_of(results)
    kept: dict[str, int] = {}
    if ended_by == "requeue":
        kept = blocks(store)
        subprocess.run(["scontrol", "requeue", f"{job}_0"], check=True)

    def is_back() -> bool:
        subprocess.run(["scontrol", "update", f"JobId={job}_0", NOW], capture_output=True)
        return any("REQUEUED" in state for *_, state in tasks(job))

    wait_until(is_back, process)
    for name, written in (kept or blocks(store)).items():
        assert blocks(store).get(name, written) == written, "a finished block is made again"
    while process.poll() is None:
        is_back()  # a time limit may be met more than once
        time.sleep(2)
    said = finish(process)
    assert "1 of 1: model autoround W2: WER " in said
    states = [state for *_, state in settled(job)]
    assert "REQUEUED" in states
    assert states[-1] == "COMPLETED"
    (record,) = results.rglob("autoround*/record.json")
    assert len(json.loads(record.read_text())["method"]["blocks"]) >= 4
    assert not list(store.glob("unfinished/*"))
