"""The empty part of the stage `rounding`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_asr.quant.context import BlockContext, SiteContext
from edge_asr.quant.stages import Rounding, roundings
from edge_asr.quant.weight import QuantizedWeight


@roundings.register("none")
@dataclass(frozen=True)
class NoRounding(Rounding):
    """Weights stay floating point."""

    def round_block(
        self, context: BlockContext, sites: Sequence[SiteContext]
    ) -> dict[str, QuantizedWeight]:
        del context, sites
        return {}
