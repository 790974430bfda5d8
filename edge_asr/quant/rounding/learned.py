"""What all learned roundings share: where they start, and that outliers stay in place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from edge_asr.quant.context import BlockContext, SiteContext
from edge_asr.quant.reconstruction import Schedule, reconstruct
from edge_asr.quant.stages import Rounding
from edge_asr.quant.trainable import LayerStart, RoundedBlock, TrainableRounding
from edge_asr.quant.weight import QuantizedWeight


class LearnedRounding(Rounding):
    """Trains the rounding of a whole block from the ranges that were fitted to it.

    Outliers are chosen before training, and the other weights are trained with them in place.
    """

    learned: ClassVar[bool] = True
    moves_scales: ClassVar[bool] = True

    @property
    @abstractmethod
    def training(self) -> Schedule:
        """How a block is trained."""

    @abstractmethod
    def trainable_rounding(self, starts: Mapping[str, LayerStart]) -> TrainableRounding:
        """Trainable rounding of the layers in `starts`."""

    def round_block(
        self, context: BlockContext, sites: Sequence[SiteContext]
    ) -> dict[str, QuantizedWeight]:
        device = context.model.device
        starts = {
            name: LayerStart(weight, site.fits[name](weight), site.grids[name]).to(device)
            for site in sites
            for name, weight in site.weights.items()
        }
        kept = {name: weight.to(device) for site in sites for name, weight in site.kept.items()}
        rounding = self.trainable_rounding(starts).to(device)
        outliers = {name: kept.get(name) for name in starts}
        reconstruct(context, RoundedBlock(rounding, outliers), self.training)
        return {name: rounding.quantized(name).to("cpu") for name in starts}
