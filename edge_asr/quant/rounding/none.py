"""The empty part of the stage `rounding`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_asr.quant.stages import Rounding, roundings
from edge_asr.quant.weight import QuantizedWeight
from edge_asr.quant.work import BlockWork, SiteWork


@roundings.register("none")
@dataclass(frozen=True)
class NoRounding(Rounding):
    """Weights stay floating point."""

    def round_block(self, work: BlockWork, sites: Sequence[SiteWork]) -> dict[str, QuantizedWeight]:
        del work, sites
        return {}
