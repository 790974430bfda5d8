"""SpQR's bilevel quantization: scales and zero points are quantized themselves."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.errors import UserError
from edge_asr.models.tensors import Slot
from edge_asr.quant.context import Layer
from edge_asr.quant.formats import Grid, TensorFormat
from edge_asr.quant.grid import DoubleQuantized, GridParameters, away_from_zero, quantize
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.range.mse import MseSearch
from edge_asr.quant.stages import Range, ranges
from edge_asr.settings import Bits, Count


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
    """Parameters `first` of some weight on `grid`, quantized themselves.

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
        group_size: Neighbouring output channels whose quantized scales share a scale and zero point
            of their own, and so do their zero points.
    """

    quantizes_scales: ClassVar[bool] = True

    scale_bits: Bits = 3
    zero_bits: Bits = 3
    group_size: Count = 16

    @abstractmethod
    def unquantized(self, weight: Tensor, grid: Grid) -> GridParameters:
        """The parameters of `weight` [rows, columns] that are to be quantized."""

    def constrain(self, format: TensorFormat, slot: Slot) -> TensorFormat:
        del slot
        if format.weights is None:
            return format
        if format.weights.zero_point == "minimum":
            raise UserError(
                "zero_point=minimum: the range of this method quantizes scales and zero points "
                "themselves and keeps no minimum; set method/range=minmax"
            )
        moved = replace(format.weights, include_zero=False, zero_point="float")
        return replace(format, weights=moved)

    def fit(
        self, weight: Tensor, grid: Grid, statistics: InputStatistics, layer: Layer
    ) -> GridParameters:
        del statistics, layer
        return double_quantized_parameters(
            self.unquantized(weight, replace(grid, half_scales=False)),
            grid,
            scale_bits=self.scale_bits,
            zero_bits=self.zero_bits,
            group_size=self.group_size,
        )


@ranges.register("minmax_double_quant")
@dataclass(frozen=True)
class MinMaxDoubleQuantization(DoubleQuantization):
    """Min-max ranges whose scales and zero points are quantized themselves.

    Dettmers et al. 2023 (arXiv:2306.03078), section 4.2 ("bilevel quantization"): min-max ranges
    that need not contain zero, with zero points that are not rounded; the scales of
    neighbouring output channels in one group of columns are quantized together, and so are
    the zero points.
    """

    def unquantized(self, weight: Tensor, grid: Grid) -> GridParameters:
        return minmax_parameters(weight, grid)


@ranges.register("mse_double_quant")
@dataclass(frozen=True)
class MseDoubleQuantization(MseSearch, DoubleQuantization):
    """The same over the ranges of `mse`, a mix of our own."""

    def unquantized(self, weight: Tensor, grid: Grid) -> GridParameters:
        return self.search(weight, grid)
