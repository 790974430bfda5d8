"""Checkpoints by name, folder and hub id; what a user reads when they are not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tiny import Family, tiny_moonshine, tiny_whisper
from transformers import pipeline

from edge_asr.errors import UserError
from edge_asr.models.loading import (
    EMBEDDED,
    embedded_folder,
    load_checkpoint,
    locate,
    weights_sha256,
)

BUILD: dict[Family, Callable[[Path], Path]] = {
    "whisper": tiny_whisper,
    "moonshine": tiny_moonshine,
}


def test_a_folder_loads_in_float32_and_evaluation_mode(tmp_path: Path) -> None:
    for build in (tiny_whisper, tiny_moonshine):
        folder = build(tmp_path / build.__name__)
        checkpoint = load_checkpoint(str(folder), name="mine")
        assert checkpoint.name == "mine"
        assert checkpoint.source == "folder"
        assert not checkpoint.model.training
        assert {parameter.dtype for parameter in checkpoint.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_models_load_and_work_in_the_library_pipeline(name: str) -> None:
    checkpoint = load_checkpoint(name)
    assert checkpoint.source == "embedded"
    recognise = pipeline("automatic-speech-recognition", model=str(embedded_folder(name)))
    clip = embedded_folder(name).parent / "calibration" / "0000.opus"

    samples, rate = soundfile.read(clip, dtype="float32")
    text = recognise({"raw": samples, "sampling_rate": rate})["text"]
    assert len(text.split()) > 1


def test_an_unreachable_hub_id_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"nobody/nothing.*hf download.*whisper_micro"):
        load_checkpoint("nobody/nothing")


@pytest.mark.parametrize("reference", ["./nowhere", "/no/such/folder", "whisper-mirco"])
def test_a_path_that_leads_nowhere_is_no_hub_id(reference: str) -> None:
    with pytest.raises(UserError, match=r"embedded names are|did you mean 'whisper-micro'"):
        locate(reference)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    folder = tiny_whisper(tmp_path / "model")
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match="folder without a complete checkpoint"):
        load_checkpoint(str(folder))


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    folder = tiny_whisper(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForSpeechSeq2Seq": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(UserError):
        load_checkpoint(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_generation_config_without_the_prompt_is_refused(tmp_path: Path) -> None:
    folder = tiny_whisper(tmp_path / "model")
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text())
    del generation["no_timestamps_token_id"]
    path.write_text(json.dumps(generation))
    with pytest.raises(UserError, match=r"no_timestamps_token_id"):
        load_checkpoint(str(folder))


def test_the_digest_tells_weights_apart(tmp_path: Path) -> None:
    first = tiny_whisper(tmp_path / "first")
    shutil.copytree(first, tmp_path / "copy")
    second = tiny_whisper(tmp_path / "second", seed=1)
    digests = [
        weights_sha256(load_checkpoint(str(folder)).model)
        for folder in (first, tmp_path / "copy", second)
    ]
    assert digests[0] == digests[1] != digests[2]


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.encoder.layer_norm.weight"), "missing: model.encoder.layer_norm"),
        (lambda w: w.update(stray=torch.ones(2)), "unexpected: stray"),
        (
            lambda w: w.update({"model.encoder.layer_norm.weight": torch.ones(3)}),
            r"of another shape: model.encoder.layer_norm.weight \(3,\) instead of \(40,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_the_model_are_named(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    folder = tiny_moonshine(tmp_path)
    change_weights(folder, change)
    with pytest.raises(UserError, match=rf"model\.path=.*{message}.*restore"):
        load_checkpoint(str(folder))


def test_many_missing_weights_are_counted(tmp_path: Path) -> None:
    folder = tiny_moonshine(tmp_path)
    change_weights(folder, lambda weights: [weights.pop(name) for name in sorted(weights)[:5]])
    with pytest.raises(UserError, match="and 2 more"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize("family", BUILD)
def test_a_tied_head_may_be_missing_or_present(tmp_path: Path, family: Family) -> None:
    folder = BUILD[family](tmp_path)
    digest = weights_sha256(load_checkpoint(str(folder)).model)
    assert "proj_out.weight" not in load_file(folder / "model.safetensors")
    table = "model.decoder.embed_tokens.weight"
    change_weights(folder, lambda weights: weights.update({"proj_out.weight": weights[table] + 0}))
    assert weights_sha256(load_checkpoint(str(folder)).model) == digest


def test_damaged_safetensors_are_named(tmp_path: Path) -> None:
    weights = tiny_whisper(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read.*download it again"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize("gone", [("tokenizer.json",), ("tokenizer.json", "tokenizer_config.json")])
@pytest.mark.parametrize("family", BUILD)
def test_a_folder_without_its_tokenizer_is_refused(
    tmp_path: Path, family: Family, gone: tuple[str, ...]
) -> None:
    folder = BUILD[family](tmp_path)
    for name in gone:
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"tokenizer"):
        load_checkpoint(str(folder))


def test_a_tokenizer_that_cannot_write_english_is_refused(tmp_path: Path) -> None:
    path = tiny_moonshine(tmp_path) / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "fox"}, "content": "dog"}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"brown dog.*restore the tokenizer\.json"):
        load_checkpoint(str(tmp_path))


def test_an_unreadable_tokenizer_is_named(tmp_path: Path) -> None:
    (tiny_whisper(tmp_path) / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot be read.*restore the tokenizer\.json"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("device", "message"),
    [("foo", "is no device"), ("cuda", "no CUDA GPU"), ("meta", "cannot be used")],
)
def test_a_device_that_is_not_here_is_refused_before_loading(
    monkeypatch: pytest.MonkeyPatch, device: str, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"^device={device}: .*{message}.*device=cpu"):
        load_checkpoint("nobody/nothing", device=device)


def test_the_cap_on_tokens_is_the_familys_unless_given(tmp_path: Path) -> None:
    whisper, moonshine = (str(build(tmp_path / name)) for name, build in BUILD.items())
    assert load_checkpoint(whisper).tokens_per_second is None
    assert load_checkpoint(moonshine).tokens_per_second == 6.5
    assert load_checkpoint(moonshine, tokens_per_second=20).tokens_per_second == 20


def test_the_revision_of_a_cached_hub_id_is_its_commit(tmp_path: Path) -> None:
    """In the cache's own layout, and in a process of its own: the library reads the place once."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots" / commit
    snapshot.mkdir(parents=True)
    shutil.copy(embedded_folder("whisper-micro") / "config.json", snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    script = "from edge_asr.models.loading import hub_revision; print(hub_revision('owner/name'))"
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == commit
