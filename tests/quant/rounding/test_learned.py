"""What learned roundings leave alone: far codes, outliers, scales that are quantized themselves."""

from __future__ import annotations

import pytest
import torch
from quant.passes import LEARNED, quantized_by_options, quantized_with, stages

from edge_asr.models.loading import Checkpoint
from edge_asr.quant.formats import Grid


@pytest.mark.parametrize("name", ["adaround", "signround", "tesseraq"])
def test_learned_codes_are_neighbours_of_the_float_weight(moonshine: Checkpoint, name: str) -> None:
    """A learned rounding moves a weight by less than a step (signround: of its shrunk grid)."""
    _, result = quantized_with(moonshine, stages(**LEARNED[name]), Grid(4))
    moved = 0
    for layer_name, layer in result.layers.items():
        weight = moonshine.model.get_submodule(layer_name).weight
        scale, zero = layer.weight.parameters.expand(weight.shape[1])
        inside = (layer.weight.codes > 0) & (layer.weight.codes < 15)
        distance = ((weight / scale + zero - layer.weight.codes)[inside]).abs()
        assert float(distance.max()) < (1.01 if name != "tesseraq" else 1.2)
        moved += int((distance > 0.51).sum())
    assert moved > 0


@pytest.mark.parametrize("rounding", ["adaround", "tesseraq", "signround"])
@pytest.mark.parametrize("outliers", ["unstructured", "columns"])
def test_learned_rounding_leaves_outliers_alone(
    checkpoint: Checkpoint, outliers: str, rounding: str
) -> None:
    recipe = [f"method/outliers={outliers}", "bits=2", "group_size=32"]
    _, nearest = quantized_by_options(checkpoint, "method=rtn", *recipe)
    trained = [f"method/rounding={rounding}", "method.rounding.iterations=30"]
    model, result = quantized_by_options(checkpoint, "method=rtn", *recipe, *trained)
    first, *_ = result.layers
    moved = 0
    for name, layer in result.layers.items():
        weight = layer.weight
        assert torch.equal(model.get_submodule(name).weight, weight.dequantize())
        moved += int((weight.codes != nearest.layers[name].weight.codes).sum())
    assert moved
    # The first block's inputs are the same in both runs, so its outliers are too.
    chosen, before = result.layers[first].weight.outliers, nearest.layers[first].weight.outliers
    assert chosen is not None
    assert before is not None
    assert torch.equal(chosen.mask, before.mask)
    assert torch.equal(chosen.values, before.values)
    losses = [learned for block in result.blocks.values() for learned in block.reconstructions]
    assert len(losses) == len(result.blocks)
    assert any(learned.loss_after < learned.loss_before for learned in losses)


def test_adaround_leaves_quantized_scales_on_their_grid(whisper: Checkpoint) -> None:
    recipe = ["method=spqr", "bits=2", "method/rounding=nearest"]
    _, nearest = quantized_by_options(whisper, *recipe)
    trained = ["method/rounding=adaround", "method.rounding.iterations=5"]
    _, result = quantized_by_options(whisper, *recipe[:2], *trained)
    first, *_ = result.layers
    weight, other = result.layers[first].weight, nearest.layers[first].weight
    assert torch.equal(weight.parameters.scale, other.parameters.scale)
    assert torch.equal(weight.parameters.zero, other.parameters.zero)
    assert weight.stored_bits == other.stored_bits
