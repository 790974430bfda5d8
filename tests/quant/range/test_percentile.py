"""Percentile ranges against numpy's percentiles."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.quant.formats import Grid
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.range.percentile import Percentile, percentile_parameters
from edge_asr.quant.weight import round_nearest


def matrix(seed: int, rows: int, columns: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_t(3, (rows, columns)))


@settings(max_examples=60, deadline=None)
@given(
    percentile=st.floats(70, 100),
    columns=st.integers(1, 70),
    size=st.sampled_from([None, 7, 32]),
    seed=st.integers(0, 99),
)
def test_the_range_lies_between_two_percentiles_of_the_group(
    percentile: float, columns: int, size: int | None, seed: int
) -> None:
    weight = matrix(seed, 3, columns)
    grid = Grid(
        4,
        include_zero=False,
        zero_point="float",
        granularity="group" if size else "channel",
        group_size=size,
        half_scales=False,
        minimum_scale=1e-12,
    )
    fitted = percentile_parameters(weight, grid, percentile)
    width = size or columns
    for group, start in enumerate(range(0, columns, width)):
        values = weight.numpy()[:, start : start + width]
        low, high = np.percentile(values, [100 - percentile, percentile], axis=1)
        # The grid widens a range much narrower than its distance from zero.
        wide = high - low > 1e-2 * np.maximum(np.abs(low), np.abs(high))
        assert wide.all() or values.shape[1] < 16
        scale = fitted.scale[:, group].numpy()
        np.testing.assert_allclose(scale[wide], ((high - low) / 15)[wide], rtol=1e-7)
        ends = -scale * fitted.zero[:, group].numpy()
        np.testing.assert_allclose(ends[wide], low[wide], rtol=1e-7, atol=1e-9)


def test_a_symmetric_range_takes_the_larger_magnitude() -> None:
    weight = matrix(0, 4, 200)
    grid = Grid(4, symmetric=True, signed=True, half_scales=False)
    low, high = np.percentile(weight.numpy(), [2, 98], axis=1)
    expected = np.maximum(np.abs(low), np.abs(high)) / 7
    np.testing.assert_allclose(percentile_parameters(weight, grid, 98.0).scale[:, 0], expected)


def test_a_whole_tensor_may_share_one_range() -> None:
    weight = matrix(1, 5, 30)
    grid = Grid(8, granularity="tensor", half_scales=False)
    low, high = np.percentile(weight.numpy(), [1, 99])
    scale = percentile_parameters(weight, grid, 99.0).scale
    np.testing.assert_allclose(scale, [[(high - low) / 255]])


def test_the_hundredth_percentile_is_min_max() -> None:
    weight = matrix(2, 4, 48)
    grid = Grid(3, granularity="group", group_size=20)
    fitted, widest = percentile_parameters(weight, grid, 100.0), minmax_parameters(weight, grid)
    assert torch.equal(fitted.scale, widest.scale)
    assert torch.equal(fitted.zero, widest.zero)


def test_weights_outside_saturate() -> None:
    weight = torch.linspace(-1, 1, 101)[None].clone()
    weight[0, 50] = 100.0
    grid = Grid(4)
    fitted = Percentile(98.0).fit(weight, grid, None, None)  # type: ignore[arg-type]
    rounded = round_nearest(weight, fitted, grid)
    assert int(rounded.codes[0, 50]) == 15
    assert float(rounded.dequantize().max()) < 1.2
