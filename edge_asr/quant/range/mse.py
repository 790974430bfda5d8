"""Ranges shrunk until the weights of a group err least.

The search of GPTQ's code (Frantar et al. 2022, arXiv:2210.17323; IST-DASLab/gptq, `quant.py`):
the min-max range of every group is scaled by 1, 0.99, 0.98, ... and the factor with the
smallest sum of |error|^2.4 wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.quant.context import Layer
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import (
    GridParameters,
    dequantize,
    quantize,
    reduce_groups,
    shrunk_parameters,
)
from edge_asr.quant.range.shrink import shrink_search
from edge_asr.quant.stages import Range, ranges
from edge_asr.settings import Checked, PositiveFraction, Steps


def group_error(weight: Tensor, parameters: GridParameters, grid: Grid, norm: float) -> Tensor:
    """Sum of |rounding error|^norm over every group of `weight` [rows, columns]."""
    scale, zero = parameters.expand(weight.shape[1])
    error = dequantize(quantize(weight, scale, zero, grid), scale, zero) - weight
    return reduce_groups(error.abs().pow(norm), grid, torch.sum)[0]


def mse_parameters(
    weight: Tensor, grid: Grid, *, steps: int, max_shrink: float, norm: float
) -> GridParameters:
    """Grid parameters of the range, out of a row of shrunk ones, with the least error.

    Args:
        weight: [rows, columns].
        grid: The grid.
        steps: Candidates are 1 - i / steps times the min-max range, both ends alike.
        max_shrink: How many: i < max_shrink x steps, rounded down.
        norm: Exponent of the error that is summed over a group.

    Of candidates that err alike the widest is taken, so no group errs more than by min-max.
    """
    low, size = reduce_groups(weight, grid, torch.amin)
    high, _ = reduce_groups(weight, grid, torch.amax)
    return shrink_search(
        lambda share: shrunk_parameters((low, high), (share, share), grid, size),
        lambda parameters: group_error(weight, parameters, grid, norm),
        steps=steps,
        max_shrink=max_shrink,
    )


@dataclass(frozen=True)
class MseSearch(Checked):
    """Settings of the search for the range of least error.

    Attributes:
        steps: Fineness of the search: each candidate is narrower by 1 / steps of the whole range.
        max_shrink: Largest share of the whole range that is cut off; the search ends right before.
        norm: Exponent of the error; 2 is the mean squared error.
    """

    steps: Steps = 100
    max_shrink: PositiveFraction = 0.8
    norm: Annotated[float, Field(gt=0, le=10)] = 2.4

    def search(self, weight: Tensor, grid: Grid) -> GridParameters:
        """See `mse_parameters`."""
        return mse_parameters(
            weight, grid, steps=self.steps, max_shrink=self.max_shrink, norm=self.norm
        )


@ranges.register("mse")
@dataclass(frozen=True)
class Mse(MseSearch, Range):
    """Shrink every group's range until its weights err least; needs no clips."""

    def fit(
        self, weight: Tensor, grid: Grid, statistics: InputStatistics, layer: Layer
    ) -> GridParameters:
        del statistics, layer
        return self.search(weight, grid)
