"""Ranges of least output error: scale and zero point weighed by what the columns read.

NeUQI (arXiv:2505.17595v3): for every group minimise the sum of h (w - w')² over scale and zero
point together, h the diagonal of the second moment of the layer's input, which is the layer's
output error with the correlation of columns left out. As there, scales are searched coarsely and
then finely. For a scale, all integer zero points at which a group may lie best are tried (the
integer variant is LeanQuant's); the best float one is exact, between the values at which a weight
changes its code, in reach of one step around the best integer one. (The authors find that
neighbourhood by a first pass in which a weight that is not clipped counts a constant.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.quant.context import Layer
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import GridParameters, stored_scale, stored_zero
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.stages import Range, ranges
from edge_asr.settings import PositiveFraction, Steps

# Elements that are searched at once, so that they stay in the processor's cache.
ELEMENTS_AT_ONCE = 1 << 17
# What a column counts at least, in units of the mean of its group: nothing is clipped at will.
SMALLEST_IMPORTANCE = 1e-6


def grouped(matrix: Tensor, grid: Grid) -> Tensor:
    """[rows, columns] as [rows, groups, columns a group]; a shorter last group is filled with 0."""
    if grid.granularity == "tensor":
        return matrix.reshape(1, 1, -1)
    size = grid.columns_per_group(matrix.shape[1])
    missing = -matrix.shape[1] % size
    return torch.nn.functional.pad(matrix, (0, missing)).unflatten(1, (-1, size))


def best_float_zero(exact: Tensor, importance: Tensor, near: Tensor, grid: Grid) -> Tensor:
    """The zero point of least error within one step of `near`, exactly.

    On the way from `near` - 1 to `near` + 1 every weight changes its code at most twice; between
    two such changes the error is a parabola.

    Args:
        exact: Weights in units of the scale, [..., columns].
        importance: What the squared error of each counts, of the same shape.
        near: Zero points [...].
        grid: The grid.
    """
    exact, importance = exact.double(), importance.double()
    start = exact + near[..., None].double() - 1
    rounded = start.round()
    codes = rounded.clamp(grid.lowest, grid.highest)
    distance = start - codes  # of the weight to its code, at the start
    first = rounded + 0.5 - start
    moves = [(rounded >= grid.lowest) & (rounded < grid.highest)]
    moves.append((rounded + 1 >= grid.lowest) & (rounded + 1 < grid.highest))
    way = torch.cat([first, first + 1], -1).clamp(0, 2)
    # A code that goes up by one takes one from the distance.
    before = torch.cat([distance, distance - moves[0].double()], -1)
    counts = torch.cat([importance * moves[0], importance * moves[1]], -1)
    order = way.argsort(-1)
    way = way.gather(-1, order)
    linear = -counts.gather(-1, order)
    constant = (counts * (1 - 2 * before)).gather(-1, order)
    total = importance.sum(-1, keepdim=True)

    def along(changes: Tensor, at_start: Tensor) -> Tensor:
        """A sum in front of the first change, and behind each of them."""
        return torch.cat([at_start, at_start + changes.cumsum(-1)], -1)

    linear = along(linear, (importance * distance).sum(-1, keepdim=True))
    constant = along(constant, (importance * distance.square()).sum(-1, keepdim=True))
    zeros = torch.zeros_like(way[..., :1])
    left, right = torch.cat([zeros, way], -1), torch.cat([way, zeros + 2], -1)
    lowest = torch.maximum(torch.minimum(-linear / total, right), left)
    errors = total * lowest.square() + 2 * linear * lowest + constant
    chosen = errors.argmin(-1, keepdim=True)
    return (near - 1 + lowest.gather(-1, chosen)[..., 0]).to(near.dtype)


class _Search:
    """The best scale and zero point so far of every group of some rows.

    Attributes:
        scale, zero, error: [rows, groups].
    """

    def __init__(
        self, weights: Tensor, importance: Tensor, grid: Grid, scale: Tensor, zero: Tensor
    ) -> None:
        """`weights` are [rows, groups, columns], `importance` [1, groups, columns], `scale` and
        `zero` where the search starts."""
        self._weights, self._importance, self._grid = weights, importance, grid
        self.scale, self.zero, self.error = scale, zero, torch.full_like(scale, math.inf)
        self.try_zeros(scale, [zero])

    def try_zeros(self, scale: Tensor, zeros: Iterable[Tensor]) -> None:
        """Take each of `zeros` [rows, groups] with `scale` where it errs less."""
        exact = self._weights / scale[..., None]
        nearest = exact.round() if self._grid.zero_point == "integer" else None
        for zero in zeros:
            shift = zero[..., None]
            codes = (exact + shift).round() if nearest is None else nearest + shift
            error = codes.clamp_(self._grid.lowest, self._grid.highest).sub_(shift).sub_(exact)
            total = (error.square_() * self._importance).sum(-1) * scale.square()
            better = total < self.error
            self.error = torch.where(better, total, self.error)
            self.scale = torch.where(better, scale, self.scale)
            self.zero = torch.where(better, zero, self.zero)

    def integer_zeros(self, scale: Tensor) -> Iterator[Tensor]:
        """All from where the smallest weight lies on the lowest code to where the largest lies on
        the highest: beyond either, codes are left unused on one side and missing on the other."""
        grid = self._grid
        ends = (
            grid.lowest - self._weights.amin(-1) / scale,
            grid.highest - self._weights.amax(-1) / scale,
        )
        first, last = torch.minimum(*ends).floor(), torch.maximum(*ends).ceil()
        if grid.zero_point == "integer":
            first, last = (one.clamp(grid.lowest, grid.highest) for one in (first, last))
        for step in range(int((last - first).max()) + 1):
            yield stored_zero(torch.minimum(first + step, last), scale, grid)

    def refine_zero(self) -> None:
        """The best float zero point near the present one."""
        exact = self._weights / self.scale[..., None]
        importance = self._importance.expand_as(exact)
        zero = best_float_zero(exact, importance, self.zero, self._grid)
        self.try_zeros(self.scale, [stored_zero(zero, self.scale, self._grid)])


@ranges.register("hessian")
@dataclass(frozen=True)
class HessianWeighted(Range):
    """Scale and zero point of the least output error, columns weighed by what they read.

    Attributes:
        steps: Fineness of the search: each scale is smaller by 1 / steps of the whole range's.
        max_shrink: Largest share of the whole range that is cut off; the search ends right before.
        refine: Between the best scale and its neighbours, scales that are so many times as fine.
        search_zero: Search zero points too; otherwise both ends of a range shrink alike.
    """

    reads_statistics: ClassVar[bool] = True

    steps: Steps = 32
    max_shrink: PositiveFraction = 0.8
    refine: Annotated[int, Field(ge=1, le=100)] = 4
    search_zero: bool = True

    def fit(
        self, weight: Tensor, grid: Grid, statistics: InputStatistics, layer: Layer
    ) -> GridParameters:
        del layer
        importance = statistics.second_moment.diagonal()
        if not bool(importance.any()):
            return minmax_parameters(weight, grid)
        return self.parameters(weight, grid, importance)

    def parameters(self, weight: Tensor, grid: Grid, importance: Tensor) -> GridParameters:
        """Those of the least sum of `importance` [columns] x squared error of `weight` [rows,
        columns] in every group; none errs more than by min-max, where the search starts."""
        start = minmax_parameters(weight, grid)
        weights = grouped(weight, grid)
        counted = grouped(importance.to(weight)[None].expand_as(weight), grid)[:1]
        counted = counted + SMALLEST_IMPORTANCE * counted.mean(-1, keepdim=True)
        at_once = max(1, ELEMENTS_AT_ONCE // weights[0].numel())
        parts = zip(
            *(one.split(at_once) for one in (weights, start.scale, start.zero)), strict=True
        )
        found = [
            self._searched(_Search(part, counted, grid, scale, zero), grid)
            for part, scale, zero in parts
        ]
        scale = torch.cat([one.scale for one in found])
        return GridParameters(scale, torch.cat([one.zero for one in found]), start.group_size)

    def _searched(self, search: _Search, grid: Grid) -> _Search:
        whole, zero = search.scale, search.zero
        moves = self.search_zero and not grid.symmetric

        def look(share: Tensor) -> None:
            for sign in (1.0, -1.0) if grid.signed_scale else (1.0,):
                scale = stored_scale(sign * share * whole, grid)
                search.try_zeros(scale, search.integer_zeros(scale) if moves else [zero])

        for step in range(int(self.max_shrink * self.steps)):
            look(torch.full_like(whole, 1 - step / self.steps))
        best, fine = (search.scale / whole).abs(), 1 / (self.steps * self.refine)
        for step in range(1 - self.refine, self.refine):
            if step:
                look((best + step * fine).clamp(min=fine))
        if moves and grid.zero_point != "integer":
            search.refine_zero()
        return search
