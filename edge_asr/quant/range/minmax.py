"""Ranges that reach from the smallest to the largest weight of every group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.quant.context import BlockContext, Layer
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import GridParameters, parameters_from_range, reduce_groups
from edge_asr.quant.stages import Range, ranges
from edge_asr.quant.trainable import TrainableRange


def minmax_parameters(weight: Tensor, grid: Grid) -> GridParameters:
    """Grid parameters covering every group of `weight` [rows, columns] exactly.

    The range of round-to-nearest and of GPTQ (Frantar et al. 2022, arXiv:2210.17323).
    """
    low, size = reduce_groups(weight, grid, torch.amin)
    high, _ = reduce_groups(weight, grid, torch.amax)
    return parameters_from_range(low, high, grid, size)


class FollowingRanges(TrainableRange):
    """Min-max ranges of whatever the weights are by now: nothing to train."""

    def __init__(self, grids: Mapping[str, Grid]) -> None:
        super().__init__()
        self._grids = grids

    def parameters_of(self, name: str, weight: Tensor) -> GridParameters:
        return minmax_parameters(weight, self._grids[name])

    def optimizers(self, iterations: int) -> list[torch.optim.Optimizer]:
        del iterations
        return []


@ranges.register("minmax")
@dataclass(frozen=True)
class MinMax(Range):
    """From the smallest to the largest weight of every group; needs no clips."""

    def fit(
        self, weight: Tensor, grid: Grid, statistics: InputStatistics, layer: Layer
    ) -> GridParameters:
        del statistics, layer
        return minmax_parameters(weight, grid)

    def trainable_range(self, context: BlockContext) -> TrainableRange:
        """Ranges that follow the weights while a transform is trained."""
        return FollowingRanges(context.grids(context.block.layers))
