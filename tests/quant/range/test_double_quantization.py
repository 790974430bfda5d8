"""Quantized scales against loops, their cost by hand, and groups that are hard on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant.sites import served_grid

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.quant.context import Layer
from edge_asr.quant.formats import Grid
from edge_asr.quant.range.double_quantization import (
    MinMaxDoubleQuantization,
    MseDoubleQuantization,
    double_quantized_parameters,
    requantize,
)
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.range.mse import mse_parameters
from edge_asr.quant.weight import QuantizedWeight, round_nearest

FREE = Grid(3, include_zero=False, zero_point="float", granularity="group", group_size=16)


def parameters_of(weight: torch.Tensor, grid: Grid = FREE) -> QuantizedWeight:
    first = minmax_parameters(weight, replace(grid, half_scales=False))
    parameters = double_quantized_parameters(first, grid, scale_bits=3, zero_bits=3, group_size=16)
    return round_nearest(weight, parameters, grid)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    rows=st.integers(2, 40),
    groups=st.integers(1, 3),
    bits=st.integers(2, 4),
)
def test_requantized_values_are_those_of_a_loop(
    seed: int, rows: int, groups: int, bits: int
) -> None:
    values = torch.rand(rows, groups, generator=torch.Generator().manual_seed(seed)) + 0.1
    quantized = requantize(values, bits, 16)
    found = quantized.values()
    runs = 0
    for group in range(groups):
        column = values[:, group].tolist()
        for first in range(0, rows, 16):
            part = column[first : first + 16]
            low, high = min(part), max(part)
            runs += 1
            if len(part) == 1:
                assert float(found[first, group]) == pytest.approx(part[0], rel=1e-3)
                continue
            step = float(np.float16((high - low) / (2**bits - 1)))
            zero = float(np.float16(-low / step))
            for row, value in enumerate(part, first):
                code = min(max(np.round(value / step + zero), 0), 2**bits - 1)
                assert float(found[row, group]) == pytest.approx(step * (code - zero), abs=1e-5)
    assert quantized.codes.shape == values.shape
    assert int(quantized.codes.max()) < 2**bits
    assert quantized.stored_bits == rows * groups * bits + runs * 32


def test_stored_bits_by_hand() -> None:
    # 32 rows of 3 groups: 96 scales and 96 zeros of 3 bits; for each of the 3 groups, 2 runs of
    # 16 rows with a 16-bit scale and zero point, once for scales and once for zeros.
    quantized = parameters_of(torch.randn(32, 48))
    assert quantized.stored_bits == 32 * 48 * 3 + 96 * 6 + 3 * 2 * 2 * 32
    # SpQR's 3 bits are 3.625 before any outlier.
    assert quantized.effective_bits == 3.625
    # 20 rows of 40 columns: a short last group of columns and a short last run of rows.
    assert parameters_of(torch.randn(20, 40)).stored_bits == 800 * 3 + 60 * 6 + 3 * 2 * 2 * 32
    symmetric = Grid(3, symmetric=True, granularity="group", group_size=16)
    # No zero points.
    assert parameters_of(torch.randn(32, 48), symmetric).stored_bits == 4608 + 96 * 3 + 6 * 32


def test_integer_zero_points_stay_as_they_are() -> None:
    weight = torch.randn(32, 48)
    grid = Grid(3, granularity="group", group_size=16)
    quantized = parameters_of(weight, grid)
    assert torch.equal(quantized.parameters.zero, quantized.parameters.zero.round())
    assert quantized.stored_bits == 32 * 48 * 3 + 96 * (3 + 3) + 6 * 32


def test_the_order_of_columns_is_charged() -> None:
    quantized = parameters_of(torch.randn(16, 40))
    parameters = quantized.parameters
    assert parameters.double_scale is not None
    assert parameters.double_zero is not None
    ordered = replace(parameters, order=torch.randperm(40))
    assert ordered.bits_on(FREE) == parameters.bits_on(FREE) + 40 * 16


def test_groups_follow_the_order_of_columns() -> None:
    order = torch.tensor([4, 0, 2, 1, 3])
    parameters = minmax_parameters(torch.randn(2, 5), Grid(3, granularity="group", group_size=2))
    scattered = type(parameters)(parameters.scale, parameters.zero, 2, order)
    scale, zero = scattered.expand(5)
    for position, column in enumerate(order.tolist()):
        assert torch.equal(scale[:, column], parameters.scale[:, position // 2])
        assert torch.equal(zero[:, column], parameters.zero[:, position // 2])


def test_double_quantization_costs_little_accuracy_and_saves_bits() -> None:
    weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    full = round_nearest(weight, minmax_parameters(weight, FREE), FREE)
    bilevel = parameters_of(weight)
    assert bilevel.stored_bits < full.stored_bits - 64 * 3 * 20
    errors = [float((weight - one.dequantize()).norm()) for one in (full, bilevel)]
    assert errors[0] < errors[1] < 1.3 * errors[0]


@pytest.mark.parametrize("columns", [1, 17, 48])
@pytest.mark.parametrize("value", [0.0, 0.7, -3e-3])
def test_constant_groups_survive(columns: int, value: float) -> None:
    weight = torch.full((20, columns), value)
    rounded = parameters_of(weight).dequantize()
    torch.testing.assert_close(rounded, weight, rtol=2e-3, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    offset=st.floats(-100, 100),
    width=st.floats(0, 1),
    bits=st.integers(2, 8),
    seed=st.integers(0, 99),
)
def test_a_range_far_from_zero_keeps_a_finite_zero_point(
    offset: float, width: float, bits: int, seed: int
) -> None:
    grid = Grid(bits, include_zero=False, zero_point="float")
    generator = torch.Generator().manual_seed(seed)
    weight = offset + width * torch.rand(2, 30, generator=generator)
    rounded = round_nearest(weight, minmax_parameters(weight, grid), grid).dequantize()
    assert bool(torch.isfinite(rounded).all())
    span = float(weight.abs().amax())
    assert float((rounded - weight).abs().max()) <= width / 3 + span / 250 + 1e-6


def test_dead_weights_beside_live_ones_stay_finite_and_positive() -> None:
    weight = torch.randn(32, 48, generator=torch.Generator().manual_seed(1))
    weight[:5] = 0
    quantized = parameters_of(weight)
    assert bool((quantized.parameters.scale > 0).all())
    assert bool(torch.isfinite(quantized.dequantize()).all())


def test_the_shrunk_ranges_of_mse_are_quantized_too() -> None:
    """Scales and zero points by hand from those of `mse`; fewer errors than over min-max."""
    weight = torch.randn(32, 48, generator=torch.Generator().manual_seed(5))
    grid = replace(FREE, bits=2)
    layer, statistics = Layer("layer", makes_logits=False), InputStatistics(48)
    part = MseDoubleQuantization(steps=20, norm=2.0)
    assert served_grid(part, Grid(2, granularity="group", group_size=16)) == grid
    found = part.fit(weight, grid, statistics, layer)
    first = mse_parameters(
        weight, replace(grid, half_scales=False), steps=20, max_shrink=0.8, norm=2.0
    )
    assert torch.equal(found.scale, requantize(first.scale, 3, 16).values())
    assert torch.equal(found.zero, requantize(first.zero, 3, 16).values())
    plain = MinMaxDoubleQuantization().fit(weight, grid, statistics, layer)
    errors = [
        float((round_nearest(weight, one, grid).dequantize() - weight).norm())
        for one in (found, plain)
    ]
    assert errors[0] < 0.9 * errors[1]
    assert found.bits_on(grid) == plain.bits_on(grid)
