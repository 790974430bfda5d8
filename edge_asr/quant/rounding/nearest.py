"""Round-to-nearest, of the weights as they are or with what earlier layers lost made up for."""

from __future__ import annotations

from dataclasses import dataclass

from edge_asr.quant.context import SiteContext
from edge_asr.quant.rounding.compensation import Compensating
from edge_asr.quant.stages import roundings
from edge_asr.quant.weight import QuantizedWeight, round_nearest


@roundings.register("nearest")
@dataclass(frozen=True)
class Nearest(Compensating):
    """Every weight to the nearest grid point."""

    def round(self, context: SiteContext) -> dict[str, QuantizedWeight]:
        factor = self.factor(context, act_order=True) if self.compensation != "none" else None
        rounded = {}
        for name, start in self.starts(context, factor).items():
            weight = start.weight if factor is None else start.settled(factor.order)
            rounded[name] = round_nearest(weight, start.fit(weight), context.grids[name])
        return rounded
