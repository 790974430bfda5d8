"""Round-to-nearest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edge_asr.quant.grid import Grid, GridParameters, QuantizedWeight, encode
from edge_asr.quant.outlier_rule import input_sensitivity, kept_weights
from edge_asr.quant.stages import SiteRounding, roundings
from edge_asr.quant.work import SiteWork


def round_nearest(weight: Tensor, parameters: GridParameters, grid: Grid) -> QuantizedWeight:
    """The nearest grid point of every weight [rows, columns] (ties to even, as torch.round)."""
    scale, zero = parameters.expand(weight.shape[1])
    codes = encode(weight, scale, zero, grid)
    return QuantizedWeight(codes.to(torch.int16), parameters, grid)


def round_layer(work: SiteWork, name: str) -> QuantizedWeight:
    """Layer `name` of the site rounded to nearest, but for its outliers.

    Single outliers are chosen by the sensitivity of their column with all other weights free to
    make up for an error, since nothing is rounded before anything else here.
    """
    weight, rule, grid = work.weights[name], work.outliers, work.grid
    sensitivity = torch.ones(weight.shape[1], dtype=torch.float64)
    if rule.keeps_single_weights:
        sensitivity = input_sensitivity(work.statistics.hessian)
    threshold = rule.threshold(weight.double(), sensitivity, grid, work.fits[name])
    view = rule.fit_view(weight, sensitivity, grid, threshold, rule.columns)
    rounded = round_nearest(weight, work.fits[name](view), grid)
    error = (weight - rounded.dequantize()).double().square() * sensitivity
    return replace(rounded, outliers=kept_weights(weight, error > threshold, rule.columns))


@roundings.register("nearest")
@dataclass(frozen=True)
class Nearest(SiteRounding):
    """Rounding stage `nearest`; it has no settings."""

    def round(self, work: SiteWork) -> dict[str, QuantizedWeight]:
        return {name: round_layer(work, name) for name in work.weights}
