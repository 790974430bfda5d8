"""Where learned clipping starts."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import reduce_groups, shrunk_parameters
from edge_asr.quant.range.lwc import WHOLE_RANGE, searched_logits
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.weight import round_nearest

GRID = Grid(3, granularity="group", group_size=6)


def output_error(group: Tensor, inputs: Tensor, limit: float) -> float:
    """Mean squared output error of one group rounded on the range that a clamp at +-`limit`
    leaves, by hand."""
    low, high = float(group.clamp(min=-limit).min()), float(group.clamp(max=limit).max())
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 7
    zero = round(-low / scale)
    codes = ((group / scale).round() + zero).clamp(0, 7)
    return float((inputs @ (scale * (codes - zero) - group)).square().mean())


def test_training_starts_where_the_outputs_of_every_group_err_least() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    weight[:, ::5] *= 3
    inputs = torch.randn(200, 12, generator=generator, dtype=torch.float64)
    inputs[:, ::5] *= 0.2
    low, high = searched_logits(weight, GRID, inputs.T @ inputs / len(inputs))
    moved = 0
    for row, group in [(row, group) for row in range(5) for group in range(2)]:
        values = weight[row, 6 * group : 6 * group + 6]
        read = inputs[:, 6 * group : 6 * group + 6]
        shares = [1 - step / 40 for step in range(32)]
        errors = [output_error(values, read, share * float(values.abs().max())) for share in shares]
        limit = shares[min(range(32), key=errors.__getitem__)] * float(values.abs().max())
        for logits, end, clamped in (
            (low, values.min(), max(float(values.min()), -limit)),
            (high, values.max(), min(float(values.max()), limit)),
        ):
            share = float(logits[row, group].sigmoid())
            # The ends are those of the codes, whose zero point is rounded: half a step away.
            step = 0.5 * (float(values.max()) - float(values.min())) / 7
            assert abs(share * float(end) - clamped) <= step + 0.02 * abs(float(end))
        moved += float(low[row, group]) < WHOLE_RANGE
        moved += float(high[row, group]) < WHOLE_RANGE
    assert moved >= 5
    assert float(torch.maximum(low, high).max()) <= WHOLE_RANGE


def test_a_range_on_one_side_of_zero_starts_within_itself() -> None:
    grid = Grid(3, granularity="group", group_size=6, zero_point="minimum", include_zero=False)
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(1)) * 0.1 + 5
    for side in (weight, -weight):
        low, high = searched_logits(side, grid, torch.eye(12, dtype=torch.float64))
        smallest, size = reduce_groups(side, grid, torch.amin)
        largest, _ = reduce_groups(side, grid, torch.amax)
        shares = low.sigmoid(), high.sigmoid()
        found = round_nearest(
            side, shrunk_parameters((smallest, largest), shares, grid, size), grid
        )
        nearest = round_nearest(side, minmax_parameters(side, grid), grid)
        errors = [float((one.dequantize() - side).square().sum()) for one in (found, nearest)]
        assert errors[0] < 1.3 * errors[1]


def test_a_group_of_zeros_starts_at_its_whole_range() -> None:
    low, high = searched_logits(torch.zeros(2, 12), GRID, torch.eye(12, dtype=torch.float64))
    assert torch.equal(low, torch.full_like(low, WHOLE_RANGE))
    assert torch.equal(high, low)
