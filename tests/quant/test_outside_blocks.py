"""Convolutions, embedding and head: computed, rounded, kept, charged and exported as asked."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant.passes import batches_of, formats_of, known, stages
from tiny import tiny_moonshine, tiny_whisper
from torch import Tensor, nn

from edge_asr.cost.model import model_size
from edge_asr.errors import UserError
from edge_asr.experiments.sections import quantized_summary
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.activation import InputQuantizer
from edge_asr.quant.formats import ActivationGrid, Grid, TensorFormat
from edge_asr.quant.layers import QuantizedConv1d, QuantizedEmbedding, quantized_layers
from edge_asr.quant.model_folder import load_model, save_model
from edge_asr.quant.outside_blocks import refuse_head_of_its_own
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.result import Quantization
from edge_asr.quant.sequential import quantize_model
from edge_asr.quant.weight import round_nearest

GPTQ = {"rounding": {"name": "gptq"}}
TABLE = Grid(4, granularity="group", group_size=16)
WIDE = Grid(8)


def with_others(checkpoint: Checkpoint, **inputs: Any) -> dict[str, TensorFormat]:
    """Blocks at 8 bits, convolutions too, the embedding in groups at 4."""
    formats = formats_of(checkpoint, WIDE, None)
    for slot in checkpoint.architecture.slots(checkpoint.model.config):
        if slot.kind == "convolution":
            formats[slot.name] = TensorFormat(WIDE, inputs.get("convolution"))
        if slot.kind in ("embedding", "head"):
            formats[slot.name] = TensorFormat(TABLE, inputs.get(slot.kind))
    return formats


def quantize(
    checkpoint: Checkpoint,
    formats: dict[str, TensorFormat],
    finished: Path | None = None,
    **parts: Any,
) -> tuple[Checkpoint, Quantization]:
    model = copy.deepcopy(checkpoint.model)
    result = quantize_model(
        model, checkpoint.architecture, batches_of(checkpoint), Recipe.build(stages(**parts)),
        formats, stored_dtype=checkpoint.stored_dtype, finished=finished,
    )  # fmt: skip
    return dataclasses.replace(checkpoint, model=model), result


@pytest.fixture(scope="module", params=[tiny_whisper, tiny_moonshine])
def with_files(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """A checkpoint whose files are there, as saving it needs them."""
    return load_checkpoint(str(request.param(tmp_path_factory.mktemp("files"))), name="tiny")


def logits(checkpoint: Checkpoint) -> Tensor:
    batch = batches_of(checkpoint)[0]
    with torch.no_grad():
        return torch.as_tensor(
            checkpoint.model(
                **batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids
            ).logits
        )


@settings(deadline=None, max_examples=25)
@given(
    kernel=st.integers(1, 7), stride=st.integers(1, 4), padding=st.integers(0, 3),
    channels=st.integers(1, 4), bias=st.booleans(),
)  # fmt: skip
def test_rows_of_a_convolution_are_what_its_matrix_multiplies(
    kernel: int, stride: int, padding: int, channels: int, bias: bool
) -> None:
    torch.manual_seed(kernel)
    conv = nn.Conv1d(channels, 5, kernel, stride, padding, bias=bias)
    layer, states = QuantizedConv1d.from_conv(conv), torch.randn(2, channels, 23)
    torch.testing.assert_close(layer(states), conv(states))
    layer.quantize_input = InputQuantizer(ActivationGrid(8))
    rows = layer.quantize_input(layer.rows(states))
    expected = rows @ conv.weight.flatten(1).T + (0 if conv.bias is None else conv.bias)
    torch.testing.assert_close(layer(states), expected.transpose(1, 2))


def test_a_table_gives_the_rows_it_stores() -> None:
    table = QuantizedEmbedding.from_embedding(nn.Embedding(9, 32))
    weight = table.weight.detach().clone()
    stored = round_nearest(weight, minmax_parameters(weight, TABLE), TABLE)
    table.store(stored)
    assert torch.equal(table(torch.tensor([[3, 1]])), stored.dequantize()[[3, 1]][None])


def test_everything_asked_for_is_on_its_grid(checkpoint: Checkpoint) -> None:
    own, result = quantize(checkpoint, with_others(checkpoint))
    architecture = own.architecture
    layers = quantized_layers(own.model)
    others = {part.layer for part in architecture.stem()} | {architecture.embedding}
    assert others <= layers.keys()
    assert architecture.head not in layers
    assert layers.keys() == result.layers.keys()
    table = own.model.get_submodule(architecture.embedding)
    assert table.weight is own.model.get_submodule(architecture.head).weight
    assert torch.equal(table.weight, layers[architecture.embedding].quantized.dequantize())


def test_gptq_rounds_them_better_than_to_nearest(checkpoint: Checkpoint) -> None:
    coarse = {
        name: TensorFormat(Grid(3), one.inputs) if one.weights else one
        for name, one in with_others(checkpoint).items()
    }
    _, result = quantize(checkpoint, coarse, **GPTQ)
    architecture = checkpoint.architecture
    for name in (*(part.layer for part in architecture.stem()), architecture.embedding):
        layer = result.layers[name]
        assert known(layer.output_error) < known(layer.nearest_error), name


def test_an_embedding_that_is_no_head_is_rounded_for_its_rows(whisper: Checkpoint) -> None:
    untied = {"transform": {"name": "hadamard", "untie": True}}
    own, _ = quantize(whisper, with_others(whisper), **untied, **GPTQ)
    rotated, _ = quantize(whisper, formats_of(whisper, WIDE, None), **untied)
    name, layers = own.architecture.embedding, quantized_layers(own.model)
    table = layers[name].quantized
    assert table is not None
    assert own.architecture.head in layers
    weight = rotated.model.get_submodule(name).weight.detach()
    expected = round_nearest(weight, minmax_parameters(weight, TABLE), TABLE)
    assert torch.equal(expected.codes, table.codes)


ROTATED = {"transform": {"name": "hadamard"}, **GPTQ}
UNTIED = {"transform": {"name": "hadamard", "untie": True}}


@pytest.mark.parametrize("parts", [{}, GPTQ, ROTATED, UNTIED])
def test_a_saved_model_computes_the_same(
    with_files: Checkpoint, parts: dict[str, Any], tmp_path: Path
) -> None:
    act = ActivationGrid(8, symmetric=True)
    own, _ = quantize(with_files, with_others(with_files, head=act, convolution=act), **parts)
    save_model(tmp_path, own)
    again = load_model(tmp_path)
    head = again.model.get_submodule(own.architecture.head)
    assert isinstance(head.quantize_input, InputQuantizer)
    assert torch.equal(logits(again), logits(own))


def test_an_interrupted_pass_goes_on(checkpoint: Checkpoint, tmp_path: Path) -> None:
    first, result = quantize(checkpoint, with_others(checkpoint), tmp_path, **GPTQ)
    last = sorted(tmp_path.glob("block-*.json"))[-1]
    last.unlink()
    again, found = quantize(checkpoint, with_others(checkpoint), tmp_path, **GPTQ)
    assert torch.equal(logits(first), logits(again))
    assert found.layers == result.layers


def test_they_are_charged_what_they_store(checkpoint: Checkpoint) -> None:
    own, _ = quantize(checkpoint, with_others(checkpoint))
    bare, _ = quantize(checkpoint, formats_of(checkpoint, WIDE, None))
    sizes = [
        model_size(quantized_summary(one.model, one.architecture, 32)).bytes for one in (own, bare)
    ]
    layers = quantized_layers(own.model)
    others = [name for name in layers if name not in quantized_layers(bare.model)]
    saved = sum(32 * layers[name].weight.numel() for name in others) - sum(
        layers[name].quantized.stored_bits
        for name in others  # type: ignore[union-attr]
    )
    assert sizes[1] - sizes[0] == pytest.approx(saved / 8, abs=1)
    records = {one.name: one for one in quantized_summary(own.model, own.architecture, 32).layers}
    assert records[own.architecture.head].bits_per_weight == 4


def test_parts_that_learn_on_blocks_leave_these_to_rounding_to_nearest(
    whisper: Checkpoint,
) -> None:
    learned = {"rounding": {"name": "adaround", "iterations": 4}}
    own, result = quantize(whisper, with_others(whisper), **learned)
    plain, _ = quantize(whisper, with_others(whisper))
    name = own.architecture.embedding
    assert torch.equal(own.model.get_submodule(name).weight, plain.model.get_submodule(name).weight)
    said = "layers outside of blocks are quantized without rounding=adaround, for blocks alone"
    assert said in result.warnings


def test_one_tensor_has_one_format(whisper: Checkpoint) -> None:
    formats = {whisper.architecture.head: TensorFormat(WIDE)}
    with pytest.raises(UserError, match=r"kind: embedding, which serves both$"):
        refuse_head_of_its_own(formats, whisper.architecture, tied=True)
    refuse_head_of_its_own(formats, whisper.architecture, tied=False)
