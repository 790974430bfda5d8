"""Second moments over valid rows only."""

from __future__ import annotations

import pytest
import torch

from edge_asr.calibration.statistics import (
    STRIPE,
    InputStatistics,
    add_column_products,
    quadratic_form,
)


@pytest.mark.parametrize("columns", [1, 7, STRIPE, STRIPE + 1, 2 * STRIPE + 300])
def test_column_products_are_added_as_those_of_the_whole_matrix(columns: int) -> None:
    rows = torch.randn(9, columns, generator=torch.Generator().manual_seed(3))
    found = torch.ones(columns, columns, dtype=torch.float64)
    add_column_products(found, rows)
    expected = rows.double().T @ rows.double() + 1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("columns", [1, 7, STRIPE, STRIPE + 1, 2 * STRIPE + 300])
def test_quadratic_form_is_the_trace_of_the_whole_product(columns: int) -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(3, columns, generator=generator, dtype=torch.float64)
    root = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    expected = float(torch.trace(rows @ (root + root.T) @ rows.T))
    assert quadratic_form(rows, root + root.T) == pytest.approx(expected, rel=1e-9)


def test_masked_rows_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 7, 5, generator=generator)
    lengths = torch.tensor([7, 2, 4])
    mask = torch.arange(7)[None] < lengths[:, None]
    padded = torch.where(mask[..., None], inputs, torch.full_like(inputs, 1e6))
    statistics = InputStatistics(5)
    statistics.update(padded[:1], mask[:1])
    statistics.update(padded[1:], mask[1:])
    rows = torch.cat([inputs[index, :length] for index, length in enumerate(lengths)]).double()
    assert statistics.rows == 13
    torch.testing.assert_close(statistics.second_moment, rows.T @ rows / 13, atol=1e-5, rtol=1e-5)


def test_output_error_is_the_mean_squared_change_of_the_output() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(1, 40, 6, generator=generator)
    difference = torch.randn(4, 6, generator=generator)
    statistics = InputStatistics(6)
    statistics.update(inputs, torch.ones(1, 40, dtype=torch.bool))
    expected = (inputs[0] @ difference.T).square().sum(1).mean()
    assert abs(statistics.output_error(difference) - float(expected)) < 1e-4


def test_without_columns_is_as_if_they_had_been_zero() -> None:
    inputs = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(9)[None] < torch.tensor([[9], [5]])
    columns = torch.tensor([False, True, False, False, True, False])
    whole, zeroed = InputStatistics(6), InputStatistics(6)
    whole.update(inputs, mask)
    zeroed.update(inputs.masked_fill(columns, 0), mask)
    part = whole.without(columns)
    for name in ("rows", "minimum", "maximum", "clip_minimum", "clip_maximum", "mean",
                 "mean_magnitude", "second_moment"):  # fmt: skip
        torch.testing.assert_close(getattr(part, name), getattr(zeroed, name), msg=name)
    assert bool(whole.second_moment[1].any())


def test_no_rows_give_zeros_not_a_division_by_zero() -> None:
    statistics = InputStatistics(3)
    assert torch.equal(statistics.hessian, torch.zeros(3, 3, dtype=torch.float64))


def test_every_clip_with_a_valid_row_has_its_extremes() -> None:
    inputs = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(2))
    lengths = [7, 0, 4, 1]
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    statistics = InputStatistics(5)
    statistics.update(inputs[:2], mask[:2])
    statistics.update(inputs[2:], mask[2:])
    clips = [clip[:length] for clip, length in zip(inputs, lengths, strict=True) if length]
    assert torch.equal(statistics.clip_minimum, torch.stack([clip.amin(0) for clip in clips]))
    assert torch.equal(statistics.clip_maximum, torch.stack([clip.amax(0) for clip in clips]))
    assert torch.equal(statistics.minimum, torch.cat(clips).amin(0))
    assert torch.equal(statistics.maximum, torch.cat(clips).amax(0))
    assert torch.equal(statistics.part(1, 2).clip_minimum, statistics.clip_minimum[:, 1:3])


def test_relative_output_error_does_not_see_rescaled_outputs_or_shifted_inputs() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs, shift = torch.randn(2, 9, 6, generator=generator), torch.randn(6, generator=generator)
    weight, rounded = (torch.randn(4, 6, generator=generator) for _ in range(2))
    outputs = (inputs @ weight.T).flatten(0, 1)
    variance = float((outputs - outputs.mean(0)).square().sum(1).mean())
    mask = torch.ones(2, 9, dtype=torch.bool)
    plain, shifted = InputStatistics(6), InputStatistics(6)
    plain.update(inputs, mask)
    shifted.update(inputs + shift, mask)
    for statistics in (plain, shifted):
        expected = statistics.output_error(weight - rounded) / variance
        got = statistics.relative_output_error
        assert abs(got(weight, rounded) / expected - 1) < 1e-5
        assert abs(got(7 * weight, 7 * rounded) / expected - 1) < 1e-5
        assert got(weight, weight) == 0
        assert got(torch.zeros(4, 6), torch.zeros(4, 6)) == 0
    assert InputStatistics(6).relative_output_error(weight, rounded) == 0


def test_paired_rows_tell_how_far_the_float_model_is() -> None:
    generator = torch.Generator().manual_seed(5)
    inputs, floats = torch.randn(2, 4, 7, 5, generator=generator)
    weights = torch.rand(4, 7, generator=generator) * (torch.rand(4, 7, generator=generator) > 0.4)
    statistics = InputStatistics(5, paired=True)
    statistics.update(inputs[:3], weights[:3], floats[:3])
    statistics.update(inputs[3:], weights[3:], floats[3:])
    rows = weights.double()[..., None] * inputs
    mismatch = ((floats - inputs).flatten(0, 1).double().T @ rows.flatten(0, 1)) / weights.sum()
    torch.testing.assert_close(statistics.mismatch, 2 * mismatch, rtol=1e-5, atol=1e-6)


def test_every_third_clip_is_held_out_whatever_the_batches() -> None:
    generator = torch.Generator().manual_seed(6)
    inputs, floats = torch.randn(2, 7, 4, 5, generator=generator)
    weights = torch.ones(7, 4)
    statistics = InputStatistics(5, paired=True, held_out=True)
    for clips in (slice(0, 2), slice(2, 3), slice(3, 7)):
        statistics.update(inputs[clips], weights[clips], floats[clips])
    apart, others = InputStatistics(5, paired=True), InputStatistics(5, paired=True)
    apart.update(inputs[2::3], weights[2::3], floats[2::3])
    rest = [0, 1, 3, 4, 6]
    others.update(inputs[rest], weights[rest], floats[rest])
    held_out, fitted = statistics.held_out, statistics.fitted
    assert held_out is not None
    assert (held_out.rows, fitted.rows, statistics.rows) == (8, 20, 28)
    for found, expected in ((held_out, apart), (fitted, others)):
        torch.testing.assert_close(found.hessian, expected.hessian, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.mismatch, expected.mismatch, rtol=1e-5, atol=1e-6)
