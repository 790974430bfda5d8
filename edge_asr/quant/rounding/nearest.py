"""Round-to-nearest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_asr.quant.grid import Grid, GridParameters, QuantizedWeight, encode
from edge_asr.quant.stages import Rounding, roundings
from edge_asr.quant.work import SiteWork


def round_nearest(weight: Tensor, parameters: GridParameters, grid: Grid) -> QuantizedWeight:
    """The nearest grid point of every weight [rows, columns] (ties to even, as torch.round)."""
    scale, zero = parameters.expand(weight.shape[1])
    codes = encode(weight, scale, zero, grid)
    return QuantizedWeight(codes.to(torch.int16), parameters, grid)


@roundings.register("nearest")
@dataclass(frozen=True)
class Nearest(Rounding):
    """Rounding stage `nearest`; it has no settings."""

    def round(self, work: SiteWork) -> dict[str, QuantizedWeight]:
        return {
            name: round_nearest(weight, work.fits[name](weight), work.grid)
            for name, weight in work.weights.items()
        }
