"""Compensation against least squares over the rows themselves, and slow loops by definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant.sites import correlated_inputs, rounded, site_context, statistics_of
from torch import Tensor

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.errors import UserError
from edge_asr.quant.context import SiteContext
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import dequantize, quantize
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.rounding.compensation import (
    Start,
    carried_mismatch,
    correction,
    held_out_alpha,
    largest_eigenvalue,
    qronos_weight,
)
from edge_asr.quant.rounding.gptq import Gptq
from edge_asr.quant.rounding.inverse_factor import InverseFactor, factorize
from edge_asr.quant.rounding.nearest import Nearest

ROWS, COLUMNS = 120, 12
SMALL = 1e-12


def streams(seed: int, rows: int = ROWS, columns: int = COLUMNS) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, what its layer reads, and what it would read in the float model."""
    generator = torch.Generator().manual_seed(seed + 1000)
    floats = correlated_inputs(seed, rows, columns)
    inputs = floats + 0.3 * floats.roll(1, 1) * torch.randn(rows, columns, generator=generator)
    return torch.randn(4, columns, generator=generator), inputs, floats


def factor_of(
    statistics: InputStatistics, damping: float = SMALL, act_order: bool = True
) -> InverseFactor:
    factor = factorize(statistics.hessian, damping=damping, damping_limit=1.0, act_order=act_order)
    assert factor is not None
    return factor


def distance(weight: Tensor, inputs: Tensor, target: Tensor, floats: Tensor) -> float:
    """Mean squared distance of the layer's outputs to the float model's."""
    change = inputs.double() @ weight.double().T - floats.double() @ target.double().T
    return float(change.square().sum(1).mean())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), act_order=st.booleans())
def test_the_whole_correction_leads_to_the_least_squares_solution(
    seed: int, act_order: bool
) -> None:
    weight, inputs, floats = streams(seed)
    statistics = statistics_of(inputs, floats)
    found = weight + correction(
        weight, statistics.mismatch, factor_of(statistics, SMALL, act_order)
    )
    target = (floats.double() @ weight.double().T).numpy()
    best = np.linalg.lstsq(inputs.double().numpy(), target, rcond=None)[0].T
    np.testing.assert_allclose(found.numpy(), best, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rounding", [Gptq(compensation="qep"), Nearest(compensation="qep")])
def test_where_both_models_read_the_same_nothing_changes(rounding: Gptq | Nearest) -> None:
    weight, inputs, _ = streams(1)
    grid = Grid(3)
    found = rounded(rounding, site_context(weight, inputs, grid, floats=inputs))
    plain = rounded(type(rounding)(), site_context(weight, inputs, grid))
    assert torch.equal(found.codes, plain.codes)


def test_gptaq_of_no_share_is_gptq_bit_for_bit() -> None:
    weight, inputs, floats = streams(2, columns=40)
    context = site_context(weight, inputs, Grid(3), floats=floats)
    found = rounded(Gptq(compensation="gptaq", alpha=0.0, block_size=16), context)
    assert torch.equal(found.codes, rounded(Gptq(block_size=16), context).codes)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), act_order=st.booleans(), block_size=st.sampled_from([1, 5, 64]))
def test_gptaq_solves_anew_for_the_columns_still_free(
    seed: int, act_order: bool, block_size: int
) -> None:
    """Each column's rounding error and what it lacks of the float model's output, w (f - x), are
    both projected on the columns after it, with their Hessian inverted from scratch."""
    weight, inputs, floats = streams(seed)
    grid, alpha = Grid(3), 0.5
    context = site_context(weight, inputs, grid, floats=floats)
    part = Gptq(compensation="gptaq", alpha=alpha, act_order=act_order, block_size=block_size)
    codes = rounded(part, context).codes
    hessian, mismatch = context.statistics.hessian, context.statistics.mismatch
    hessian = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(COLUMNS)
    order = torch.arange(COLUMNS)
    if act_order:
        order = torch.argsort(context.statistics.hessian.diagonal(), descending=True)
    scale, zero = (one.double() for one in minmax_parameters(weight, grid).expand(COLUMNS))
    updated, differing = weight.double().clone(), 0
    for position, column in enumerate(order.tolist()):
        code = quantize(updated[:, column], scale[:, column], zero[:, column], grid)
        differing += int((code != codes[:, column]).sum())
        value = dequantize(code, scale[:, column], zero[:, column])
        free = order[position + 1 :]
        inverse = torch.linalg.inv(hessian[free][:, free])
        lost = torch.outer(updated[:, column] - value, hessian[column, free])
        missing = alpha * torch.outer(updated[:, column], mismatch[column, free])
        updated[:, free] += (lost + missing) @ inverse
    # A value right between two codes may fall either way.
    assert differing <= 1


def test_gptaq_of_nearest_carries_what_columns_lack_and_no_rounding_error() -> None:
    weight, inputs, floats = streams(3)
    statistics = statistics_of(inputs, floats)
    factor = factor_of(statistics, 0.01)
    carried = carried_mismatch(statistics, factor, 0.25)
    expected = weight.double()[:, factor.order]
    for column in range(COLUMNS):
        expected[:, column + 1 :] += torch.outer(expected[:, column], carried[column, column + 1 :])
    fit = site_context(weight, inputs, Grid(3)).fits["layer"]
    found = Start(weight, fit, weight, carried).settled(factor.order)[:, factor.order]
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_qronos_from_qeps_first_column_is_all_of_qep(seed: int) -> None:
    weight, inputs, floats = streams(seed)
    statistics = statistics_of(inputs, floats)
    factor = factor_of(statistics)
    qep = weight.double() + correction(weight, statistics.mismatch, factor)
    first = qep[:, factor.order[0]]
    found = qronos_weight(weight, statistics, factor, lambda _: first)
    torch.testing.assert_close(found, qep, rtol=1e-6, atol=1e-6)


def test_qronos_fits_the_other_columns_to_the_first_as_it_is_rounded() -> None:
    weight, inputs, floats = streams(4)
    statistics = statistics_of(inputs, floats)
    factor = factor_of(statistics)
    first, others = int(factor.order[0]), factor.order[1:]
    asked: list[Tensor] = []

    def rounding(column: Tensor) -> Tensor:
        asked.append(column)
        return column.round()

    found = qronos_weight(weight, statistics, factor, rounding)
    x, target = inputs.double(), floats.double() @ weight.double().T
    alone = (target - x[:, others] @ weight.double()[:, others].T).T @ x[:, first]
    torch.testing.assert_close(asked[0], alone / x[:, first].square().sum(), rtol=1e-4, atol=1e-4)
    rest = target - torch.outer(x[:, first], asked[0].round())
    best = np.linalg.lstsq(x[:, others].numpy(), rest.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(found[:, others].numpy(), best, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("part", [Gptq, Nearest])
@pytest.mark.parametrize("settings_", [
    {"compensation": "qep"}, {"compensation": "qep", "alpha": "layer"},
    {"compensation": "qronos"}, {"compensation": "gptaq"},
])  # fmt: skip
def test_every_compensation_comes_nearer_to_the_float_model(
    part: type[Gptq | Nearest], settings_: dict[str, Any]
) -> None:
    nearer = []
    for seed in range(12):
        weight, inputs, floats = streams(seed, 300, 24)
        context = site_context(weight, inputs, Grid(4), floats=floats)
        found, plain = (rounded(one, context).dequantize() for one in (part(**settings_), part()))
        nearer.append(
            distance(found, inputs, weight, floats) < distance(plain, inputs, weight, floats)
        )
    assert sum(nearer) >= 10


def test_alpha_by_layer_is_the_best_share_on_the_held_out_clip() -> None:
    for seed in range(8):
        weight, inputs, floats = streams(seed, 36)
        context = site_context(weight, inputs, Grid(4), floats=floats)
        fitted = factor_of(context.statistics.fitted, 0.01)
        found = held_out_alpha(weight, context.statistics, fitted)
        change = correction(weight, context.statistics.fitted.mismatch, fitted)
        x, f = inputs[24:], floats[24:]
        shares = torch.linspace(0, 1, 501).tolist()
        best = min(shares, key=lambda share: distance(weight + share * change, x, weight, f))
        assert found == pytest.approx(best, abs=2e-3)


def test_without_a_held_out_clip_alpha_is_the_authors() -> None:
    weight, inputs, floats = streams(5)
    context = site_context(weight, inputs, Grid(4), floats=floats)
    statistics = InputStatistics(COLUMNS, paired=True, held_out=True)
    statistics.update(inputs[None], torch.ones(1, ROWS), floats[None])
    alone = SiteContext(context.site, context.weights, statistics, context.grids, context.fits)
    found = rounded(Nearest(compensation="qep", alpha="layer"), alone)
    assert "no held-out clips" in alone.warnings[0]
    assert torch.equal(found.codes, rounded(Nearest(compensation="qep"), alone).codes)


def test_power_iterations_find_the_largest_eigenvalue() -> None:
    rows = correlated_inputs(6, 50, 20).double()
    hessian = rows.T @ rows
    exact = float(torch.linalg.eigvalsh(hessian)[-1])
    assert largest_eigenvalue(hessian) == pytest.approx(exact, rel=1e-3)
    assert largest_eigenvalue(torch.zeros(3, 3)) == 0


def test_settings_that_were_not_given_are_the_authors() -> None:
    assert (Gptq().observe, Gptq().alpha, Gptq().damping) == ("block", None, 0.01)
    qep = Gptq(compensation="qep")
    assert (qep.observe, qep.alpha, qep.damping) == ("site", 0.5, 0.01)
    qronos = Gptq(compensation="qronos")
    assert (qronos.observe, qronos.alpha, qronos.damping) == ("site", None, 1e-6)
    assert Nearest(compensation="gptaq").alpha == 0.25
    assert Nearest().damping is None


@pytest.mark.parametrize(
    ("part", "options", "named"),
    [
        (Gptq, {"alpha": 0.5}, r"^method\.rounding\.alpha=0\.5 with .*compensation=none: "),
        (Gptq, {"compensation": "qronos", "alpha": 0.5}, "use qep or gptaq"),
        (Gptq, {"compensation": "gptaq", "alpha": "layer"}, "give a number, or null"),
        (Gptq, {"compensation": "qronos", "damping": 0.1}, "largest eigenvalue; give 0.01 at most"),
        (Gptq, {"compensation": "qronos", "static_groups": False, "act_order": False}, "static"),
        (Gptq, {"compensation": "gpta"}, "must be one of none, qep, qronos, gptaq"),
        (Gptq, {"alpha": 1.5}, "must be a number from 0 to 1 or layer"),
        (Nearest, {"damping": 0.1}, "would change nothing"),
        (Nearest, {"compensation": "qep", "damping": 2.0}, r"damping_limit=1\.0$"),
    ],
)
def test_settings_that_nothing_reads_are_refused(
    part: type[Gptq | Nearest], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        part(**options)
