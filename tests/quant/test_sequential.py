"""The sequential pass on small random Whisper and Moonshine models."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from quant.passes import (
    Weights,
    batches_of,
    formats_of,
    outputs,
    quantized_with,
    stages,
)

from edge_asr.calibration.batches import CalibrationBatch
from edge_asr.calibration.statistics import InputStatistics
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.context import Layer
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.outlier_rule import mean_for
from edge_asr.quant.range.awq_clip import AwqClip
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.result import LayerResult
from edge_asr.quant.sequential_pass import MODEL


def quantized(
    checkpoint: Checkpoint, batches: list[CalibrationBatch], rounding: str, bits: int
) -> tuple[torch.nn.Module, Weights]:
    options = stages(rounding={"name": rounding})
    return quantized_with(checkpoint, options, Grid(bits), batches=batches)


def test_every_linear_of_every_block_is_quantized(checkpoint: Checkpoint) -> None:
    batches = batches_of(checkpoint)
    model, result = quantized(checkpoint, batches, "gptq", 3)
    expected = {
        name
        for name, module in checkpoint.model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    }
    assert set(result.layers) == expected
    for name, layer in result.layers.items():
        weight = model.get_submodule(name).weight
        assert torch.equal(weight, layer.weight.dequantize())
        assert len(torch.unique(layer.weight.codes)) <= 8
    untouched = checkpoint.model.get_submodule(checkpoint.architecture.embedding).weight
    assert torch.equal(model.get_submodule(checkpoint.architecture.embedding).weight, untouched)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_has_less_summed_output_error_than_nearest(checkpoint: Checkpoint, bits: int) -> None:
    batches = batches_of(checkpoint)
    _, gptq = quantized(checkpoint, batches, "gptq", bits)
    _, nearest = quantized(checkpoint, batches, "nearest", bits)
    assert gptq.output_error < nearest.output_error
    assert gptq.output_error < gptq.nearest_error
    assert nearest.output_error == pytest.approx(nearest.nearest_error)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_statistics_are_those_of_the_quantized_prefix_without_padding(
    checkpoint: Checkpoint, stack: str
) -> None:
    """The last block's error must match a forward pass of the finished quantized model."""
    batches = batches_of(checkpoint)
    model, result = quantized(checkpoint, batches, "nearest", 4)
    blocks = {
        "encoder": checkpoint.architecture.encoder_blocks,
        "decoder": checkpoint.architecture.decoder_blocks,
    }[stack](model.config)
    name = blocks[-1].sites[0].layers[0]
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    rows = []
    with hook, torch.no_grad():
        for batch in batches:
            model(**batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids)
            mask = batch.frame_weights > 0 if stack == "encoder" else batch.token_mask
            rows.append(seen.pop()[mask])
    assert any(not batch.frame_weights.all() for batch in batches)
    inputs = torch.cat(rows)
    float_weight = checkpoint.model.get_submodule(name).weight
    change = inputs @ (float_weight - model.get_submodule(name).weight).T
    expected = float(
        change.square().sum(1).mean() / (inputs @ float_weight.T).var(0, correction=0).sum()
    )
    assert result.layers[name].output_error == pytest.approx(expected, rel=1e-3)


def test_columns_that_stay_float_have_no_say_in_a_clip(moonshine: Checkpoint) -> None:
    """Ranges are those of a calibration in which the float columns had been zero."""
    options = stages(
        outliers={"name": "columns", "fraction": 0.1},
        range={"name": "awq_clip", "skip_logit_layers": False},
    )
    model, result = quantized_with(moonshine, options, Grid(3))
    site = moonshine.architecture.encoder_blocks(model.config)[0].sites[0]
    seen: list[torch.Tensor] = []
    module = moonshine.model.get_submodule(site.layers[0])
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    statistics = InputStatistics(module.in_features)
    columns = result.layers[site.layers[0]].weight.float_columns
    assert columns is not None
    with hook, torch.no_grad():
        for batch in batches_of(moonshine):
            moonshine.model(**batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids)
            statistics.update(seen.pop().masked_fill(columns, 0), batch.frame_weights)
    for name in site.layers:
        weight = moonshine.model.get_submodule(name).weight.detach()
        others = mean_for(weight, columns.expand_as(weight))
        expected = AwqClip().fit(others, Grid(3), statistics, Layer(name, makes_logits=False))
        torch.testing.assert_close(result.layers[name].weight.parameters.scale, expected.scale)


def test_padding_does_not_change_the_result(moonshine: Checkpoint) -> None:
    """More decoder padding must leave every code as it is.

    In float64: longer inputs are summed in another order, and in float32 that alone tips weights
    half-way between two codes over on some processors.
    """
    moonshine = dataclasses.replace(moonshine, model=copy.deepcopy(moonshine.model).double())
    batches = [
        dataclasses.replace(
            batch,
            encoder_inputs={
                name: value.double() if value.is_floating_point() else value
                for name, value in batch.encoder_inputs.items()
            },
        )
        for batch in batches_of(moonshine)
    ]
    padded = []
    for batch in batches:
        rows = len(batch.decoder_input_ids)
        padded.append(
            CalibrationBatch(
                batch.encoder_inputs,
                batch.frame_weights,
                torch.cat([batch.decoder_input_ids, torch.full((rows, 5), 2)], 1),
                torch.cat([batch.token_mask, torch.zeros(rows, 5, dtype=torch.bool)], 1),
            )
        )
    _, plain = quantized(moonshine, batches, "gptq", 4)
    _, other = quantized(moonshine, padded, "gptq", 4)
    for name, layer in plain.layers.items():
        assert torch.equal(layer.weight.codes, other.layers[name].weight.codes), name


def test_eight_bits_hardly_change_the_logits(checkpoint: Checkpoint) -> None:
    batches = batches_of(checkpoint)
    model, _ = quantized(checkpoint, batches, "nearest", 8)
    batch = batches[0]
    with torch.no_grad():
        inputs = {**batch.encoder_inputs, "decoder_input_ids": batch.decoder_input_ids}
        before, after = checkpoint.model(**inputs).logits, model(**inputs).logits
    assert 0 < float((after - before).norm() / before.norm()) < 0.05


DATA_FREE: dict[str, dict[str, Any]] = {
    "rtn": {},
    "hqq": {"range": {"name": "hqq"}},
    "mse": {"range": {"name": "mse"}},
    "cle": {"transform": {"name": "cle"}},
    "hadamard": {"transform": {"name": "hadamard"}},
}


@pytest.mark.parametrize("name", DATA_FREE)
def test_a_recipe_that_looks_at_no_clips_needs_none(checkpoint: Checkpoint, name: str) -> None:
    recipe, grid, activation = stages(**DATA_FREE[name]), Grid(3), ActivationGrid(8)
    formats = formats_of(checkpoint, grid, activation)
    assert not Recipe.build(recipe).needs_calibration(formats.values())
    model, result = quantized_with(checkpoint, recipe, grid, batches=[], activation=activation)
    seen, other = quantized_with(checkpoint, recipe, grid, activation=activation)
    assert set(result.layers) == set(formats)
    for layer, found in result.layers.items():
        weight, expected = found.weight, other.layers[layer].weight
        assert torch.equal(weight.codes, expected.codes), layer
        assert torch.equal(weight.parameters.scale, expected.parameters.scale), layer
        assert torch.equal(weight.parameters.zero, expected.parameters.zero), layer
        assert (found.output_error, found.nearest_error) == (None, None)
        assert other.layers[layer].output_error is not None
    assert result.result.output_error is None
    assert_same_model(model, seen, checkpoint)


def assert_same_model(
    model: torch.nn.Module, other: torch.nn.Module, checkpoint: Checkpoint
) -> None:
    """Every parameter, buffer and logit, bit for bit."""
    found, expected = model.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    batches = batches_of(checkpoint, seed=1)
    for one, two in zip(outputs(model, batches), outputs(other, batches), strict=True):
        assert torch.equal(one, two)


class Stopped(Exception):
    """Whatever ends a run between two blocks."""


STATIC = ActivationGrid(8, False, "tensor", "mean")
STOPPED: dict[str, tuple[dict[str, Any], ActivationGrid | None]] = {
    "gptq": ({"rounding": {"name": "gptq"}}, None),
    "signround": ({"rounding": {"name": "signround", "iterations": 5}}, None),
    "let and lwc": (
        {
            "transform": {"name": "let", "iterations": 5, "weight_only": True},
            "range": {"name": "lwc", "iterations": 5},
        },
        None,
    ),
    "spin": ({"transform": {"name": "spin", "iterations": 3}, "rounding": {"name": "gptq"}}, None),
    "spin, untied": (
        {
            "transform": {"name": "spin", "iterations": 3, "untie": True},
            "rounding": {"name": "gptq"},
        },
        ActivationGrid(8),
    ),
    "quarot": ({"transform": {"name": "hadamard"}, "rounding": {"name": "gptq"}}, STATIC),
    "awq, quik": (
        {
            "transform": {"name": "awq", "n_grid": 4},
            "outliers": {"name": "columns"},
            "rounding": {"name": "gptq"},
            "correction": {"name": "bias"},
        },
        STATIC,
    ),
    "cle, spqr": (
        {
            "transform": {"name": "cle"},
            "outliers": {"name": "unstructured"},
            "range": {"name": "minmax_double_quant"},
            "rounding": {"name": "nearest"},
        },
        None,
    ),
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_pass_that_was_stopped_goes_on_where_it_was(
    checkpoint: Checkpoint, name: str, tmp_path: Path
) -> None:
    """After two blocks; what comes out is that of a pass that never was stopped."""
    changes, activation = STOPPED[name]
    recipe, grid = stages(**changes), Grid(3, granularity="group", group_size=16)
    never, expected = quantized_with(checkpoint, recipe, grid, activation=activation)

    def stop(text: str, done: int, total: int) -> None:
        del text
        assert total == len(expected.blocks.keys() - {MODEL}) > 2
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        quantized_with(
            checkpoint, recipe, grid, activation=activation, finished=tmp_path, progress=stop
        )
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert kept
    model, result = quantized_with(
        checkpoint, recipe, grid, activation=activation, finished=tmp_path
    )
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "they were made again"
    assert_same_model(model, never, checkpoint)
    assert list(result.blocks) == list(expected.blocks)
    for block, done in result.blocks.items():
        assert done.reconstructions == expected.blocks[block].reconstructions
    assert result.reconstructions == expected.reconstructions
    assert result.warnings == expected.warnings
    for layer, found in result.layers.items():
        other = expected.layers[layer]
        assert torch.equal(found.weight.codes, other.weight.codes), layer
        assert errors_of(found) == errors_of(other), layer


def errors_of(layer: LayerResult) -> tuple[float | None, float | None]:
    return layer.output_error, layer.nearest_error
