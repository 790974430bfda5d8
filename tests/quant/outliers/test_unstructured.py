"""SpQR against its algorithm written as loops, and what single outliers cost and gain."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant.sites import correlated_inputs, minmax_fit, rounded, served_grid, site_context

from edge_asr.errors import UserError
from edge_asr.quant.context import SiteContext
from edge_asr.quant.formats import Grid
from edge_asr.quant.outlier_rule import ENOUGH_WEIGHTS, OutlierRule, input_sensitivity
from edge_asr.quant.outliers.unstructured import (
    SingleWeights,
    Unstructured,
    leave_one_out_gain,
)
from edge_asr.quant.range.double_quantization import MinMaxDoubleQuantization
from edge_asr.quant.range.minmax import MinMax
from edge_asr.quant.range.mse import Mse
from edge_asr.quant.range.percentile import Percentile
from edge_asr.quant.rounding.gptq import Gptq, gptq_round
from edge_asr.quant.rounding.inverse_factor import factorize
from edge_asr.quant.rounding.nearest import Nearest
from edge_asr.quant.stages import Range
from edge_asr.quant.weight import FloatWeights, QuantizedWeight


def half(value: float) -> float:
    return float(np.float16(value))


def affine(values: list[float], bits: int, stored_half: bool = True) -> tuple[float, float]:
    """Scale and zero point of the range of `values`, zero point not rounded to an integer."""
    low, high = min(values), max(values)
    scale = (high - low) / (2**bits - 1)
    if stored_half:
        scale = half(scale)
    zero = -low / scale
    return scale, half(zero) if stored_half else zero


def on_grid(value: float, scale: float, zero: float, bits: int) -> float:
    code = min(max(np.round(value / scale + zero), 0), 2**bits - 1)
    return scale * (code - zero)


def double_quantization(values: list[float], bits: int, run: int) -> list[float]:
    """Every run of neighbouring values on a grid of its own."""
    result: list[float] = []
    for first in range(0, len(values), run):
        part = values[first : first + run]
        scale, zero = affine(part, bits)
        result += [on_grid(value, scale, zero, bits) for value in part]
    return result


def squared_error(values: list[float], weights: list[float], bits: int) -> float:
    scale, zero = affine(values, bits)
    return sum(
        weight * (on_grid(value, scale, zero, bits) - value) ** 2
        for value, weight in zip(values, weights, strict=True)
    )


def spqr_reference(
    weight: np.ndarray, hessian: np.ndarray, bits: int, group: int, relative: float
) -> tuple[np.ndarray, np.ndarray]:
    """Dequantized weight and outliers after algorithm 1 of arXiv:2306.03078, damping 1."""
    rows, columns = weight.shape
    order = np.argsort(-np.diag(hessian), kind="stable")
    damped = hessian + np.diag(hessian).mean() * np.eye(columns)
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    updated = weight[:, order].astype(np.float64)
    diagonal = np.diag(upper)
    threshold = relative * np.mean(
        [np.var(updated[:, j], ddof=1) / diagonal[j] ** 2 for j in range(columns)]
    )
    outlier = np.zeros_like(updated, dtype=bool)
    scales = zeros = []
    for j in range(columns):
        if j % group == 0:
            scales, zeros = [], []
            stop = min(j + group, columns)
            weights = [1 / diagonal[k] ** 2 for k in range(j, stop)]
            for row in range(rows):
                values = updated[row, j:stop].tolist()
                whole = squared_error(values, weights, bits)
                inside = []
                for k in range(len(values)):
                    rest = values[:k] + values[k + 1 :]
                    rest_weights = weights[:k] + weights[k + 1 :]
                    if whole - squared_error(rest, rest_weights, bits) <= threshold:
                        inside.append(values[k])
                scale, zero = affine(inside, bits, stored_half=False)
                scales.append(scale)
                zeros.append(zero)
            scales, zeros = double_quantization(scales, 3, 16), double_quantization(zeros, 3, 16)
        for row in range(rows):
            exact = updated[row, j]
            value = on_grid(exact, scales[row], zeros[row], bits)
            if ((exact - value) / upper[j, j]) ** 2 > threshold:
                outlier[row, j] = True
                value = half(exact)
            step = (exact - value) / upper[j, j]
            updated[row, j] = value
            for k in range(j + 1, columns):
                updated[row, k] -= step * upper[j, k]
    natural = np.argsort(order)
    return updated[:, natural], outlier[:, natural]


def heavy_tailed(seed: int, rows: int, columns: int) -> torch.Tensor:
    """Weights of which a few are five times too large."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    return torch.where(torch.rand(rows, columns, generator=generator) < 0.02, 5 * weight, weight)


def spqr_site(weight: torch.Tensor, bits: int, group: int, seed: int = 0) -> SiteContext:
    ranges = MinMaxDoubleQuantization()
    asked = Grid(bits, granularity="group", group_size=group)
    inputs = correlated_inputs(seed, 300, weight.shape[1])
    return site_context(weight, inputs, served_grid(ranges, asked), ranges)


SPQR_GPTQ = Gptq(damping=1.0, static_groups=False, ordered_groups=True)


@pytest.mark.parametrize(("rows", "columns", "bits"), [(24, 48, 3), (20, 40, 2), (16, 70, 4)])
def test_spqr_is_the_papers_algorithm(rows: int, columns: int, bits: int) -> None:
    context = spqr_site(heavy_tailed(columns, rows, columns).double(), bits, 16)
    context.outliers = Unstructured(fraction=1.0).rule(context.site, context.statistics)
    ours = SPQR_GPTQ.round(context)["layer"]
    values, mask = spqr_reference(
        context.weights["layer"].numpy(), context.statistics.hessian.numpy(), bits, 16, 0.2
    )
    assert mask.any()
    assert ours.outliers is not None
    np.testing.assert_array_equal(ours.outliers.mask.numpy(), mask)
    np.testing.assert_allclose(ours.dequantize().numpy(), values, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    columns=st.integers(2, 20),
    bits=st.integers(2, 4),
    ties=st.booleans(),
)
def test_the_gain_is_that_of_fitting_anew_without_each_weight(
    seed: int, columns: int, bits: int, ties: bool
) -> None:
    weight = heavy_tailed(seed, 3, columns).double()
    if ties:
        weight = weight.round() + torch.arange(columns) % 2
    weight[:, :2] = torch.tensor([-2.0, 3.0])  # no row is constant without one of its weights
    weight = torch.cat([weight, weight[:, :2].flip(1)], 1)
    sensitivity = torch.rand(columns + 2, generator=torch.Generator().manual_seed(seed)).double()
    grid = Grid(bits, include_zero=False, zero_point="float", granularity="group", group_size=16)
    gain = leave_one_out_gain(weight, sensitivity, grid)
    weights = sensitivity.tolist()
    for row, found in zip(weight.tolist(), gain.tolist(), strict=True):
        whole = squared_error(row, weights, bits)
        for k in range(len(row)):
            rest = squared_error(row[:k] + row[k + 1 :], weights[:k] + weights[k + 1 :], bits)
            assert found[k] == pytest.approx(whole - rest, rel=1e-6, abs=1e-9)


def test_a_group_of_one_column_has_its_own_error_as_gain() -> None:
    grid = Grid(3, include_zero=False, zero_point="float")
    gain = leave_one_out_gain(torch.tensor([[0.3], [-2.0]]).double(), torch.ones(1).double(), grid)
    assert torch.equal(gain < 1e-5, torch.ones(2, 1, dtype=torch.bool))


def test_left_out_weights_take_the_mean_of_the_rest_of_their_group() -> None:
    class Negative(OutlierRule):
        @property
        def keeps_single_weights(self) -> bool:
            return True

        def left_out(
            self, group: torch.Tensor, sensitivity: torch.Tensor, grid: Grid, threshold: float
        ) -> torch.Tensor:
            del sensitivity, grid, threshold
            return group < 0

    weight = torch.tensor([[1.0, -9.0, 3.0, 4.0, -5.0], [-1.0, -1.0, -1.0, 2.0, -8.0]])
    grid = Grid(3, granularity="group", group_size=3)
    view = Negative().fit_view(weight, torch.ones(5), grid, 0.0)
    expected = torch.tensor([[1.0, 2.0, 3.0, 4.0, 4.0], [0.0, 0.0, 0.0, 2.0, 2.0]])
    assert torch.equal(view, expected)


@pytest.mark.parametrize("static", [True, False])
def test_a_threshold_that_nothing_exceeds_is_plain_gptq(static: bool) -> None:
    grid = Grid(3, granularity="group", group_size=16)
    context = site_context(heavy_tailed(1, 12, 40), correlated_inputs(1, 200, 40), grid)
    gptq = Gptq(static_groups=static, ordered_groups=not static)
    plain = gptq.round(context)["layer"]
    context.outliers = Unstructured(relative_threshold=1e6).rule(context.site, context.statistics)
    with_rule = gptq.round(context)["layer"]
    assert with_rule.outliers is None
    assert torch.equal(plain.codes, with_rule.codes)
    assert torch.equal(plain.parameters.scale, with_rule.parameters.scale)
    assert plain.stored_bits == with_rule.stored_bits


@pytest.mark.parametrize("rounding", [Gptq(), Gptq(damping=1.0), SPQR_GPTQ, Nearest()])
@pytest.mark.parametrize("ranges", [MinMax(), MinMaxDoubleQuantization()])
def test_outliers_lower_the_output_error(rounding: Gptq | Nearest, ranges: Range) -> None:
    grid = served_grid(ranges, Grid(3, granularity="group", group_size=16))
    weight = heavy_tailed(2, 32, 70)
    context = site_context(weight, correlated_inputs(2, 400, 70), grid, ranges)
    error = context.statistics.output_error
    without = rounded(rounding, context)
    context.outliers = Unstructured().rule(context.site, context.statistics)
    kept = rounded(rounding, context)
    assert kept.outliers is not None
    share = float(kept.outliers.mask.float().mean())
    assert 0 < share < 0.1
    assert error(weight - kept.dequantize()) < error(weight - without.dequantize())


def test_a_lower_threshold_keeps_more_and_errs_less() -> None:
    context = spqr_site(heavy_tailed(3, 32, 48), 3, 16)
    weight, shares, errors = context.weights["layer"], [], []
    for threshold in (1e6, 0.5, 0.1, 0.02):
        context.outliers = SingleWeights(relative_threshold=threshold)
        kept = SPQR_GPTQ.round(context)["layer"]
        shares.append(kept.operand_bits)
        errors.append(context.statistics.output_error(weight - kept.dequantize()))
    assert all(less < more for less, more in pairwise(shares))
    assert all(less < more for more, less in pairwise(errors))


def test_blocks_do_not_change_the_outliers() -> None:
    context = spqr_site(heavy_tailed(4, 16, 70), 3, 16)
    grid = context.grids["layer"]
    factor = factorize(context.statistics.hessian, damping=1.0, damping_limit=1.0, act_order=True)
    assert factor is not None
    results = [
        gptq_round(
            context.weights["layer"], factor, minmax_fit(grid), grid,
            block_size=size, outliers=SingleWeights(relative_threshold=0.2),
        )
        for size in (1, 13, 70)
    ]  # fmt: skip
    for other in results[1:]:
        assert torch.equal(results[0].dequantize(), other.dequantize())


def test_outliers_are_stored_in_half_precision() -> None:
    context = spqr_site(heavy_tailed(5, 16, 48), 3, 16)
    context.outliers = SingleWeights(relative_threshold=0.05)
    kept = SPQR_GPTQ.round(context)["layer"]
    assert kept.outliers is not None
    values = kept.dequantize()[kept.outliers.mask]
    assert torch.equal(values, values.half().float())


def test_stored_bits_by_hand() -> None:
    codes = torch.zeros(10, 40, dtype=torch.uint8)
    mask = torch.zeros(10, 40, dtype=torch.bool)
    mask[3, [1, 30]] = True
    mask[9, 0] = True
    context = site_context(torch.randn(10, 40), torch.randn(50, 40), Grid(3))
    parameters = context.fits["layer"](context.weights["layer"])
    weight = QuantizedWeight(codes, parameters, Grid(3), FloatWeights(mask, mask.float()))
    # Codes everywhere; a 16-bit scale and a 3-bit zero a row; three values with a column index
    # each; eleven row pointers.
    assert weight.stored_bits == 400 * 3 + 10 * 19 + 3 * 32 + 11 * 16
    assert weight.operand_bits == pytest.approx((397 * 3 + 3 * 16) / 400)
    assert weight.float_columns is None
    many = torch.ones(300, 300, dtype=torch.bool)
    assert FloatWeights(many, many.float()).stored_bits == 90_000 * 32 + 301 * 32


def test_sensitivity_is_the_error_after_the_best_change_of_the_others() -> None:
    inputs = correlated_inputs(6, 100, 7).double()
    hessian = inputs.T @ inputs / 100
    damped = hessian + 0.5 * hessian.diagonal().mean() * torch.eye(7)
    for column, found in enumerate(input_sensitivity(hessian, 0.5).tolist()):
        others = [other for other in range(7) if other != column]
        best = torch.linalg.solve(damped[others][:, others], damped[others, column])
        assert found == pytest.approx(float(damped[column, column] - damped[column, others] @ best))
    assert torch.equal(input_sensitivity(torch.zeros(3, 3)), torch.ones(3).double())
    assert torch.equal(input_sensitivity(torch.full((3, 3), math.nan)), torch.ones(3).double())


def test_a_failed_factorization_still_keeps_outliers() -> None:
    context = site_context(heavy_tailed(7, 16, 20), torch.full((3, 20), math.nan), Grid(3))
    context.outliers = SingleWeights(relative_threshold=0.05)
    kept = Gptq().round(context)["layer"]
    assert kept.outliers is not None
    assert "rounded to nearest" in context.warnings[0]


def test_one_row_has_no_spread_and_keeps_nothing() -> None:
    context = spqr_site(heavy_tailed(8, 1, 20), 3, 16)
    context.outliers = SingleWeights(relative_threshold=0.2)
    assert SPQR_GPTQ.round(context)["layer"].outliers is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ordered_groups": True}, "static_groups=false"),
        ({"static_groups": False}, "ordered_groups=true"),
    ],
)
def test_groups_in_rounding_order_must_be_asked_for(options: dict[str, bool], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Gptq(**options)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("ranges", [MinMax(), Mse(), Percentile()], ids=str)
def test_the_budget_holds_at_every_width(bits: int, group_size: int | None, ranges: Range) -> None:
    """About a hundredth of the weights stays, also where the range clips more than that.

    The threshold alone keeps many more.
    """
    grid = Grid(bits, granularity="group" if group_size else "channel", group_size=group_size)
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(1))
    context = site_context(weight, correlated_inputs(2, 400, 64), grid, ranges)
    for rounding in (Gptq(), Nearest()):
        kept = []
        for budget in (0.01, 1.0):
            context.outliers = SingleWeights(relative_threshold=1e-3, fraction=budget)
            outliers = rounded(rounding, context).outliers
            kept.append(0.0 if outliers is None else float(outliers.mask.float().mean()))
        assert 0.006 < kept[0] <= 0.01, rounding
        assert kept[1] > 3 * kept[0], rounding


@pytest.mark.parametrize("rounding", [Gptq(), Nearest()])
def test_rows_without_spread_have_a_budget_too(rounding: Gptq | Nearest) -> None:
    weight = torch.randn(1, 64, generator=torch.Generator().manual_seed(1)).repeat(48, 1)
    context = site_context(weight, correlated_inputs(2, 400, 64), Grid(3))
    context.outliers = SingleWeights(relative_threshold=0.2, fraction=0.01)
    outliers = rounded(rounding, context).outliers
    assert outliers is None or outliers.single_weights <= 0.01 * weight.numel()


@pytest.mark.parametrize(("group_size", "stored"), [(None, False), (16, True)])
def test_one_group_a_row_needs_no_order_of_columns(group_size: int | None, stored: bool) -> None:
    grid = Grid(3, granularity="group" if group_size else "channel", group_size=group_size)
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(1))
    context = site_context(weight, correlated_inputs(2, 400, 64), grid)
    ordered = SPQR_GPTQ.round(context)["layer"]
    extra = ordered.stored_bits - Nearest().round(context)["layer"].stored_bits
    assert extra == (16 * 64 if stored else 0)
    assert (ordered.parameters.order is not None) == stored


def test_the_budget_of_a_large_layer_is_found_on_a_part_of_its_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2 * ENOUGH_WEIGHTS // 512, 512, generator=generator)
    weight *= torch.exp(0.3 * torch.randn(len(weight), 1, generator=generator))
    context = site_context(weight, correlated_inputs(2, 600, 512), Grid(3), Mse())
    context.outliers = SingleWeights(relative_threshold=1e-3, fraction=0.01)
    outliers = rounded(Nearest(), context).outliers
    assert outliers is not None
    assert 0.009 < float(outliers.mask.float().mean()) < 0.011
