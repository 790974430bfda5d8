"""SpQR: single weights stay in 16 bits, where rounding them would cost the output most."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edge_asr.errors import UserError
from edge_asr.models.architecture import Site
from edge_asr.quant.grid import Grid, GridParameters, decode, encode
from edge_asr.quant.outlier_rule import OutlierRule, mean_for
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.stages import Outliers, outliers
from edge_asr.quant.statistics import InputStatistics

# A hundredth of so many weights is known to about 2 %.
ENOUGH_WEIGHTS = 2**18


def leave_one_out_gain(group: Tensor, sensitivity: Tensor, grid: Grid) -> Tensor:
    """How much less error a group has when one of its weights stays off the grid.

    For every weight of `group` [rows, columns]: the weighted squared rounding error of its row
    with the range of the whole row, less that of the other weights with a range of their own
    (SpQR, algorithm 1, `outliers`). `sensitivity` [columns] weighs the columns. A row is one
    group. Returns [rows, columns].

    Only leaving out the smallest or the largest weight of a row changes its range; every other
    weight gains just its own error. That makes this linear in the columns.
    """
    whole_row = replace(grid, granularity="channel", group_size=None)

    def errors(rows: Tensor) -> Tensor:
        parameters = minmax_parameters(rows, whole_row)
        scale, zero = parameters.scale, parameters.zero
        rounded = decode(encode(rows, scale, zero, whole_row), scale, zero)
        return (rounded - rows).square() * sensitivity

    own = errors(group)
    total = own.sum(1)
    gain = own.clone()
    if group.shape[1] == 1:
        return gain
    rows = torch.arange(len(group))
    for extreme in (group.argmin(1), group.argmax(1)):
        # A double of its neighbour stands in for the weight: it adds nothing to the range.
        others = group.clone()
        others[rows, extreme] = group[rows, (extreme + 1) % group.shape[1]]
        rest = errors(others)
        rest[rows, extreme] = 0
        gain[rows, extreme] = total - rest.sum(1)
    return gain


def budget_threshold(
    weight: Tensor,
    sensitivity: Tensor,
    grid: Grid,
    fit: Callable[[Tensor], GridParameters],
    fraction: float,
    lowest: float,
) -> float:
    """The smallest threshold, at least `lowest`, that keeps at most `fraction` of the weights.

    Counted as if `weight` [rows, columns] were rounded to nearest: what gains more than the
    threshold is left out when `fit` makes the ranges, and what then costs more than it stays.
    A fit that clips therefore counts what it clips. `sensitivity` is [columns]. Found by
    bisection to about a hundredth, on evenly spaced rows of a weight that is large.
    """
    weight = weight[:: max(1, weight.numel() // ENOUGH_WEIGHTS)]
    size = grid.columns_per_group(weight.shape[1])
    groups = weight.split(size, 1)
    gains = [
        leave_one_out_gain(group, part, grid)
        for group, part in zip(groups, sensitivity.split(size), strict=True)
    ]

    def within_budget(threshold: float) -> bool:
        pairs = zip(groups, gains, strict=True)
        view = torch.cat([mean_for(group, gain > threshold) for group, gain in pairs], 1)
        scale, zero = fit(view.float()).expand(weight.shape[1])
        rounded = decode(encode(weight, scale, zero, grid), scale, zero)
        kept = ((rounded - weight).square() * sensitivity > threshold).float().mean()
        return float(kept) <= fraction

    if fraction >= 1 or within_budget(lowest):
        return lowest
    highest = max(float(gain.max()) for gain in gains)
    while highest > 1.01 * lowest:
        middle = math.sqrt(highest * lowest)
        lowest, highest = (lowest, middle) if within_budget(middle) else (middle, highest)
    return highest


@dataclass(frozen=True)
class SingleWeights(OutlierRule):
    """Keeps weights by their error relative to the layer's spread; see `Unstructured`."""

    relative_threshold: float = math.inf
    fraction: float = 1.0

    @property
    def keeps_single_weights(self) -> bool:
        return math.isfinite(self.relative_threshold) and self.fraction > 0

    def threshold(
        self,
        weight: Tensor,
        sensitivity: Tensor,
        grid: Grid,
        fit: Callable[[Tensor], GridParameters],
    ) -> float:
        if len(weight) < 2 or not self.keeps_single_weights:
            return math.inf  # one row has no spread
        spread = float((weight.var(0) * sensitivity).mean())
        lowest = self.relative_threshold * spread
        return budget_threshold(weight, sensitivity, grid, fit, self.fraction, lowest)

    def left_out(self, group: Tensor, sensitivity: Tensor, grid: Grid, threshold: float) -> Tensor:
        wide = group.double()
        return leave_one_out_gain(wide, sensitivity.to(wide.dtype), grid) > threshold


@outliers.register("unstructured")
@dataclass(frozen=True)
class Unstructured(Outliers):
    """Outlier stage `unstructured`: the sparse outliers of SpQR.

    Dettmers et al. 2023 (arXiv:2306.03078), section 4 and algorithm 1. A weight of a group is
    left out of the group's range if that lowers the group's error by more than the threshold,
    and stays in 16 bits if rounding it then costs more than the threshold. Both errors are
    squared and weighed by the column's sensitivity; within GPTQ that is 1 / U_jj^2, with U the
    upper Cholesky factor of the inverse Hessian, and the errors are those of the weights as
    updated by then. The threshold is `relative_threshold` x mean over columns of
    (variance over rows x sensitivity), as in the authors' code.

    That threshold is made for 3 and 4 bits in small groups: at 2 bits it keeps one normally
    distributed weight of ten in groups of 16, and more than a third of moonshine-micro's in whole
    rows. So the threshold is
    raised where it would keep more than a budget of weights.

    Attributes:
        relative_threshold: Smaller keeps more weights. The authors' default keeps about one of
            a thousand normally distributed weights at 4 bits and one or two of a hundred at 3.
        fraction: The budget, a fraction of the layer's weights, 0 to 1; the authors keep about
            one of a hundred. It is counted on the weights as they are before any is rounded, so
            GPTQ meets it roughly. 1 sets no budget, as in the authors' code.
    """

    relative_threshold: float = 0.2
    fraction: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise UserError(f"method.outliers.fraction={self.fraction}: must be 0 to 1")
        if not self.relative_threshold > 0:
            raise UserError(
                f"method.outliers.relative_threshold={self.relative_threshold}: "
                "must be above 0 (inf keeps no weight)"
            )

    def rule(self, site: Site, statistics: InputStatistics) -> OutlierRule:
        del site, statistics
        return SingleWeights(relative_threshold=self.relative_threshold, fraction=self.fraction)
