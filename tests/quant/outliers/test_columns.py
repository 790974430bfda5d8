"""QUIK: which columns stay, what GPTQ does with them, and what they cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quant.sites import correlated_inputs, rounded, served_format, site_context

from edge_asr.quant.context import SiteContext
from edge_asr.quant.formats import ActivationGrid, Grid, TensorFormat
from edge_asr.quant.outlier_rule import OutlierRule
from edge_asr.quant.outliers.columns import Columns, largest_columns
from edge_asr.quant.rounding.gptq import Gptq
from edge_asr.quant.rounding.nearest import Nearest


def quik_site(fraction: float, rows: int = 16, columns: int = 40, bits: int = 3) -> SiteContext:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    context = site_context(weight, correlated_inputs(columns, 300, columns), Grid(bits))
    context.outliers = Columns(fraction).rule(context.site, context.statistics)
    return context


@given(
    magnitudes=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    fraction=st.floats(0, 1),
)
def test_the_largest_columns_are_chosen(magnitudes: list[int], fraction: float) -> None:
    chosen = largest_columns(torch.tensor(magnitudes).float(), fraction).tolist()
    assert sum(chosen) == math.ceil(round(fraction * len(magnitudes), 9))
    inside = [value for value, kept in zip(magnitudes, chosen, strict=True) if kept]
    outside = [value for value, kept in zip(magnitudes, chosen, strict=True) if not kept]
    assert not inside or not outside or min(inside) >= max(outside)


@pytest.mark.parametrize(
    ("width", "fraction", "count"), [(4096, 1 / 16, 256), (288, 1 / 16, 18), (40, 1 / 16, 3),
                                     (100, 0.07, 7), (10, 0.0, 0), (10, 1.0, 10)]
)  # fmt: skip
def test_the_count_is_a_fraction_of_the_width_rounded_up(
    width: int, fraction: float, count: int
) -> None:
    assert int(largest_columns(torch.rand(width), fraction).sum()) == count


def test_kept_columns_are_the_least_squares_answer_to_all_other_errors() -> None:
    """What is left after the last rounded column is the best the kept columns can do."""
    context = quik_site(0.2, bits=4)
    weight, columns = context.weights["layer"].double(), context.outliers.columns
    assert columns is not None
    damping = 1e-7  # next to none, so that the exact Hessian's solution is met
    quantized = Gptq(damping=damping).round(context)["layer"]
    rounded = quantized.dequantize().double()
    hessian = context.statistics.hessian
    error = (weight - rounded)[:, ~columns]
    best = np.linalg.solve(
        hessian[columns][:, columns].numpy(),
        (hessian[columns][:, ~columns] @ error.T).numpy(),
    ).T
    expected = weight[:, columns].numpy() + best
    np.testing.assert_allclose(rounded[:, columns].numpy(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("rounding", [Gptq(), Nearest()])
def test_kept_columns_are_float_and_lower_the_error(rounding: Gptq | Nearest) -> None:
    plain, kept = quik_site(0.0), quik_site(1 / 16)
    weight, columns = kept.weights["layer"], kept.outliers.columns
    assert columns is not None
    assert int(columns.sum()) == 3
    without = rounded(rounding, plain)
    quantized = rounded(rounding, kept)
    assert quantized.float_columns is not None
    assert torch.equal(quantized.float_columns, columns)
    float_part = quantized.dequantize()[:, columns]
    assert torch.equal(float_part, float_part.half().float())
    error = kept.statistics.output_error
    assert error(weight - quantized.dequantize()) < 0.8 * error(weight - without.dequantize())


def test_kept_columns_have_no_say_in_the_range() -> None:
    context = quik_site(1 / 16)
    columns = context.outliers.columns
    assert columns is not None
    huge = context.weights["layer"].clone()
    huge[:, columns] *= 1000
    context.weights = {"layer": huge}
    for rounding in (Gptq(), Nearest()):
        scale = rounded(rounding, context).parameters.scale
        low = huge[:, ~columns].amin(1).clamp(max=0)
        high = huge[:, ~columns].amax(1).clamp(min=0)
        torch.testing.assert_close(scale[:, 0], (high - low) / 7, rtol=1e-3, atol=0)


@pytest.mark.parametrize("static", [True, False])
def test_nothing_kept_is_plain_gptq(static: bool) -> None:
    context = quik_site(0.0)
    gptq = Gptq(static_groups=static, ordered_groups=not static)
    with_rule = gptq.round(context)["layer"]
    context.outliers = OutlierRule()
    plain = gptq.round(context)["layer"]
    assert with_rule.outliers is None
    assert torch.equal(plain.codes, with_rule.codes)
    assert torch.equal(plain.dequantize(), with_rule.dequantize())


@pytest.mark.parametrize("order", [(True, True, False), (False, False, False), (True, False, True)])
@pytest.mark.parametrize("group_size", [None, 16])
def test_every_order_of_groups_keeps_the_columns(
    order: tuple[bool, bool, bool], group_size: int | None
) -> None:
    act_order, static, ordered = order
    gptq = Gptq(act_order=act_order, static_groups=static, ordered_groups=ordered)
    context = quik_site(0.1, columns=70)
    grid = Grid(3, granularity="group" if group_size else "channel", group_size=group_size)
    grouped = site_context(context.weights["layer"], correlated_inputs(70, 300, 70), grid)
    error = grouped.statistics.output_error
    weight = context.weights["layer"]
    plain = error(weight - gptq.round(grouped)["layer"].dequantize())
    grouped.outliers = context.outliers
    quantized = gptq.round(grouped)["layer"]
    assert quantized.float_columns is not None
    assert int(quantized.float_columns.sum()) == 7
    assert error(weight - quantized.dequantize()) < plain


def test_all_columns_kept_is_the_weight_in_half_precision() -> None:
    context = quik_site(1.0)
    for rounding in (Gptq(), Nearest()):
        quantized = rounded(rounding, context)
        assert torch.equal(quantized.dequantize(), context.weights["layer"].half().float())
        assert quantized.operand_bits == 16


def test_stored_bits_by_hand() -> None:
    quantized = rounded(Gptq(), quik_site(1 / 16))
    # 16 x 40 weights, of which 3 columns are float: 37 columns of codes, a scale and a zero a
    # row, 3 columns of 16 values and an index each.
    assert quantized.stored_bits == 16 * 37 * 3 + 16 * (16 + 3) + 3 * 16 * 16 + 3 * 16
    assert quantized.operand_bits == pytest.approx((37 * 3 + 3 * 16) / 40)


def test_the_second_layer_of_the_mlp_has_its_own_width() -> None:
    grid, inputs = Grid(4), ActivationGrid(4)
    asked, wide = TensorFormat(grid, inputs), TensorFormat(Grid(8), ActivationGrid(8))
    assert served_format(Columns(), grid, inputs, "fc1") == asked
    assert served_format(Columns(), grid, inputs, "fc2") == wide
    assert served_format(Columns(), grid, None, "fc2") == TensorFormat(Grid(8))
    assert served_format(Columns(fc2_bits=3), grid, inputs, "fc2") == asked
    assert served_format(Columns(fc2_bits=None), grid, inputs, "fc2") == asked
