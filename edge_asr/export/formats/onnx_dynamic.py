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
from torch import Tensor, nn
from torch.nn import functional

from edge_asr.export.base import exporters
from edge_asr.export.onnx_exporter import OnnxExporter, OperatorLinear, Operators, tensor_of
from edge_asr.quant.layers import QuantizedConv1d
from edge_asr.quant.weight import QuantizedWeight


class DynamicLinear(OperatorLinear):
    """A layer as DynamicQuantizeLinear and MatMulInteger."""

    codes: Tensor
    scales: Tensor

    def __init__(self, layer: str, own: Any, weight: QuantizedWeight) -> None:
        super().__init__(layer, own)
        self.register_buffer("codes", weight.codes.T.contiguous())
        self.register_buffer("scales", weight.parameters.scale[:, 0].float().contiguous())

    def product(self, inputs: Tensor) -> Tensor:
        read, scale, zero = quantized_input(inputs)
        sums: Tensor = torch.onnx.ops.symbolic(
            "MatMulInteger", [read, self.codes, zero], dtype=torch.int32,
            shape=(*inputs.shape[:-1], self.codes.shape[1]), version=10,
        )  # fmt: skip
        return sums.float() * (scale * self.scales)


def quantized_input(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and zero point of DynamicQuantizeLinear."""
    codes, scale, zero = torch.onnx.ops.symbolic_multi_out(
        "DynamicQuantizeLinear", [inputs], dtypes=(torch.uint8, torch.float32, torch.uint8),
        shapes=(inputs.shape, (), ()), version=11,
    )  # fmt: skip
    return codes, scale, zero


class DynamicConv(Operators):
    """A convolution as DynamicQuantizeLinear and ConvInteger."""

    codes: Tensor
    scales: Tensor

    def __init__(self, layer: str, own: QuantizedConv1d) -> None:
        super().__init__(layer)
        weight = own.quantized
        assert weight is not None
        self.register_buffer("codes", weight.codes.reshape(own.weight.shape).contiguous())
        self.register_buffer("scales", weight.parameters.scale.float().contiguous())
        self.bias, self.stride, self.padding = own.bias, own.stride, int(own.padding[0])
        self.kernel_size = own.kernel_size[0]

    def forward(self, inputs: Tensor) -> Tensor:
        read, scale, zero = quantized_input(inputs)
        positions = (inputs.shape[2] + 2 * self.padding - self.kernel_size) // self.stride[0] + 1
        sums: Tensor = torch.onnx.ops.symbolic(
            "ConvInteger", [read, self.codes, zero],
            {"strides": list(self.stride), "pads": [self.padding] * 2}, dtype=torch.int32,
            shape=(inputs.shape[0], len(self.codes), positions), version=10,
        )  # fmt: skip
        outputs = sums.float() * (scale * self.scales)
        return outputs if self.bias is None else outputs + self.bias[:, None]


class IntegerTable(Operators):
    """An embedding of which the codes of a row are looked up, and its scale."""

    codes: Tensor
    scales: Tensor

    def __init__(self, layer: str, weight: QuantizedWeight) -> None:
        super().__init__(layer)
        self.register_buffer("codes", weight.codes.contiguous())
        self.register_buffer("scales", weight.parameters.scale.float().contiguous())

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.embedding(tokens, self.codes).float() * functional.embedding(
            tokens, self.scales
        )


@exporters.register("onnx_dynamic")
class OnnxDynamic(OnnxExporter):
    """Layers read uint8, one range a tensor and call."""

    def linear(self, name: str, layer: nn.Module, weight: QuantizedWeight) -> Operators:
        return DynamicLinear(name, layer, weight)

    def table(self, name: str, weight: QuantizedWeight) -> Operators:
        return IntegerTable(name, weight)

    def convolution(self, name: str, layer: QuantizedConv1d) -> Operators:
        return DynamicConv(name, layer)

    def weights(
        self, nodes: Iterator[Any], values: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[str, Tensor]]:
        for node in nodes:
            name = next((one for one in node.input if one.endswith(".codes")), "")
            # A head that is the embedding has that one's, turned on their way.
            if name in values and node.op_type != "Transpose":
                scale = tensor_of(values[name.removesuffix("codes") + "scales"]).reshape(-1, 1)
                codes = tensor_of(values[name]).float()
                codes = codes.T if node.op_type == "MatMulInteger" else codes.flatten(1)
                yield name, scale * codes
