"""ONNX files for ONNX Runtime whose layers multiply int8 weights by inputs quantized as they pass.

What onnxruntime's `quantize_dynamic` makes of a MatMul: DynamicQuantizeLinear takes one uint8 range
from all that passes in a call, MatMulInteger multiplies, and the sums are scaled back. Here the
weights are a run's own codes, a scale an output channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_asr.export.base import exporters
from edge_asr.export.onnx_exporter import OnnxExporter, OperatorLinear, tensor_of
from edge_asr.quant.layers import QuantizedLinear


class DynamicLinear(OperatorLinear):
    """A layer as DynamicQuantizeLinear and MatMulInteger."""

    codes: Tensor
    scales: Tensor

    def __init__(self, layer: str, own: QuantizedLinear) -> None:
        super().__init__(layer, own)
        assert own.quantized is not None
        self.register_buffer("codes", own.quantized.codes.T.contiguous())
        self.register_buffer("scales", own.quantized.parameters.scale[:, 0].float().contiguous())

    def product(self, inputs: Tensor) -> Tensor:
        read, scale, zero = torch.onnx.ops.symbolic_multi_out(
            "DynamicQuantizeLinear", [inputs], dtypes=(torch.uint8, torch.float32, torch.uint8),
            shapes=(inputs.shape, (), ()), version=11,
        )  # fmt: skip
        sums: Tensor = torch.onnx.ops.symbolic(
            "MatMulInteger", [read, self.codes, zero], dtype=torch.int32,
            shape=(*inputs.shape[:-1], self.codes.shape[1]), version=10,
        )  # fmt: skip
        return sums.float() * (scale * self.scales)


@exporters.register("onnx_dynamic")
class OnnxDynamic(OnnxExporter):
    """Layers read uint8, one range a tensor and call."""

    def operators(self, name: str, layer: QuantizedLinear) -> OperatorLinear:
        return DynamicLinear(name, layer)

    def weights(
        self, nodes: Iterator[Any], values: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[str, Tensor]]:
        for node in nodes:
            if node.op_type == "MatMulInteger":
                codes = node.input[1]
                scale = tensor_of(values[codes.removesuffix("codes") + "scales"])
                yield codes, scale[:, None] * tensor_of(values[codes]).T.float()
