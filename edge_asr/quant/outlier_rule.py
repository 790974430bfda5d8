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

from edge_asr.quant.grid import FloatWeights, Grid, GridParameters


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

    def threshold(
        self,
        weight: Tensor,
        sensitivity: Tensor,
        grid: Grid,
        fit: Callable[[Tensor], GridParameters],
    ) -> float:
        """What the error of a weight, squared and times its sensitivity, must exceed for the
        weight to stay in floating point.

        `weight` is [rows, columns], `sensitivity` [columns], in the order in which runs of
        columns are the groups of `grid`; `fit` makes the ranges of float32 weights in that order.
        """
        del weight, sensitivity, grid, fit
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
