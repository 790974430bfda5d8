"""The empty part of the stage `range`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.quant.context import Layer
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import GridParameters
from edge_asr.quant.stages import Range, ranges


@ranges.register("none")
@dataclass(frozen=True)
class NoRange(Range):
    """Weights stay floating point."""

    def fit(
        self, weight: Tensor, grid: Grid, statistics: InputStatistics, layer: Layer
    ) -> GridParameters:
        del weight, grid, statistics
        raise TypeError(f"{layer.name}: a recipe without ranges quantizes nothing")
