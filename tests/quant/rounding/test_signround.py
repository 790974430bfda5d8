"""SignRound's start and its optimizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quant.sites import served_grid

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.quant.context import Layer
from edge_asr.quant.formats import Grid
from edge_asr.quant.range.hqq import Hqq
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.rounding.signround import SignedOffsets, SignSGD
from edge_asr.quant.trainable import LayerStart
from edge_asr.quant.weight import round_nearest


@pytest.mark.parametrize("grid", [Grid(3), Grid(2, symmetric=True), Grid(3, symmetric=True,
                                                                     signed=True)])  # fmt: skip
def test_signround_starts_at_rounding_to_nearest(grid: Grid) -> None:
    weight = torch.randn(6, 30, generator=torch.Generator().manual_seed(0))
    parameters = minmax_parameters(weight, grid)
    trainable = SignedOffsets({"layer": LayerStart(weight, parameters, grid)}, None)
    expected = round_nearest(weight, parameters, grid).dequantize()
    torch.testing.assert_close(trainable.quantized("layer").dequantize(), expected)


def test_training_starts_at_zero_points_that_hqq_moved() -> None:
    grid = served_grid(Hqq(), Grid(3))
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)) ** 3
    statistics = InputStatistics(64)
    fitted = Hqq().fit(weight, grid, statistics, Layer("layer", makes_logits=False))
    extremes = minmax_parameters(weight, grid)
    assert torch.equal(fitted.scale, extremes.scale)
    assert not torch.equal(fitted.zero, extremes.zero)
    trainable = SignedOffsets({"layer": LayerStart(weight, fitted, grid)}, None)
    started = trainable.quantized("layer")
    torch.testing.assert_close(started.parameters.zero, fitted.zero)
    torch.testing.assert_close(
        started.dequantize(), round_nearest(weight, fitted, grid).dequantize()
    )


@pytest.mark.parametrize("far", [5.0, -5.0])
def test_a_step_moves_a_range_on_one_side_of_zero_by_a_step(far: float) -> None:
    grid = Grid(4, zero_point="minimum", include_zero=False, half_scales=False)
    weight = far + 0.1 * torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    parameters = minmax_parameters(weight, grid)
    trainable = SignedOffsets({"layer": LayerStart(weight, parameters, grid)}, None)
    with torch.no_grad():
        for factors in (trainable.low, trainable.high):
            factors["0"].sub_(1 / 200)
    nearest = round_nearest(weight, parameters, grid).dequantize()
    moved = trainable.quantized("layer").dequantize()
    assert not torch.equal(moved, nearest)
    errors = [float((one - weight).square().mean()) for one in (moved, nearest)]
    assert errors[0] < 1.1 * errors[1]


def test_sign_sgd_steps_fall_linearly() -> None:
    value = torch.nn.Parameter(torch.zeros(2))
    optimizer = SignSGD([value], 1.0, iterations=4)
    path = []
    for _ in range(4):
        value.grad = torch.tensor([3.0, -0.1])
        optimizer.step()
        path.append(value.tolist())
    np.testing.assert_allclose(path, [[-1, 1], [-1.75, 1.75], [-2.25, 2.25], [-2.5, 2.5]])
