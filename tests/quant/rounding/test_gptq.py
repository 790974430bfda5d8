"""GPTQ against the OBQ update written from its definition, and its promised properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant.sites import correlated_inputs, minmax_fit, site_context

from edge_asr.errors import UserError
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import GridParameters
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.rounding.gptq import Gptq, gptq_round
from edge_asr.quant.rounding.inverse_factor import HALVED_ABOVE, factorize, inverse_of_lower
from edge_asr.quant.rounding.nearest import Nearest
from edge_asr.quant.weight import round_nearest


def obq_reference(
    weight: np.ndarray,
    hessian: np.ndarray,
    parameters: GridParameters,
    grid: Grid,
    order: list[int],
) -> np.ndarray:
    """Quantize one weight after another, each time solving anew for the rest.

    Frantar and Alistarh 2022 (arXiv:2208.11580), eq. (3): after weight q is rounded with error
    e, the weights still free change by -e [H_F^-1]_q / [H_F^-1]_qq, with H_F the Hessian of
    the free weights, here inverted from scratch at every step.
    """
    result = np.zeros_like(weight)
    group_size = parameters.group_size
    for row in range(len(weight)):
        updated = weight[row].copy()
        free = list(order)
        for column in order:
            inverse = np.linalg.inv(hessian[np.ix_(free, free)])
            group = column // group_size
            scale = float(parameters.scale[row, group])
            zero = float(parameters.zero[row, group])
            code = np.clip(np.round(updated[column] / scale + zero), grid.lowest, grid.highest)
            value = scale * (code - zero)
            position = free.index(column)
            step = (updated[column] - value) / inverse[position, position]
            for other, index in enumerate(free):
                updated[index] -= step * inverse[position, other]
            result[row, column] = value
            free.remove(column)
    return result


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(2, 4),
    columns=st.integers(2, 18),
    group_size=st.sampled_from([None, 5, 8]),
    act_order=st.booleans(),
)
def test_gptq_is_obq_in_a_fixed_order(
    seed: int, bits: int, columns: int, group_size: int | None, act_order: bool
) -> None:
    grid = Grid(bits, granularity="group" if group_size else "channel", group_size=group_size)
    inputs = correlated_inputs(seed, 64, columns).double()
    hessian = 2 * inputs.T @ inputs / len(inputs)
    weight = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed + 1))
    weight = weight.double()
    factor = factorize(hessian, damping=0.01, damping_limit=1.0, act_order=act_order)
    assert factor is not None
    quantized = gptq_round(weight, factor, minmax_fit(grid), grid, block_size=4)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(columns)
    reference = obq_reference(
        weight.numpy(), damped.numpy(), quantized.parameters, grid, factor.order.tolist()
    )
    np.testing.assert_allclose(quantized.dequantize().numpy(), reference, atol=1e-5)


def test_blocks_do_not_change_the_result() -> None:
    grid = Grid(3)
    inputs = correlated_inputs(0, 200, 40)
    factor = factorize(
        (inputs.T @ inputs).double(), damping=0.01, damping_limit=1.0, act_order=True
    )
    assert factor is not None
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    results = [
        gptq_round(weight, factor, minmax_fit(grid), grid, block_size=size)
        for size in (1, 7, 40, 128)
    ]
    for other in results[1:]:
        assert torch.equal(results[0].codes, other.codes)


def test_without_correlation_gptq_is_rounding_to_nearest() -> None:
    grid = Grid(4)
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(2))
    factor = factorize(
        torch.eye(12, dtype=torch.float64), damping=0.01, damping_limit=1.0, act_order=False
    )
    assert factor is not None
    parameters = minmax_parameters(weight, grid)
    quantized = gptq_round(weight, factor, minmax_fit(grid), grid)
    assert torch.equal(quantized.codes, round_nearest(weight, parameters, grid).codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [None, 32, 25])
def test_gptq_has_less_output_error_than_nearest(bits: int, group_size: int | None) -> None:
    grid = Grid(bits, granularity="group" if group_size else "channel", group_size=group_size)
    weight = torch.randn(24, 70, generator=torch.Generator().manual_seed(bits))
    context = site_context(weight, correlated_inputs(bits, 400, 70), grid)
    gptq = Gptq().round(context)["layer"].dequantize()
    nearest = Nearest().round(context)["layer"].dequantize()
    error = context.statistics.output_error
    assert error(weight - gptq) < 0.5 * error(weight - nearest)
    assert not context.warnings


def test_dead_columns_become_zero() -> None:
    inputs = correlated_inputs(4, 100, 10)
    inputs[:, [2, 7]] = 0
    weight = torch.randn(4, 10, generator=torch.Generator().manual_seed(4))
    quantized = Gptq().round(site_context(weight, inputs, Grid(4)))["layer"].dequantize()
    assert torch.equal(quantized[:, [2, 7]], torch.zeros(4, 2))
    assert bool((quantized[:, [0, 1, 3]] != 0).any())


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("power", [1e-6, 1.0])
def test_dead_columns_change_nothing_for_the_others(static: bool, power: float) -> None:
    """Neither their weights, however large, nor their number, however small the other inputs."""
    grid = Grid(3, granularity="group", group_size=8)
    live = torch.tensor([True, False, True, True] * 4)
    inputs = power * correlated_inputs(4, 100, 16).masked_fill(~live, 0)
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(4))
    gptq = Gptq(static_groups=static, act_order=static)
    large = torch.where(live, weight, 100.0)
    results = [gptq.round(site_context(one, inputs, grid))["layer"] for one in (weight, large)]
    assert torch.equal(results[0].dequantize(), results[1].dequantize())
    alone = factorize(
        site_context(weight[:, live], inputs[:, live], grid).statistics.hessian,
        damping=gptq.damping, damping_limit=1.0, act_order=static,
    )  # fmt: skip
    beside = factorize(
        site_context(weight, inputs, grid).statistics.hessian,
        damping=gptq.damping, damping_limit=1.0, act_order=static,
    )  # fmt: skip
    assert alone is not None
    assert beside is not None
    natural = [one.sensitivity[torch.argsort(one.order)] for one in (alone, beside)]
    torch.testing.assert_close(natural[0], natural[1][live], rtol=1e-4, atol=0)


def test_without_calibration_rows_gptq_is_rounding_to_nearest() -> None:
    context = site_context(torch.randn(4, 10), torch.zeros(0, 10), Grid(4))
    quantized = Gptq().round(context)["layer"].dequantize()
    assert torch.equal(quantized, Nearest().round(context)["layer"].dequantize())
    assert bool(quantized.any())


def test_damping_rises_until_the_factorization_succeeds_and_says_so() -> None:
    # Far fewer rows than columns and wildly different scales: singular in double precision.
    inputs = correlated_inputs(5, 3, 60) * torch.logspace(-9, 9, 60)
    context = site_context(torch.randn(2, 60), inputs, Grid(4))
    Gptq(damping=1e-18, damping_limit=10.0).round(context)
    assert "damping raised" in context.warnings[0]


def test_a_failed_factorization_falls_back_to_nearest_and_says_so() -> None:
    weight = torch.randn(2, 6)
    context = site_context(weight, torch.full((3, 6), float("nan")), Grid(4))
    quantized = Gptq().round(context)["layer"]
    assert torch.equal(quantized.codes, Nearest().round(context)["layer"].codes)
    assert "rounded to nearest" in context.warnings[0]


def test_dynamic_groups_refit_on_updated_weights() -> None:
    grid = Grid(2, granularity="group", group_size=16)
    weight = torch.randn(8, 48, generator=torch.Generator().manual_seed(6))
    context = site_context(weight, correlated_inputs(6, 300, 48), grid)
    static = Gptq(act_order=False).round(context)["layer"]
    dynamic = Gptq(act_order=False, static_groups=False).round(context)["layer"]
    torch.testing.assert_close(static.parameters.scale[:, 0], dynamic.parameters.scale[:, 0])
    assert not torch.allclose(static.parameters.scale[:, 1:], dynamic.parameters.scale[:, 1:])
    error = context.statistics.output_error
    nearest = Nearest().round(context)["layer"].dequantize()
    assert error(weight - dynamic.dequantize()) < error(weight - nearest)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"damping": 2.0}, r"^method\.rounding\.damping=2\.0: .* damping_limit=1\.0$"),
        ({"damping_limit": 1e-3}, r"^method\.rounding\.damping_limit=0\.001: .* damping=0\.01$"),
        ({"damping": 0.5, "damping_limit": 0.1}, r"^method\.rounding\.damping_limit=0\.1: "),
        ({"static_groups": False}, "act_order"),
    ],
)
def test_impossible_settings_are_refused_by_name(options: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Gptq(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", [1, 7, HALVED_ABOVE, HALVED_ABOVE + 1, 2 * HALVED_ABOVE + 3])
def test_the_inverse_by_halves_is_that_of_the_whole(columns: int) -> None:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(2 * columns, columns, generator=generator, dtype=torch.float64)
    lower = torch.linalg.cholesky(rows.T @ rows)
    inverse = inverse_of_lower(lower)
    torch.testing.assert_close(inverse, torch.linalg.inv(lower), rtol=1e-9, atol=1e-12)
    assert not inverse.triu(1).any()
