"""AWQ's clipping: ranges shrunk until the outputs of a group err least.

Lin et al. 2023 (arXiv:2306.00978); the search is in the authors' code only
(mit-han-lab/llm-awq, `awq/quantize/auto_clip.py`). The authors sample 512 calibration tokens
and need widths that their batches divide. The mean squared error of a group's share of the
output is a quadratic form in the second moment of the group's inputs, so here it is exact over
all calibration rows, for any width and any number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.quant.context import Layer
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import GridParameters, dequantize, quantize, reduce_groups
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.range.shrink import shrink_search
from edge_asr.quant.stages import Range, ranges
from edge_asr.settings import PositiveFraction, Steps


def diagonal_blocks(second_moment: Tensor, size: int) -> list[Tensor]:
    """Second moments inside every group of `size` columns of [columns, columns].

    Returns one tensor [groups, size, size] and, for a shorter last group, another.
    """
    columns = len(second_moment)
    whole = columns // size * size
    starts = range(0, whole, size)
    blocks = [torch.stack([second_moment[i : i + size, i : i + size] for i in starts])]
    if whole < columns:
        blocks.append(second_moment[None, whole:, whole:])
    return blocks


def group_output_error(difference: Tensor, blocks: list[Tensor]) -> Tensor:
    """Mean over calibration rows of (d x)² for every row and group d of `difference`.

    `difference` is [rows, columns], `blocks` come from `diagonal_blocks`; float64 [rows,
    groups]. Products between groups are left out: every group is judged by itself.
    """
    errors, first = [], 0
    for block in blocks:
        groups, size, _ = block.shape
        part = difference[:, first : first + groups * size].to(block.dtype)
        part = part.unflatten(1, (groups, size)).transpose(0, 1)
        errors.append(((part @ block) * part).sum(2).T)
        first += groups * size
    return torch.cat(errors, 1)


def awq_clip_parameters(
    weight: Tensor, grid: Grid, second_moment: Tensor, *, steps: int, max_shrink: float
) -> GridParameters:
    """Min-max parameters of the clamped weight with the least output error in every group.

    Args:
        weight: [rows, columns].
        grid: The grid.
        second_moment: E[x xᵀ] of the layer's input, [columns, columns].
        steps: Candidates clamp to 1 - i / steps times the group's largest magnitude.
        max_shrink: How many: i < max_shrink x steps, rounded down.

    A weight beyond the clamp takes the code nearest to it. The authors round the clamped
    weight instead, which differs where a clamped end lies between two codes. Of candidates
    that err alike the widest is taken, so no group errs more than by min-max.
    """
    magnitude, size = reduce_groups(weight.abs(), grid, torch.amax)
    blocks = diagonal_blocks(second_moment, size)

    def output_error(parameters: GridParameters) -> Tensor:
        scale, zero = parameters.expand(weight.shape[1])
        rounded = dequantize(quantize(weight, scale, zero, grid), scale, zero)
        error = group_output_error(rounded - weight, blocks)
        return error.sum(0, keepdim=True) if grid.granularity == "tensor" else error

    def clipped(share: float) -> GridParameters:
        limit = (share * magnitude).repeat_interleave(size, dim=1)[:, : weight.shape[1]]
        return minmax_parameters(torch.clamp(weight, -limit, limit), grid)

    return shrink_search(clipped, output_error, steps=steps, max_shrink=max_shrink)


@ranges.register("awq_clip")
@dataclass(frozen=True)
class AwqClip(Range):
    """Shrink every group's range until the layer's output errs least.

    Attributes:
        steps: Fineness of the search: each candidate is narrower by 1 / steps of the whole range.
        max_shrink: Largest share of the whole range that is cut off; the search ends right before.
        skip_logit_layers: Leave layers that make queries or keys at min-max, as the authors
            do: the softmax of their product is poorly judged by the error of either.
    """

    reads_statistics: ClassVar[bool] = True

    steps: Steps = 20
    max_shrink: PositiveFraction = 0.5
    skip_logit_layers: bool = True

    def fit(
        self, weight: Tensor, grid: Grid, statistics: InputStatistics, layer: Layer
    ) -> GridParameters:
        if self.skip_logit_layers and layer.makes_logits:
            return minmax_parameters(weight, grid)
        return awq_clip_parameters(
            weight,
            grid,
            statistics.second_moment,
            steps=self.steps,
            max_shrink=self.max_shrink,
        )
