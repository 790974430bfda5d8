"""Summarize a model: its layers, attentions and remaining parameters as plain records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from edge_asr.cost.records import AttentionRecord, LayerRecord, ModelSummary, RuntimeOpRecord
from edge_asr.models.families.base import Architecture
from edge_asr.models.tensors import Stack


@dataclass(frozen=True)
class StoredWeight:
    """How a quantized weight is kept, and what its layer reads.

    Attributes:
        bits_per_weight: Mean width of a weight operand, but for `float_columns`.
        weight_bits: Bits of codes, scales, zero points and outliers together.
        input_bits: Width of an activation value the layer reads, or None where it is float.
        float_columns, float_column_bits: Input channels that are read in floating point all the
            same, and the width of their weights.
        runtime_op_macs, runtime_op_bits: MACs per position of its runtime ops, and bits stored for
            them and for a static activation range.
    """

    bits_per_weight: float
    weight_bits: float
    input_bits: int | None = None
    float_columns: int = 0
    float_column_bits: float = 0.0
    runtime_op_macs: int = 0
    runtime_op_bits: float = 0.0


def summarize_model(
    model: PreTrainedModel,
    architecture: Architecture,
    *,
    float_bits: int = 32,
    stored: Mapping[str, StoredWeight] | None = None,
    runtime_ops: Sequence[RuntimeOpRecord] = (),
) -> ModelSummary:
    """The summary of `model`, with `float_bits` for whatever is not in `stored`.

    `runtime_ops` are those that belong to no layer in `stored`. Attention products have float
    operands.

    Raises:
        KeyError: when `stored` names a layer that the map does not have.
    """
    config = model.config
    stored = dict(stored or {})
    places: list[tuple[str, Stack, str, str]] = [
        (part.layer, "encoder", "conv", part.axis) for part in architecture.stem()
    ]
    places += [
        (name, site.stack, site.role, site.axis)
        for block in architecture.blocks(config)
        for site in block.sites
        for name in site.layers
    ]
    places += [
        (architecture.embedding, "decoder", "embedding", "token"),
        (architecture.head, "decoder", "head", "token"),
    ]
    embedding = model.get_submodule(architecture.embedding)
    layers = []
    counted: set[int] = set()
    for name, stack, role, axis in places:
        layer: Any = model.get_submodule(name)
        weight, bias = layer.weight, getattr(layer, "bias", None)
        tied = role == "head" and weight is embedding.weight
        kept = stored.pop(name, None) or StoredWeight(float_bits, weight.numel() * float_bits)
        layers.append(
            LayerRecord(
                name=name,
                stack=stack,
                role=role,
                weight_shape=tuple(weight.shape),
                axis=axis,
                weight_bits=kept.weight_bits,
                bits_per_weight=kept.bits_per_weight,
                bias_bits=0 if bias is None else bias.numel() * float_bits,
                input_bits=float_bits if kept.input_bits is None else kept.input_bits,
                output_bits=float_bits,
                stride=layer.stride[0] if isinstance(layer, nn.Conv1d) else 1,
                tied_to=architecture.embedding if tied else None,
                runtime_op_macs=kept.runtime_op_macs,
                runtime_op_bits=kept.runtime_op_bits,
                float_columns=kept.float_columns,
                float_column_bits=kept.float_column_bits,
            )
        )
        counted.update(id(parameter) for parameter in layer.parameters())
    if stored:
        raise KeyError(f"not in the architecture map: {', '.join(sorted(stored))}")
    others = _other_parameters(model, counted)
    return ModelSummary(
        layers=tuple(layers),
        attentions=tuple(
            AttentionRecord(**vars(attention), query_bits=float_bits, key_value_bits=float_bits)
            for attention in architecture.attention(config)
        ),
        other_parameters=others,
        other_parameter_bits=others * float_bits,
        float_bits=float_bits,
        runtime_ops=tuple(runtime_ops),
    )


def runtime_op_record(
    architecture: Architecture, name: str, *, macs_per_row: int, stored_bits: float
) -> RuntimeOpRecord:
    """The record of runtime op `name`, which belongs to no layer: it runs once a frame in the
    encoder, once a token elsewhere."""
    if name.startswith(f"{architecture.encoder_module}."):
        return RuntimeOpRecord(name, "encoder", "frame", macs_per_row, stored_bits)
    return RuntimeOpRecord(name, "decoder", "token", macs_per_row, stored_bits)


def _other_parameters(model: nn.Module, counted: set[int]) -> int:
    return sum(
        parameter.numel() for parameter in model.parameters() if id(parameter) not in counted
    )
