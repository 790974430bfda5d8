"""Whole runs on small random models: records, resumption, damaged input, and interruption."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from filelock import FileLock
from options import composed
from tiny import tiny_moonshine, tiny_whisper, tone

from edge_asr.errors import UserError
from edge_asr.evaluation.transcribe import read_hypotheses
from edge_asr.experiments.ptq import run_experiment
from edge_asr.experiments.sections import quantized_inventory
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import GridParameters
from edge_asr.quant.layers import ChannelScale, install_layers
from edge_asr.quant.result import LayerResult, Quantization
from edge_asr.quant.weight import FloatWeights, QuantizedWeight
from edge_asr.store.record import ActivationSection, find_records, read_record

BUILDERS = {"whisper": tiny_whisper, "moonshine": tiny_moonshine}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four usable clips of several formats and lengths, and three that are not."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for index, (name, seconds, rate) in enumerate(
        [
            ("a.wav", 0.7, 16_000),
            ("b.flac", 1.3, 44_100),
            ("c.ogg", 0.4, 48_000),
            ("d.wav", 3.0, 8_000),
        ]
    ):
        time_axis = np.arange(int(seconds * rate)) / rate
        stereo = np.stack([np.sin(2 * np.pi * 300 * time_axis)] * 2, 1) * 0.3
        soundfile.write(folder / name, stereo, rate)
        rows.append({"audio": name, "text": f"clip number {index}", "condition": "clean"})
    (folder / "not-audio.wav").write_text("hello")
    soundfile.write(folder / "empty.wav", np.zeros(0), 16_000)
    for name in ("not-audio.wav", "empty.wav", "missing.wav"):
        rows.append({"audio": name, "text": "never heard"})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BUILDERS[request.param](tmp_path_factory.mktemp("model") / request.param)


def options(model: Path, manifest: Path, results: Path, *more: str) -> list[str]:
    return [
        "model=custom", f"model.path={model}", "data=manifest", f"data.path={manifest}",
        "calibration=manifest", f"calibration.path={manifest}", f"results={results}",
        "protocol.resamples=100", "batch_size=2", *more,
    ]  # fmt: skip


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_asr.run", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        check=False,
    )


def test_a_run_writes_records_and_hypotheses_for_float_and_quantized(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    settings = composed(*options(model, manifest, tmp_path, "method=gptq", "bits=3"))
    outcome = run_experiment(settings)
    assert not outcome.stored
    record = outcome.record
    everything, clean = record.results
    assert (everything.condition, clean.condition) == ("all", "clean")
    assert everything.utterances == 4
    assert len(everything.damaged) == 3
    assert sum("wav" in warning for warning in record.warnings) >= 3
    assert everything.difference is not None
    assert everything.interval is not None
    assert everything.interval.low <= everything.interval.estimate <= everything.interval.high
    assert record.cost is not None
    assert record.cost.quantized.size.bytes < record.cost.baseline.size.bytes
    assert 3 < record.method.effective_bits < 7
    assert [stage.name for stage in record.stages] == [
        "load", "calibrate", "quantize", "transcribe", "score",
    ]  # fmt: skip
    hypotheses = read_hypotheses(outcome.folder / "hypotheses.jsonl")
    assert [hypothesis.text for hypothesis in hypotheses] == [f"clip number {n}" for n in range(4)]
    paths = find_records(tmp_path)
    assert len(paths) == 2
    assert {read_record(path).method.name for path in paths} == {"float", "gptq"}

    before = {path: path.read_bytes() for path in paths}
    again = run_experiment(settings)
    assert again.stored
    assert again.record == record
    assert {path: path.read_bytes() for path in paths} == before


def test_runs_that_make_the_same_record_wait_for_each_other(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    settings, elsewhere = (
        composed(*options(model, manifest, tmp_path / name, "method=float"))
        for name in ("results", "other")
    )
    made = run_experiment(elsewhere)
    folder = tmp_path / "results" / made.folder.relative_to(tmp_path / "other")
    folder.mkdir(parents=True)
    waits = threading.Event()

    def hear(stage: str, *_: int) -> None:
        assert "wait" in stage
        waits.set()

    with ThreadPoolExecutor() as pool:
        with FileLock(folder / ".lock"):
            waiting = pool.submit(run_experiment, settings, hear)
            assert waits.wait(timeout=60)
            shutil.copy(made.folder / "record.json", folder)
        outcome = waiting.result(timeout=60)
    assert outcome.stored
    assert outcome.record == made.record


def test_quantized_activations_are_in_the_record_and_cost_less(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    runs = {
        name: run_experiment(
            composed(*options(model, manifest, tmp_path, "method=rtn", "bits=4", *more))
        )
        for name, more in {
            "W4": (),
            "W4A8": ("act_bits=8",),
            "W4A8 static": ("activation=int8_static",),
        }.items()
    }
    sections = [outcome.record.method.activation for outcome in runs.values()]
    assert sections == [
        None,
        ActivationSection(8, False, "token"),
        ActivationSection(8, False, "tensor", "extreme"),
    ]
    for outcome in runs.values():
        assert read_record(outcome.folder / "record.json") == outcome.record
    plain, token, static = (outcome.record.cost for outcome in runs.values())
    assert plain is not None
    assert token is not None
    assert static is not None
    assert plain.baseline == token.baseline == static.baseline
    assert token.quantized.bit_operations == static.quantized.bit_operations
    assert token.quantized.macs == plain.quantized.macs
    for phase in ("encoder", "prefill", "decode"):
        layers = {
            name: getattr(cost.quantized.bit_operations, phase)
            for name, cost in (("W4", plain), ("W4A8", token))
        }
        assert layers["W4A8"] < layers["W4"]
        moved = [getattr(cost.quantized.memory_io, phase) for cost in (plain, token)]
        assert moved[1].activations < moved[0].activations
        assert moved[1].weights == moved[0].weights
        assert moved[1].key_value == moved[0].key_value
    assert token.quantized.size == plain.quantized.size
    # A stored scale and zero point of 16 + 8 bits for every layer.
    more = static.quantized.size.bytes - token.quantized.size.bytes
    assert more == pytest.approx(len(runs["W4"].record.method.layers) * 3, abs=1)
    # One float run serves them all.
    assert len(find_records(tmp_path)) == 4


def test_the_inventory_counts_online_work_once_and_outliers_as_float(whisper: Checkpoint) -> None:
    checkpoint = dataclasses.replace(whisper, model=copy.deepcopy(whisper.model))
    architecture, model = checkpoint.architecture, checkpoint.model
    block = architecture.encoder_block(0)
    install_layers(model, block.layers)
    shared = ChannelScale(torch.ones(48))
    site = block.sites[0]
    for name in site.layers:
        model.get_submodule(name).online.append(shared)
    model.get_submodule(block.module).add_module("turn", ChannelScale(torch.ones(48)))
    marked = torch.zeros(48, dtype=torch.bool)
    marked[:12] = True
    mask = marked.expand(48, 48)
    weight = QuantizedWeight(
        torch.zeros(48, 48, dtype=torch.int16),
        GridParameters(torch.ones(48, 1), torch.zeros(48, 1), 48),
        Grid(4),
        FloatWeights(mask, torch.zeros(48, 48), marked),
    )
    result = Quantization({name: LayerResult(weight, 0.0, 0.0) for name in site.layers})
    inventory = quantized_inventory(checkpoint, result, 32)
    layers = {layer.name: layer for layer in inventory.layers}
    online = sorted((layers[name].online_macs, layers[name].online_bits) for name in site.layers)
    assert online == [(0, 0), (0, 0), (48, 16 * 48)]
    assert [(one.stack, one.axis, one.macs) for one in inventory.online] == [
        ("encoder", "frame", 48)
    ]
    for name in site.layers:
        layer = layers[name]
        assert (layer.bits_per_weight, layer.float_columns, layer.float_column_bits) == (4, 12, 16)
        assert layer.weight_bits == weight.stored_bits


def test_two_runs_of_one_config_agree_number_by_number(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    records = [
        run_experiment(
            composed(*options(model, manifest, tmp_path / name, "method=gptq", "bits=2"))
        ).record
        for name in ("one", "two")
    ]
    assert records[0].run_id == records[1].run_id
    assert records[0].results == records[1].results
    assert records[0].cost == records[1].cost
    assert records[0].method == records[1].method


def test_a_corpus_of_damaged_clips_is_one_clear_error(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(
        json.dumps({"audio": str(manifest.parent / "not-audio.wav"), "text": "x"}) + "\n"
    )
    with pytest.raises(UserError, match="none of the 1 clips"):
        run_experiment(composed(*options(model, bad, tmp_path / "r", "method=float")))
    assert not find_records(tmp_path / "r")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bits=17", "bits=17: allowed are 2 to 8"),
        ("method=gtpq", "did you mean gptq"),
        ("group_sise=64", "group_sise"),
        ("model=whisper_tiny_en", "hf download"),
        ("results=/dev/null/results", "cannot write"),
        ("data.where.kind=nothing", "nothing"),
        ("experiment=demo", "add -m"),
        ("method.rounding.act_order=maybe", "act_order"),
    ],
)
def test_a_users_mistake_is_a_short_message_without_traceback(
    tmp_path: Path, override: str, message: str
) -> None:
    done = run("data.limit=2", f"results={tmp_path}", "method=gptq", override)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("record.json"))


def test_a_sweep_goes_on_after_a_mistake(model: Path, manifest: Path, tmp_path: Path) -> None:
    done = run("-m", *options(model, manifest, tmp_path, "method=rtn", "bits=17,3"))
    assert done.returncode == 2
    assert "bits=17" in done.stderr
    assert {read_record(path).method.bits for path in find_records(tmp_path)} == {32, 3}


def test_an_interrupted_run_leaves_no_record_and_goes_on(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = tiny_whisper(tmp_path_factory.mktemp("slow") / "whisper")
    clips = tmp_path / "clips"
    clips.mkdir()
    rows = []
    for index in range(60):
        soundfile.write(clips / f"{index}.wav", tone(0.5 + index / 60), 16_000)
        rows.append({"audio": f"clips/{index}.wav", "text": "one two three"})
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = tmp_path / "results"
    arguments = options(model, manifest, results, "method=float", "batch_size=1", "threads=1")
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_asr.run", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        partial = list(results.rglob("hypotheses.jsonl.partial"))
        if partial and partial[0].read_text().count("\n") >= 3:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "interrupted" in error
    assert "Traceback" not in error
    assert not list(results.rglob("record.json"))
    assert run(*arguments).returncode == 0
    (record,) = find_records(results)
    assert read_record(record).results[0].utterances == 60
    assert not list(results.rglob("*.partial*"))
