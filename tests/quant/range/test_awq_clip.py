"""AWQ's clip search against a loop over groups, candidates and calibration rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant.sites import correlated_inputs, statistics_of

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.quant.context import Layer
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import GridParameters
from edge_asr.quant.range.awq_clip import (
    AwqClip,
    awq_clip_parameters,
    diagonal_blocks,
    group_output_error,
)
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.weight import round_nearest

PUBLISHED = {"steps": 20, "max_shrink": 0.5}
VALUES, LOGITS = Layer("v", makes_logits=False), Layer("q", makes_logits=True)


def heavy_tailed(seed: int, rows: int, columns: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_t(3, (rows, columns)))


def grouped(bits: int, size: int | None, **options: Any) -> Grid:
    granularity = options.pop("granularity", "group" if size else "channel")
    return Grid(bits, granularity=granularity, group_size=size, **options)


def output_errors(
    weight: torch.Tensor, rounded: torch.Tensor, inputs: torch.Tensor, size: int
) -> np.ndarray:
    """Mean squared change of every group's share of the output, from the outputs themselves."""
    columns = weight.shape[1]
    change = (rounded - weight).double().numpy()
    rows = inputs.double().numpy()
    return np.stack(
        [
            ((rows[:, start : start + size] @ change[:, start : start + size].T) ** 2).mean(0)
            for start in range(0, columns, size)
        ],
        1,
    )


def search(
    values: np.ndarray, inputs: np.ndarray, bits: int, zero_point: str, clamp_weight: bool
) -> tuple[float, float]:
    """Scale and zero point of one group on an asymmetric unsigned grid with zero inside.

    `clamp_weight` rounds the clamped weight, as the authors do, instead of letting codes
    saturate.
    """
    steps = 2**bits - 1
    largest = np.abs(values).max()
    wanted = inputs @ values
    least, best = np.inf, (np.nan, np.nan)
    for index in range(10):
        limit = largest * (1 - index / 20)
        clamped = np.clip(values, -limit, limit)
        low, high = min(clamped.min(), 0.0), max(clamped.max(), 0.0)
        scale = (high - low) / steps
        source = clamped if clamp_weight else values
        if zero_point == "integer":
            zero = np.round(-low / scale)
            codes = np.round(source / scale) + zero
        else:
            zero = -low / scale
            codes = np.round(source / scale + zero)
        got = inputs @ (scale * (np.clip(codes, 0, steps) - zero))
        error = ((got - wanted) ** 2).mean()
        if error < least:
            least, best = error, (scale, zero)
    return best


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(
    ("zero_point", "clamp_weight"), [("integer", False), ("float", False), ("float", True)]
)
def test_the_choice_is_that_of_the_slow_search(
    bits: int, zero_point: Any, clamp_weight: bool
) -> None:
    # With a float zero point a clamped end is a grid point: saturating and clamping agree.
    weight = heavy_tailed(bits, 5, 70)
    inputs = correlated_inputs(bits, 90, 70)
    grid = grouped(bits, 32, zero_point=zero_point, half_scales=False)
    moment = statistics_of(inputs).second_moment
    fitted = awq_clip_parameters(weight, grid, moment, **PUBLISHED)
    shrunk = 0
    for row, values in enumerate(weight.numpy()):
        for group, start in enumerate((0, 32, 64)):
            part = slice(start, start + 32)
            rows = inputs.double().numpy()[:, part]
            scale, zero = search(values[part], rows, bits, zero_point, clamp_weight)
            assert float(fitted.scale[row, group]) == pytest.approx(scale, rel=1e-9)
            assert float(fitted.zero[row, group]) == pytest.approx(zero, rel=1e-9)
    shrunk = (fitted.scale < minmax_parameters(weight, grid).scale * 0.999).sum()
    assert shrunk >= 3


@pytest.mark.parametrize("size", [16, 32, 70, 7])
def test_the_quadratic_form_is_the_error_of_the_outputs(size: int) -> None:
    inputs, change = correlated_inputs(0, 50, 70), heavy_tailed(1, 3, 70)
    blocks = diagonal_blocks(statistics_of(inputs).second_moment, size)
    got = group_output_error(change, blocks)
    expected = output_errors(torch.zeros(3, 70), change, inputs, size)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    signed=st.booleans(),
    include_zero=st.booleans(),
    zero_point=st.sampled_from(["integer", "float"]),
    half_scales=st.booleans(),
    size=st.sampled_from([None, 5, 16]),
    columns=st.sampled_from([1, 40, 48]),
    rows=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_no_group_has_more_output_error_than_by_min_max(
    bits: int, size: int | None, columns: int, rows: int, seed: int, **options: Any
) -> None:
    grid = grouped(bits, size, **options)
    weight = heavy_tailed(seed, 3, columns)
    inputs = correlated_inputs(seed, rows, columns)
    statistics = statistics_of(inputs)
    width = grid.columns_per_group(columns)

    def error(fitted: GridParameters) -> np.ndarray:
        rounded = round_nearest(weight, fitted, grid).dequantize()
        return output_errors(weight, rounded, inputs, width) if rows else np.zeros(1)

    clipped = error(AwqClip().fit(weight, grid, statistics, VALUES))
    widest = error(minmax_parameters(weight, grid))
    # The moments are float32 products; outputs of nearly cancelling terms differ by as much.
    assert (clipped <= widest * (1 + 1e-3) + 1e-5 * widest.max()).all()


def test_a_tensor_that_shares_one_scale_is_judged_by_all_its_rows() -> None:
    weight, inputs = heavy_tailed(3, 6, 40), correlated_inputs(3, 60, 40)
    grid = Grid(3, granularity="tensor")
    fitted = AwqClip().fit(weight, grid, statistics_of(inputs), VALUES)
    assert fitted.scale.shape == (1, 1)
    errors = [
        output_errors(weight, round_nearest(weight, part, grid).dequantize(), inputs, 40).sum()
        for part in (fitted, minmax_parameters(weight, grid))
    ]
    assert errors[0] < errors[1]


def test_without_calibration_rows_the_range_is_min_max() -> None:
    weight = heavy_tailed(4, 3, 48)
    grid = grouped(3, 32)
    fitted = AwqClip().fit(weight, grid, InputStatistics(48), VALUES)
    assert torch.equal(fitted.scale, minmax_parameters(weight, grid).scale)


def test_queries_and_keys_are_left_alone_unless_asked() -> None:
    weight, inputs = heavy_tailed(5, 8, 48), correlated_inputs(5, 100, 48)
    grid = Grid(2)
    statistics, widest = statistics_of(inputs), minmax_parameters(weight, grid).scale
    assert torch.equal(AwqClip().fit(weight, grid, statistics, LOGITS).scale, widest)
    asked = AwqClip(skip_logit_layers=False).fit(weight, grid, statistics, LOGITS)
    assert torch.equal(asked.scale, AwqClip().fit(weight, grid, statistics, VALUES).scale)
    assert not torch.equal(asked.scale, widest)


def test_rare_inputs_do_not_decide() -> None:
    """Clipping follows the inputs: an outlier weight is kept only where its input is large."""
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(6)) * 0.1
    weight[0, 3] = 2.0
    quiet = torch.randn(200, 32, generator=torch.Generator().manual_seed(7))
    quiet[:, 3] *= 1e-3
    loud = quiet.clone()
    loud[:, 3] *= 1e5
    grid = Grid(4, half_scales=False)
    cut, kept = (
        AwqClip().fit(weight, grid, statistics_of(inputs), VALUES) for inputs in (quiet, loud)
    )
    assert float(cut.scale) < 0.7 * float(kept.scale)
