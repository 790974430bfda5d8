"""CTranslate2: the file holds a run's own codes and scales, and what is float stays float."""

from __future__ import annotations

import copy
import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export.models import SIGNED, quantized
from tiny import tone
from torch import Tensor, nn

from edge_asr.cli.compose import compose_settings
from edge_asr.errors import UserError
from edge_asr.export.ctranslate2_file import CONFIG, LAYERS, MODEL, quantized_in, read_variables
from edge_asr.export.formats.ctranslate2 import CTranslate2
from edge_asr.export.write import export, write_for
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.layers import QuantizedLinear, quantized_layers
from edge_asr.quant.weight import round_nearest

ct2 = pytest.importorskip("ctranslate2")
TARGET = compose_settings("target=ctranslate2_int8").target
GRID, INPUTS = Grid(8, **SIGNED), ActivationGrid(8, symmetric=True)


@pytest.fixture(scope="module")
def int8(whisper: Checkpoint) -> Checkpoint:
    """Every layer of the blocks, as the target asks for it."""
    return quantized(whisper, GRID, INPUTS)


def encoded(folder: Path, checkpoint: Checkpoint) -> Tensor:
    """What CTranslate2's encoder makes of a tone, by the compute type that the file asks for."""
    model = ct2.models.Whisper(str(folder), intra_threads=1)
    features = ct2.StorageView.from_array(features_of(checkpoint).numpy())
    return torch.from_numpy(np.array(model.encode(features)))


def features_of(checkpoint: Checkpoint) -> Tensor:
    clips = [tone(1.2, 240.0)]
    return checkpoint.architecture.model_inputs(checkpoint.feature_extractor, clips)[
        "input_features"
    ]


@torch.no_grad()
def simulated(checkpoint: Checkpoint) -> Tensor:
    encoder: Any = checkpoint.model.get_submodule(checkpoint.architecture.encoder_module)
    states: Tensor = encoder(features_of(checkpoint)).last_hidden_state
    return states


def test_codes_are_the_runs_own(int8: Checkpoint, tmp_path: Path) -> None:
    own = dataclasses.replace(int8, model=copy.deepcopy(int8.model))
    layers = quantized_layers(own.model)
    for layer in layers.values():  # rows that end at 64, where its own quantization ends at 127
        weight = layer.quantized
        assert weight is not None
        wider = dataclasses.replace(weight.parameters, scale=2 * weight.parameters.scale)
        layer.store(round_nearest(layer.weight.detach(), wider, GRID))
    folder = export(own, TARGET, tmp_path / "out")  # which compares the weights
    variables = read_variables(folder / MODEL)
    found: list[str] = []
    for scope, names in quantized_in(folder).items():
        weights = [weight for name in names if (weight := layers[name].quantized) is not None]
        codes = torch.cat([one.codes for one in weights])
        assert int(codes.int().abs().max()) == 64
        assert torch.equal(variables[f"{scope}/weight"], codes)
        scales = torch.cat([one.parameters.scale[:, 0] for one in weights])
        assert torch.equal(variables[f"{scope}/weight_scale"], 1 / scales)
        found += names
    assert sorted(found) == sorted(layers)


def test_a_reciprocal_tells_every_scale_there_is() -> None:
    halves = torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16)
    reciprocals = 1 / halves.float()
    assert torch.equal((1 / reciprocals).half(), halves)
    # Which is why it is needed: not all are float32's own reciprocal's.
    assert not torch.equal(1 / reciprocals, halves.float())


def test_integers_are_computed_as_simulated(
    int8: Checkpoint, whisper: Checkpoint, tmp_path: Path
) -> None:
    found = encoded(export(int8, TARGET, tmp_path / "out"), int8)
    expected = simulated(int8)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    change = float((simulated(whisper) - expected).norm())
    assert float((found - expected).norm()) < 0.01 * change


def weight_of(checkpoint: Checkpoint, name: str) -> Tensor:
    module: Any = checkpoint.model.get_submodule(name)
    weight: Tensor = module.weight.detach()
    return weight


def test_what_is_float_is_not_quantized_when_it_is_loaded(
    whisper: Checkpoint, tmp_path: Path
) -> None:
    own = quantized(whisper, GRID, INPUTS)
    blocks = own.architecture.encoder_blocks(own.model.config)
    for name in blocks[0].layers:  # all but one block and what is not in any
        layer = own.model.get_submodule(name)
        assert isinstance(layer, QuantizedLinear)
        layer.quantized, layer.quantize_input = None, nn.Identity()
        layer.weight = nn.Parameter(weight_of(whisper, name).clone())
    folder = export(own, TARGET, tmp_path / "out")
    variables = read_variables(folder / MODEL)
    embedding = weight_of(own, own.architecture.embedding)
    for name in ("decoder/embeddings/weight", "decoder/projection/weight"):
        assert torch.equal(variables[name].float(), embedding)
    found, expected = encoded(folder, own), simulated(own)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_float_model_is_written_in_halves_where_they_hold_it(
    whisper: Checkpoint, tmp_path: Path
) -> None:
    own = dataclasses.replace(whisper, model=copy.deepcopy(whisper.model))
    with torch.no_grad():
        for value in own.model.parameters():
            value.copy_(value.half())
    for name, checkpoint in (("float", whisper), ("halves", own)):
        (tmp_path / name).mkdir()
        write_for("ctranslate2", checkpoint, tmp_path / name)
        torch.testing.assert_close(
            encoded(tmp_path / name, checkpoint), simulated(checkpoint), rtol=1e-4, atol=1e-4
        )
    whole, half = ((tmp_path / name / MODEL).stat().st_size for name in ("float", "halves"))
    assert half < 0.6 * whole


def test_embeddings_and_convolutions_are_codes_where_they_have_them(
    whisper: Checkpoint, tmp_path: Path
) -> None:
    others = {"embedding": None, "head": INPUTS, "convolution": None}
    own = quantized(whisper, GRID, INPUTS, others=others)
    convolutions = [part.layer for part in own.architecture.stem()]
    CTranslate2().write(own, tmp_path)
    found = CTranslate2().read_back(tmp_path)
    for name in (*convolutions, own.architecture.embedding):
        assert torch.equal(found[name], weight_of(own, name))
    variables = read_variables(tmp_path / MODEL)
    assert not [name for name in variables if name.endswith("weight_float")]
    assert variables["decoder/projection/weight"].dtype == torch.int8
    torch.testing.assert_close(encoded(tmp_path, own), simulated(own), rtol=1e-4, atol=1e-4)


def refused(checkpoint: Checkpoint, folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        export(checkpoint, TARGET, folder / "out")
    assert "\n" not in str(error.value)
    assert not list(folder.iterdir())


def test_another_family_is_refused(moonshine: Checkpoint, tmp_path: Path) -> None:
    refused(quantized(moonshine, GRID, INPUTS), tmp_path, "has no moonshine, only whis")


def test_another_activation_is_refused(int8: Checkpoint, tmp_path: Path) -> None:
    own = dataclasses.replace(int8, model=copy.deepcopy(int8.model))
    own.model.config.activation_function = "relu"
    refused(own, tmp_path, "activation_function=relu in config.json")


def test_half_a_matrix_is_refused(int8: Checkpoint, tmp_path: Path) -> None:
    own = dataclasses.replace(int8, model=copy.deepcopy(int8.model))
    name = own.architecture.encoder_block(0).sites[0].layers[1]
    layer = own.model.get_submodule(name)
    assert isinstance(layer, QuantizedLinear)
    layer.quantized, layer.quantize_input = None, nn.Identity()
    refused(own, tmp_path, f"are one matrix in CTranslate2, and {name} is float: quantize all")


def test_what_the_target_cannot_hold_is_refused(whisper: Checkpoint, tmp_path: Path) -> None:
    refused(quantized(whisper, Grid(4, **SIGNED), INPUTS), tmp_path, "set bits=8")
    refused(quantized(whisper, GRID), tmp_path, "its runtime reads A8")


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: content[:0],
    "cut": lambda content: content[: len(content) // 2],
    "one byte less": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\0",
    "another version": lambda content: struct.pack("<I", 5) + content[4:],
    "text": lambda content: b"version https://git-lfs.github.com/spec/v1\n" + content[:0],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line(int8: Checkpoint, tmp_path: Path, damage: str) -> None:
    path = export(int8, TARGET, tmp_path / "out") / MODEL
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(UserError, match=r"model\.bin: is missing, damaged") as error:
        CTranslate2().read_back(path.parent)
    assert "\n" not in str(error.value)


def test_a_description_of_another_program_is_one_line(int8: Checkpoint, tmp_path: Path) -> None:
    folder = export(int8, TARGET, tmp_path / "out")
    plain = json.loads((folder / CONFIG).read_text())
    plain[LAYERS]["decoder/layer_9/ffn/linear_0"] = ["layer"]
    (folder / CONFIG).write_text(json.dumps(plain))
    with pytest.raises(UserError, match=r"model\.bin: is missing, damaged"):
        CTranslate2().read_back(folder)
    del plain[LAYERS]
    (folder / CONFIG).write_text(json.dumps(plain))
    with pytest.raises(UserError, match=r"config\.json: is missing, damaged"):
        CTranslate2().read_back(folder)
