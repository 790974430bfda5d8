"""What keeps single weights or whole columns of a site off the grid.

Parts of the stage `outliers` give a rule; parts of the stage `rounding` follow it. How much a
weight's rounding error matters is its column's *sensitivity*: the factor by which the squared
error counts in the layer's output error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_asr.quant.formats import Grid
from edge_asr.quant.weight import FloatWeights, QuantizedWeight

# A hundredth of so many weights is known to about 2 %.
ENOUGH_WEIGHTS = 2**18
# Where the rule's own is zero, as for rows that are all alike: something to multiply.
SMALLEST_THRESHOLD = 1e-12


@dataclass(frozen=True)
class OutlierRule:
    """Keeps whole columns; this one keeps no single weight.

    Attributes:
        columns: bool [columns], columns that stay in floating point in all layers of the site
            and in their common input, or None.
    """

    columns: Tensor | None = None

    @property
    def keeps_single_weights(self) -> bool:
        return False

    @property
    def budget(self) -> float:
        """The largest share of a layer's weights that may be kept one by one, 0 to 1."""
        return 1.0

    def threshold(self, weight: Tensor, sensitivity: Tensor) -> float:
        """What the error of a weight, squared and times its sensitivity, must at least exceed for
        the weight to stay in floating point.

        `weight` is [rows, columns], `sensitivity` [columns].
        """
        del weight, sensitivity
        return math.inf

    def left_out(self, group: Tensor, sensitivity: Tensor, grid: Grid, threshold: float) -> Tensor:
        """Which weights of `group` [rows, columns] have no say in its scale: bool, same shape."""
        del sensitivity, grid, threshold
        return torch.zeros_like(group, dtype=torch.bool)

    def fit_view(
        self,
        weight: Tensor,
        sensitivity: Tensor,
        grid: Grid,
        threshold: float,
        columns: Tensor | None = None,
    ) -> Tensor:
        """`weight` [rows, columns] as its ranges are to be fitted.

        Weights that are left out, and whole `columns` (bool [columns]), take the mean of the
        others in their group, so that they have no part in its extremes.
        """
        if columns is None and not self.keeps_single_weights:
            return weight
        view = weight.clone()
        size = grid.columns_per_group(weight.shape[1])
        for first in range(0, weight.shape[1], size):
            part = slice(first, first + size)
            group = weight[:, part]
            left_out = self.left_out(group, sensitivity[part], grid, threshold)
            if columns is not None:
                left_out = left_out | columns[part]
            view[:, part] = mean_for(group, left_out)
        return view


def threshold_within_budget(
    rule: OutlierRule,
    weight: Tensor,
    sensitivity: Tensor,
    rounded: Callable[[Tensor, float], QuantizedWeight],
) -> float:
    """The smallest threshold, from the rule's own on, by which no more than its budget is kept.

    Found by bisection to a twentieth; of a large weight, on evenly spaced rows.

    Args:
        rule: Gives the lowest threshold and the budget.
        weight: Float weight [rows, columns].
        sensitivity: Of every column [columns].
        rounded: Makes the quantized weight of some rows by a threshold.
    """
    lowest = rule.threshold(weight.double(), sensitivity)
    some = weight[:: max(1, weight.numel() // ENOUGH_WEIGHTS)]

    def within_budget(threshold: float) -> bool:
        kept = rounded(some, threshold).outliers
        return kept is None or kept.single_weights <= rule.budget * some.numel()

    if rule.budget >= 1 or not 0 <= lowest < math.inf or within_budget(lowest):
        return lowest
    lowest = max(lowest, SMALLEST_THRESHOLD)
    highest = 4 * lowest
    while not within_budget(highest):
        lowest, highest = highest, 4 * highest
    while highest > 1.05 * lowest:
        middle = math.sqrt(highest * lowest)
        lowest, highest = (lowest, middle) if within_budget(middle) else (middle, highest)
    return highest


def mean_for(group: Tensor, left_out: Tensor) -> Tensor:
    """`group` [rows, columns] with the row's mean of the others where `left_out` (same shape)."""
    rest = group.masked_fill(left_out, 0).sum(1, keepdim=True)
    mean = rest / (~left_out).sum(1, keepdim=True).clamp(min=1)
    return torch.where(left_out, mean, group)


def input_sensitivity(hessian: Tensor, damping: float = 1.0) -> Tensor:
    """Sensitivity of every column where no later column makes up for an error in it.

    1 / [H^-1]_qq for the `hessian` [columns, columns] damped by `damping` x its mean diagonal:
    float64 [columns], the increase of the output error after the best change of all other
    weights (Optimal Brain Surgeon; SpQR, arXiv:2306.03078, eq. 2). Ones if the Hessian has no
    inverse.
    """
    damped = hessian.double().clone()
    damped.diagonal().add_(damping * hessian.diagonal().mean())
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed or not torch.isfinite(lower).all():
        return torch.ones(len(hessian), dtype=torch.float64)
    return torch.cholesky_inverse(lower).diagonal().reciprocal()


def kept_weights(values: Tensor, single: Tensor, columns: Tensor | None) -> FloatWeights | None:
    """The weights that stay in floating point, or None if there are none.

    Args:
        values: Weights [rows, columns]; read only where they stay.
        single: bool [rows, columns], single weights.
        columns: bool [columns], whole columns.
    """
    mask = single if columns is None else single | columns
    if not bool(mask.any()):
        return None
    half = values.to(torch.float16).float()
    return FloatWeights(mask, torch.where(mask, half, 0.0), columns)
