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
from tiny import tiny_whisper, write_tones

from edge_asr.store.record import read_record

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
    clips = write_tones(folder, 8, 0.1, "she sells sea shells")
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
    """The job, array or not, of the only sweep."""
    (sweep,) = results.glob("sweeps/*/slurm")
    return next(one.name.partition("_")[0] for one in sweep.iterdir() if one.name[0].isdigit())


def tasks(job: str) -> list[tuple[str, str, str]]:
    """Task, node and state of everything that a job array was, what was requeued too."""
    columns = ["sacct", "-n", "-P", "-X", "-D", "-j", job, "-o", "JobID,NodeList,State"]
    said = subprocess.run(columns, capture_output=True, text=True, check=True).stdout
    shown = subprocess.run(
        ["sacct", "-X", "-D", "-j", job, "-o", "JobID%10,JobName,NodeList,State,ExitCode,Elapsed"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    print(shown)
    rows = [row.split("|") for row in said.splitlines()]
    return [(task, node, state) for task, node, state in rows]


def settled(job: str) -> list[tuple[str, str, str]]:
    """The same once accounting knows the end of every task."""
    deadline = time.monotonic() + 60
    while any(state in ("RUNNING", "PENDING") for *_, state in tasks(job)):
        assert time.monotonic() < deadline
        time.sleep(1)
    return tasks(job)


def written(store: Path, pattern: str) -> dict[str, int]:
    """What a step that is not finished has left to go on from, and when each was written."""
    found = store.glob(f"unfinished/{pattern}")
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


def start_requeued(job: str) -> list[str]:
    """Have a task that waits start at once, not in two minutes; the states that there were."""
    subprocess.run(["scontrol", "update", f"JobId={job}", NOW], capture_output=True)
    return [state for *_, state in tasks(job)]


def test_a_task_that_is_requeued_goes_on_at_the_block_where_it_was(
    words: list[str], tmp_path: Path
) -> None:
    results, store, block = tmp_path / "runs", tmp_path / ".edge_asr", "quantize-*/block-*.json"
    process = start(
        *words, "method=autoround", "bits=2", "method.rounding.iterations=2500",
        f"results={results}", "hydra.launcher.cpus_per_task=1",
    )  # fmt: skip
    wait_until(lambda: written(store, block), process)
    job, kept = job_of(results), written(store, block)
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait_until(lambda: start_requeued(job)[-1] == "RUNNING", process)
    for name, moment in kept.items():
        assert written(store, block)[name] == moment, "a finished block is made again"
    assert "1 of 1: model autoround+rounding.iterations=2500 W2: WER " in finish(process)
    assert [state for *_, state in settled(job)] == ["REQUEUED", "COMPLETED"]
    (record,) = results.rglob("autoround*/record.json")
    assert read_record(record).stages
    assert not list(store.glob("unfinished/*"))


def test_a_task_that_meets_its_time_limit_goes_on_at_the_clip_where_it_was(
    words: list[str], tmp_path: Path
) -> None:
    results, store = tmp_path / "runs", tmp_path / ".edge_asr"
    named = next(word for word in words if word.startswith("data.path="))
    few = Path(named.removeprefix("data.path="))
    rows = [json.loads(line) for line in few.read_text().splitlines()] * 90
    many = few.with_name("many.jsonl")  # some minutes of work
    many.write_text(
        "".join(json.dumps({**row, "id": str(number)}) + "\n" for number, row in enumerate(rows))
    )
    process = start(
        *(word for word in words if word != named), f"data.path={many}",
        "method=rtn", f"results={results}", "batch_size=1", "hydra.launcher.cpus_per_task=1",
        # The signal comes at any time of the minute but the last 20 seconds.
        "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=20",
        "hydra.launcher.max_num_timeout=30",
    )  # fmt: skip
    wait_until(lambda: list(store.glob("unfinished/transcribe-*/heard.jsonl")), process)
    job = job_of(results)
    while process.poll() is None:
        start_requeued(job)
        time.sleep(2)
    assert "1 of 1: model rtn W4: WER " in finish(process)
    states = [state for *_, state in settled(job)]
    assert states[0] == "REQUEUED"
    assert states[-1] == "COMPLETED"
    (record,) = results.rglob("rtn*/record.json")
    assert read_record(record).results[0].utterances == 720
