"""What no part can get wrong.

Outliers are chosen, kept apart and put back here, and what a rounding part returns is checked
before it is stored.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from edge_asr.errors import UserError
from edge_asr.quant.context import Fit, SiteContext
from edge_asr.quant.grid import GridParameters, code_dtype
from edge_asr.quant.outlier_rule import (
    input_sensitivity,
    kept_weights,
    mean_for,
    threshold_within_budget,
)
from edge_asr.quant.weight import FloatWeights, QuantizedWeight, round_nearest


class PartFault(RuntimeError):
    """A part returned what cannot be stored: a fault of the part, not of its user."""


def nearest_with_outliers(context: SiteContext, name: str) -> QuantizedWeight:
    """Layer `name` of the site rounded to nearest, but for its outliers.

    Single outliers are chosen by the sensitivity of their column with all other weights free to
    make up for an error, since nothing is rounded before anything else here.
    """
    weight, rule, grid = context.weights[name], context.outliers, context.grids[name]
    sensitivity = torch.ones(weight.shape[1], dtype=torch.float64)
    if rule.keeps_single_weights:
        sensitivity = input_sensitivity(context.statistics.hessian)

    def rounded(rows: Tensor, threshold: float) -> QuantizedWeight:
        view = rule.fit_view(rows, sensitivity, grid, threshold, rule.columns)
        nearest = round_nearest(rows, context.fits[name](view), grid)
        error = (rows - nearest.dequantize()).double().square() * sensitivity
        return replace(nearest, outliers=kept_weights(rows, error > threshold, rule.columns))

    threshold = threshold_within_budget(rule, weight, sensitivity, rounded)
    return rounded(weight, threshold)


def without_outliers(context: SiteContext) -> SiteContext:
    """The site as a rounding part sees it that knows nothing of outliers.

    Outliers are those that rounding to nearest would keep, ranges are fitted without them, and
    the mean of the others in their group stands in their place.
    """
    if context.outliers.columns is None and not context.outliers.keeps_single_weights:
        return context
    weights, fits, kept = dict(context.weights), dict(context.fits), {}
    for name, weight in context.weights.items():
        nearest = nearest_with_outliers(context, name)
        fits[name] = fixed_fit(nearest.parameters)
        if nearest.outliers is not None:
            size = context.grids[name].columns_per_group(weight.shape[1])
            groups = zip(weight.split(size, 1), nearest.outliers.mask.split(size, 1), strict=True)
            weights[name] = torch.cat([mean_for(group, mask) for group, mask in groups], 1)
            kept[name] = nearest.outliers
    return replace(context, weights=weights, fits=fits, kept=kept)


def fixed_fit(parameters: GridParameters) -> Fit:
    """A fit of a whole layer whose result is known already."""
    known = parameters.to("cpu")
    known = replace(known, scale=known.scale.detach(), zero=known.zero.detach())

    def fit(weight: Tensor, first: int = 0) -> GridParameters:
        if first or len(weight) != len(known.scale):
            raise TypeError("ranges that are known already cannot be fitted again to a part")
        return known

    return fit


def sealed(part: str, context: SiteContext, name: str, weight: QuantizedWeight) -> QuantizedWeight:
    """What is stored of layer `name`, for which the rounding `part` returned `weight`.

    Raises:
        PartFault: it is not on the layer's grid, or has lost an outlier.
        UserError: a scale is too large for float16.
    """
    grid, kept = context.grids[name], context.kept.get(name)
    where = f"rounding part {part!r}, layer {name}"
    if weight.grid != grid:
        raise PartFault(f"{where}: rounded to {weight.grid}, asked was {grid}")
    if weight.codes.shape != context.weights[name].shape or weight.codes.dtype != code_dtype(grid):
        raise PartFault(
            f"{where}: codes are {weight.codes.dtype} {tuple(weight.codes.shape)}, not "
            f"{code_dtype(grid)} {tuple(context.weights[name].shape)}"
        )
    lowest, highest = int(weight.codes.min()), int(weight.codes.max())
    if lowest < grid.lowest or highest > grid.highest:
        raise PartFault(f"{where}: codes from {lowest} to {highest} leave the grid {grid}")
    for what in ("scale", "zero"):
        values = getattr(weight.parameters, what)
        if not bool(values.isfinite().all()):
            raise UserError(
                f"{name}: a {what} is not finite in float16; its weights are too uneven for this "
                "recipe, take another method/range or method/transform"
            )
    if kept is not None:
        return replace(weight, outliers=kept)
    _check_kept(where, context, weight.outliers)
    return weight


def _check_kept(where: str, context: SiteContext, outliers: FloatWeights | None) -> None:
    """Raises PartFault where a part with error feedback let go of a column, or kept a weight that
    no rule keeps."""
    columns = context.outliers.columns
    whole = None if outliers is None else outliers.columns
    lost = columns is not None and (whole is None or not torch.equal(whole, columns))
    if lost or (columns is None and whole is not None):
        raise PartFault(f"{where}: float columns are not those that the outliers part chose")
    if (
        outliers is not None
        and outliers.single_weights
        and not context.outliers.keeps_single_weights
    ):
        raise PartFault(f"{where}: kept single weights, which no outliers part asked for")
