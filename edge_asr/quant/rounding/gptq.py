"""GPTQ: round column by column and let the later columns make up for each error.

Frantar et al. 2022 (arXiv:2210.17323), algorithm 1; act-order and static groups as in the
authors' later code and in llm-compressor's `actorder="static"`. Outliers as in QUIK and SpQR.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from edge_asr.errors import UserError
from edge_asr.quant.context import Fit, ReorderableFit, SiteContext
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import GridParameters, code_dtype, dequantize, quantize
from edge_asr.quant.outlier_rule import OutlierRule, kept_weights, threshold_within_budget
from edge_asr.quant.protection import nearest_with_outliers
from edge_asr.quant.rounding.compensation import Compensating, Start
from edge_asr.quant.rounding.coordinate_descent import polished
from edge_asr.quant.rounding.inverse_factor import InverseFactor
from edge_asr.quant.stages import roundings
from edge_asr.quant.weight import QuantizedWeight
from edge_asr.settings import Count


def gptq_round(
    weight: Tensor,
    factor: InverseFactor,
    fit: Fit,
    grid: Grid,
    *,
    block_size: int = 128,
    static_groups: bool = True,
    outliers: OutlierRule | None = None,
    carried: Tensor | None = None,
) -> QuantizedWeight:
    """Round `weight` [rows, columns] with error feedback through `factor`.

    Weights of dead columns are zero before anything is fitted to them (the authors' per-channel
    scales still span them).

    Args:
        weight: Float weight.
        factor: From `factorize` on the Hessian of the layer's input, with the outliers' whole
            columns last.
        fit: Gives the grid parameters of all groups at once. Without static groups it is given
            columns in the order of `factor`.
        grid: The grid.
        block_size: Columns whose mutual updates are done before the rest is touched once.
        static_groups: Groups are runs of neighbouring columns, and the scales of all come from
            the original weight. Otherwise groups are runs of columns in the order of `factor`,
            and every group's scales are fitted when its first column is reached, on the
            weight as updated by then.
        outliers: What stays in floating point. Whole columns are never rounded, only updated;
            single weights are chosen when their column is reached.
        carried: What a column, before it is rounded, adds to each later one, strictly upper
            triangular [columns, columns] in the order of `factor` (GPTAQ).

    Returns:
        The quantized weight, in the natural column order.
    """
    rule = outliers or OutlierRule()

    def rounded(rows: Tensor, threshold: float) -> QuantizedWeight:
        layer = _LayerUnderWay(rows, factor, fit, grid, static_groups, rule, threshold, carried)
        layer.round_all(block_size)
        return layer.result()

    alive = weight.masked_fill(factor.dead, 0)
    sensitivity = factor.sensitivity[torch.argsort(factor.order)]
    return rounded(alive, threshold_within_budget(rule, alive, sensitivity, rounded))


class _LayerUnderWay:
    """One layer with its columns in the order in which they are rounded.

    All of it is stored by column, so that the values of one column lie side by side.

    Attributes:
        updated: The weight, every column as updated so far, float64 [columns, rows].
        rounded_columns: The columns before those that stay in floating point.
    """

    def __init__(
        self,
        weight: Tensor,
        factor: InverseFactor,
        fit: Fit,
        grid: Grid,
        static_groups: bool,
        outliers: OutlierRule,
        threshold: float,
        carried: Tensor | None,
    ) -> None:
        self._carried = carried
        self._factor, self._fit, self._grid = factor, fit, grid
        self._outliers, self._threshold = outliers, threshold
        self._static, self._dtype = static_groups, weight.dtype
        self._natural = torch.argsort(factor.order)
        # A double-precision copy costs little at these widths and keeps ties away from noise.
        self.updated = weight.double().T[factor.order]
        self.rounded_columns = weight.shape[1]
        if outliers.columns is not None:
            self.rounded_columns -= int(outliers.columns.sum())
        self._parameters = self._first_fit(weight)
        self._scales, self._zeros = (
            part.double().T.clone() for part in (self._parameters.scale, self._parameters.zero)
        )
        self._codes = torch.zeros_like(self.updated)
        self._kept = torch.zeros_like(self.updated, dtype=torch.bool)
        self._units = factor.upper.diagonal().tolist()

    def _first_fit(self, weight: Tensor) -> GridParameters:
        """Parameters of all groups of the original weight."""
        order = self._factor.order
        if self._static:
            sensitivity = self._factor.sensitivity[self._natural]
            columns = self._outliers.columns
            return self._fit(
                self._outliers.fit_view(weight, sensitivity, self._grid, self._threshold, columns)
            )
        parameters = self._fit(weight[:, order]).copy()
        # One group is the same in any order; several are found again only by theirs.
        natural = torch.equal(order, torch.arange(len(order)))
        if natural or parameters.group_size >= weight.shape[1]:
            return parameters
        return replace(parameters, order=order)

    def _refit(self, column: int, group: int) -> None:
        """Fit the group that starts at `column` on the weight as it stands now.

        Lazy updates leave columns beyond the current block as they were at its start, which
        matters only for groups that reach into the next block.
        """
        stop = min(column + self._parameters.group_size, self.rounded_columns)
        view = self._outliers.fit_view(
            self.updated[column:stop].T,
            self._factor.sensitivity[column:stop],
            self._grid,
            self._threshold,
        )
        fresh = self._fit(view.to(self._dtype), column)
        self._parameters.put(group, fresh)
        self._scales[group] = fresh.scale[:, 0].double()
        self._zeros[group] = fresh.zero[:, 0].double()

    def round_all(self, block_size: int) -> None:
        """Round every column, updating the columns beyond a block of `block_size` once a block."""
        updated, upper, carried = self.updated, self._factor.upper, self._carried
        for start in range(0, self.rounded_columns, block_size):
            stop = min(start + block_size, self.rounded_columns)
            errors = torch.empty_like(updated[start:stop])
            for column in range(start, stop):
                error = self.round_column(column)
                updated[column + 1 : stop].addr_(upper[column, column + 1 : stop], error, alpha=-1)
                if carried is not None:
                    later = carried[column, column + 1 : stop]
                    updated[column + 1 : stop].addr_(later, updated[column])
                errors[column - start] = error
            updated[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
            if carried is not None:
                updated[stop:].addmm_(carried[start:stop, stop:].T, updated[start:stop])

    def round_column(self, column: int) -> Tensor:
        """Round one column; its errors [rows], in units of what later columns can make up for."""
        size = self._parameters.group_size
        group = (int(self._factor.order[column]) if self._static else column) // size
        if not self._static and column % size == 0:
            self._refit(column, group)
        exact, scale, zero = self.updated[column], self._scales[group], self._zeros[group]
        unit = self._units[column]
        code = quantize(exact, scale, zero, self._grid)
        self._codes[column] = code
        error = (exact - dequantize(code, scale, zero)) / unit
        if not self._outliers.keeps_single_weights:
            return error
        kept = error.square() > self._threshold
        self._kept[column] = kept
        return torch.where(kept, (exact - exact.half().double()) / unit, error)

    def result(self) -> QuantizedWeight:
        """The quantized weight, in the natural column order."""
        natural, columns = self._natural, self._outliers.columns
        outliers = kept_weights(self.updated[natural].T, self._kept[natural].T, columns)
        codes = self._codes[natural].T.to(code_dtype(self._grid)).contiguous()
        return QuantizedWeight(codes, self._parameters, self._grid, outliers)


@roundings.register("gptq")
@dataclass(frozen=True)
class Gptq(Compensating):
    """Column by column; later columns make up for each error.

    Attributes:
        block_size: Columns that are rounded before all later ones are updated at once; changes the
            speed alone, but for groups that are fitted on the way.
        act_order: Round columns with the largest input power first.
        static_groups: Fit all scales on the original weights. Otherwise each group's are fitted
            when it is reached, on the weights as updated by then.
        ordered_groups: Allows act_order without static_groups: groups are then runs of columns
            in the order of rounding, as in SpQR, and that order is stored with every layer.
        polish: Cycles of coordinate descent over the columns after they are rounded.
    """

    reads_statistics: ClassVar[bool] = True
    updates_outliers: ClassVar[bool] = True

    block_size: Count = 128
    act_order: bool = True
    static_groups: bool = True
    ordered_groups: bool = False
    polish: Annotated[int, Field(ge=0, le=100)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ordered_groups and self.static_groups:
            raise UserError(
                "method.rounding.ordered_groups=true needs static_groups=false: groups fitted "
                "before the first rounding are runs of neighbouring columns"
            )
        if self.act_order and not self.static_groups and not self.ordered_groups:
            raise UserError(
                "method.rounding.static_groups=false cannot be combined with act_order=true: "
                "groups would no longer be runs of columns; set act_order=false as well, or "
                "ordered_groups=true to store the order of columns"
            )
        if self.compensation == "qronos" and not self.static_groups:
            raise UserError(
                "method.rounding.compensation=qronos needs static_groups=true: its first column is "
                "rounded before the others are corrected"
            )

    @property
    def outside_blocks(self) -> Gptq:
        """The same with nothing made up for, as earlier layers do not come before these."""
        damping = None if self.compensation == "qronos" else self.damping
        return replace(self, compensation="none", alpha=None, observe=None, damping=damping)

    def round(self, context: SiteContext) -> dict[str, QuantizedWeight]:
        factor = self.factor(context, act_order=self.act_order)
        if factor is None:
            return {name: nearest_with_outliers(context, name) for name in context.weights}
        return {
            name: self._rounded(context, name, start, factor)
            for name, start in self.starts(context, factor).items()
        }

    def _rounded(
        self, context: SiteContext, name: str, start: Start, factor: InverseFactor
    ) -> QuantizedWeight:
        found = gptq_round(
            start.weight,
            factor,
            self._fit(start.fit, factor.order),
            context.grids[name],
            block_size=self.block_size,
            static_groups=self.static_groups,
            outliers=context.outliers,
            carried=start.carried,
        )
        if not self.polish:
            return found
        # Undamped, what few clips leave open would be paid for on others.
        hessian = context.statistics.hessian
        hessian.diagonal().add_(torch.where(factor.dead, 0.0, factor.added))
        return polished(found, start.target, hessian, factor.order, self.polish)

    def _fit(self, fit: Fit, order: Tensor) -> Fit:
        if self.static_groups:
            return fit
        if not isinstance(fit, ReorderableFit):
            raise TypeError("ranges that are known already cannot be fitted while rounding")
        return fit.reordered(order)
