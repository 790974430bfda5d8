"""SpQR: single weights stay in 16 bits, where rounding them would cost the output most."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.models.families.sites import Site
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import dequantize, quantize
from edge_asr.quant.outlier_rule import OutlierRule
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.stages import Outliers, outliers
from edge_asr.settings import Fraction


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
        rounded = dequantize(quantize(rows, scale, zero, whole_row), scale, zero)
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


@dataclass(frozen=True, kw_only=True)
class SingleWeights(OutlierRule):
    """Keeps weights by their error relative to the layer's spread; see `Unstructured`."""

    relative_threshold: float
    fraction: float = 1.0

    @property
    def keeps_single_weights(self) -> bool:
        return self.fraction > 0

    @property
    def budget(self) -> float:
        return self.fraction

    def threshold(self, weight: Tensor, sensitivity: Tensor) -> float:
        if len(weight) < 2 or not self.keeps_single_weights:
            return math.inf  # one row has no spread
        return self.relative_threshold * float((weight.var(0) * sensitivity).mean())

    def left_out(self, group: Tensor, sensitivity: Tensor, grid: Grid, threshold: float) -> Tensor:
        wide = group.double()
        return leave_one_out_gain(wide, sensitivity.to(wide.dtype), grid) > threshold


@outliers.register("unstructured")
@dataclass(frozen=True)
class Unstructured(Outliers):
    """The single weights that cost their group most stay in 16 bits, as in SpQR.

    Dettmers et al. 2023 (arXiv:2306.03078), section 4 and algorithm 1. A weight of a group is
    left out of the group's range if that lowers the group's error by more than the threshold,
    and stays in 16 bits if rounding it then costs more than the threshold. Both errors are
    squared and weighed by the column's sensitivity; within GPTQ that is 1 / U_jj^2, with U the
    upper Cholesky factor of the inverse Hessian, and the errors are those of the weights as
    updated by then. The threshold is `relative_threshold` x mean over columns of
    (variance over rows x sensitivity), as in the authors' code.

    That threshold is made for 3 and 4 bits in small groups: at 2 bits it keeps one normally
    distributed weight of ten in groups of 16, and more than a third of moonshine-micro's in whole
    rows. So a budget is ours: the threshold is raised until the rounded layer keeps no more.

    Attributes:
        relative_threshold: Error above which a weight is kept, relative to the layer's spread: the
            smaller, the more are kept. The authors' default keeps about one of a thousand normally
            distributed weights at 4 bits and one or two of a hundred at 3. A large number keeps
            hardly any; method/outliers=none keeps none and spares the search.
        fraction: Largest share of a layer's weights that may be kept; the authors keep about one
            of a hundred. 1 sets no budget, as in the authors' code.
    """

    reads_statistics: ClassVar[bool] = True

    relative_threshold: Annotated[float, Field(gt=0, le=1e6)] = 0.2
    fraction: Fraction = 0.01

    def rule(self, site: Site, statistics: InputStatistics) -> OutlierRule:
        del site, statistics
        return SingleWeights(relative_threshold=self.relative_threshold, fraction=self.fraction)
