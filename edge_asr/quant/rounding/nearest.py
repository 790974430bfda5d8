"""Round-to-nearest."""

from __future__ import annotations

from dataclasses import dataclass

from edge_asr.quant.context import SiteContext
from edge_asr.quant.stages import SiteRounding, roundings
from edge_asr.quant.weight import QuantizedWeight, round_nearest


@roundings.register("nearest")
@dataclass(frozen=True)
class Nearest(SiteRounding):
    """Every weight to the nearest grid point."""

    def round(self, context: SiteContext) -> dict[str, QuantizedWeight]:
        return {
            name: round_nearest(weight, context.fits[name](weight), context.grids[name])
            for name, weight in context.weights.items()
        }
