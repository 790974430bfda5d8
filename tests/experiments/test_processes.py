"""Several processes make one run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
from options import composed
from tiny import tiny_moonshine, tone

from edge_asr.evaluation.hypotheses import Hypothesis, read_hypotheses
from edge_asr.experiments.ptq import run_experiment
from edge_asr.processes import Processes
from edge_asr.store.artefacts import Store
from edge_asr.store.record import find_records, read_record


def launch(*words: str) -> list[subprocess.Popen[str]]:
    """Two processes, told what torchrun and `accelerate launch` tell them."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "edge_asr.run", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "RANK": rank, "LOCAL_RANK": rank, **told},
        )
        for rank in ("0", "1")
    ]


def test_a_gpu_of_its_own_for_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Processes.of_environment() == Processes(0, 1, 0)
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert Processes.of_environment() == Processes(0, 1, 0), (
        "no launcher has said where the main is"
    )
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    found = Processes.of_environment()
    assert (found, found.is_main) == (Processes(5, 8, 1), False)
    devices = ("cuda", "cuda:0", "cpu")
    assert [found.device(one) for one in devices] == ["cuda:1", "cuda:0", "cpu"]
    assert [Processes().device(one) for one in devices] == list(devices)


def heard(folder: Path) -> dict[str, list[Hypothesis]]:
    """The hypotheses of every record, by its run, without their times."""
    return {
        read_record(path).run_id: [
            replace(one, time=0.0)
            for name in read_record(path).hypotheses_files.values()
            for one in read_hypotheses(path.parent / name)
        ]
        for path in find_records(folder)
    }


def test_two_processes_make_one_run(tmp_path: Path) -> None:
    rows = []
    for index in range(7):
        soundfile.write(tmp_path / f"{index}.wav", tone(0.3 + index / 5), 16_000)
        rows.append({"audio": f"{index}.wav", "text": f"clip {index}"})
    path = tmp_path / "clips.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"audio": "none.wav", "text": "x"}])
    )
    words = [
        "model=custom", f"model.path={tiny_moonshine(tmp_path / 'model')}", "data=manifest",
        f"data.path={path}", "protocol.resamples=100", "method=rtn", "batch_size=2", "device=cpu",
    ]  # fmt: skip
    together, alone = tmp_path / "together", tmp_path / "alone"
    processes = launch(*words, f"results={together / 'runs'}")
    said = [one.communicate(timeout=300) for one in processes]
    assert [one.returncode for one in processes] == [0, 0], said
    assert [out.count("record: ") for out, _ in said] == [1, 0]
    run_experiment(composed(*words, f"results={alone / 'runs'}"))
    assert heard(together / "runs") == heard(alone / "runs")
    steps = [one.step for one in Store(together / ".edge_asr").artefacts()]
    assert sorted(steps) == ["quantize", "transcribe", "transcribe"]
