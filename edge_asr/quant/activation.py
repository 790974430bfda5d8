"""Activations on a grid: what every quantized layer reads, one scale a token or one a tensor.

Per token, the range is taken from the token itself as it passes (dynamic), as SmoothQuant
(Xiao et al. 2022, arXiv:2211.10438, section 3), OmniQuant, QuaRot (Ashkboos et al. 2024,
arXiv:2404.00456, section 5) and SpinQuant do. Per tensor, one range is taken from calibration
and stored (static): either the global extremes, or the mean of every clip's extremes (LLMC's
default). Only what the Linear layers of blocks read is quantized: the queries, keys, values and
probabilities of attention products stay float, as do the inputs of stem, embedding and head.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.errors import UserError
from edge_asr.quant.grid import (
    BITS,
    SCALE_BITS,
    Grid,
    GridParameters,
    Round,
    decode,
    encode,
    parameters_from_range,
    straight_through_round,
)
from edge_asr.quant.layers import QuantizedLinear

ActivationGranularity = Literal["token", "tensor"]
StaticRange = Literal["extreme", "mean"]


@dataclass(frozen=True)
class ActivationGrid:
    """Settings of quantized activations.

    Attributes:
        bits: Width of a code, 2 to 8.
        symmetric: One magnitude for both signs on a signed grid, scale = magnitude /
            (2^(b-1) - 1); otherwise a zero point from a range that contains zero (QuaRot's
            two variants).
        granularity: `token`, dynamic; or `tensor`, static, from calibration.
        static_range: Of `tensor` alone: `extreme`, the extremes of all calibration rows, or
            `mean`, the extremes of every clip averaged over clips.
        clip_ratio: Both ends of every range are multiplied by this, above 0 to 1.

    Raises:
        UserError: A setting is out of its range, or `static_range` does not fit `granularity`.
    """

    bits: int
    symmetric: bool = False
    granularity: ActivationGranularity = "token"
    static_range: StaticRange | None = None
    clip_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UserError(
                f"activation.bits={self.bits}: allowed are {BITS.start} to {BITS.stop - 1}"
            )
        if (self.granularity == "tensor") != (self.static_range is not None):
            raise UserError(
                f"activation.static_range={self.static_range} with "
                f"activation.granularity={self.granularity}: "
                "give extreme or mean with tensor, and null with token"
            )
        if not 0 < self.clip_ratio <= 1:
            raise UserError(
                f"activation.clip_ratio={self.clip_ratio}: must be above 0 and at most 1"
            )

    @property
    def grid(self) -> Grid:
        """The grid of rows (tokens) x channels. Only static scales are stored, in float16."""
        return Grid(
            bits=self.bits,
            symmetric=self.symmetric,
            signed=self.symmetric,
            granularity=self.granularity,
            half_scales=self.granularity == "tensor",
        )


def token_parameters(
    rows: Tensor, settings: ActivationGrid, round_values: Round = torch.round
) -> GridParameters:
    """Scale and zero point [rows, 1] that cover every row of `rows` [rows, channels]."""
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    ratio = settings.clip_ratio
    return parameters_from_range(
        low * ratio, high * ratio, settings.grid, rows.shape[1], round_values
    )


def static_parameters(
    statistics: InputStatistics, settings: ActivationGrid, float_columns: Tensor | None = None
) -> GridParameters:
    """Scale and zero point [1, 1] for all channels but `float_columns`, from calibration.

    Raises:
        UserError: Calibration brought no row, so that there is no range.
    """
    if not statistics.rows:
        raise UserError(
            "activation.granularity=tensor: no calibration rows reached a layer; "
            "give more calibration clips, or activation.granularity=token"
        )
    if settings.static_range == "mean":
        lows, highs = statistics.clip_minimum, statistics.clip_maximum
    else:
        lows, highs = statistics.minimum[None], statistics.maximum[None]
    if float_columns is not None:
        # Every range contains zero, so that zeros leave a column out of it.
        aside = float_columns.to(lows.device)
        lows, highs = lows.masked_fill(aside, 0), highs.masked_fill(aside, 0)
    low, high = lows.amin(1).mean().reshape(1, 1), highs.amax(1).mean().reshape(1, 1)
    ratio = settings.clip_ratio
    return parameters_from_range(low * ratio, high * ratio, settings.grid, lows.shape[1])


class _StraightThrough(torch.autograd.Function):
    """Gives `quantized`; the gradient passes to `inputs` unchanged where `kept` is true."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, quantized: Tensor, kept: Tensor) -> Tensor:
        del inputs
        ctx.save_for_backward(kept)
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return gradients[0] * kept, None, None


def fake_quantize(rows: Tensor, parameters: GridParameters, grid: Grid) -> Tensor:
    """`rows` [rows, channels] at their nearest grid points, with a straight-through gradient.

    Scale and zero point (each [rows, 1] or [1, 1]) take no part in the gradient. Values that the
    range cuts off have none; the largest of a row may miss the grid by half a step, since the
    zero point is rounded, and keeps its own.
    """
    with torch.no_grad():
        scale, zero = parameters.scale, parameters.zero
        quantized = decode(encode(rows, scale, zero, grid), scale, zero)
        kept = (rows - quantized).abs() <= scale
    result: Tensor = _StraightThrough.apply(rows, quantized, kept)
    return result


class InputQuantizer(nn.Module):
    """Fake-quantizes the input [..., channels] of one layer, in float32.

    Attributes:
        settings: The grid's settings.
        scale, zero: Static ones [1, 1], or None.
        range_gradient: Whether the gradient also passes through a token's range, as a rewrite
            needs that is trained to make ranges smaller (OmniQuant).
        float_columns: Channels [channels], bool, that stay in floating point and have no part in
            the range (QUIK's outliers, Ashkboos et al. 2023, arXiv:2310.09259), or None.
    """

    scale: Tensor | None
    zero: Tensor | None
    float_columns: Tensor | None

    def __init__(self, settings: ActivationGrid, statistics: InputStatistics | None = None) -> None:
        """`statistics` of the layer's input, which a static range is taken from.

        Raises:
            ValueError: A static range, and no statistics.
            UserError: As `static_parameters`.
        """
        super().__init__()
        self.settings = settings
        self.range_gradient = False
        for name in ("scale", "zero", "float_columns"):
            self.register_buffer(name, None)
        self._fit(statistics)

    def keep_float(self, columns: Tensor, statistics: InputStatistics | None = None) -> None:
        """Keep `columns` [channels], bool, in floating point; a static range is taken anew."""
        self.float_columns = columns.bool()
        self._fit(statistics)

    def _fit(self, statistics: InputStatistics | None) -> None:
        if self.settings.granularity == "token":
            return
        if statistics is None:
            raise ValueError("a static range needs statistics")
        columns = self.float_columns
        parameters = static_parameters(statistics, self.settings, columns)
        device = None if columns is None else columns.device
        self.scale, self.zero = parameters.scale.to(device), parameters.zero.to(device)

    @property
    def stored_bits(self) -> int:
        """Bits of a static scale and zero point."""
        if self.settings.granularity == "token":
            return 0
        return SCALE_BITS + (0 if self.settings.symmetric else self.settings.bits)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        ranged = rows if self.range_gradient else rows.detach()
        if self.float_columns is not None:
            ranged = ranged.masked_fill(self.float_columns, 0)
        grid = self.settings.grid
        if self.scale is not None and self.zero is not None:
            parameters = GridParameters(self.scale, self.zero, rows.shape[1])
            quantized = fake_quantize(rows, parameters, grid)
        elif self.range_gradient:
            parameters = token_parameters(ranged, self.settings)
            scale, zero = parameters.scale, parameters.zero
            codes = encode(rows, scale, zero, grid, straight_through_round)
            quantized = decode(codes, scale, zero)
        else:
            quantized = fake_quantize(rows, token_parameters(ranged, self.settings), grid)
        if self.float_columns is not None:
            quantized = torch.where(self.float_columns, rows, quantized)
        return quantized.to(inputs.dtype).reshape(inputs.shape)

    def extra_repr(self) -> str:
        return repr(self.settings)


def quantize_inputs(
    layers: Iterable[QuantizedLinear],
    settings: ActivationGrid,
    statistics: InputStatistics,
    *,
    range_gradient: bool = False,
) -> None:
    """Give every layer, all of which read the activation of `statistics`, an input quantizer."""
    for layer in layers:
        quantizer = InputQuantizer(settings, statistics).to(layer.weight.device)
        quantizer.range_gradient = range_gradient
        layer.quantize_input = quantizer
