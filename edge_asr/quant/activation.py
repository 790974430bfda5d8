"""Activations on a grid: what every quantized layer reads, a scale a token, a group or a tensor.

Per token, the range is taken from the token itself as it passes (dynamic), as SmoothQuant
(Xiao et al. 2022, arXiv:2211.10438, section 3), OmniQuant, QuaRot (Ashkboos et al. 2024,
arXiv:2404.00456, section 5) and SpinQuant do, or from a group of its channels, as runtimes do that
multiply blocks of integers (ggml, ONNX Runtime's MatMulNBits). Per tensor, one range is taken from
calibration and stored (static), either the global extremes or the mean of every clip's extremes
(LLMC's default); or from all that passes in one call, as ONNX Runtime's DynamicQuantizeLinear does,
so that what a clip reads then depends on what else is in its batch, in calibration too.

What layers read is quantized: the queries, keys, values and probabilities of attention products
stay float.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.errors import UserError
from edge_asr.quant.formats import SCALE_BITS, ActivationGrid, Grid
from edge_asr.quant.grid import (
    GridParameters,
    Round,
    as_half,
    code_dtype,
    dequantize,
    parameters_from_range,
    quantize,
    reduce_groups,
    straight_through_round,
)
from edge_asr.quant.layers import QuantizedLayer, StoredModule, modules


def dynamic_parameters(
    rows: Tensor, settings: ActivationGrid, round_values: Round = torch.round
) -> GridParameters:
    """Scales and zero points that cover `rows` [rows, channels] as they pass.

    They are [rows, 1] of tokens, [rows, groups] of groups, [1, 1] of a tensor.
    """
    grid, ratio = settings.grid, settings.clip_ratio
    low, size = reduce_groups(rows, grid, torch.amin)
    high, _ = reduce_groups(rows, grid, torch.amax)
    return parameters_from_range(low * ratio, high * ratio, grid, size, round_values)


def static_parameters(
    statistics: InputStatistics, settings: ActivationGrid, float_columns: Tensor | None = None
) -> GridParameters:
    """Scale and zero point [1, 1] for all channels but `float_columns`, from calibration.

    Raises:
        UserError: Calibration brought no row, so that there is no range.
    """
    if not statistics.rows:
        raise UserError(
            "act_granularity=tensor: no calibration rows reached a layer; "
            "give more calibration clips, or act_granularity=token"
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


def fake_quantize(
    rows: Tensor, parameters: GridParameters, grid: Grid, *, half_scales: bool = False
) -> Tensor:
    """`rows` [rows, channels] at their nearest grid points, with a straight-through gradient.

    With `half_scales`, scales are rounded to float16 once the codes are known.

    Scales and zero points take no part in the gradient. Values that the range cuts off have none;
    the largest of a row may miss the grid by half a step, since the zero point is rounded, and
    keeps its own.
    """
    with torch.no_grad():
        scale, zero = _of_columns(parameters, rows)
        kept_scale = as_half(scale) if half_scales else scale
        quantized = dequantize(quantize(rows, scale, zero, grid), kept_scale, zero)
        kept = (rows - quantized).abs() <= scale
    result: Tensor = _StraightThrough.apply(rows, quantized, kept)
    return result


def _of_columns(parameters: GridParameters, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and zero points that broadcast against `rows` [rows, channels]."""
    if parameters.scale.shape[1] == 1:
        return parameters.scale, parameters.zero
    return parameters.expand(rows.shape[1])


@modules.register("input_quantizer")
class InputQuantizer(StoredModule):
    """Fake-quantizes the input [..., channels] of one layer, in float32.

    Attributes:
        settings: The grid's settings.
        scale, zero: Static ones [1, 1], or None.
        range_gradient: Whether the gradient also passes through a dynamic range, as a rewrite
            needs that is trained to make ranges smaller (OmniQuant).
        float_columns: Channels [channels], bool, that stay in floating point and have no part in
            the range (QUIK's outliers, Ashkboos et al. 2023, arXiv:2310.09259), or None.
    """

    scale: Tensor | None
    zero: Tensor | None
    float_columns: Tensor | None

    def __init__(self, settings: ActivationGrid) -> None:
        super().__init__()
        self.settings = settings
        self.range_gradient = False
        for name in ("scale", "zero", "float_columns"):
            self.register_buffer(name, None)

    @classmethod
    def fitted(cls, settings: ActivationGrid, statistics: InputStatistics) -> InputQuantizer:
        """With a static range from `statistics` of the layer's input, if it is to have one.

        Raises UserError as `static_parameters`.
        """
        quantizer = cls(settings)
        quantizer._fit(statistics)
        return quantizer

    def keep_float(self, columns: Tensor, statistics: InputStatistics) -> None:
        """Keep `columns` [channels], bool, in floating point; a static range is taken anew."""
        self.float_columns = columns.bool()
        self._fit(statistics)

    def _fit(self, statistics: InputStatistics) -> None:
        if not self.settings.static:
            return
        columns = self.float_columns
        parameters = static_parameters(statistics, self.settings, columns)
        device = None if columns is None else columns.device
        self.scale, self.zero = parameters.scale.to(device), parameters.zero.to(device)

    @property
    def stored_bits(self) -> int:
        """Bits of a static scale and zero point."""
        if not self.settings.static:
            return 0
        return SCALE_BITS + (0 if self.settings.symmetric else self.settings.bits)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        ranged = rows if self.range_gradient else rows.detach()
        if self.float_columns is not None:
            ranged = ranged.masked_fill(self.float_columns, 0)
        grid = self.settings.grid
        if self.settings.static and self.scale is None:
            raise ValueError("a static quantizer has no range; use InputQuantizer.fitted")
        if self.scale is not None and self.zero is not None:
            parameters = GridParameters(self.scale, self.zero, rows.shape[1])
            quantized = fake_quantize(rows, parameters, grid)
        elif self.range_gradient:
            scale, zero = _of_columns(dynamic_parameters(ranged, self.settings), rows)
            codes = quantize(rows, scale, zero, grid, straight_through_round)
            quantized = dequantize(
                codes, as_half(scale) if self.settings.half_scales else scale, zero
            )
        else:
            parameters = dynamic_parameters(ranged, self.settings)
            quantized = fake_quantize(rows, parameters, grid, half_scales=self.settings.half_scales)
        if self.float_columns is not None:
            quantized = torch.where(self.float_columns, rows, quantized)
        return quantized.to(inputs.dtype).reshape(inputs.shape)

    def description(self) -> dict[str, Any]:
        return asdict(self.settings)

    def stored(self) -> dict[str, Tensor]:
        """A static scale and zero point. Float columns are stored with the weight."""
        if self.scale is None or self.zero is None:
            return {}
        scale = {"scale": self.scale.half().cpu()}
        grid = self.settings.grid
        zero = {"zero": self.zero.to(code_dtype(grid)).cpu()}
        return scale | (zero if grid.stores_zero else {})

    @classmethod
    def rebuild(
        cls, description: Mapping[str, Any], stored: Mapping[str, Tensor]
    ) -> InputQuantizer:
        quantizer = cls(ActivationGrid(**description))
        if stored:
            quantizer.scale = stored["scale"].float()
            quantizer.zero = stored.get("zero", torch.zeros(1, 1)).float()
        return quantizer

    def attach(self, model: nn.Module, path: str) -> None:
        super().attach(model, path)
        layer = model.get_submodule(path.rpartition(".")[0])
        if isinstance(layer, QuantizedLayer) and layer.quantized is not None:
            self.float_columns = layer.quantized.float_columns

    def extra_repr(self) -> str:
        return repr(self.settings)


def quantize_inputs(
    layers: Iterable[QuantizedLayer],
    settings: ActivationGrid,
    statistics: InputStatistics,
    *,
    range_gradient: bool = False,
) -> None:
    """Give every layer, all of which read the activation of `statistics`, an input quantizer."""
    for layer in layers:
        quantizer = InputQuantizer.fitted(settings, statistics).to(layer.weight.device)
        quantizer.range_gradient = range_gradient
        layer.quantize_input = quantizer
