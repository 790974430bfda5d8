"""The uniform quantizer: `value = scale x (code - zero)` on an explicit integer grid.

Reference implementations differ in whether the grid is signed, whether zero is forced into
the range, and whether the zero point is an integer; each of these is a setting here, so that
every reference can be matched bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from edge_asr.errors import UserError

Granularity = Literal["tensor", "channel", "group", "token"]
ZeroPoint = Literal["integer", "float"]
# How values become integers: torch.round, or a version of it that lets gradients through.
Round = Callable[[Tensor], Tensor]

BITS = range(2, 9)
SCALE_BITS = 16  # scales, and zero points that are not integers, are stored as float16
VALUE_BITS = 16  # weights that stay off the grid are stored as float16
INDEX_BITS = 16  # an index of a column
SMALLEST_SCALE = 2.0**-24  # the smallest number above zero in float16


@dataclass(frozen=True)
class Grid:
    """Settings of a uniform grid over a matrix [rows, columns].

    Rows are output channels for weights and tokens for activations.

    Attributes:
        bits: Width of a code, 2 to 8.
        symmetric: One magnitude for both signs; no zero point is stored.
        signed: Codes from -2^(b-1) to 2^(b-1)-1 instead of 0 to 2^b-1.
        include_zero: Widen every range so that it contains zero (IST-DASLab GPTQ does).
        zero_point: `integer` (rounded and clamped onto the grid) or `float`.
        granularity: What shares one scale: the `tensor`, a row (`channel`, `token`), or a
            `group` of `group_size` columns in a row; the last group of a row may be shorter.
        group_size: Columns a group; None unless the granularity is `group`.
        minimum_scale: Scales are never smaller than this.
        half_scales: Round scales and float zero points to float16, the width they are stored
            and charged with. The references keep them in float32.
    """

    bits: int
    symmetric: bool = False
    signed: bool = False
    include_zero: bool = True
    zero_point: ZeroPoint = "integer"
    granularity: Granularity = "channel"
    group_size: int | None = None
    minimum_scale: float = SMALLEST_SCALE
    half_scales: bool = True

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UserError(f"bits={self.bits}: allowed are {BITS.start} to {BITS.stop - 1}")
        if (self.granularity == "group") != (self.group_size is not None):
            raise UserError(
                f"group_size={self.group_size} does not fit granularity={self.granularity!r}: "
                "give a group size with 'group' and none otherwise"
            )
        if self.group_size is not None and self.group_size < 1:
            raise UserError(f"group_size={self.group_size}: must be at least 1, or null")

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        return self.lowest + (1 << self.bits) - 1

    @property
    def code_dtype(self) -> torch.dtype:
        """Of codes as they are kept: one byte each."""
        return torch.int8 if self.signed else torch.uint8

    @property
    def steps(self) -> int:
        """Steps between the lowest and the highest code."""
        return (1 << self.bits) - 1

    def columns_per_group(self, columns: int) -> int:
        return min(self.group_size or columns, columns)


@dataclass(frozen=True)
class GridParameters:
    """Scale and zero point of every group.

    Attributes:
        scale, zero: [rows, groups]; one row where the whole tensor shares them.
        group_size: Columns a group (the last may be shorter).
        order: The columns in the order in which groups run over them, None where that is the
            natural one. It has to be stored.
        stored_bits: Bits that all scales and zero points take, where that is less than their
            full widths because they are quantized themselves.
    """

    scale: Tensor
    zero: Tensor
    group_size: int
    order: Tensor | None = None
    stored_bits: float | None = None

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
        order = None if self.order is None else self.order.to(device)
        return replace(self, scale=self.scale.to(device), zero=self.zero.to(device), order=order)

    def bits_on(self, grid: Grid) -> float:
        """Bits of everything here: scales, zero points, the order of columns."""
        order = 0 if self.order is None else INDEX_BITS * self.order.numel()
        if self.stored_bits is not None:
            return self.stored_bits + order
        zero_bits = 0
        if not grid.symmetric:
            zero_bits = grid.bits if grid.zero_point == "integer" else SCALE_BITS
        return self.scale.numel() * (SCALE_BITS + zero_bits) + order


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

    Symmetric and signed: scale = magnitude / highest code (llm-compressor, LLMC). Symmetric
    and unsigned: scale = 2 magnitude / (2^b - 1), zero = 2^(b-1) (IST-DASLab GPTQ).
    Asymmetric: scale = (high - low) / (2^b - 1), zero = lowest code - low / scale.
    """
    if grid.include_zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    elif grid.zero_point == "float":
        low, high = _without_far_zero(low, high, grid)
    if grid.symmetric:
        magnitude = torch.maximum(low.abs(), high.abs())
        if grid.signed:
            scale = _stored_scale(magnitude / grid.highest, grid)
            return GridParameters(scale, torch.zeros_like(scale), group_size)
        scale = _stored_scale(2 * magnitude / grid.steps, grid)
        return GridParameters(scale, torch.full_like(scale, (grid.steps + 1) / 2), group_size)
    scale = _stored_scale((high - low) / grid.steps, grid)
    zero = grid.lowest - low / scale
    if grid.zero_point == "integer":
        zero = round_values(zero).clamp(grid.lowest, grid.highest)
    elif grid.half_scales:
        zero = as_half(zero)
    return GridParameters(scale, zero, group_size)


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


def _stored_scale(scale: Tensor, grid: Grid) -> Tensor:
    """`scale` as it is kept: at least the smallest, and at the width it is charged with."""
    scale = scale.clamp(min=grid.minimum_scale)
    return as_half(scale) if grid.half_scales else scale


def as_half(values: Tensor) -> Tensor:
    """`values` at float16's precision in their own dtype.

    The gradient passes as if nothing had happened: cast to float16, large ones would be infinite.
    """
    return straight_through(values, values.detach().half().to(values.dtype))


def encode(
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


def decode(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The values that `codes` stand for."""
    return scale * (codes - zero)


@dataclass(frozen=True)
class FloatWeights:
    """Weights that stay off the grid, in float16.

    Attributes:
        mask: bool [out_features, in_features], true for each of them.
        values: float32 [out_features, in_features], already rounded to float16; zero elsewhere.
        columns: bool [in_features], columns that are float as a whole, or None.
    """

    mask: Tensor
    values: Tensor
    columns: Tensor | None = None

    def over(self, values: Tensor) -> Tensor:
        """`values` [out_features, in_features] with these in their places."""
        return torch.where(self.mask, self.values.to(values.dtype), values)

    def to(self, device: torch.device | str) -> FloatWeights:
        """The same on another device."""
        columns = None if self.columns is None else self.columns.to(device)
        return FloatWeights(self.mask.to(device), self.values.to(device), columns)

    @property
    def column_weights(self) -> int:
        """Number of weights in whole columns; they have no code."""
        return 0 if self.columns is None else int(self.columns.sum()) * len(self.mask)

    @property
    def single_weights(self) -> int:
        """Number of weights outside of whole columns."""
        return int(self.mask.sum()) - self.column_weights

    @property
    def stored_bits(self) -> float:
        """Bits of values and of what says where they belong.

        A whole column has one index. Single weights are compressed rows: a column index each,
        and for every row, and the end, where it begins among them.
        """
        columns = 0 if self.columns is None else int(self.columns.sum())
        single = self.single_weights
        pointers = 0
        if single:
            pointers = (len(self.mask) + 1) * (INDEX_BITS if single < 2**INDEX_BITS else 32)
        whole = self.column_weights * VALUE_BITS + columns * INDEX_BITS
        return whole + single * (VALUE_BITS + INDEX_BITS) + pointers


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight on its grid, but for its outliers.

    Attributes:
        codes: [out_features, in_features], of the grid's `code_dtype`.
        parameters: Scales and zero points.
        grid: The grid's settings.
        outliers: Weights that stay in floating point, or None.
    """

    codes: Tensor
    parameters: GridParameters
    grid: Grid
    outliers: FloatWeights | None = None

    def dequantize(self) -> Tensor:
        """float32 [out_features, in_features]."""
        scale, zero = self.parameters.expand(self.codes.shape[1])
        values = decode(self.codes.to(scale.dtype), scale, zero)
        return values if self.outliers is None else self.outliers.over(values)

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same on another device."""
        return replace(
            self,
            codes=self.codes.to(device),
            parameters=self.parameters.to(device),
            outliers=None if self.outliers is None else self.outliers.to(device),
        )

    @property
    def float_columns(self) -> Tensor | None:
        """Columns, bool [in_features], that are float here and must be so in the input."""
        return None if self.outliers is None else self.outliers.columns

    @property
    def operand_bits(self) -> float:
        """Mean width of a weight in the multiplier: outliers are multiplied in 16 bits."""
        if self.outliers is None:
            return self.grid.bits
        kept = int(self.outliers.mask.sum()) / self.codes.numel()
        return kept * VALUE_BITS + (1 - kept) * self.grid.bits

    @property
    def stored_bits(self) -> float:
        """Bits of the codes, of all scales and zero points, and of outliers."""
        grid = self.parameters.bits_on(self.grid)
        if self.outliers is None:
            return self.codes.numel() * self.grid.bits + grid
        coded = self.codes.numel() - self.outliers.column_weights
        return coded * self.grid.bits + grid + self.outliers.stored_bits

    @property
    def effective_bits(self) -> float:
        """Stored bits a weight."""
        return self.stored_bits / self.codes.numel()
