"""WUSH by its promises: the same outputs, and second moments that are alike and flat."""

from __future__ import annotations

import copy

import pytest
import torch
from quant.passes import batches_of, formats_of, stages
from quant.sites import correlated_inputs
from torch import Tensor

from edge_asr.experiments.sections import quantized_summary
from edge_asr.models.loading import Checkpoint
from edge_asr.quant import artefact
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.layers import RuntimeOp, install_layers, quantized_layers, runtime_ops
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.sequential import quantize_model
from edge_asr.quant.transform.hadamard_matrices import FastHadamard
from edge_asr.quant.transform.wush import BlockProduct, largest_block, wush_blocks


def blocks_of(matrix: Tensor, size: int) -> Tensor:
    """The diagonal blocks of a square matrix."""
    count = len(matrix) // size
    return torch.stack(
        [matrix[index * size :, index * size :][:size, :size] for index in range(count)]
    )


@pytest.mark.parametrize("size", [8, 12, 24])
def test_both_second_moments_are_alike_and_have_constant_diagonals(size: int) -> None:
    inputs = correlated_inputs(0, 500, 48).double()
    weight = torch.randn(90, 48, generator=torch.Generator().manual_seed(1)).double()
    moment = inputs.T @ inputs / len(inputs)
    product = BlockProduct(wush_blocks(moment, weight, size, 1e-9)).double()
    exact = wush_blocks(moment, weight, size, 1e-9)
    product.blocks.copy_(exact)
    read = product(inputs)
    rows = torch.linalg.solve(torch.block_diag(*exact), weight, left=False)
    torch.testing.assert_close(read @ rows.T, inputs @ weight.T, rtol=1e-5, atol=1e-5)
    of_inputs = blocks_of(read.T @ read / len(read), size)
    of_weights = blocks_of(rows.T @ rows / len(rows), size)
    torch.testing.assert_close(of_inputs, of_weights, rtol=1e-5, atol=1e-5)
    for block in of_inputs:
        assert block.diagonal().std() < 1e-5 * block.diagonal().mean()


def test_blocks_of_dead_channels_and_of_unread_ones_are_only_rotated() -> None:
    inputs = correlated_inputs(2, 100, 24).double()
    inputs[:, :8] = 0
    weight = torch.randn(20, 24, dtype=torch.float64)
    weight[:, 8:16] = 0
    found = wush_blocks(inputs.T @ inputs / 100, weight, 8, 0.01)
    assert bool(found.isfinite().all())
    assert bool((torch.linalg.det(found).abs() > 1e-9).all())


def test_blocks_fit_the_width() -> None:
    found = [largest_block(width, 128) for width in (288, 384, 416, 1152, 1536, 1664, 7)]
    assert found == [96, 128, 104, 128, 128, 128, 1]
    assert [largest_block(width, 32) for width in (288, 384, 416, 1152)] == [32, 32, 32, 32]


def test_one_op_a_site_is_charged_and_stored_and_comes_back(checkpoint: Checkpoint) -> None:
    recipe = Recipe.build(
        stages(transform={"name": "wush", "block_size": 16}, rounding={"name": "gptq"})
    )
    model = copy.deepcopy(checkpoint.model)
    formats = formats_of(checkpoint, Grid(4), ActivationGrid(4))
    quantize_model(model, checkpoint.architecture, batches_of(checkpoint), recipe, formats)
    sites = [site for block in checkpoint.architecture.blocks(model.config) for site in block.sites]
    ops = runtime_ops(model)
    assert len(ops) == len(sites)
    restored = copy.deepcopy(checkpoint.model)
    install_layers(restored, [name for site in sites for name in site.layers])
    artefact.restore(restored, *artefact.capture(model))
    assert runtime_ops(restored).keys() == ops.keys()
    first, second = (
        quantized_summary(one, checkpoint.architecture, 16) for one in (model, restored)
    )
    assert first == second
    for site in sites:
        width = model.get_submodule(site.layers[0]).in_features
        op = model.get_submodule(f"{site.layers[0]}.input_ops.0")
        assert op.stored_bits == 16 * width * largest_block(width, 16)
        assert op.macs_per_row == width * largest_block(width, 16)


@pytest.mark.parametrize(("bits", "rewritten"), [(None, False), (8, False), (4, True)])
def test_a_limit_leaves_wider_inputs_alone(
    moonshine: Checkpoint, bits: int | None, rewritten: bool
) -> None:
    recipe = Recipe.build(stages(transform={"name": "wush", "max_bits": 4, "block_size": 8}))
    model = copy.deepcopy(moonshine.model)
    formats = formats_of(moonshine, Grid(4), None if bits is None else ActivationGrid(bits))
    result = quantize_model(model, moonshine.architecture, batches_of(moonshine), recipe, formats)
    assert bool(runtime_ops(model)) == rewritten
    assert not result.warnings


def test_a_model_that_reads_floats_is_left_alone_and_says_so(moonshine: Checkpoint) -> None:
    recipe = Recipe.build(stages(transform={"name": "wush"}))
    model = copy.deepcopy(moonshine.model)
    formats = formats_of(moonshine, Grid(4))
    result = quantize_model(model, moonshine.architecture, batches_of(moonshine), recipe, formats)
    assert not runtime_ops(model)
    assert result.warnings[0].startswith("wush: its rewrite serves quantized activations")


@pytest.mark.parametrize(
    ("bits", "op"), [(None, FastHadamard), (8, FastHadamard), (4, BlockProduct)]
)
def test_a_model_without_narrow_inputs_is_rotated_instead(
    moonshine: Checkpoint, bits: int | None, op: type[RuntimeOp]
) -> None:
    transform = {"name": "wush", "max_bits": 4, "block_size": 8, "otherwise": "hadamard"}
    recipe = Recipe.build(stages(transform=transform))
    model = copy.deepcopy(moonshine.model)
    formats = formats_of(moonshine, Grid(8), None if bits is None else ActivationGrid(bits))
    quantize_model(model, moonshine.architecture, batches_of(moonshine), recipe, formats)
    layers = quantized_layers(model).values()
    assert any(isinstance(one, op) for layer in layers for one in layer.input_ops)
    others = BlockProduct if op is FastHadamard else FastHadamard
    assert not any(isinstance(one, others) for layer in layers for one in layer.input_ops)
