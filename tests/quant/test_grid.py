"""The uniform grid against slow, literal references."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.errors import UserError
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import (
    GridParameters,
    dequantize,
    parameters_from_range,
    quantize,
    reduce_groups,
    rescaled,
    shrunk_parameters,
    stored_values,
)
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.weight import round_nearest

grids = st.builds(
    Grid,
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    signed=st.booleans(),
    include_zero=st.just(True),
    zero_point=st.sampled_from(["integer", "float"]),
    granularity=st.just("group"),
    group_size=st.integers(1, 40),
)


def matrix(seed: int, rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(grid=grids, rows=st.integers(1, 5), columns=st.integers(1, 70), seed=st.integers(0, 99))
def test_rounding_errs_by_half_a_step_at_most_and_keeps_the_codes_on_the_grid(
    grid: Grid, rows: int, columns: int, seed: int
) -> None:
    weight = matrix(seed, rows, columns)
    quantized = round_nearest(weight, minmax_parameters(weight, grid), grid)
    assert quantized.codes.shape == weight.shape
    assert int(quantized.codes.min()) >= grid.lowest
    assert int(quantized.codes.max()) <= grid.highest
    scale, _ = quantized.parameters.expand(columns)
    error = (quantized.dequantize() - weight).abs()
    # A symmetric unsigned grid is cut half a step short at its upper end; a rounded zero point
    # moves both ends by up to half a step.
    slack = 1.0 if grid.symmetric or grid.zero_point == "integer" else 0.5
    # Rounding a scale to float16 moves the far end by half a step at 8 bits.
    assert bool((error <= (slack + 2**grid.bits * 2**-11) * scale * (1 + 1e-4) + 1e-6).all())


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 50), columns=st.integers(1, 100), seed=st.integers(0, 99))
def test_groups_are_runs_of_columns_and_the_last_may_be_short(
    size: int, columns: int, seed: int
) -> None:
    weight = matrix(seed, 3, columns)
    grid = Grid(4, granularity="group", group_size=size)
    largest, per_group = reduce_groups(weight, grid, torch.amax)
    expected = [
        [max(row[start : start + per_group]) for start in range(0, columns, per_group)]
        for row in weight.tolist()
    ]
    assert largest.shape == (3, math.ceil(columns / per_group))
    torch.testing.assert_close(largest, torch.tensor(expected))


def test_asymmetric_grid_matches_the_formula_value_by_value() -> None:
    weight = matrix(3, 4, 10)
    grid = Grid(3, half_scales=False)
    quantized = round_nearest(weight, minmax_parameters(weight, grid), grid).dequantize()
    for row, rounded in zip(weight.tolist(), quantized.tolist(), strict=True):
        low, high = min(*row, 0.0), max(*row, 0.0)
        scale = (high - low) / 7
        zero = round(-low / scale)
        for value, got in zip(row, rounded, strict=True):
            code = min(max(round(value / scale) + zero, 0), 7)
            assert got == pytest.approx(scale * (code - zero), abs=1e-5)


def test_codes_equal_those_of_the_reference_implementations_bit_for_bit() -> None:
    """IST-DASLab GPTQ's quantizer on bfloat16 weights, whose quotients often tie."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 256, generator=generator).bfloat16().float()
    for bits in (2, 3, 4, 8):
        grid = Grid(bits, half_scales=False)
        ours = round_nearest(weight, minmax_parameters(weight, grid), grid)
        low = torch.minimum(weight.min(1).values, torch.tensor(0.0))
        high = torch.maximum(weight.max(1).values, torch.tensor(0.0))
        scale = ((high - low) / (2**bits - 1))[:, None]
        zero = torch.round(-low[:, None] / scale)
        theirs = torch.clamp(torch.round(weight / scale) + zero, 0, 2**bits - 1)
        assert torch.equal(ours.codes, theirs.to(torch.uint8))
        torch.testing.assert_close(ours.dequantize(), scale * (theirs - zero), rtol=0, atol=0)


def test_scales_are_used_at_the_width_they_are_charged_with() -> None:
    weight = matrix(5, 16, 48)
    for zero_point in ("integer", "float"):
        parameters = minmax_parameters(weight, Grid(3, zero_point=zero_point))
        assert torch.equal(parameters.scale, parameters.scale.half().float())
        assert torch.equal(parameters.zero, parameters.zero.half().float())


def test_symmetric_grids_of_the_two_reference_conventions() -> None:
    low, high = torch.tensor([[-3.0]]), torch.tensor([[2.0]])
    signed = parameters_from_range(low, high, Grid(3, symmetric=True, signed=True), 1)
    assert (float(signed.scale), float(signed.zero)) == (1.0, 0.0)
    unsigned = parameters_from_range(low, high, Grid(3, symmetric=True, half_scales=False), 1)
    assert float(unsigned.scale) == pytest.approx(6 / 7)
    assert float(unsigned.zero) == 4.0


def test_a_constant_or_zero_group_survives() -> None:
    for value in (0.0, 0.7, -0.7):
        weight = torch.full((2, 5), value)
        grid = Grid(2)
        rounded = round_nearest(weight, minmax_parameters(weight, grid), grid).dequantize()
        torch.testing.assert_close(rounded, weight, rtol=1e-3, atol=1e-6)


MINIMA = {"zero_point": "minimum", "include_zero": False}


@pytest.mark.parametrize("half", [False, True])
def test_a_minimum_stays_where_scales_change(half: bool) -> None:
    grid = Grid(4, half_scales=half, **MINIMA)  # type: ignore[arg-type]
    weight = matrix(4, 3, 40) * 0.01 + torch.tensor([[0.0], [5.0], [-5.0]])
    fitted = minmax_parameters(weight, grid)
    changed = rescaled(fitted, fitted.scale * 1.3, grid)
    lowest = torch.zeros(3, 1)
    before = stored_values(lowest, fitted.scale, fitted.zero, grid)
    after = stored_values(lowest, changed.scale, changed.zero, grid)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-7)
    assert not torch.equal(changed.scale, fitted.scale)


@settings(max_examples=60, deadline=None)
@given(
    centre=st.floats(-20, 20),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    zero_point=st.sampled_from(["integer", "minimum"]),
)
def test_a_range_shrinks_within_itself(
    centre: float, shares: tuple[float, float], zero_point: str
) -> None:
    options = MINIMA if zero_point == "minimum" else {}
    grid = Grid(4, half_scales=False, **options)  # type: ignore[arg-type]
    low, high = torch.full((1, 1), centre - 1), torch.full((1, 1), centre + 1)
    if zero_point == "integer":
        low, high = low.clamp(max=0), high.clamp(min=0)
    found = shrunk_parameters((low, high), shares, grid, 8)
    codes = torch.tensor([[0.0, grid.steps]])
    reached = stored_values(codes, found.scale, found.zero, grid)
    # A zero point that is rounded moves the range by up to half a step.
    step = float(found.scale) * (zero_point == "integer") + 1e-4
    assert float(reached.min()) >= float(low) - step
    assert float(reached.max()) <= float(high) + step
    if float(low) <= 0 <= float(high):
        expected = parameters_from_range(shares[0] * low, shares[1] * high, grid, 8)
        assert torch.equal(found.scale, expected.scale)
        assert torch.equal(found.zero, expected.zero)


def test_stored_bits_count_scales_and_zero_points() -> None:
    weight = matrix(0, 8, 72)
    grouped = Grid(3, granularity="group", group_size=32)
    quantized = round_nearest(weight, minmax_parameters(weight, grouped), grouped)
    # 72 columns make three groups; each row's group keeps a 16-bit scale and a 3-bit zero.
    assert quantized.stored_bits == 8 * 72 * 3 + 8 * 3 * (16 + 3)
    symmetric = Grid(3, symmetric=True)
    quantized = round_nearest(weight, minmax_parameters(weight, symmetric), symmetric)
    assert quantized.effective_bits == pytest.approx(3 + 16 / 72)


def test_one_scale_for_the_whole_tensor() -> None:
    weight = matrix(1, 6, 9)
    grid = Grid(4, granularity="tensor")
    parameters = minmax_parameters(weight, grid)
    assert parameters.scale.shape == (1, 1)
    rounded = round_nearest(weight, parameters, grid).dequantize()
    assert float((rounded - weight).abs().max()) <= float(parameters.scale)


def test_encode_and_decode_are_inverse_on_the_grid() -> None:
    grid = Grid(4, signed=True)
    codes = torch.arange(grid.lowest, grid.highest + 1).float()
    scale, zero = torch.tensor(0.37), torch.tensor(2.0)
    torch.testing.assert_close(quantize(dequantize(codes, scale, zero), scale, zero, grid), codes)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bits": 1}, "bits=1"),
        ({"bits": 17}, "bits=17"),
        ({"bits": 4, "granularity": "group"}, "group_size"),
        ({"bits": 4, "group_size": 32}, "group_size"),
        ({"bits": 4, "granularity": "group", "group_size": 0}, "group_size=0"),
    ],
)
def test_impossible_grids_are_refused_by_name(options: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Grid(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [3, 7, 9])
def test_every_column_has_the_scale_of_its_group(size: int) -> None:
    """Column by column, and the gradient of a group is the sum of its columns'."""
    groups = -(-7 // size)
    scale = torch.randn(2, groups, generator=torch.Generator().manual_seed(0), requires_grad=True)
    wide, zero = GridParameters(scale, 2 * scale.detach(), size).expand(7)
    assert wide.shape == zero.shape == (2, 7)
    for column in range(7):
        assert torch.equal(wide[:, column], scale[:, column // size])
        assert torch.equal(zero[:, column], 2 * scale[:, column // size])
    (wide * torch.arange(7.0)).sum().backward()
    expected = [sum(range(7)[group * size : (group + 1) * size]) for group in range(groups)]
    assert scale.grad is not None
    assert scale.grad.tolist() == [expected, expected]
