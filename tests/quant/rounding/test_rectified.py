"""Codes between two neighbours, as AdaRound and TesseraQ train them."""

from __future__ import annotations

import pytest
import torch

from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import GridParameters
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.rounding.rectified import (
    TrainableCodes,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
)
from edge_asr.quant.trainable import LayerStart


def test_rectified_sigmoid_and_its_inverse() -> None:
    values = torch.linspace(0, 1, 101)
    torch.testing.assert_close(rectified_sigmoid(inverse_rectified_sigmoid(values)), values)
    assert float(rectified_sigmoid(torch.tensor(6.0))) == 1
    assert float(rectified_sigmoid(torch.tensor(-6.0))) == 0


def test_trainable_codes_start_at_the_float_weight() -> None:
    weight = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    grid = Grid(4)
    codes = TrainableCodes({"layer": LayerStart(weight, minmax_parameters(weight, grid), grid)})
    inside = (weight != weight.amin(1, keepdim=True)) & (weight != weight.amax(1, keepdim=True))
    torch.testing.assert_close(
        codes.fake_quantized("layer")[inside], weight[inside], atol=1e-5, rtol=0
    )
    step = codes.parameters_of("layer").scale
    assert bool(((codes.quantized("layer").dequantize() - weight).abs() <= 0.51 * step).all())


@pytest.mark.parametrize("grid", [Grid(4), Grid(8), Grid(4, symmetric=True, signed=True)])
def test_weights_that_lie_on_the_grid_are_trained_too(grid: Grid) -> None:
    """As whole checkpoints of half precision nearly do, zeros above all."""
    codes = torch.arange(grid.lowest, grid.highest, dtype=torch.float32).repeat(2, 1)
    scale = torch.full((2, 1), 0.5)
    zero = torch.full((2, 1), 0.0 if grid.symmetric else 7.0)
    start = LayerStart(scale * (codes - zero), GridParameters(scale, zero, codes.shape[1]), grid)
    trainable = TrainableCodes({"layer": start})
    torch.testing.assert_close(trainable.fake_quantized("layer"), start.weight, atol=1e-4, rtol=0)
    trainable.fake_quantized("layer").sum().backward()
    gradient = trainable.logits["0"].grad
    assert gradient is not None
    assert bool((gradient > 0).all())
