"""The five stages of a method and their registries.

A part is a frozen dataclass (its fields are its settings) around one pure tensor kernel, in
a file of its own. `recipe.py` puts one part for every stage together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from edge_asr.quant.grid import Grid, GridParameters, QuantizedWeight
from edge_asr.quant.layers import QuantizedLinear
from edge_asr.quant.registry import Registry
from edge_asr.quant.statistics import InputStatistics
from edge_asr.quant.work import BlockWork, Layer, ModelWork, SiteWork


class Transform:
    """Which function-preserving rewrite makes the model easier to quantize."""

    def rewrite_model(self, work: ModelWork) -> None:
        """Rewrite the whole float model in place, once, before the first block."""

    def rewrite_block(self, work: BlockWork) -> None:
        """Rewrite one float block in place; ends with `work.inputs_changed()` if it did."""


class Outliers:
    """Which weights stay in high precision."""


class Range(ABC):
    """Scale and zero point of every group."""

    @abstractmethod
    def fit(
        self, weight: Tensor, grid: Grid, statistics: InputStatistics, layer: Layer
    ) -> GridParameters:
        """Grid parameters for `weight` [out_features, in_features] of `layer`.

        `statistics` are those of the same columns, which may be a part of the layer's.
        """


@dataclass(frozen=True)
class LayerFit:
    """A range part bound to one layer: the `Fit` that rounding parts call."""

    range: Range
    grid: Grid
    statistics: InputStatistics
    layer: Layer

    def __call__(self, weight: Tensor, first: int = 0) -> GridParameters:
        statistics = self.statistics.part(first, weight.shape[1])
        return self.range.fit(weight, self.grid, statistics, self.layer)


class Rounding(ABC):
    """Which grid point every weight takes."""

    @abstractmethod
    def round(self, work: SiteWork) -> dict[str, QuantizedWeight]:
        """Quantize every layer of the site."""


class Correction:
    """What is repaired after rounding."""

    def repair(self, work: SiteWork, layers: Mapping[str, QuantizedLinear]) -> None:
        """Change float parameters of `layers`, whose rounded weights are in place by now."""


transforms: Registry[Transform] = Registry("transform")
outliers: Registry[Outliers] = Registry("outliers")
ranges: Registry[Range] = Registry("range")
roundings: Registry[Rounding] = Registry("rounding")
corrections: Registry[Correction] = Registry("correction")
