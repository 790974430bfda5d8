"""Ranges that reach from the smallest to the largest weight of every group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_asr.quant.grid import Grid, GridParameters, parameters_from_range, reduce_groups
from edge_asr.quant.stages import Range, ranges
from edge_asr.quant.statistics import InputStatistics
from edge_asr.quant.work import Layer


def minmax_parameters(weight: Tensor, grid: Grid) -> GridParameters:
    """Grid parameters covering every group of `weight` [rows, columns] exactly.

    The range of round-to-nearest and of GPTQ (Frantar et al. 2022, arXiv:2210.17323).
    """
    low, size = reduce_groups(weight, grid, torch.amin)
    high, _ = reduce_groups(weight, grid, torch.amax)
    return parameters_from_range(low, high, grid, size)


@ranges.register("minmax")
@dataclass(frozen=True)
class MinMax(Range):
    """Range stage `minmax`; it has no settings and ignores the statistics."""

    def fit(
        self, weight: Tensor, grid: Grid, statistics: InputStatistics, layer: Layer
    ) -> GridParameters:
        del statistics, layer
        return minmax_parameters(weight, grid)
