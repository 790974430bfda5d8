"""Bias correction: take the mean error of every output back out of the bias.

Nagel et al. 2019 (arXiv:1906.04721), section 4.2, with the inputs' means from calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from edge_asr.quant.context import SiteContext
from edge_asr.quant.layers import QuantizedLayer
from edge_asr.quant.stages import Correction, corrections


def mean_output_error(weight: Tensor, rounded: Tensor, mean_input: Tensor) -> Tensor:
    """E[W x - W' x] of every output: (W - W') E[x], [out_features]."""
    return ((weight - rounded).double() @ mean_input.double()).to(weight.dtype)


@corrections.register("bias")
@dataclass(frozen=True)
class BiasCorrection(Correction):
    """Put the mean error of every output into the bias, where a layer has one."""

    reads_statistics: ClassVar[bool] = True

    def repair(self, context: SiteContext, layers: Mapping[str, QuantizedLayer]) -> None:
        for name in context.weights:
            layer: Any = layers[name]
            if layer.bias is not None:
                error = mean_output_error(
                    context.weights[name], layer.weight.detach().cpu(), context.statistics.mean
                )
                layer.bias.add_(error.to(layer.bias.device))
