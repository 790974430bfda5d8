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
from edge_asr.quant.stages import SiteRounding, roundings
from edge_asr.quant.weight import QuantizedWeight
from edge_asr.settings import Count

# Columns up to which a triangular matrix is inverted as a whole.
HALVED_ABOVE = 256


@dataclass(frozen=True)
class InverseFactor:
    """The inverse Hessian of a site, ready for every layer that reads its input.

    Attributes:
        upper: Upper Cholesky factor of the damped inverse Hessian, in `order`, float64
            [columns, columns].
        order: The columns in the order they are rounded.
        dead: Columns that were zero in all of calibration; their weights become zero.
        damping: Damping that let the factorization succeed, relative to the mean diagonal of the
            others.
    """

    upper: Tensor
    order: Tensor
    dead: Tensor
    damping: float

    @property
    def sensitivity(self) -> Tensor:
        """What a squared error in a column costs once later columns made up for it: [columns],
        in `order`."""
        return self.upper.diagonal().square().reciprocal()


def factorize(
    hessian: Tensor,
    *,
    damping: float,
    damping_limit: float,
    act_order: bool,
    last: Tensor | None = None,
) -> InverseFactor | None:
    """Factorize the inverse of `hessian` [columns, columns]; None if no damping is enough.

    Damping starts at `damping` x the mean diagonal and doubles until the Cholesky
    factorization succeeds or `damping_limit` is passed. Columns in `last` (bool [columns])
    come after all others. Dead columns have no part in the mean: the 1 that the authors give them
    weighs more the smaller the others are.
    """
    diagonal = hessian.diagonal().double()
    dead = diagonal == 0
    order = torch.arange(len(diagonal))
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    if last is not None:
        order = torch.cat([order[~last[order]], order[last[order]]])
    backwards = order.flip(0)
    damped = hessian[backwards[:, None], backwards].double()
    # Wide ones take 75 MB each, and often nobody else holds this one.
    del hessian
    mean = 1.0 if dead.all() else float(diagonal[~dead].mean())
    diagonal = diagonal.masked_fill(dead, mean)
    while True:
        damped.diagonal().copy_(diagonal[backwards] + damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        # What is not finite in one row of a Cholesky factor reaches its diagonal.
        if not failed and lower.diagonal().isfinite().all():
            # With the columns the other way round, H = U Uᵀ has an upper U; so H^-1 = VᵀV with
            # V = U^-1, which is the upper Cholesky factor of H^-1 without H^-1.
            upper = inverse_of_lower(lower).flip(0, 1)
            # One sum is far cheaper than a look at every element.
            if upper.sum().isfinite():
                return InverseFactor(upper, order, dead, damping)
        if damping >= damping_limit:
            return None
        damping = min(2 * damping, damping_limit)


def inverse_of_lower(lower: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix [columns, columns].

    By halves, for solving against the unit matrix does not know which half of it is zero and so
    takes twice the time: of [A 0; B C] it is [A^-1 0; -C^-1 B A^-1 C^-1].
    """
    columns = len(lower)
    if columns <= HALVED_ABOVE:
        unit = torch.eye(columns, dtype=lower.dtype)
        return torch.linalg.solve_triangular(lower, unit, upper=False)
    half = columns // 2
    first, last = inverse_of_lower(lower[:half, :half]), inverse_of_lower(lower[half:, half:])
    inverse = torch.zeros_like(lower)
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[half:, :half] = -(last @ (lower[half:, :half] @ first))
    return inverse


def gptq_round(
    weight: Tensor,
    factor: InverseFactor,
    fit: Fit,
    grid: Grid,
    *,
    block_size: int = 128,
    static_groups: bool = True,
    outliers: OutlierRule | None = None,
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

    Returns:
        The quantized weight, in the natural column order.
    """
    rule = outliers or OutlierRule()

    def rounded(rows: Tensor, threshold: float) -> QuantizedWeight:
        layer = _LayerUnderWay(rows, factor, fit, grid, static_groups, rule, threshold)
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
    ) -> None:
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
        updated, upper = self.updated, self._factor.upper
        for start in range(0, self.rounded_columns, block_size):
            stop = min(start + block_size, self.rounded_columns)
            errors = torch.empty_like(updated[start:stop])
            for column in range(start, stop):
                error = self.round_column(column)
                updated[column + 1 : stop].addr_(upper[column, column + 1 : stop], error, alpha=-1)
                errors[column - start] = error
            updated[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)

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
class Gptq(SiteRounding):
    """Column by column; later columns make up for each error.

    Attributes:
        damping: What is added to the Hessian's diagonal at first, relative to its mean; doubled
            until the Hessian can be factorized.
        damping_limit: Largest damping that is tried before the layer is rounded to nearest instead.
        block_size: Columns that are rounded before all later ones are updated at once; changes the
            speed alone, but for groups that are fitted on the way.
        act_order: Round columns with the largest input power first.
        static_groups: Fit all scales on the original weights. Otherwise each group's are fitted
            when it is reached, on the weights as updated by then.
        ordered_groups: Allows act_order without static_groups: groups are then runs of columns
            in the order of rounding, as in SpQR, and that order is stored with every layer.
    """

    reads_statistics: ClassVar[bool] = True
    updates_outliers: ClassVar[bool] = True

    damping: Annotated[float, Field(ge=1e-20, le=1e6)] = 0.01
    damping_limit: Annotated[float, Field(ge=1e-20, le=1e6)] = 1.0
    block_size: Count = 128
    act_order: bool = True
    static_groups: bool = True
    ordered_groups: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damping > self.damping_limit:
            first, limit = f"damping={self.damping}", f"damping_limit={self.damping_limit}"
            # A limit that nobody gave is not to blame.
            raise UserError(
                f"method.rounding.{first}: must be at most {limit}"
                if self.damping_limit == Gptq.damping_limit
                else f"method.rounding.{limit}: must be at least {first}"
            )
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

    def round(self, context: SiteContext) -> dict[str, QuantizedWeight]:
        if not context.statistics.rows:
            # Every column would be dead, and every weight zero.
            return {name: nearest_with_outliers(context, name) for name in context.weights}
        factor = factorize(
            context.statistics.hessian,
            damping=self.damping,
            damping_limit=self.damping_limit,
            act_order=self.act_order,
            last=context.outliers.columns,
        )
        if factor is None:
            names = ", ".join(context.weights)
            context.warnings.append(
                f"gptq: no Cholesky factor up to damping {self.damping_limit} for {names}; "
                "rounded to nearest instead"
            )
            return {name: nearest_with_outliers(context, name) for name in context.weights}
        if factor.damping > self.damping:
            context.warnings.append(
                f"gptq: damping raised from {self.damping} to {factor.damping:g} "
                f"for {', '.join(context.weights)}"
            )
        return {
            name: gptq_round(
                weight,
                factor,
                self._fit(context.fits[name], factor.order),
                context.grids[name],
                block_size=self.block_size,
                static_groups=self.static_groups,
                outliers=context.outliers,
            )
            for name, weight in context.weights.items()
        }

    def _fit(self, fit: Fit, order: Tensor) -> Fit:
        if self.static_groups:
            return fit
        if not isinstance(fit, ReorderableFit):
            raise TypeError("ranges that are known already cannot be fitted while rounding")
        return fit.reordered(order)
