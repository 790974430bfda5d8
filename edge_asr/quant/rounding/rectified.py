"""The rectified sigmoid, and weights that lie between two codes: AdaRound's and TesseraQ's.

Nagel et al. 2020 (arXiv:2004.10568), eq. 22 and 23.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edge_asr.quant.grid import GridParameters, code_dtype, dequantize
from edge_asr.quant.trainable import LayerStart, TrainableRounding
from edge_asr.quant.weight import QuantizedWeight

STRETCH = (-0.1, 1.1)
# Training starts this far inside: at 0 and 1 themselves, where every weight of a half-precision
# checkpoint that lies on the grid would start, no gradient passes.
INSIDE = 1e-4


def clip(values: Tensor, low: float, high: float) -> Tensor:
    """`values` between `low` and `high`: `clamp` with a gradient several times as fast to take.

    Unlike `clamp`'s it is zero at the ends too.
    """
    return nn.functional.hardtanh(values, low, high)


def rectified_sigmoid(logits: Tensor) -> Tensor:
    """clip(sigmoid(v) (zeta - gamma) + gamma, 0, 1): exactly 0 and 1 at finite logits."""
    low, high = STRETCH
    return clip(logits.sigmoid() * (high - low) + low, 0, 1)


def inverse_rectified_sigmoid(values: Tensor) -> Tensor:
    """The logits whose `rectified_sigmoid` is `values`, each in [0, 1]."""
    low, high = STRETCH
    return torch.logit((values - low) / (high - low))


class TrainableCodes(TrainableRounding):
    """For every weight its lower code and a trainable way up to the next, between 0 and 1.

    Training starts where the fake-quantized weights are the float ones, to 1e-4 of a step, inside
    the range.

    Attributes:
        logits: Of the way up, [rows, columns] a layer; stored codes go up where it is above 1/2.
    """

    def __init__(self, starts: Mapping[str, LayerStart]) -> None:
        super().__init__()
        self.starts = dict(starts)
        self.keys = {name: str(index) for index, name in enumerate(starts)}
        self.logits = nn.ParameterDict()
        self._lower: dict[str, Tensor] = {}
        for name, start in self.starts.items():
            scale, zero = start.parameters.expand(start.weight.shape[1])
            exact = start.weight / scale + zero
            self._lower[name] = exact.floor()
            up = (exact - exact.floor()).clamp(INSIDE, 1 - INSIDE)
            self.logits[self.keys[name]] = nn.Parameter(inverse_rectified_sigmoid(up))

    def parameters_of(self, name: str) -> GridParameters:
        """Scales and zero points that the codes are dequantized with."""
        return self.starts[name].parameters

    def fake_quantized(self, name: str) -> Tensor:
        up = rectified_sigmoid(self.logits[self.keys[name]])
        return self._dequantized(name, self._lower[name] + up)

    @torch.no_grad()
    def quantized(self, name: str) -> QuantizedWeight:
        start = self.starts[name]
        codes = self._lower[name] + (self.logits[self.keys[name]] >= 0)
        codes = codes.clamp(start.grid.lowest, start.grid.highest)
        codes = codes.to(code_dtype(start.grid))
        return QuantizedWeight(codes, self.parameters_of(name), start.grid)

    def _dequantized(self, name: str, codes: Tensor) -> Tensor:
        start = self.starts[name]
        scale, zero = self.parameters_of(name).expand(codes.shape[1])
        return dequantize(clip(codes, start.grid.lowest, start.grid.highest), scale, zero)
