"""Second moments over valid rows only."""

from __future__ import annotations

import torch

from edge_asr.quant.statistics import InputStatistics


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


def test_no_rows_give_zeros_not_a_division_by_zero() -> None:
    statistics = InputStatistics(3)
    assert torch.equal(statistics.hessian, torch.zeros(3, 3, dtype=torch.float64))
