"""ONNX files for ONNX Runtime whose layers are its operator MatMulNBits.

A layer's codes lie in blocks along its columns, the first in the lowest bits of a byte; values are
scale x (code - zero point), codes unsigned, and the zero point 2^(b-1) where none is stored. The
last block of a row is filled up (onnxruntime: docs/ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_asr.export.base import exporters
from edge_asr.export.onnx_exporter import OnnxExporter, OperatorLinear, Operators, tensor_of
from edge_asr.quant.activation import InputQuantizer
from edge_asr.quant.weight import QuantizedWeight

OPERATOR, LOOKUP = "MatMulNBits", "GatherBlockQuantized"  # of the domain com.microsoft
INT8_INPUTS = 4  # the operator's accuracy_level


class NBitsLinear(OperatorLinear):
    """A layer as one MatMulNBits."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(self, layer: str, own: Any, weight: QuantizedWeight) -> None:
        super().__init__(layer, own)
        self.rows, columns = weight.codes.shape
        bits, size = weight.grid.bits, weight.grid.group_size
        for name, value in block_operands(weight).items():
            self.register_buffer(name, value)
        self.settings: dict[str, Any] = {"K": columns, "N": self.rows}
        self.settings |= {"bits": bits, "block_size": size}
        if isinstance(getattr(own, "quantize_input", None), InputQuantizer):
            self.settings["accuracy_level"] = INT8_INPUTS

    def product(self, inputs: Tensor) -> Tensor:
        operands = [inputs, self.packed, self.scales]
        operands += [] if self.zeros is None else [self.zeros]
        outputs: Tensor = torch.onnx.ops.symbolic(
            f"com.microsoft::{OPERATOR}", operands, self.settings, dtype=inputs.dtype,
            shape=(*inputs.shape[:-1], self.rows), version=1,
        )  # fmt: skip
        return outputs


class NBitsTable(Operators):
    """An embedding as one GatherBlockQuantized, of the same bytes as a head that it is."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(self, layer: str, weight: QuantizedWeight) -> None:
        super().__init__(layer)
        self.columns = weight.codes.shape[1]  # whole blocks of them, as the target holds no other
        bits, size = weight.grid.bits, weight.grid.group_size
        for name, value in block_operands(weight).items():
            self.register_buffer(name, value)
        self.settings: dict[str, Any] = {"bits": bits, "block_size": size}
        self.settings |= {"gather_axis": 0, "quantize_axis": 1}

    def forward(self, tokens: Tensor) -> Tensor:
        operands = [self.packed.flatten(1), tokens, self.scales]
        operands += [] if self.zeros is None else [self.zeros]
        outputs: Tensor = torch.onnx.ops.symbolic(
            f"com.microsoft::{LOOKUP}", operands, self.settings, dtype=torch.float32,
            shape=(*tokens.shape, self.columns), version=1,
        )  # fmt: skip
        return outputs


def block_operands(weight: QuantizedWeight) -> dict[str, Tensor | None]:
    """Packed codes, scales and, unless all are the usual one, zero points."""
    bits, size = weight.grid.bits, weight.grid.group_size
    assert size is not None  # its targets hold no other
    shift = 1 << (bits - 1) if weight.grid.signed else 0
    codes = (weight.codes.to(torch.int16) + shift).to(torch.uint8)
    zeros = (weight.parameters.zero + shift).to(torch.uint8)
    usual = bool((zeros == 1 << (bits - 1)).all())
    return {
        "packed": packed_blocks(codes, bits, size),
        "scales": weight.parameters.scale.float().contiguous(),
        "zeros": None if usual else packed_rows(zeros, bits),
    }


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


@exporters.register("onnx_nbits")
class OnnxNbits(OnnxExporter):
    """Layers read floats."""

    def linear(self, name: str, layer: nn.Module, weight: QuantizedWeight) -> Operators:
        return NBitsLinear(name, layer, weight)

    def table(self, name: str, weight: QuantizedWeight) -> Operators:
        return NBitsTable(name, weight)

    def weights(
        self, nodes: Iterator[Any], values: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[str, Tensor]]:
        for node in nodes:
            settings = {one.name: one.i for one in node.attribute}
            if node.op_type == OPERATOR:
                codes, rest = node.input[1], node.input[2:]
            elif node.op_type == LOOKUP:
                # The codes are reshaped on their way.
                rest = node.input[2:]
                codes = rest[0].removesuffix("scales") + "packed"
                settings["K"] = values[rest[0]].shape[1] * settings["block_size"]
            else:
                continue
            operands = [tensor_of(values[name]) for name in (codes, *rest) if name]
            yield codes, dequantized(*operands, settings=settings)


@exporters.register("onnx_nbits_a8")
class OnnxNbitsInt8(OnnxNbits):
    """Layers read int8 in blocks."""


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
