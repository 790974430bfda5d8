"""What export refuses, and that it leaves nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from export.models import GROUPS, SIGNED, quantized
from torch import Tensor

from edge_asr.cli.compose import compose_settings
from edge_asr.errors import UserError
from edge_asr.export.base import require_packages
from edge_asr.export.formats.compressed_tensors import CompressedTensors
from edge_asr.export.write import export
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.activation import InputQuantizer
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.layers import quantized_layers
from edge_asr.quant.model_folder import load_model, save_model

TARGET = compose_settings("target=compressed_tensors", "target.group_sizes=null").target
GRID = Grid(4, **SIGNED, **GROUPS)


def refused(checkpoint: Checkpoint, folder: Path, message: str, target: str | None = None) -> None:
    chosen = TARGET if target is None else compose_settings(f"target={target}").target
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match=message):
        export(checkpoint, chosen, folder / "out")
    assert sorted(folder.iterdir()) == before


def test_a_float_model_has_nothing_to_export(moonshine: Checkpoint, tmp_path: Path) -> None:
    refused(moonshine, tmp_path, "is not quantized")


def test_a_folder_that_is_there_stays_as_it_is(moonshine: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    refused(quantized(moonshine, GRID), tmp_path, "is there already")


def test_what_a_target_cannot_hold_is_refused(moonshine: Checkpoint, tmp_path: Path) -> None:
    refused(quantized(moonshine, GRID), tmp_path, "group_size=8", "compressed_tensors")
    rotated = quantized(moonshine, GRID, transform={"name": "hadamard"})
    refused(rotated, tmp_path, "runs with the model.*method/transform=none")
    kept = quantized(moonshine, GRID, outliers={"name": "columns", "fraction": 0.2})
    refused(kept, tmp_path, "keeps weights in floating point.*method/outliers=none")


def test_inputs_that_a_float_layer_reads_are_not_forgotten(
    moonshine: Checkpoint, tmp_path: Path
) -> None:
    own = quantized(moonshine, GRID)
    layer = next(iter(quantized_layers(own.model).values()))
    layer.quantized = None
    layer.quantize_input = InputQuantizer(ActivationGrid(8))
    refused(own, tmp_path, "keeps its weights in floating point and is to read A8")


def test_a_target_without_an_exporter_says_which_have_one(
    moonshine: Checkpoint, tmp_path: Path
) -> None:
    refused(quantized(moonshine, GRID), tmp_path, "known are compressed_tensors", "none")


def test_a_missing_package_is_named_with_what_installs_it(
    moonshine: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    message = r"compressed_tensors, which is not installed; pip install 'edge_asr\[compressed"
    refused(quantized(moonshine, GRID), tmp_path, message)


def test_a_broken_package_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package.py").write_text("raise ImportError('libgomp.so.1: not found')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"cannot be imported \(libgomp.so.1: not found\); pip"):
        require_packages("--target=x", ("broken_package",), "x")


def test_other_values_in_the_file_export_nothing(
    moonshine: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = CompressedTensors.read_back

    def changed(self: CompressedTensors, folder: Path) -> Mapping[str, Tensor]:
        found = dict(read(self, folder))
        found[next(iter(found))][0, 0] += 1e-6
        return found

    monkeypatch.setattr(CompressedTensors, "read_back", changed)
    refused(quantized(moonshine, GRID), tmp_path, "is not the same in the file")


def test_a_model_that_was_saved_and_loaded_exports_to_the_same_bytes(
    moonshine: Checkpoint, tmp_path: Path
) -> None:
    own = quantized(moonshine, GRID)
    saved = tmp_path / "saved"
    saved.mkdir()
    save_model(saved, own)
    folders = [
        export(own, TARGET, tmp_path / "a"),
        export(load_model(saved), TARGET, tmp_path / "b"),
    ]
    first, second = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second
    # And can be saved again.
    again = tmp_path / "again"
    again.mkdir()
    save_model(again, load_model(saved))
    name = "quantized.safetensors"
    assert (again / name).read_bytes() == (saved / name).read_bytes()
