"""`export.json`: what a folder says of itself, and what is wrong with it in one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from export.models import GROUPS, SIGNED, quantized
from tiny import tiny_moonshine

from edge_asr.cli.compose import compose_settings
from edge_asr.config import target_named
from edge_asr.errors import UserError
from edge_asr.export.exported import EXPORT, checkpoint_of, difference, read_export
from edge_asr.export.write import export, export_float
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.formats import Grid
from edge_asr.quant.model_folder import save_model

TARGET = compose_settings("target=compressed_tensors", "target.group_sizes=null").target


@pytest.fixture(scope="module")
def folder(moonshine: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = quantized(moonshine, Grid(4, **SIGNED, **GROUPS))
    return export(own, TARGET, tmp_path_factory.mktemp("made") / "out")


def test_a_folder_says_what_it_holds(moonshine: Checkpoint, folder: Path) -> None:
    found = read_export(folder)
    assert (found.target, found.checkpoint, found.family) == (
        "compressed_tensors", "tiny", "moonshine",
    )  # fmt: skip
    assert found.formats == "W4 g8 sym signed"
    assert set(found.files) == {path.name for path in folder.iterdir()} - {EXPORT}
    assert found.bytes == sum((folder / name).stat().st_size for name in found.files)
    assert difference(found, moonshine.files) is None


def test_another_checkpoint_is_told(moonshine: Checkpoint, tmp_path: Path) -> None:
    found = read_export(export_float(moonshine, target_named("onnx_nbits"), tmp_path / "out"))
    other = load_checkpoint(str(tiny_moonshine(tmp_path / "other", seed=1)))
    assert difference(found, moonshine.files) is None
    assert difference(found, other.files) == "it has other weights"
    older = dataclasses.replace(found, weights_sha256=None)
    assert difference(older, other.files) is None
    wide = dataclasses.replace(found, config=found.config | {"hidden_size": 7})
    assert difference(wide, moonshine.files) == "config.json has another hidden_size"


def test_its_checkpoint_has_all_but_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = export(quantized(checkpoint, Grid(4, **SIGNED, **GROUPS)), TARGET, tmp_path / "out")
    found = checkpoint_of(read_export(made), made)
    assert found.model.device == torch.device("cpu")
    assert found.model.config.vocab_size == checkpoint.model.config.vocab_size
    assert found.architecture.prompt(found.model) == checkpoint.architecture.prompt(
        checkpoint.model
    )
    assert found.tokens_per_second == checkpoint.tokens_per_second
    assert found.tokenizer.get_vocab() == checkpoint.tokenizer.get_vocab()
    assert found.feature_extractor.to_dict() == checkpoint.feature_extractor.to_dict()


def test_damage_is_one_line(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "copy"
    shutil.copytree(folder, made)
    weights = made / "model.safetensors"
    content = weights.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message) as told:
            read_export(made)
        assert "\n" not in str(told.value)

    linked = tmp_path / "blob"
    shutil.move(weights, linked)
    weights.symlink_to(linked)  # as a hub's snapshot has them
    read_export(made)
    weights.unlink()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(r"model\.safetensors: holds other bytes than were written; export the model again")
    weights.write_bytes(content[:-1])
    refused(rf"has {len(content) - 1} bytes, and {len(content)} were written")
    weights.unlink()
    refused(r"model\.safetensors: is missing")
    plain = json.loads((made / EXPORT).read_text())
    other = plain["files"]["model.safetensors"]
    (tmp_path / "model.safetensors").write_bytes(content)
    for outside in ("../model.safetensors", str(tmp_path / "model.safetensors")):
        (made / EXPORT).write_text(json.dumps(plain | {"files": {outside: other}}))
        refused(r"model\.safetensors: is not in the folder itself")
    (made / EXPORT).write_text(json.dumps(plain | {"files": {}}))
    refused(r"export\.json: names no file of a model; export the model again")
    (made / EXPORT).write_text("{")
    refused(r"export\.json: .*; export the model again")
    (made / EXPORT).unlink()
    refused(r"has no export\.json; give a folder that python -m edge_asr\.export wrote")


def test_a_simulated_model_is_no_export(moonshine: Checkpoint, tmp_path: Path) -> None:
    save_model(tmp_path, quantized(moonshine, Grid(4, **SIGNED, **GROUPS)))
    with pytest.raises(UserError, match=r"simulated in floats.*python -m edge_asr\.export"):
        read_export(tmp_path)
