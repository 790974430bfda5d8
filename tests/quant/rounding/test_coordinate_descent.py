"""Coordinate descent against a loop over single weights, and its promise."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant.sites import correlated_inputs, rounded, site_context
from torch import Tensor

from edge_asr.quant.formats import Grid
from edge_asr.quant.outliers.unstructured import Unstructured
from edge_asr.quant.rounding.coordinate_descent import BLOCK, polished
from edge_asr.quant.rounding.gptq import Gptq
from edge_asr.quant.rounding.nearest import Nearest
from edge_asr.quant.weight import QuantizedWeight


def objective(found: QuantizedWeight, target: Tensor, hessian: Tensor) -> float:
    change = found.dequantize().double() - target.double()
    return float(torch.trace(change @ hessian @ change.T))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(2, 4),
    columns=st.sampled_from([2, 9, 40, BLOCK + 9]),
    group_size=st.sampled_from([None, 8]),
)
def test_the_objective_never_rises(
    seed: int, bits: int, columns: int, group_size: int | None
) -> None:
    grid = Grid(bits, granularity="group" if group_size else "channel", group_size=group_size)
    weight = torch.randn(5, columns, generator=torch.Generator().manual_seed(seed))
    context = site_context(weight, correlated_inputs(seed, 60, columns), grid)
    hessian = context.statistics.hessian
    for start in (Nearest(), Gptq(), Gptq(act_order=False)):
        found = [rounded(start, context)]
        for cycles in (1, 2, 5):
            order = torch.randperm(columns, generator=torch.Generator().manual_seed(seed))
            found.append(polished(found[0], weight, hessian, order, cycles))
        errors = [objective(one, weight, hessian) for one in found]
        assert all(later <= earlier * (1 + 1e-6) + 1e-9 for earlier, later in pairwise(errors))


def test_a_cycle_is_a_loop_over_single_weights() -> None:
    grid, columns = Grid(3, granularity="group", group_size=16), BLOCK + 20
    weight = torch.randn(3, columns, generator=torch.Generator().manual_seed(1))
    context = site_context(weight, correlated_inputs(1, 400, columns), grid)
    hessian, start = context.statistics.hessian, rounded(Nearest(), context)
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(2))
    found = polished(start, weight, hessian, order, 1)
    scale, zero = (one.double() for one in start.parameters.expand(columns))
    codes = start.codes.double()
    levels = torch.arange(grid.lowest, grid.highest + 1).double()
    for row in range(3):
        for column in order.tolist():
            costs = []
            for level in levels:
                codes[row, column] = level
                change = scale[row] * (codes[row] - zero[row]) - weight[row].double()
                costs.append(float(change @ hessian @ change))
            codes[row, column] = levels[int(torch.tensor(costs).argmin())]
    assert torch.equal(found.codes.double(), codes)


def test_after_gptq_it_helps_and_leaves_outliers_where_they_are() -> None:
    weight = torch.randn(12, 48, generator=torch.Generator().manual_seed(3))
    weight[2, 5] = 20.0
    context = site_context(weight, correlated_inputs(3, 200, 48), Grid(2))
    error = context.statistics.output_error
    plain, better = (rounded(Gptq(polish=cycles, damping=1e-6), context) for cycles in (0, 4))
    assert error(weight - better.dequantize()) < error(weight - plain.dequantize())
    context.outliers = Unstructured().rule(context.site, context.statistics)
    kept = rounded(Gptq(polish=4), context).outliers
    assert kept is not None
    expected = rounded(Gptq(), context).outliers
    assert expected is not None
    assert torch.equal(kept.mask, expected.mask)
    assert bool(kept.mask[2, 5])


def test_dead_columns_stay_as_they_are() -> None:
    inputs = correlated_inputs(4, 100, 10)
    inputs[:, 3] = 0
    context = site_context(torch.randn(4, 10), inputs, Grid(3))
    plain, better = (rounded(Gptq(polish=cycles), context) for cycles in (0, 3))
    assert torch.equal(plain.codes[:, 3], better.codes[:, 3])


@pytest.mark.parametrize("compensation", ["qep", "gptaq", "qronos"])
def test_cycles_go_on_towards_the_compensated_weight(compensation: str) -> None:
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(5))
    floats = correlated_inputs(5, 300, 24)
    inputs = floats + 0.2 * floats.roll(1, 1)
    context = site_context(weight, inputs, Grid(2), floats=floats)

    def distance(found: Tensor) -> float:
        change = inputs.double() @ found.double().T - floats.double() @ weight.double().T
        return float(change.square().sum())

    alpha = {} if compensation == "qronos" else {"alpha": 1.0}
    plain, better = (
        rounded(Gptq(compensation=compensation, polish=cycles, **alpha), context).dequantize()
        for cycles in (0, 5)
    )
    assert distance(better) < distance(plain)
