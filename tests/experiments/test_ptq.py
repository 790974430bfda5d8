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
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from filelock import FileLock
from options import composed
from tiny import tiny_moonshine, tiny_whisper, write_tones

from edge_asr.cli.command import show
from edge_asr.config import Settings
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import read_hypotheses, read_outputs
from edge_asr.experiments import steps
from edge_asr.experiments.ptq import Outcome, run_experiment
from edge_asr.experiments.sections import quantized_summary
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.grid import GridParameters
from edge_asr.quant.layers import ChannelScale, install_layers
from edge_asr.quant.weight import FloatWeights, QuantizedWeight
from edge_asr.store.file_texts import FileTexts
from edge_asr.store.record import find_records, read_record

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


@pytest.fixture(scope="module")
def moonshine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moonshine(tmp_path_factory.mktemp("model") / "moonshine")


def options(model: Path, manifest: Path, results: Path, *more: str) -> list[str]:
    return [
        "model=custom", f"model.path={model}", "data=manifest", f"data.path={manifest}",
        "calibration=manifest", f"calibration.path={manifest}", "calibration.allow_overlap=true",
        f"results={results}", f"store={results / 'store'}", "protocol.resamples=100",
        "batch_size=2", *more,
    ]  # fmt: skip


def manifest_of(folder: Path) -> Path:
    """The hypotheses of a run of one data set."""
    (name,) = read_record(folder / "record.json").hypotheses_files.values()
    return folder / name


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_asr.run", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        check=False,
    )


def test_a_file_is_compared_with_its_simulation_once_both_have_run(
    moonshine_folder: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    words = ["method=rtn", "target=onnx_nbits", "group_size=16", "batch_size=1"]

    def made(runtime: str) -> Outcome:
        own = [*words, f"runtime={runtime}"]
        outcome = run_experiment(composed(*options(moonshine_folder, manifest, tmp_path, *own)))
        show(outcome)
        return outcome

    alone = made("onnxruntime")
    assert alone.record.file_texts is None
    assert "runtime=torch, and then this again, compares texts" in capsys.readouterr().out
    assert made("onnxruntime").stored
    capsys.readouterr()
    simulated = made("torch")
    assert simulated.record.file_texts is None
    assert "the simulation's" not in capsys.readouterr().out
    both = made("onnxruntime")
    assert both.record.file_texts == FileTexts(compared=4)
    assert "0 of 4 texts of the file differ from the simulation's" in capsys.readouterr().out
    assert {stage.name for stage in both.record.stages if not stage.stored} == {"score"}
    assert both.folder == alone.folder
    assert read_record(both.folder / "record.json").file_texts == both.record.file_texts
    again = made("onnxruntime")
    assert again.stored
    assert again.record == both.record


def test_a_run_writes_records_and_hypotheses_for_float_and_quantized(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    settings = composed(*options(model, manifest, tmp_path, "method=gptq", "bits=3"))
    outcome = run_experiment(settings)
    assert not outcome.stored
    record = outcome.record
    everything, clean, short = record.results
    assert [row.condition for row in (everything, clean, short)] == ["all", "clean", "0-5 s"]
    assert everything.utterances == 4
    assert len(everything.damaged) == 3
    assert sum("wav" in warning for warning in record.warnings) >= 3
    phases(outcome)
    assert everything.difference is not None
    assert everything.interval is not None
    assert everything.interval.low <= everything.interval.estimate <= everything.interval.high
    assert record.cost is not None
    assert record.cost.quantized.size.bytes < record.cost.baseline.size.bytes
    assert 3 < record.method.effective_bits < 7
    assert [stage.name for stage in record.stages] == [
        "load", "calibrate", "quantize", "transcribe", "score",
    ]  # fmt: skip
    hypotheses = read_hypotheses(manifest_of(outcome.folder))
    assert [hypothesis.text for hypothesis in hypotheses] == [f"clip number {n}" for n in range(4)]
    paths = find_records(tmp_path)
    assert len(paths) == 2
    assert {read_record(path).method.name for path in paths} == {"float", "gptq"}

    before = {path: path.read_bytes() for path in paths}
    again = run_experiment(settings)
    assert again.stored
    assert again.record == record
    assert {path: path.read_bytes() for path in paths} == before


def phases(outcome: Outcome) -> None:
    """Every phase has its seconds, and the float run alone a real-time factor."""
    assert outcome.baseline is not None
    for record in (outcome.record, outcome.baseline):
        (data,) = record.data
        assert data.seconds is not None
        assert all(seconds > 0 for seconds in dataclasses.asdict(data.seconds).values())
        audio = record.results[0].seconds
        rtfx = None if record is outcome.record else audio / data.seconds.transcription
        assert data.rtfx == (rtfx if rtfx is None else pytest.approx(rtfx))


def lock_of(store: Path, step: str, key: str) -> FileLock:
    """The lock that whoever makes that artefact of `store` holds."""
    path = store / "locks" / f"{step}-{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def stored_stages(outcome: Outcome) -> dict[str, bool]:
    return {stage.name: stage.stored for stage in outcome.record.stages}


@pytest.mark.parametrize("overrides", [("method=float",), ("method=rtn", "bits=3")])
def test_runs_that_make_the_same_wait_for_each_other(
    model: Path, manifest: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    settings, elsewhere = (
        composed(*options(model, manifest, tmp_path / name, *overrides))
        for name in ("results", "other")
    )
    made = run_experiment(elsewhere)
    key = made.record.keys["transcribe"]
    store, other = settings.store_folder, elsewhere.store_folder
    waits = threading.Event()

    def hear(stage: str, *_: int) -> None:
        if "another process is making transcribe" in stage:
            waits.set()

    with ThreadPoolExecutor() as pool, lock_of(store, "transcribe", key):
        waiting = pool.submit(run_experiment, settings, hear)
        assert waits.wait(timeout=60)
        # Whoever holds the lock may publish before letting go.
        place = store / "transcribe" / key
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(other / "transcribe" / key, place)
        outcome = waiting.result(timeout=60)
    assert stored_stages(outcome)["transcribe"]
    assert outcome.record.results == made.record.results
    assert outcome.record.cost == made.record.cost


def made_alone(settings: Settings, float_key: str) -> Outcome:
    """A quantized run while somebody else holds the float hypotheses."""
    lock = lock_of(settings.store_folder, "transcribe", float_key)
    with ThreadPoolExecutor() as pool, lock:
        return pool.submit(run_experiment, settings).result(timeout=120)


def test_a_quantized_run_does_not_wait_for_the_float_run(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    settings = composed(*options(model, manifest, tmp_path / "results", "method=rtn", "bits=3"))
    plain = composed(*options(model, manifest, tmp_path / "other", "method=float"))
    key = run_experiment(plain).record.keys["transcribe"]
    lonely = made_alone(settings, key)
    assert lonely.baseline is None
    assert lonely.record.results[0].difference is None
    assert lonely.record.results[0].float_wer is None
    assert any("another process" in warning for warning in lonely.record.warnings)
    assert len(find_records(tmp_path / "results")) == 1
    assert run_experiment(plain).stored
    made, place = (one.store_folder / "transcribe" / key for one in (plain, settings))
    shutil.copytree(made, place)
    whole = run_experiment(settings)
    assert whole.record.results[0].difference is not None
    assert stored_stages(whole)["transcribe"]
    assert not any("another process" in warning for warning in whole.record.warnings)
    assert whole.folder == lonely.folder
    assert len(find_records(tmp_path / "results")) == 2
    again = run_experiment(settings)
    assert again.stored
    assert again.baseline == whole.baseline


def test_the_same_command_makes_a_float_run_that_another_gave_up(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    """As the record's warning promises."""
    settings = composed(*options(model, manifest, tmp_path / "results", "method=rtn", "bits=3"))
    plain = composed(*options(model, manifest, tmp_path / "other", "method=float"))
    lonely = made_alone(settings, run_experiment(plain).record.keys["transcribe"])
    assert any("the same command again adds it" in text for text in lonely.record.warnings)
    assert run_experiment(settings).record.results[0].difference is not None


def test_a_corrected_transcript_is_scored_anew_and_not_heard_again(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    corrected = manifest.with_name("corrected.jsonl")
    corrected.write_text(manifest.read_text().replace("clip number 1", "mended words"))
    before, after = (
        run_experiment(
            composed(
                *options(model, clips, tmp_path, "method=gptq", "bits=3"),
                f"calibration.path={manifest}",
                "calibration.allow_overlap=true",
                "calibration.allow_overlap=true",
            )
        )
        for clips in (manifest, corrected)
    )
    assert not after.stored
    assert after.record.run_id != before.record.run_id
    assert after.record.keys == before.record.keys
    assert stored_stages(after)["transcribe"]
    texts = [row.text for row in read_hypotheses(manifest_of(after.folder))]
    assert texts[1] == "mended words"
    transcribed = [
        [row.pred_text for row in read_hypotheses(manifest_of(outcome.folder))]
        for outcome in (before, after)
    ]
    assert transcribed[0] == transcribed[1]
    # Asked for explicitly, all is made again.
    again = run_experiment(
        composed(
            *options(model, corrected, tmp_path, "method=gptq", "bits=3"),
            f"calibration.path={manifest}",
            "calibration.allow_overlap=true",
            "rerun=true",
        )
    )
    assert not stored_stages(again)["transcribe"]
    assert not stored_stages(again)["quantize"]
    assert again.record.results == after.record.results


def test_a_cap_on_tokens_holds_for_a_stored_model(manifest: Path, tmp_path: Path) -> None:
    """Not the cap under which the model was quantized and put into the store."""
    model = tiny_moonshine(tmp_path / "moonshine")
    counts = {}
    for name, earlier in (("fresh", ()), ("used", (4.0,))):
        for cap in (*earlier, 12.0):
            chosen = options(model, manifest, tmp_path / name, "method=rtn", "bits=3")
            outcome = run_experiment(composed(*chosen, f"model.tokens_per_second={cap}"))
            rows = read_hypotheses(manifest_of(outcome.folder))
            counts[name, cap] = [row.generated_tokens for row in rows]
    assert counts["used", 12.0] == counts["fresh", 12.0]
    assert sum(counts["used", 4.0]) < sum(counts["used", 12.0])


def test_stages_do_not_count_each_others_time(
    model: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = 4.0
    quantize = steps.quantize_model

    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(pause)
        return quantize(*arguments, **options)

    monkeypatch.setattr(steps, "quantize_model", slowly)
    outcome = run_experiment(composed(*options(model, manifest, tmp_path, "method=gptq", "bits=3")))
    seconds = {stage.name: stage.seconds for stage in outcome.record.stages}
    assert seconds["quantize"] >= pause
    assert all(seconds[name] < pause for name in ("load", "calibrate", "transcribe", "score"))


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
            "W4A8 static": ("scheme=a8_static",),
        }.items()
    }
    sections = [outcome.record.method.activation for outcome in runs.values()]
    assert sections == [
        None,
        dataclasses.asdict(ActivationGrid(8)),
        dataclasses.asdict(ActivationGrid(8, False, "tensor", "extreme")),
    ]
    schemes = [outcome.record.method.scheme for outcome in runs.values()]
    assert schemes == ["W4", "W4 A8", "W4 A8 static"]
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


def test_the_summary_counts_runtime_ops_once_and_outliers_as_float(whisper: Checkpoint) -> None:
    checkpoint = dataclasses.replace(whisper, model=copy.deepcopy(whisper.model))
    architecture, model = checkpoint.architecture, checkpoint.model
    block = architecture.encoder_block(0)
    install_layers(model, block.layers)
    shared = ChannelScale(torch.ones(48))
    site = block.sites[0]
    for name in site.layers:
        model.get_submodule(name).input_ops.append(shared)
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
    for name in site.layers:
        model.get_submodule(name).store(weight)
    summary = quantized_summary(model, architecture, 32)
    layers = {layer.name: layer for layer in summary.layers}
    online = sorted(
        (layers[name].runtime_op_macs, layers[name].runtime_op_bits) for name in site.layers
    )
    assert online == [(0, 0), (0, 0), (48, 16 * 48)]
    assert [(one.stack, one.axis, one.macs) for one in summary.runtime_ops] == [
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


def test_an_interrupted_run_leaves_no_record_and_goes_on(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = tiny_whisper(tmp_path_factory.mktemp("slow") / "whisper")
    manifest = write_tones(tmp_path, 60, 1 / 60, "one two three")
    results = tmp_path / "results"
    store = results / "store"
    arguments = options(model, manifest, results, "method=float", "batch_size=1", "threads=1")
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_asr.run", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        partial = list(store.glob("unfinished/*/heard.jsonl"))
        if partial and partial[0].read_text().count("\n") >= 3:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "interrupted" in error
    assert "Traceback" not in error
    assert not list(results.rglob("record.json"))
    (journal,) = store.glob("unfinished/*/heard.jsonl")
    kept = {row.index: row.time for row in read_outputs(journal)}
    assert 3 <= len(kept) < 60
    assert run(*arguments).returncode == 0
    (record,) = find_records(results)
    assert read_record(record).results[0].utterances == 60
    hypotheses = read_hypotheses(manifest_of(record.parent))
    # As measured then: what had been heard was not heard again.
    assert {index: hypotheses[index].time for index in kept} == kept
    assert not list(store.glob("unfinished/*"))
    assert not list(store.glob("temporary/*"))
