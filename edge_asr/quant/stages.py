"""The five stages of a method and their registries.

A part is a frozen dataclass (its fields are its settings) around one pure tensor kernel, in
a file of its own. `recipe.py` puts one part for every stage together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.models.families.base import Site
from edge_asr.quant.activation import ActivationGrid
from edge_asr.quant.grid import Grid, GridParameters, QuantizedWeight
from edge_asr.quant.layers import QuantizedLinear
from edge_asr.quant.outlier_rule import OutlierRule
from edge_asr.quant.reconstruction import Schedule
from edge_asr.quant.soft import SoftRange, SoftTransform
from edge_asr.quant.work import BlockWork, Layer, ModelWork, SiteWork
from edge_asr.registry import Registry


class Transform:
    """Which function-preserving rewrite makes the model easier to quantize.

    `learned` says that the rewrite is trained, block by block, against the float model.
    """

    stage: ClassVar[str] = "transform"
    learned: ClassVar[bool] = False

    def rewrite_model(self, work: ModelWork) -> None:
        """Rewrite the whole float model in place, once, before the first block."""

    def rewrite_block(self, work: BlockWork) -> None:
        """Rewrite one float block in place; ends with `work.inputs_changed()` if it did."""

    def soft_transform(self, work: BlockWork) -> SoftTransform:
        """The trainable rewrite of one block, if it is learned."""
        del work
        raise TypeError(f"{type(self).__name__} is not learned")

    @property
    def schedule(self) -> Schedule:
        """How a block is trained, if the rewrite is learned."""
        raise TypeError(f"{type(self).__name__} is not learned")


class Outliers:
    """Which weights stay in high precision."""

    def grid(self, grid: Grid, site: Site) -> Grid:
        """The grid of the site's weights, where it is not that of the whole model."""
        del site
        return grid

    def activation(self, activation: ActivationGrid, site: Site) -> ActivationGrid:
        """The grid of the site's input, where activations are quantized."""
        del site
        return activation

    def rule(self, site: Site, statistics: InputStatistics) -> OutlierRule:
        """What stays off the grid in the layers of `site`, whose input has `statistics`."""
        del site, statistics
        return OutlierRule()


class Range(ABC):
    """Scale and zero point of every group.

    `learned` says that they are trained, block by block, against the float model;
    `reads_statistics` that they are fitted to what the layer reads.
    """

    stage: ClassVar[str] = "range"
    learned: ClassVar[bool] = False
    reads_statistics: ClassVar[bool] = False

    def soft_range(self, work: BlockWork) -> SoftRange:
        """The trainable ranges of one block, if they are learned."""
        del work
        raise TypeError(f"{type(self).__name__} is not learned")

    @property
    def schedule(self) -> Schedule:
        """How a block is trained, if its ranges are learned."""
        raise TypeError(f"{type(self).__name__} is not learned")

    def grid(self, grid: Grid) -> Grid:
        """The grid that its parameters are for, when the user asks for `grid`.

        Raises UserError, with the reason, where no such grid exists.
        """
        return grid

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

    def reordered(self, order: Tensor) -> LayerFit:
        """The same for a weight whose columns are in another order."""
        return replace(self, statistics=self.statistics.select(order))


class Rounding(ABC):
    """Which grid point every weight takes.

    `learned` says that it is trained, block by block, against the float model; `moves_scales`
    that scales are trained with it.
    """

    stage: ClassVar[str] = "rounding"
    learned: ClassVar[bool] = False
    moves_scales: ClassVar[bool] = False

    @abstractmethod
    def round_block(self, work: BlockWork, sites: Sequence[SiteWork]) -> dict[str, QuantizedWeight]:
        """Quantize every layer of the block's `sites`."""


class SiteRounding(Rounding):
    """Rounds every site for itself."""

    def round_block(self, work: BlockWork, sites: Sequence[SiteWork]) -> dict[str, QuantizedWeight]:
        del work
        return {name: weight for site in sites for name, weight in self.round(site).items()}

    @abstractmethod
    def round(self, work: SiteWork) -> dict[str, QuantizedWeight]:
        """Quantize every layer of the site."""


class Correction:
    """What is repaired after rounding."""

    def repair(self, work: SiteWork, layers: Mapping[str, QuantizedLinear]) -> None:
        """Change float parameters of `layers`, whose rounded weights are in place by now."""


@dataclass(frozen=True)
class Parts:
    """One part for every stage."""

    transform: Transform
    outliers: Outliers
    range: Range
    rounding: Rounding
    correction: Correction

    @property
    def learned(self) -> bool:
        """Whether one of them is trained against the float model's outputs."""
        return self.transform.learned or self.range.learned or self.rounding.learned


transforms: Registry[Transform] = Registry("transform")
outliers: Registry[Outliers] = Registry("outliers")
ranges: Registry[Range] = Registry("range")
roundings: Registry[Rounding] = Registry("rounding")
corrections: Registry[Correction] = Registry("correction")
