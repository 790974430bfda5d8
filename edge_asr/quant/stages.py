"""The five stages of a method and their registries.

A part is a frozen dataclass (its fields are its settings) around one pure tensor kernel, in
a file of its own. `recipe.py` puts one part for every stage together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from edge_asr.models.architecture import Site
from edge_asr.quant.grid import Grid, GridParameters, QuantizedWeight
from edge_asr.quant.registry import Registry
from edge_asr.quant.statistics import InputStatistics


@dataclass
class SiteWork:
    """One site on the bench: what the stages read, and the warnings they leave.

    Attributes:
        site: The site.
        weights: Float weight [out_features, in_features] of every layer of the site.
        statistics: Calibration statistics of their common input.
        grid: The grid its weights go to.
        warnings: Sentences for the record; a part appends whatever it could not do as asked.
    """

    site: Site
    weights: Mapping[str, Tensor]
    statistics: InputStatistics
    grid: Grid
    warnings: list[str] = field(default_factory=list)


class Transform:
    """Which function-preserving rewrite makes the model easier to quantize."""


class Outliers:
    """Which weights stay in high precision."""


class Range(ABC):
    """Scale and zero point of every group."""

    @abstractmethod
    def fit(self, weight: Tensor, grid: Grid, statistics: InputStatistics) -> GridParameters:
        """Grid parameters for `weight` [out_features, in_features]."""


class Rounding(ABC):
    """Which grid point every weight takes."""

    @abstractmethod
    def round(self, work: SiteWork, ranges: Range) -> dict[str, QuantizedWeight]:
        """Quantize every layer of the site."""


class Correction:
    """What is repaired after rounding."""


transforms: Registry[Transform] = Registry("transform")
outliers: Registry[Outliers] = Registry("outliers")
ranges: Registry[Range] = Registry("range")
roundings: Registry[Rounding] = Registry("rounding")
corrections: Registry[Correction] = Registry("correction")
