"""Ranges between a lower and an upper percentile of every group.

Percentile calibration as in Wu et al. 2020 (arXiv:2004.09602), section 3.3, taken at both ends
of the weights instead of once of their magnitudes, so that asymmetric grids gain as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.quant.context import Layer
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import GridParameters, parameters_from_range, reduce_groups
from edge_asr.quant.stages import Range, ranges


def percentile_parameters(weight: Tensor, grid: Grid, percentile: float) -> GridParameters:
    """Grid parameters from the percentiles 100 - `percentile` and `percentile` of every group.

    `weight` is [rows, columns]; percentiles are interpolated linearly between neighbours.
    Weights outside take the outermost codes. A symmetric grid takes the larger magnitude.
    """

    def quantile(fraction: float) -> tuple[Tensor, int]:
        return reduce_groups(weight, grid, lambda values, dim: _quantile(values, dim, fraction))

    low, size = quantile(1 - percentile / 100)
    high, _ = quantile(percentile / 100)
    return parameters_from_range(low, high, grid, size)


def _quantile(values: Tensor, dim: int, fraction: float) -> Tensor:
    """The quantile along `dim`. (`torch.quantile` refuses more than 16 million values.)"""
    ordered = values.sort(dim).values
    position = fraction * (values.shape[dim] - 1)
    below, above = math.floor(position), math.ceil(position)
    return torch.lerp(
        ordered.select(dim, below), ordered.select(dim, above), weight=position - below
    )


@ranges.register("percentile")
@dataclass(frozen=True)
class Percentile(Range):
    """Cut every group's range at percentiles of its weights; needs no clips.

    Attributes:
        percentile: Percentile of a group's weights at the upper end of its range; the lower end is
            as far from 0. 100 is min-max.
    """

    percentile: Annotated[float, Field(gt=50, le=100)] = 99.9

    def fit(
        self, weight: Tensor, grid: Grid, statistics: InputStatistics, layer: Layer
    ) -> GridParameters:
        del statistics, layer
        return percentile_parameters(weight, grid, self.percentile)
