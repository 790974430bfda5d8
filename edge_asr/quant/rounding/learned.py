"""What all learned roundings share: where they start, and the outliers they leave alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from edge_asr.quant.grid import QuantizedWeight
from edge_asr.quant.outlier_rule import mean_for
from edge_asr.quant.reconstruction import Schedule, reconstruct
from edge_asr.quant.rounding.nearest import round_layer
from edge_asr.quant.soft import LayerStart, RoundedBlock, SoftRounding
from edge_asr.quant.stages import Rounding
from edge_asr.quant.work import BlockWork, SiteWork


class LearnedRounding(Rounding):
    """Trains the rounding of a whole block from the ranges that were fitted to it.

    Outliers are those that rounding to nearest would keep. They are chosen before training, and
    the other weights are trained with them in place.
    """

    learned: ClassVar[bool] = True
    moves_scales: ClassVar[bool] = True

    @property
    @abstractmethod
    def schedule(self) -> Schedule:
        """How a block is trained."""

    @abstractmethod
    def soft_rounding(self, starts: Mapping[str, LayerStart]) -> SoftRounding:
        """Trainable rounding of the layers in `starts`."""

    def round_block(self, work: BlockWork, sites: Sequence[SiteWork]) -> dict[str, QuantizedWeight]:
        device = work.model.device
        nearest = {name: round_layer(site, name) for site in sites for name in site.weights}
        starts = {
            name: layer_start(site, name, nearest[name]).to(device)
            for site in sites
            for name in site.weights
        }
        outliers = {name: weight.to(device).outliers for name, weight in nearest.items()}
        rounding = self.soft_rounding(starts).to(device)
        reconstruct(work, RoundedBlock(rounding, outliers), self.schedule)
        return {
            name: replace(rounding.quantized(name), outliers=outliers[name]).to("cpu")
            for name in starts
        }


def layer_start(site: SiteWork, name: str, nearest: QuantizedWeight) -> LayerStart:
    """Where training of layer `name` starts, when rounding to nearest gives `nearest`.

    An outlier has no code to learn; it takes its group's mean, so that nothing that reads the
    weights' extremes sees it.
    """
    weight = site.weights[name]
    if nearest.outliers is not None:
        size = site.grid.columns_per_group(weight.shape[1])
        groups = zip(weight.split(size, 1), nearest.outliers.mask.split(size, 1), strict=True)
        weight = torch.cat([mean_for(group, kept) for group, kept in groups], 1)
    return LayerStart(weight, nearest.parameters, site.grid)
