"""What is the same run, and what work runs share: keys are of content, labels of settings."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import soundfile
from options import composed
from tiny import tiny_moonshine, tiny_whisper, tone

from edge_asr.errors import UserError
from edge_asr.experiments import steps, transcription
from edge_asr.experiments.plan import Plan, make_plan
from edge_asr.experiments.ptq import Outcome, run_experiment
from edge_asr.store.artefacts import Store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("model") / "whisper")


def write_clips(folder: Path, count: int, pitch: float = 200.0) -> Path:
    """A manifest of `count` short clips beside their audio."""
    folder.mkdir(parents=True)
    rows = []
    for index in range(count):
        soundfile.write(folder / f"{index}.wav", tone(0.4 + index / 10, pitch), 16_000)
        rows.append({"audio": f"{index}.wav", "text": f"clip number {index}"})
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_clips(tmp_path / "clips", 3)


def options(model: Path | str, manifest: Path | str, folder: Path, *more: str) -> list[str]:
    return [
        "model=custom", f"model.path={model}", "data=manifest", f"data.path={manifest}",
        "calibration=manifest", "calibration.allow_overlap=true",
        f"calibration.path={manifest}", f"results={folder / 'runs'}",
        "protocol.resamples=100", "batch_size=2", *more,
    ]  # fmt: skip


@pytest.fixture
def plan(model: Path, manifest: Path, tmp_path: Path) -> Callable[..., Plan]:
    def make(*more: str, model: Path | str = model, manifest: Path | str = manifest) -> Plan:
        settings = composed(*options(model, manifest, tmp_path, *more))
        return make_plan(settings, Store(settings.store_folder))

    return make


def test_a_clip_is_its_content_not_its_path_or_time(
    plan: Callable[..., Plan], manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = plan("method=gptq").run_id
    os.utime(manifest.parent / "0.wav", (1, 1))
    os.utime(manifest, (2, 2))
    assert plan("method=gptq").run_id == original
    copied = tmp_path / "elsewhere"
    shutil.copytree(manifest.parent, copied)
    assert plan("method=gptq", manifest=copied / "clips.jsonl").run_id == original
    monkeypatch.chdir(tmp_path)
    assert plan("method=gptq", manifest="clips/clips.jsonl").run_id == original
    absolute = tmp_path / "absolute.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    absolute.write_text(
        "".join(
            json.dumps({**row, "audio": str(manifest.parent / row["audio"])}) + "\n" for row in rows
        )
    )
    assert plan("method=gptq", manifest=absolute).run_id == original
    soundfile.write(manifest.parent / "0.wav", tone(0.5, 300.0), 16_000)
    assert plan("method=gptq").run_id != original


def test_a_checkpoint_is_its_content_not_its_path(
    plan: Callable[..., Plan], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    link, copied = tmp_path / "link", tmp_path / "copy"
    link.symlink_to(model)
    shutil.copytree(model, copied)
    (copied / "README.md").write_text("Says nothing about numbers.")
    spelt = ["./whisper", f"{model}/", str(model / ".." / "whisper"), link, copied]
    original = plan("method=gptq")
    for reference in spelt:
        again = plan("method=gptq", model=reference)
        assert again.run_id == original.run_id, reference
        assert again.quantize == original.quantize
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "transformers_version": "9"}))
    assert plan("method=gptq", model=copied).run_id == original.run_id
    (copied / "config.json").write_text(json.dumps({**config, "dropout": 0.5}))
    assert plan("method=gptq", model=copied).run_id != original.run_id


def test_equal_settings_are_one_run_with_one_label_however_they_were_given(
    plan: Callable[..., Plan],
) -> None:
    same = [
        ("method=gptq", "bits=3"),
        ("method=rtn", "method/rounding=gptq", "bits=3"),
        ("method=gptq", "bits=3", "method.rounding.damping=0.01"),
        ("method=gptq", "encoder.bits=3", "decoder.bits=3"),
        ("method=gptq", "scheme.rules=[{bits: 3}]"),
        ("method=spqr", "method/outliers=none", "method/range=minmax", "method/rounding=gptq",
         "bits=3", "group_size=null"),
        ("method=gptq", "bits=3", "symmetric=false", "act_bits=null"),
    ]  # fmt: skip
    made = [plan(*given) for given in same]
    assert len({one.run_id for one in made}) == 1
    assert {one.label for one in made} == {"gptq W3"}
    assert len({one.folder for one in made}) == 1


def test_different_settings_never_share_a_label(plan: Callable[..., Plan]) -> None:
    different = [
        ("method=gptq",),
        ("method=gptq", "method.rounding.damping=0.5"),
        ("method=gptq", "method.rounding.damping=0.25"),
        ("method=gptq", "method.rounding.act_order=false"),
        ("method=gptq", "method/range=mse"),
        ("method=gptq", "method/range=mse", "method.range.steps=50"),
        ("method=gptq", "bits=3"),
        ("method=gptq", "group_size=32"),
        ("method=gptq", "scheme=w4a8"),
        ("method=gptq", "scheme=w4a8", "scheme.rules=[{act_bits: 8, act_symmetric: true}]"),
        ("method=gptq", "scheme=a8_static"),
        ("method=gptq", "symmetric=true"),
        ("method=gptq", "symmetric=signed_scale"),
        ("method=gptq", "encoder.bits=8"),
        ("method=rtn",),
        ("method=quik",),
        ("method=quik", "method.outliers.fc2_bits=null"),
        ("method=spqr",),
    ]  # fmt: skip
    made = [plan(*given) for given in different]
    assert len({one.run_id for one in made}) == len(different)
    labels = [one.label for one in made]
    assert len(set(labels)) == len(different), labels
    assert labels[1] == "gptq+rounding.damping=0.5 W4"
    assert labels[5] == "gptq+range=mse+range.steps=50 W4"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder_attention_heads", 0),
        ("decoder_attention_heads", 5),
        ("d_model", "48"),
        ("encoder_layers", "two"),
        ("model_type", "evil"),
        ("model_type", None),
        ("max_source_positions", None),
    ],
)
def test_a_configuration_that_makes_no_model_is_refused_before_there_is_a_plan(
    plan: Callable[..., Plan], model: Path, tmp_path: Path, field: str, value: object
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, field: value}))
    for method in ("float", "gptq"):
        with pytest.raises(UserError) as caught:
            run_experiment(plan(f"method={method}", model=damaged).settings)
        assert "\n" not in str(caught.value)


def test_where_results_and_threads_go_changes_nothing(
    plan: Callable[..., Plan], tmp_path: Path
) -> None:
    original = plan("method=gptq")
    for more in ("threads=1", f"store={tmp_path / 'other'}", "store_cap=1MB", "rerun=true"):
        assert plan("method=gptq", more).run_id == original.run_id


def test_a_recipe_that_looks_at_no_clips_has_no_calibration_in_its_key(
    plan: Callable[..., Plan],
) -> None:
    for method in ("rtn", "hqq"):
        one, other = plan(f"method={method}"), plan(f"method={method}", "calibration.seed=5")
        assert one.calibrate is None
        assert not one.drawn
        assert one.run_id == other.run_id
        measured = plan(f"method={method}", "layer_errors=true")
        assert measured.calibrate is not None
        assert measured.run_id != one.run_id
    assert plan("method=gptq").run_id != plan("method=gptq", "calibration.seed=5").run_id
    assert plan("method=rtn", "scheme=a8_static").calibrate is not None


def test_padding_counts_in_the_key_where_it_is_heard(
    plan: Callable[..., Plan], tmp_path: Path
) -> None:
    changes = (), ("calibration.padding_weight=0.25",), ("calibration.pack=true",)
    heard = [plan("method=gptq", *change) for change in changes]
    assert len({one.run_id for one in heard}) == 3
    for one in heard[1:]:
        assert one.calibrate == heard[0].calibrate, "a sweep shares calibration"
    masking = tiny_moonshine(tmp_path / "moonshine")
    masked = [plan("method=gptq", *change, model=masking) for change in changes]
    assert len({one.run_id for one in masked}) == 1
    data_free = [plan("method=hqq", *change) for change in changes]
    assert len({one.run_id for one in data_free}) == 1
    narrow = plan("method=gptq", "calibration.dtype=bfloat16")
    assert narrow.run_id not in {one.run_id for one in heard}
    assert plan("method=hqq", "calibration.dtype=bfloat16").run_id == data_free[0].run_id


class Work:
    """Counts what runs do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        for name in ("load_checkpoint", "quantize_model", "decoder_tokens"):
            self._watch(monkeypatch, steps, name)
        self._watch(monkeypatch, transcription, "transcribe")

    def _watch(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> None:
        real = getattr(module, name)

        def counted(*args: object, **kwargs: object) -> object:
            self.done.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    def of(self, *overrides: str) -> tuple[list[str], Outcome]:
        """What a run with `overrides` does, and its outcome."""
        self.done.clear()
        outcome = run_experiment(composed(*overrides))
        return list(self.done), outcome


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


def test_runs_share_every_step_that_they_have_in_common(
    work: Work, model: Path, manifest: Path, tmp_path: Path
) -> None:
    everything, first = work.of(*options(model, manifest, tmp_path, "method=gptq", "bits=3"))
    # The checkpoint once, the float model and the quantized one on the same clips.
    assert sorted(everything) == sorted(
        ["load_checkpoint", "transcribe", "decoder_tokens", "quantize_model", "transcribe"]
    )
    assert work.of(*options(model, manifest, tmp_path, "method=gptq", "bits=3"))[0] == []

    again, scored = work.of(
        *options(model, manifest, tmp_path, "method=gptq", "bits=3", "protocol.seed=7")
    )
    assert again == [], "another scoring hears nothing again"
    assert scored.record.results[0].wer == first.record.results[0].wer
    assert scored.record.run_id != first.record.run_id
    assert scored.record.method == first.record.method

    other = write_clips(tmp_path / "other", 2, pitch=400.0)
    calibration = f"calibration.path={manifest}"
    second, outcome = work.of(
        *options(model, other, tmp_path, "method=gptq", "bits=3", calibration)
    )
    assert "quantize_model" not in second, "a second data set quantizes nothing"
    assert second.count("transcribe") == 2
    assert outcome.record.keys["quantize"] == first.record.keys["quantize"]
    assert outcome.record.method == first.record.method

    bits, _ = work.of(*options(model, manifest, tmp_path, "method=gptq", "bits=2"))
    assert "decoder_tokens" not in bits, "a sweep shares calibration"
    assert bits.count("transcribe") == 1, "and the float run"


def test_a_copied_manifest_is_answered_from_the_store_in_its_own_words(
    work: Work, model: Path, manifest: Path, tmp_path: Path
) -> None:
    run_experiment(composed(*options(model, manifest, tmp_path, "method=rtn")))
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    renamed = tmp_path / "clips" / "renamed.jsonl"
    renamed.write_text(
        "".join(json.dumps({"id": f"mine-{row['audio']}", **row}) + "\n" for row in rows)
    )
    shutil.rmtree(tmp_path / "runs")
    done, outcome = work.of(*options(model, renamed, tmp_path, "method=rtn"))
    assert done == []
    (name,) = outcome.record.hypotheses_files.values()
    ids = [json.loads(line)["id"] for line in (outcome.folder / name).open()]
    assert ids == [f"mine-{index}.wav" for index in range(3)]


def test_quantized_models_beyond_the_cap_go_and_their_results_stay(
    work: Work, model: Path, manifest: Path, tmp_path: Path
) -> None:
    small = options(model, manifest, tmp_path, "store_cap=1KB")
    done, first = work.of(*small, "method=rtn", "bits=3")
    assert "quantize_model" in done
    store = Store(tmp_path / ".edge_asr")
    assert [one.step for one in store.artefacts()] == ["transcribe", "transcribe"]
    # Its hypotheses tell all that a record needs.
    done, again = work.of(*small, "method=rtn", "bits=3", "protocol.seed=3")
    assert done == []
    assert again.record.method == first.record.method
    assert again.record.cost == first.record.cost


def test_a_dtype_is_of_transcribing_alone(plan: Callable[..., Plan]) -> None:
    """Null is float32 on a processor; nothing is calibrated or quantized in another one."""
    plain, *others = (
        plan("method=gptq", *more)
        for more in (
            (),
            ("encoder.dtype=float32", "decoder.dtype=null"),
            ("encoder.dtype=bfloat16",),
            ("decoder.dtype=float16",),
        )
    )
    assert all(one.quantize == plain.quantize for one in others)
    assert [one.run_id == plain.run_id for one in others] == [True, False, False]
    assert others[1].run_id != others[2].run_id
