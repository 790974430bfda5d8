"""Round-to-nearest."""

from __future__ import annotations

from dataclasses import dataclass

from edge_asr.quant.stages import SiteRounding, roundings
from edge_asr.quant.weight import QuantizedWeight, round_nearest
from edge_asr.quant.work import SiteWork


@roundings.register("nearest")
@dataclass(frozen=True)
class Nearest(SiteRounding):
    """Rounding stage `nearest`; it has no settings."""

    def round(self, work: SiteWork) -> dict[str, QuantizedWeight]:
        return {
            name: round_nearest(weight, work.fits[name](weight), work.grids[name])
            for name, weight in work.weights.items()
        }
