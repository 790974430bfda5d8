"""Checkpoints by name, folder and hub id; what a user reads when they are not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from tiny import tiny_moonshine, tiny_whisper
from transformers import pipeline

from edge_asr.errors import UserError
from edge_asr.models.loading import (
    EMBEDDED,
    embedded_folder,
    load_checkpoint,
    locate,
    weights_sha256,
)


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
