"""HQQ: zero points that leave few large errors, found without calibration data.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"
(mobiusml.github.io/hqq_blog), and the authors' code (mobiusml/hqq, `hqq/core/optimize.py`,
groups along the inputs: axis=1). Beta grows as the paper and their first release have it; the
default optimizer of release 0.2.8 leaves it constant, which `kappa=1` reproduces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.errors import UserError
from edge_asr.models.tensors import Slot
from edge_asr.quant.context import Layer
from edge_asr.quant.formats import Grid, TensorFormat
from edge_asr.quant.grid import (
    GridParameters,
    dequantize,
    parameters_from_range,
    quantize,
    reduce_groups,
    stored_zero,
)
from edge_asr.quant.stages import Range, ranges
from edge_asr.settings import PositiveFraction, Rate, Steps

MINIMUM_SCALE = 1 / 2e4  # the authors clamp the inverse scale at 2e4
FLAT_RANGE = 1e-4  # groups that span no more than this get a scale of 1
ROUND_ZERO_BITS = 4  # the only width at which the authors start from a rounded zero point


def shrink(error: Tensor, beta: float, lp_norm: float) -> Tensor:
    """Generalised soft thresholding: sign(e) max(|e| - |e|^(p-1) / beta, 0).

    It approximates the w that minimises |w|^p + (beta / 2) (e - w)².
    """
    magnitude = error.abs()
    return error.sign() * (magnitude - magnitude.pow(lp_norm - 1) / beta).clamp(min=0)


def starting_point(weight: Tensor, grid: Grid, *, round_zero: bool) -> GridParameters:
    """Min-max parameters with a float zero point; a scale of 1 for groups that are flat."""
    low, size = reduce_groups(weight, grid, torch.amin)
    high, _ = reduce_groups(weight, grid, torch.amax)
    spanned = parameters_from_range(low, high, grid, size)
    flat = high - low <= FLAT_RANGE
    scale = torch.where(flat, torch.ones_like(low), spanned.scale)
    zero = torch.where(flat, grid.lowest - low, spanned.zero)
    return GridParameters(scale, zero.round() if round_zero else zero, size)


def hqq_parameters(
    weight: Tensor,
    grid: Grid,
    *,
    lp_norm: float,
    beta: float,
    kappa: float,
    iterations: int,
    round_zero: bool,
) -> GridParameters:
    """Min-max scales with zero points that make the p-norm of the rounding error small.

    Half-quadratic splitting: with codes q of scale s and zero point z, and an auxiliary error
    e for every weight w, alternately e = shrink(w - s (q - z)), then z = mean of
    q - (w - e) / s over every group. It ends when the mean |w - s (q - z)| of the whole
    matrix no longer falls.

    Args:
        weight: [rows, columns].
        grid: A grid with float zero points, or minima.
        lp_norm: The norm p, above 0 and at most 1.
        beta: First weight of the quadratic term.
        kappa: Factor by which beta grows every iteration.
        iterations: At most so many.
        round_zero: Start from a rounded zero point.
    """
    start = starting_point(weight, grid, round_zero=round_zero)
    columns, size = weight.shape[1], start.group_size
    scale, zero, least = start.scale, start.zero, float("inf")
    for _ in range(iterations):
        wide_scale, wide_zero = GridParameters(scale, zero, size).expand(columns)
        codes = quantize(weight, wide_scale, wide_zero, grid)
        error = weight - dequantize(codes, wide_scale, wide_zero)
        target = weight - shrink(error, beta, lp_norm)
        zero, _ = reduce_groups(codes - target / wide_scale, grid, torch.mean)
        beta *= kappa
        mean_error = float(error.abs().mean())
        # The authors keep the zero point of the step that no longer helped; so do we.
        if not mean_error < least:
            break
        least = mean_error
    return GridParameters(scale, stored_zero(zero, scale, grid), size)


@ranges.register("hqq")
@dataclass(frozen=True)
class Hqq(Range):
    """Fit zero points by half-quadratic splitting; needs no clips.

    Its zero points are floats of 16 bits, or minima where the grid stores such, and its ranges need
    not contain zero, whatever the grid asked for.

    Attributes:
        lp_norm: The norm p of the rounding error that is made small.
        beta: Weight of the quadratic term at first.
        kappa: Factor by which beta grows every iteration.
        iterations: Steps of the search at most; it ends sooner once the error no longer falls.
        round_zero: Start from a rounded zero point; null does so at 4 bits only, as the
            authors do.
    """

    lp_norm: PositiveFraction = 0.7
    beta: Rate = 10.0
    kappa: Annotated[float, Field(ge=1, le=10)] = 1.01
    iterations: Steps = 20
    round_zero: bool | None = None

    def constrain(self, format: TensorFormat, slot: Slot) -> TensorFormat:
        del slot
        grid = format.weights
        if grid is None:
            return format
        if grid.symmetric:
            raise UserError(
                "symmetric=true with method/range=hqq: HQQ fits nothing but the zero point, which "
                "a symmetric grid does not have; set symmetric=false or take another range"
            )
        moved = replace(
            grid,
            zero_point="float" if grid.zero_point == "integer" else grid.zero_point,
            include_zero=False,
            minimum_scale=max(grid.minimum_scale, MINIMUM_SCALE),
        )
        return replace(format, weights=moved)

    def fit(
        self, weight: Tensor, grid: Grid, statistics: InputStatistics, layer: Layer
    ) -> GridParameters:
        del statistics, layer
        rounded = grid.bits == ROUND_ZERO_BITS if self.round_zero is None else self.round_zero
        return hqq_parameters(
            weight,
            grid,
            lp_norm=self.lp_norm,
            beta=self.beta,
            kappa=self.kappa,
            iterations=self.iterations,
            round_zero=rounded,
        )
