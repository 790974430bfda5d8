"""ONNX files for ONNX Runtime whose layers are its operator MatMulNBits.

A layer's codes lie in blocks along its columns, the first in the lowest bits of a byte; values are
scale x (code - zero point), codes unsigned, and the zero point 2^(b-1) where none is stored. The
last block of a row is filled up (onnxruntime: docs/ContribOperators.md).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from edge_asr.export.base import Exporter, exporters
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.activation import InputQuantizer
from edge_asr.quant.layers import QuantizedLinear, quantized_layers

OPERATOR = "com.microsoft::MatMulNBits"
INT8_INPUTS = 4  # the operator's accuracy_level


class NBitsLinear(nn.Module):
    """A layer as one MatMulNBits; it cannot run in PyTorch, only be traced.

    Attributes:
        layer: The path of the layer it stands for.
    """

    packed: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(self, layer: str, own: QuantizedLinear) -> None:
        super().__init__()
        weight = own.quantized
        assert weight is not None
        self.layer, self.input_ops, self.bias = layer, own.input_ops, own.bias
        self.rows, self.columns = weight.codes.shape
        bits, size = weight.grid.bits, weight.parameters.group_size
        shift = 1 << (bits - 1) if weight.grid.signed else 0
        codes = (weight.codes.to(torch.int16) + shift).to(torch.uint8)
        zeros = (weight.parameters.zero + shift).to(torch.uint8)
        self.register_buffer("packed", packed_blocks(codes, bits, size))
        self.register_buffer("scales", weight.parameters.scale.float().contiguous())
        # Where it is the usual one it is not stored.
        usual = bool((zeros == 1 << (bits - 1)).all())
        self.register_buffer("zeros", None if usual else packed_rows(zeros, bits))
        quantized = isinstance(own.quantize_input, InputQuantizer)
        self.settings: dict[str, Any] = {
            "K": self.columns,
            "N": self.rows,
            "bits": bits,
            "block_size": size,
        }
        self.settings |= {"accuracy_level": INT8_INPUTS} if quantized else {}

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = self.input_ops(inputs)
        operands = [inputs, self.packed, self.scales]
        operands += [] if self.zeros is None else [self.zeros]
        outputs: Tensor = torch.onnx.ops.symbolic(
            OPERATOR, operands, self.settings, dtype=inputs.dtype,
            shape=(*inputs.shape[:-1], self.rows), version=1,
        )  # fmt: skip
        return outputs if self.bias is None else outputs + self.bias


def packed_blocks(codes: Tensor, bits: int, size: int) -> Tensor:
    """uint8 [rows, blocks, bytes of a block] of codes uint8 [rows, columns]."""
    rows, columns = codes.shape
    blocks = -(-columns // size)
    whole = nn.functional.pad(codes, (0, blocks * size - columns))
    return packed_rows(whole.reshape(rows * blocks, size), bits).reshape(rows, blocks, -1)


def packed_rows(codes: Tensor, bits: int) -> Tensor:
    """uint8 [rows, bytes] of codes uint8 [rows, columns], 8 / bits of them a byte, lowest first."""
    many = 8 // bits
    whole = nn.functional.pad(codes, (0, -codes.shape[1] % many)).unflatten(1, (-1, many))
    shifts = bits * torch.arange(many, dtype=torch.int32)
    return (whole.int() << shifts).sum(-1).to(torch.uint8)


def unpacked_rows(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The codes that `packed_rows` packed, uint8 [rows, columns]."""
    shifts = bits * torch.arange(8 // bits, dtype=torch.int32)
    codes = (packed.int()[..., None] >> shifts) & ((1 << bits) - 1)
    return codes.flatten(1)[:, :columns].to(torch.uint8)


class _Nbits(Exporter):
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript")
    extra: ClassVar[str] = "onnx"

    def write(self, checkpoint: Checkpoint, folder: Path) -> None:
        from edge_asr.export.graphs import write_graphs

        model: Any = copy.deepcopy(checkpoint.model)
        for name, layer in quantized_layers(model).items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, NBitsLinear(name, layer))
        write_graphs(checkpoint, model, folder)

    def read_back(self, folder: Path) -> Mapping[str, Tensor]:
        from edge_asr.export.graphs import DECODER, ENCODER

        return {**read_layers(folder / ENCODER), **read_layers(folder / DECODER)}


@exporters.register("onnx_nbits")
class OnnxNbits(_Nbits):
    """Layers read floats."""


@exporters.register("onnx_nbits_a8")
class OnnxNbitsInt8(_Nbits):
    """Layers read int8 in blocks."""


def read_layers(path: Path) -> dict[str, Tensor]:
    """The weights of all layers in a graph, by their path, as ONNX Runtime dequantizes them."""
    import onnx
    from onnx import numpy_helper

    from edge_asr.export.graphs import LAYERS

    proto = onnx.load(path)
    values = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Cast" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]].astype(np.float32)
    names = json.loads(next(one.value for one in proto.metadata_props if one.key == LAYERS))
    found = {}
    for node in proto.graph.node:
        if node.op_type != OPERATOR.rpartition(":")[2]:
            continue
        settings = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        operands = [torch.from_numpy(values[name].copy()) for name in node.input[1:] if name]
        layer = names[node.input[1].rpartition(".")[0]]
        found[layer] = dequantized(*operands, settings=settings)
    return found


def dequantized(
    packed: Tensor, scales: Tensor, zeros: Tensor | None = None, *, settings: Mapping[str, int]
) -> Tensor:
    """The weight float32 [rows, columns] of a MatMulNBits."""
    bits, size, columns = settings["bits"], settings["block_size"], settings["K"]
    rows, blocks = packed.shape[:2]
    codes = unpacked_rows(packed.reshape(rows * blocks, -1), bits, size).reshape(rows, -1)
    scales = scales.reshape(rows, blocks)
    zero = torch.full_like(scales, 1 << (bits - 1))
    if zeros is not None:
        zero = unpacked_rows(zeros.reshape(rows, -1), bits, blocks).float()
    spread = (one.repeat_interleave(size, 1) for one in (scales, zero))
    scale, zero = (one[:, :columns] for one in spread)
    return scale * (codes[:, :columns].float() - zero)
