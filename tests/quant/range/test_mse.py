"""The shrink search against a loop over groups and candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.quant.formats import Grid
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.range.mse import Mse, mse_parameters
from edge_asr.quant.weight import round_nearest

PUBLISHED = {"steps": 100, "max_shrink": 0.8, "norm": 2.4}


def heavy_tailed(seed: int, rows: int, columns: int) -> torch.Tensor:
    """Weights with a few large ones, float64 [rows, columns]."""
    return torch.from_numpy(np.random.default_rng(seed).standard_t(3, (rows, columns)))


def published_search(values: np.ndarray, bits: int, symmetric: bool) -> tuple[float, float]:
    """Scale and zero point of one group as GPTQ's authors find them (unsigned, zero inside)."""
    steps = 2**bits - 1
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    least, best = np.inf, (np.nan, np.nan)
    for index in range(80):
        factor = 1 - index / 100
        scale = (factor * high - factor * low) / steps
        zero = (steps + 1) / 2 if symmetric else np.round(-factor * low / scale)
        rounded = scale * (np.clip(np.round(values / scale) + zero, 0, steps) - zero)
        error = (np.abs(rounded - values) ** 2.4).sum()
        if error < least:
            least, best = error, (scale, zero)
    return best


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_scales_and_zero_points_are_those_of_the_published_search(
    bits: int, symmetric: bool
) -> None:
    weight = heavy_tailed(bits, 6, 70)
    grid = Grid(bits, symmetric=symmetric, granularity="group", group_size=32, half_scales=False)
    fitted = mse_parameters(weight, grid, **PUBLISHED)
    for row, values in enumerate(weight.numpy()):
        for group, start in enumerate((0, 32, 64)):
            scale, zero = published_search(values[start : start + 32], bits, symmetric)
            assert float(fitted.scale[row, group]) == pytest.approx(scale, rel=1e-12)
            assert float(fitted.zero[row, group]) == zero


def summed_error(weight: torch.Tensor, grid: Grid, fitted: Any, norm: float) -> np.ndarray:
    """Sum of |error|^norm of every group, [rows, groups] (one value for a whole tensor)."""
    error = np.abs((round_nearest(weight, fitted, grid).dequantize() - weight).numpy()) ** norm
    if grid.granularity == "tensor":
        return error.sum(keepdims=True)
    size = grid.columns_per_group(weight.shape[1])
    starts = range(0, weight.shape[1], size)
    return np.stack([error[:, start : start + size].sum(1) for start in starts], 1)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    signed=st.booleans(),
    include_zero=st.booleans(),
    zero_point=st.sampled_from(["integer", "float", "minimum"]),
    half_scales=st.booleans(),
    granularity=st.sampled_from(["tensor", "channel", "group"]),
    columns=st.integers(1, 48),
    norm=st.sampled_from([1.0, 2.0, 2.4]),
    offset=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 99),
)
def test_on_every_grid_no_group_errs_more_than_by_min_max(
    columns: int, norm: float, offset: float, seed: int, granularity: Any, **options: Any
) -> None:
    size = 20 if granularity == "group" else None
    if options["zero_point"] == "minimum":  # of codes from zero on, and no symmetric ones
        options |= {"symmetric": False, "signed": False}
    grid = Grid(granularity=granularity, group_size=size, **options)
    weight = heavy_tailed(seed, 3, columns) + offset
    fitted = mse_parameters(weight, grid, steps=20, max_shrink=0.8, norm=norm)
    widest = minmax_parameters(weight, grid)
    assert fitted.scale.shape == widest.scale.shape
    error = summed_error(weight, grid, fitted, norm)
    assert (error <= summed_error(weight, grid, widest, norm) * (1 + 1e-12)).all()


def test_outliers_are_cut_where_that_helps() -> None:
    weight = heavy_tailed(0, 16, 256)
    grid = Grid(3)
    widest = minmax_parameters(weight, grid)
    fitted = Mse().fit(weight, grid, None, None)  # type: ignore[arg-type]
    assert bool((fitted.scale <= widest.scale).all())
    before, after = (summed_error(weight, grid, part, 2.4).sum() for part in (widest, fitted))
    assert after < 0.8 * before


@pytest.mark.parametrize("far", [5.0, -5.0])
def test_outliers_are_cut_on_one_side_of_zero_too(far: float) -> None:
    grid = Grid(3, zero_point="minimum", include_zero=False, half_scales=False)
    # Outliers away from zero: its near end stays.
    weight = 0.01 * torch.rand(8, 128, generator=torch.Generator().manual_seed(0))
    weight[:, ::50] += 0.03
    weight = far + weight if far > 0 else far - weight
    widest = minmax_parameters(weight, grid)
    fitted = Mse().fit(weight, grid, None, None)  # type: ignore[arg-type]
    before, after = (summed_error(weight, grid, part, 2.4).sum() for part in (widest, fitted))
    assert after < 0.8 * before


def test_ties_keep_the_widest_range() -> None:
    # Zeros lie on every grid, so all candidates err alike: by nothing.
    grid = Grid(4)
    zeros = torch.zeros(2, 10)
    widest = minmax_parameters(zeros, grid)
    assert torch.equal(mse_parameters(zeros, grid, **PUBLISHED).scale, widest.scale)
    # So do all codes of a grid that covers them exactly.
    codes = torch.arange(16.0)[None] - 5
    assert torch.equal(mse_parameters(codes, grid, **PUBLISHED).scale, torch.ones(1, 1))
