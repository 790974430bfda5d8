"""Round-to-nearest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edge_asr.quant.grid import Grid, GridParameters, QuantizedWeight, encode
from edge_asr.quant.outlier_rule import input_sensitivity, kept_weights, threshold_within_budget
from edge_asr.quant.stages import SiteRounding, roundings
from edge_asr.quant.work import SiteWork


def round_nearest(weight: Tensor, parameters: GridParameters, grid: Grid) -> QuantizedWeight:
    """The nearest grid point of every weight [rows, columns] (ties to even, as torch.round)."""
    scale, zero = parameters.expand(weight.shape[1])
    codes = encode(weight, scale, zero, grid)
    return QuantizedWeight(codes.to(grid.code_dtype), parameters, grid)


def round_layer(work: SiteWork, name: str) -> QuantizedWeight:
    """Layer `name` of the site rounded to nearest, but for its outliers.

    Single outliers are chosen by the sensitivity of their column with all other weights free to
    make up for an error, since nothing is rounded before anything else here.
    """
    weight, rule, grid = work.weights[name], work.outliers, work.grid
    sensitivity = torch.ones(weight.shape[1], dtype=torch.float64)
    if rule.keeps_single_weights:
        sensitivity = input_sensitivity(work.statistics.hessian)

    def rounded(rows: Tensor, threshold: float) -> QuantizedWeight:
        view = rule.fit_view(rows, sensitivity, grid, threshold, rule.columns)
        nearest = round_nearest(rows, work.fits[name](view), grid)
        error = (rows - nearest.dequantize()).double().square() * sensitivity
        return replace(nearest, outliers=kept_weights(rows, error > threshold, rule.columns))

    threshold = threshold_within_budget(rule, weight, sensitivity, rounded)
    return rounded(weight, threshold)


@roundings.register("nearest")
@dataclass(frozen=True)
class Nearest(SiteRounding):
    """Rounding stage `nearest`; it has no settings."""

    def round(self, work: SiteWork) -> dict[str, QuantizedWeight]:
        return {name: round_layer(work, name) for name in work.weights}
