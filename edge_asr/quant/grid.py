"""The uniform quantizer: `value = scale x (code - zero)` on an explicit integer grid.

Reference implementations differ in whether the grid is signed, whether zero is forced into
the range, and whether the zero point is an integer; each of these is a setting here, so that
every reference can be matched bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edge_asr.errors import UserError

Granularity = Literal["tensor", "channel", "group", "token"]
ZeroPoint = Literal["integer", "float"]

BITS = range(2, 9)
SCALE_BITS = 16  # scales, and zero points that are not integers, are stored as float16
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
    """

    scale: Tensor
    zero: Tensor
    group_size: int

    def expand(self, columns: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point of every column, each [rows, columns]."""
        repeat = self.group_size
        scale = self.scale.repeat_interleave(repeat, dim=1)[:, :columns]
        return scale, self.zero.repeat_interleave(repeat, dim=1)[:, :columns]


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


def parameters_from_range(low: Tensor, high: Tensor, grid: Grid, group_size: int) -> GridParameters:
    """The scale and zero point that cover [low, high] (each [rows, groups]) exactly.

    Symmetric and signed: scale = magnitude / highest code (llm-compressor, LLMC). Symmetric
    and unsigned: scale = 2 magnitude / (2^b - 1), zero = 2^(b-1) (IST-DASLab GPTQ).
    Asymmetric: scale = (high - low) / (2^b - 1), zero = lowest code - low / scale.
    """
    if grid.include_zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
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
        zero = zero.round().clamp(grid.lowest, grid.highest)
    elif grid.half_scales:
        zero = zero.half().to(low.dtype)
    return GridParameters(scale, zero, group_size)


def _stored_scale(scale: Tensor, grid: Grid) -> Tensor:
    """`scale` as it is kept: at least the smallest, and at the width it is charged with."""
    scale = scale.clamp(min=grid.minimum_scale)
    return scale.half().to(scale.dtype) if grid.half_scales else scale


def encode(values: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """Nearest codes of `values`, in their dtype; `scale` and `zero` broadcast against them.

    An integer zero point is added after rounding, as every reference does: ties then fall
    where theirs do. A float one (HQQ) shifts the grid and is added before.
    """
    if grid.zero_point == "integer":
        codes = (values / scale).round() + zero
    else:
        codes = (values / scale + zero).round()
    return codes.clamp(grid.lowest, grid.highest)


def decode(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The values that `codes` stand for."""
    return scale * (codes - zero)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight on its grid.

    Attributes:
        codes: int16 [out_features, in_features].
        parameters: Scales and zero points.
        grid: The grid's settings.
    """

    codes: Tensor
    parameters: GridParameters
    grid: Grid

    def dequantize(self) -> Tensor:
        """float32 [out_features, in_features]."""
        scale, zero = self.parameters.expand(self.codes.shape[1])
        return decode(self.codes.to(scale.dtype), scale, zero)

    @property
    def stored_bits(self) -> float:
        """Bits of the codes and of all scales and zero points."""
        groups = self.parameters.scale.numel()
        zero_bits = 0
        if not self.grid.symmetric:
            zero_bits = self.grid.bits if self.grid.zero_point == "integer" else SCALE_BITS
        return self.codes.numel() * self.grid.bits + groups * (SCALE_BITS + zero_bits)

    @property
    def effective_bits(self) -> float:
        """Stored bits a weight."""
        return self.stored_bits / self.codes.numel()
