"""SpQR's bilevel quantization: scales and zero points are quantized themselves."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.errors import UserError
from edge_asr.models.tensors import Slot
from edge_asr.quant.context import Layer
from edge_asr.quant.formats import BITS, Grid, TensorFormat
from edge_asr.quant.grid import DoubleQuantized, GridParameters, away_from_zero, quantize
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.range.mse import Mse
from edge_asr.quant.stages import Range, ranges


def requantize(values: Tensor, bits: int, group_size: int) -> DoubleQuantized:
    """`values` [rows, groups] as `bits`-bit codes.

    The values of `group_size` neighbouring rows (output channels; the last run may be shorter)
    share a float16 scale and a float16 zero point of their own.
    """
    grid = Grid(
        bits,
        include_zero=False,
        zero_point="float",
        granularity="group",
        group_size=group_size,
    )
    upright = values.T
    parameters = minmax_parameters(upright, grid)
    codes = quantize(upright, *parameters.expand(upright.shape[1]), grid)
    return DoubleQuantized(
        codes.T.to(torch.uint8).contiguous(),
        parameters.scale.T.contiguous(),
        parameters.zero.T.contiguous(),
        bits,
        group_size,
    )


def double_quantized_parameters(
    first: GridParameters, grid: Grid, *, scale_bits: int, zero_bits: int, group_size: int
) -> GridParameters:
    """Parameters `first` of some weight on `grid`, quantized to a second level.

    Only zero points that are not integers are quantized; a symmetric grid stores none.
    """
    scales, zeros = requantize(first.scale, scale_bits, group_size), None
    zero = first.zero
    if grid.stores_zero and grid.zero_point == "float":
        zeros = requantize(first.zero, zero_bits, group_size)
        zero = zeros.values()
    scale = away_from_zero(scales.values(), grid)
    return GridParameters(scale, zero, first.group_size, double_scale=scales, double_zero=zeros)


@dataclass(frozen=True)
class DoubleQuantization(Range):
    """A range whose scales and zero points are quantized themselves.

    Attributes:
        scale_bits: Width of a quantized scale.
        zero_bits: Width of a quantized zero point.
        group_size: Output channels whose scales share a second-level scale and zero point.
    """

    scale_bits: int = 3
    zero_bits: int = 3
    group_size: int = 16

    def __post_init__(self) -> None:
        for name in ("scale_bits", "zero_bits"):
            if getattr(self, name) not in BITS:
                raise UserError(
                    f"method.range.{name}={getattr(self, name)}: "
                    f"allowed are {BITS.start} to {BITS.stop - 1}"
                )
        if self.group_size < 1:
            raise UserError(f"method.range.group_size={self.group_size}: must be at least 1")

    @abstractmethod
    def first_level(self, weight: Tensor, grid: Grid) -> GridParameters:
        """The parameters of `weight` [rows, columns] that are to be quantized."""

    def constrain(self, format: TensorFormat, slot: Slot) -> TensorFormat:
        del slot
        if format.weights is None:
            return format
        moved = replace(format.weights, include_zero=False, zero_point="float")
        return replace(format, weights=moved)

    def fit(
        self, weight: Tensor, grid: Grid, statistics: InputStatistics, layer: Layer
    ) -> GridParameters:
        del statistics, layer
        return double_quantized_parameters(
            self.first_level(weight, replace(grid, half_scales=False)),
            grid,
            scale_bits=self.scale_bits,
            zero_bits=self.zero_bits,
            group_size=self.group_size,
        )


@ranges.register("minmax_double_quant")
@dataclass(frozen=True)
class MinMaxDoubleQuantization(DoubleQuantization):
    """Range stage `minmax_double_quant`.

    Dettmers et al. 2023 (arXiv:2306.03078), section 4.2 ("bilevel quantization"): min-max ranges
    that need not contain zero, with zero points that are not rounded; the scales of
    neighbouring output channels in one group of columns are quantized together, and so are
    the zero points. Settings are those of `DoubleQuantization`.
    """

    def first_level(self, weight: Tensor, grid: Grid) -> GridParameters:
        return minmax_parameters(weight, grid)


@ranges.register("mse_double_quant")
@dataclass(frozen=True)
class MseDoubleQuantization(DoubleQuantization):
    """Range stage `mse_double_quant`: the same over the ranges of `mse`, a mix of our own.

    Attributes:
        scale_bits, zero_bits, group_size: See `DoubleQuantization`.
        steps, max_shrink, norm: See `Mse`.
    """

    steps: int = 100
    max_shrink: float = 0.8
    norm: float = 2.4

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._search

    @property
    def _search(self) -> Mse:
        return Mse(self.steps, self.max_shrink, self.norm)

    def first_level(self, weight: Tensor, grid: Grid) -> GridParameters:
        return self._search.parameters(weight, grid)
