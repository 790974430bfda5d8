"""GPTQ: round column by column and let the later columns make up for each error.

Frantar et al. 2022 (arXiv:2210.17323), algorithm 1; act-order and static groups as in the
authors' later code and in llm-compressor's `actorder="static"`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_asr.errors import UserError
from edge_asr.quant.grid import Grid, GridParameters, QuantizedWeight, decode, encode
from edge_asr.quant.rounding.nearest import round_nearest
from edge_asr.quant.stages import Rounding, roundings
from edge_asr.quant.work import Fit, SiteWork


@dataclass(frozen=True)
class InverseFactor:
    """The inverse Hessian of a site, ready for every layer that reads its input.

    Attributes:
        upper: Upper Cholesky factor of the damped inverse Hessian, in `order`, float64
            [columns, columns].
        order: The columns in the order they are rounded.
        dead: Columns that were zero in all of calibration; their weights become zero.
        damping: Damping that let the factorization succeed, relative to the mean diagonal.
    """

    upper: Tensor
    order: Tensor
    dead: Tensor
    damping: float


def factorize(
    hessian: Tensor, *, damping: float, damping_limit: float, act_order: bool
) -> InverseFactor | None:
    """Factorize the inverse of `hessian` [columns, columns]; None if no damping is enough.

    Damping starts at `damping` x the mean diagonal and doubles until the Cholesky
    factorization succeeds or `damping_limit` is passed.
    """
    hessian = hessian.double().clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    order = torch.arange(len(hessian))
    if act_order:
        order = torch.argsort(torch.where(dead, 0.0, diagonal), descending=True, stable=True)
    ordered = hessian[order][:, order]
    mean = float(diagonal.mean())
    while True:
        damped = ordered + damping * mean * torch.eye(len(hessian), dtype=torch.float64)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed and torch.isfinite(lower).all():
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed and torch.isfinite(upper).all():
                return InverseFactor(upper, order, dead, damping)
        if damping >= damping_limit:
            return None
        damping = min(2 * damping, damping_limit)


def gptq_round(
    weight: Tensor,
    factor: InverseFactor,
    fit: Fit,
    grid: Grid,
    *,
    block_size: int = 128,
    static_groups: bool = True,
) -> QuantizedWeight:
    """Round `weight` [rows, columns] with error feedback through `factor`.

    Args:
        weight: Float weight.
        factor: From `factorize` on the Hessian of the layer's input.
        fit: Gives the grid parameters of all groups at once.
        grid: The grid.
        block_size: Columns whose mutual updates are done before the rest is touched once.
        static_groups: Scales of all groups come from the original weight. Otherwise every
            group's scales are fitted when its first column is reached, on the weight as
            updated by then; that needs the natural column order.

    Returns:
        The quantized weight, in the natural column order.
    """
    columns = weight.shape[1]
    # A double-precision copy costs little at these widths and keeps ties away from noise.
    work = weight.double().clone()
    parameters = fit(weight)
    work[:, factor.dead] = 0
    size = parameters.group_size
    scales, zeros = (part.double().clone() for part in (parameters.scale, parameters.zero))
    work = work[:, factor.order]
    codes = torch.empty_like(work)
    upper = factor.upper
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        errors = torch.empty_like(work[:, start:stop])
        for column in range(start, stop):
            group = int(factor.order[column]) // size
            if not static_groups and column % size == 0:
                _refit(work, column, size, group, fit, scales, zeros)
            scale, zero = scales[:, group], zeros[:, group]
            code = encode(work[:, column], scale, zero, grid)
            error = (work[:, column] - decode(code, scale, zero)) / upper[column, column]
            work[:, column:stop] -= error[:, None] * upper[column, column:stop]
            codes[:, column], errors[:, column - start] = code, error
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    natural = torch.argsort(factor.order)
    final = GridParameters(scales.to(weight.dtype), zeros.to(weight.dtype), size)
    return QuantizedWeight(codes[:, natural].to(torch.int16), final, grid)


def _refit(
    work: Tensor,
    column: int,
    size: int,
    group: int,
    fit: Fit,
    scales: Tensor,
    zeros: Tensor,
) -> None:
    """Fit the group that starts at `column` on the weight as it stands now.

    Lazy updates leave columns beyond the current block as they were at its start. Inside the
    block the authors' code reads the weight before the block's own updates; here it is up to
    date, which matters only for groups shorter than a block.
    """
    fresh = fit(work[:, column : column + size].float(), column)
    scales[:, group] = fresh.scale[:, 0].double()
    zeros[:, group] = fresh.zero[:, 0].double()


@roundings.register("gptq")
@dataclass(frozen=True)
class Gptq(Rounding):
    """Rounding stage `gptq`.

    Attributes:
        damping: First damping, relative to the mean of the Hessian's diagonal.
        damping_limit: Largest damping tried before the layer falls back to nearest.
        block_size: Columns a lazy update block.
        act_order: Round columns with the largest input power first.
        static_groups: Fit all scales on the original weights; required with act_order, where
            groups would otherwise be scattered over the columns.
    """

    damping: float = 0.01
    damping_limit: float = 1.0
    block_size: int = 128
    act_order: bool = True
    static_groups: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.damping <= self.damping_limit:
            raise UserError(
                f"method.rounding.damping={self.damping}: must be above 0 and at most "
                f"damping_limit={self.damping_limit}"
            )
        if self.block_size < 1:
            raise UserError(f"method.rounding.block_size={self.block_size}: must be at least 1")
        if self.act_order and not self.static_groups:
            raise UserError(
                "method.rounding.static_groups=false cannot be combined with act_order=true: "
                "groups would no longer be runs of columns; set act_order=false as well"
            )

    def round(self, work: SiteWork) -> dict[str, QuantizedWeight]:
        factor = factorize(
            work.statistics.hessian,
            damping=self.damping,
            damping_limit=self.damping_limit,
            act_order=self.act_order,
        )
        if factor is None:
            names = ", ".join(work.weights)
            work.warnings.append(
                f"gptq: no Cholesky factor up to damping {self.damping_limit} for {names}; "
                "rounded to nearest instead"
            )
            return {
                name: round_nearest(weight, work.fits[name](weight), work.grid)
                for name, weight in work.weights.items()
            }
        if factor.damping > self.damping:
            work.warnings.append(
                f"gptq: damping raised from {self.damping} to {factor.damping:g} "
                f"for {', '.join(work.weights)}"
            )
        return {
            name: gptq_round(
                weight,
                factor,
                work.fits[name],
                work.grid,
                block_size=self.block_size,
                static_groups=self.static_groups,
            )
            for name, weight in work.weights.items()
        }
