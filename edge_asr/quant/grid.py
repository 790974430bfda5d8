"""The uniform quantizer: `value = scale x (code - zero)` on an explicit integer grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edge_asr.quant.formats import INDEX_BITS, SCALE_BITS, Grid

# How values become integers: torch.round, or a version of it that lets gradients through.
Round = Callable[[Tensor], Tensor]


def code_dtype(grid: Grid) -> torch.dtype:
    """Of codes as they are kept in memory: one byte each."""
    return torch.int8 if grid.signed else torch.uint8


@dataclass(frozen=True)
class DoubleQuantized:
    """Scales or zero points [rows, groups] that are quantized themselves, run by run of rows.

    Attributes:
        codes: uint8 [rows, groups].
        scale, zero: Scale and float zero point of every run of codes, at float16's precision,
            [runs, groups].
        bits: Width of a code.
        run: Neighbouring rows (output channels) that share a scale; the last run may be shorter.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    run: int

    def values(self) -> Tensor:
        """What the codes stand for, float32 [rows, groups]."""
        shared = GridParameters(self.scale.T, self.zero.T, self.run)
        scale, zero = shared.expand(len(self.codes))
        return dequantize(self.codes.T.to(scale.dtype), scale, zero).T.contiguous()

    @property
    def stored_bits(self) -> float:
        """Bits of codes, scales and zero points."""
        return self.codes.numel() * self.bits + self.scale.numel() * 2 * SCALE_BITS

    def to(self, device: torch.device | str) -> DoubleQuantized:
        """The same on another device."""
        return replace(
            self,
            codes=self.codes.to(device),
            scale=self.scale.to(device),
            zero=self.zero.to(device),
        )


@dataclass(frozen=True)
class GridParameters:
    """Scale and zero point of every group.

    Attributes:
        scale, zero: [rows, groups]; one row where the whole tensor shares them.
        group_size: Columns a group (the last may be shorter).
        order: The columns in the order in which groups run over them, None where that is the
            natural one. It has to be stored.
        double_scale, double_zero: What is stored instead of `scale` and `zero` where those are
            quantized themselves.
    """

    scale: Tensor
    zero: Tensor
    group_size: int
    order: Tensor | None = None
    double_scale: DoubleQuantized | None = None
    double_zero: DoubleQuantized | None = None

    def expand(self, columns: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point of every column, each [rows, columns].

        They may share the memory of `scale` and `zero`; do not write to them.
        """
        if self.group_size >= columns:
            return self.scale.expand(-1, columns), self.zero.expand(-1, columns)
        repeat = self.group_size
        scale = self.scale.repeat_interleave(repeat, dim=1)[:, :columns]
        zero = self.zero.repeat_interleave(repeat, dim=1)[:, :columns]
        if self.order is None:
            return scale, zero
        natural = torch.argsort(self.order)
        return scale[:, natural], zero[:, natural]

    def to(self, device: torch.device | str) -> GridParameters:
        """The same on another device."""

        def moved(part: Any) -> Any:
            return None if part is None else part.to(device)

        return replace(
            self,
            scale=self.scale.to(device),
            zero=self.zero.to(device),
            order=moved(self.order),
            double_scale=moved(self.double_scale),
            double_zero=moved(self.double_zero),
        )

    def copy(self) -> GridParameters:
        """The same in memory of its own, for `put`."""

        def own(part: DoubleQuantized | None) -> DoubleQuantized | None:
            if part is None:
                return None
            return replace(
                part, codes=part.codes.clone(), scale=part.scale.clone(), zero=part.zero.clone()
            )

        return replace(
            self,
            scale=self.scale.clone(),
            zero=self.zero.clone(),
            double_scale=own(self.double_scale),
            double_zero=own(self.double_zero),
        )

    def put(self, group: int, fitted: GridParameters) -> None:
        """Overwrite those of number `group` with the only ones of `fitted`, in place."""
        self.scale[:, group], self.zero[:, group] = fitted.scale[:, 0], fitted.zero[:, 0]
        for own, fresh in (
            (self.double_scale, fitted.double_scale),
            (self.double_zero, fitted.double_zero),
        ):
            if own is not None and fresh is not None:
                own.codes[:, group] = fresh.codes[:, 0]
                own.scale[:, group], own.zero[:, group] = fresh.scale[:, 0], fresh.zero[:, 0]

    def bits_on(self, grid: Grid) -> float:
        """Bits of everything here: scales, zero points, the order of columns."""
        bits: float = 0 if self.order is None else INDEX_BITS * self.order.numel()
        bits += (
            self.scale.numel() * SCALE_BITS
            if self.double_scale is None
            else self.double_scale.stored_bits
        )
        if not grid.stores_zero:
            return bits
        if self.double_zero is not None:
            return bits + self.double_zero.stored_bits
        width = grid.bits if grid.zero_point == "integer" else SCALE_BITS
        return bits + self.zero.numel() * width


def reduce_groups(
    matrix: Tensor, grid: Grid, reduce: Callable[[Tensor, int], Tensor]
) -> tuple[Tensor, int]:
    """Reduce every group of `matrix` [rows, columns] to one value: [rows, groups].

    Returns the values and the columns per group. `reduce(values, dim)` must drop `dim`.
    """
    if grid.granularity == "tensor":
        return reduce(matrix.reshape(1, -1), 1)[:, None], matrix.shape[1]
    columns = matrix.shape[1]
    size = grid.columns_per_group(columns)
    whole = columns // size * size
    parts = [reduce(matrix[:, :whole].unflatten(1, (-1, size)), 2)]
    if whole < columns:
        parts.append(reduce(matrix[:, whole:], 1)[:, None])
    return torch.cat(parts, dim=1), size


def parameters_from_range(
    low: Tensor, high: Tensor, grid: Grid, group_size: int, round_values: Round = torch.round
) -> GridParameters:
    """The scale and zero point that cover [low, high] (each [rows, groups]) exactly.

    Symmetric and signed: scale = magnitude / highest code (llm-compressor, LLMC), or with
    `signed_scale` = - extreme / 2^(b-1) (ggml; of two extremes of one magnitude the upper).
    Symmetric and unsigned: scale = 2 magnitude / (2^b - 1), zero = 2^(b-1) (IST-DASLab GPTQ).
    Asymmetric: scale = (high - low) / (2^b - 1), zero = lowest code - low / scale.
    """
    if grid.include_zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    elif grid.zero_point == "float":
        low, high = _without_far_zero(low, high, grid)
    if grid.signed_scale:
        extreme = torch.where(high.abs() >= low.abs(), high, low)
        scale = stored_scale(extreme / grid.lowest, grid)
        return GridParameters(scale, torch.zeros_like(scale), group_size)
    if grid.symmetric:
        magnitude = torch.maximum(low.abs(), high.abs())
        if grid.signed:
            scale = stored_scale(magnitude / grid.highest, grid)
            return GridParameters(scale, torch.zeros_like(scale), group_size)
        scale = stored_scale(2 * magnitude / grid.steps, grid)
        return GridParameters(scale, torch.full_like(scale, (grid.steps + 1) / 2), group_size)
    scale = stored_scale((high - low) / grid.steps, grid)
    zero = stored_zero(grid.lowest - low / scale, scale, grid, round_values)
    return GridParameters(scale, zero, group_size)


def range_of(parameters: GridParameters, grid: Grid) -> tuple[Tensor, Tensor]:
    """The ends of the range that `parameters_from_range` makes `parameters` of."""
    scale, zero = parameters.scale, parameters.zero
    if grid.signed_scale:
        extreme = scale * grid.lowest
        return extreme.clamp(max=0), extreme.clamp(min=0)
    if grid.symmetric:
        reach = scale * (grid.highest if grid.signed else grid.steps / 2)
        return -reach, reach
    return scale * (grid.lowest - zero), scale * (grid.highest - zero)


def fixed_point(low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    """What the range [low, high] shrinks towards: zero, or the end that is nearest to zero where
    a range need not hold that. Shrunk towards zero, a range on one side of it would move away
    from its weights."""
    zero = torch.zeros_like(low)
    return zero if grid.include_zero or grid.symmetric else zero.clamp(low, high)


def shrunk_parameters(
    ends: tuple[Tensor, Tensor],
    shares: tuple[Tensor | float, Tensor | float],
    grid: Grid,
    group_size: int,
    round_values: Round = torch.round,
) -> GridParameters:
    """Those of a range [rows, groups] whose ends keep `shares` of their way from where it shrinks
    to, see `parameters_from_range`."""
    still = fixed_point(*ends, grid)
    low, high = (still + share * (end - still) for end, share in zip(ends, shares, strict=True))
    return parameters_from_range(low, high, grid, group_size, round_values)


def rescaled(parameters: GridParameters, scale: Tensor, grid: Grid) -> GridParameters:
    """The same grid with other scales [rows, groups]; a stored minimum stays, and a zero point."""
    stored = stored_scale(scale, grid)
    if grid.zero_point != "minimum":
        return replace(parameters, scale=stored)
    minimum = minimum_of(parameters.zero, parameters.scale, grid)
    return replace(parameters, scale=stored, zero=-minimum / stored)


def _without_far_zero(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Ranges whose zero point float16 can hold.

    A range very much narrower than its distance from zero (one of a constant group, above all)
    is widened to zero; the far end, and so a constant, stays exactly on the grid.
    """
    magnitude = torch.maximum(low.abs(), high.abs())
    far = (high - low) * 2**15 < magnitude * grid.steps
    return (
        torch.where(far, low.clamp(max=0), low),
        torch.where(far, high.clamp(min=0), high),
    )


def stored_scale(scale: Tensor, grid: Grid) -> Tensor:
    """`scale` as it is kept: at least the smallest, and at the width it is charged with."""
    scale = away_from_zero(scale, grid)
    return as_half(scale) if grid.half_scales else scale


def stored_zero(
    zero: Tensor, scale: Tensor, grid: Grid, round_values: Round = torch.round
) -> Tensor:
    """`zero` of an asymmetric grid as what is kept of it stands for."""
    if grid.zero_point == "integer":
        return round_values(zero).clamp(grid.lowest, grid.highest)
    if grid.zero_point == "minimum":
        return -minimum_of(zero, scale, grid) / scale
    return as_half(zero) if grid.half_scales else zero


def minimum_of(zero: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """The value of code 0, as it is kept."""
    minimum = -scale * zero
    return as_half(minimum) if grid.half_scales else minimum


def away_from_zero(scale: Tensor, grid: Grid) -> Tensor:
    """`scale` with at least the smallest magnitude; only a signed one may be negative."""
    if not grid.signed_scale:
        return scale.clamp(min=grid.minimum_scale)
    sign = torch.where(scale < 0, -1.0, 1.0)
    return sign * scale.abs().clamp(min=grid.minimum_scale)


def as_half(values: Tensor) -> Tensor:
    """`values` at float16's precision in their own dtype.

    The gradient passes as if nothing had happened: cast to float16, large ones would be infinite.
    """
    return straight_through(values, values.detach().half().to(values.dtype))


def quantize(
    values: Tensor, scale: Tensor, zero: Tensor, grid: Grid, round_values: Round = torch.round
) -> Tensor:
    """Nearest codes of `values`, in their dtype; `scale` and `zero` broadcast against them.

    An integer zero point is added after rounding, as every reference does: ties then fall
    where theirs do. A float one (HQQ) shifts the grid and is added before.
    """
    if grid.zero_point == "integer":
        codes = round_values(values / scale) + zero
    else:
        codes = round_values(values / scale + zero)
    return codes.clamp(grid.lowest, grid.highest)


def straight_through_round(values: Tensor) -> Tensor:
    """Rounding whose gradient is that of the identity."""
    return straight_through(values, values.detach().round())


def straight_through(values: Tensor, replacement: Tensor) -> Tensor:
    """`replacement`, whose gradient goes to `values` unchanged (Bengio et al. 2013,
    arXiv:1308.3432). It may share the memory of `replacement`; do not write to it."""
    result: Tensor = _StraightThrough.apply(values, replacement)
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, replacement: Tensor) -> Tensor:
        del ctx, values
        return replacement

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        del ctx
        return gradients[0], None


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The values that `codes` stand for; where a minimum is stored, but for the last bits."""
    return scale * (codes - zero)


def stored_values(codes: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """The values that `codes` stand for, to the last bit."""
    if grid.zero_point == "minimum":
        return scale * codes + minimum_of(zero, scale, grid)
    return dequantize(codes, scale, zero)
