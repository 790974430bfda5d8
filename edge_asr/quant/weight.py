"""A weight on its grid, and the weights that stay off it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edge_asr.quant.formats import INDEX_BITS, VALUE_BITS, Grid
from edge_asr.quant.grid import GridParameters, code_dtype, quantize, stored_values


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
        values = stored_values(self.codes.to(scale.dtype), scale, zero, self.grid)
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


def round_nearest(weight: Tensor, parameters: GridParameters, grid: Grid) -> QuantizedWeight:
    """The nearest grid point of every weight [rows, columns] (ties to even, as torch.round)."""
    scale, zero = parameters.expand(weight.shape[1])
    codes = quantize(weight, scale, zero, grid)
    return QuantizedWeight(codes.to(code_dtype(grid)), parameters, grid)
