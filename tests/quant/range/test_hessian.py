"""The weighted search for scale and zero point against loops over candidates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import GridParameters
from edge_asr.quant.range.hessian import HessianWeighted, best_float_zero
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.range.mse import mse_parameters
from edge_asr.quant.weight import round_nearest


def heavy_tailed(seed: int, rows: int, columns: int) -> Tensor:
    """Weights with a few large ones, float64 [rows, columns]."""
    return torch.from_numpy(np.random.default_rng(seed).standard_t(3, (rows, columns)))


def importance_of(seed: int, columns: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).exponential(1.0, columns) ** 2)


def row_errors(weight: Tensor, fitted: GridParameters, grid: Grid, importance: Tensor) -> Tensor:
    rounded = round_nearest(weight, fitted, grid).dequantize()
    return ((rounded - weight).square() * importance).sum(1)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_with_equal_columns_and_both_ends_alike_it_is_the_search_of_least_squares(
    bits: int, symmetric: bool
) -> None:
    weight = heavy_tailed(bits, 6, 70)
    grid = Grid(bits, symmetric=symmetric, granularity="group", group_size=32, half_scales=False)
    expected = mse_parameters(weight, grid, steps=100, max_shrink=0.8, norm=2)
    part = HessianWeighted(steps=100, max_shrink=0.8, refine=1, search_zero=False)
    fitted = part.parameters(weight, grid, torch.ones(70, dtype=torch.float64))
    torch.testing.assert_close(fitted.scale, expected.scale, rtol=1e-12, atol=0)
    assert torch.equal(fitted.zero, expected.zero)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_scale_and_integer_zero_point_of_the_search_err_less(bits: int) -> None:
    """By hand over every scale of the search and every zero point."""
    weight, importance = heavy_tailed(7, 5, 16), importance_of(7, 16)
    grid = Grid(bits, half_scales=False)
    part = HessianWeighted(steps=32, max_shrink=0.8, refine=1)
    found = row_errors(weight, part.parameters(weight, grid, importance), grid, importance)
    whole = minmax_parameters(weight, grid).scale
    for row, values in enumerate(weight):
        least = np.inf
        for step in range(25):
            scale = float(whole[row, 0]) * (1 - step / 32)
            for zero in range(grid.highest + 1):
                codes = ((values / scale).round() + zero).clamp(0, grid.highest)
                error = float(((scale * (codes - zero) - values).square() * importance).sum())
                least = min(least, error)
        assert float(found[row]) == pytest.approx(least, rel=1e-4)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 4), near=st.integers(0, 15))
def test_the_float_zero_point_is_the_best_of_a_fine_row(seed: int, bits: int, near: int) -> None:
    grid = Grid(bits, zero_point="float", include_zero=False)
    exact = heavy_tailed(seed, 1, 16)[0] * 2
    importance, start = importance_of(seed, 16), torch.tensor(min(near, grid.highest) + 0.25)

    def error(zeros: Tensor) -> Tensor:
        codes = (exact + zeros[:, None]).round().clamp(grid.lowest, grid.highest)
        return ((codes - zeros[:, None] - exact).square() * importance).sum(1)

    found = best_float_zero(exact, importance, start.double(), grid)
    assert abs(float(found - start)) <= 1 + 1e-9
    row = torch.linspace(-1, 1, 4001, dtype=torch.float64) + start
    least, own = float(error(row).min()), float(error(found[None])[0])
    assert own <= least + 1e-9
    assert own >= least - 0.01 * float(importance.sum())


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(2, 5),
    size=st.sampled_from([None, 16, 40]),
    kind=st.sampled_from(["integer", "float", "minimum", "unsigned", "signed", "signed_scale"]),
)
def test_no_group_errs_more_than_by_minmax(
    seed: int, bits: int, size: int | None, kind: str
) -> None:
    zero_point = kind if kind in ("float", "minimum") else "integer"
    grid = Grid(
        bits,
        symmetric=kind not in ("integer", "float", "minimum"),
        signed=kind.startswith("signed"),
        signed_scale=kind == "signed_scale",
        zero_point=zero_point,  # type: ignore[arg-type]
        include_zero=zero_point == "integer",
        granularity="channel" if size is None else "group",
        group_size=size,
    )
    weight, importance = heavy_tailed(seed, 4, 56), importance_of(seed, 56)
    fitted = HessianWeighted(steps=16).parameters(weight, grid, importance)
    found = row_errors(weight, fitted, grid, importance)
    before = row_errors(weight, minmax_parameters(weight, grid), grid, importance)
    # A column counts at least a little, which is no part of this sum.
    assert bool((found <= before * (1 + 1e-3) + 1e-9).all())
    assert float(found.sum()) < float(before.sum())


@pytest.mark.parametrize("zero_point", ["float", "minimum"])
@pytest.mark.parametrize("bits", [2, 4])
def test_weights_far_from_zero_err_as_those_around_it(bits: int, zero_point: str) -> None:
    grid = Grid(
        bits,
        zero_point=zero_point,  # type: ignore[arg-type]
        include_zero=False,
        granularity="group",
        group_size=28,
    )
    weight, importance = heavy_tailed(3, 6, 56), importance_of(3, 56)
    search = HessianWeighted(steps=16)
    around = row_errors(weight, search.parameters(weight, grid, importance), grid, importance)
    for far in (weight + 50, weight - 50):
        found = row_errors(far, search.parameters(far, grid, importance), grid, importance)
        # Not to the digit: candidates of the zero point are whole steps from other places.
        assert float(found.sum()) < 1.15 * float(around.sum())


def test_a_signed_scale_may_have_either_sign() -> None:
    grid = Grid(3, symmetric=True, signed=True, signed_scale=True)
    weight, importance = heavy_tailed(1, 40, 32), importance_of(1, 32)
    start = minmax_parameters(weight, grid).scale
    fitted = HessianWeighted().parameters(weight, grid, importance).scale
    turned = (start * fitted < 0).sum()
    assert 0 < int(turned) < 40
