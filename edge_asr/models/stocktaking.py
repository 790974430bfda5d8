"""Take stock of a model: its layers, attentions and remaining parameters as plain records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from edge_asr.inventory import Inventory, LayerRecord, Stack
from edge_asr.models.architecture import Architecture


@dataclass(frozen=True)
class StoredWeight:
    """How a quantized weight is kept.

    Attributes:
        bits_per_weight: Width of one code.
        weight_bits: Bits of codes, scales, zero points and outliers together.
    """

    bits_per_weight: float
    weight_bits: float


def take_inventory(
    model: PreTrainedModel,
    architecture: Architecture,
    *,
    float_bits: int = 32,
    stored: Mapping[str, StoredWeight] | None = None,
) -> Inventory:
    """The inventory of `model`, with `float_bits` for whatever is not in `stored`.

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
                input_bits=float_bits,
                output_bits=float_bits,
                stride=layer.stride[0] if isinstance(layer, nn.Conv1d) else 1,
                tied_to=architecture.embedding if tied else None,
            )
        )
        counted.update(id(parameter) for parameter in layer.parameters())
    if stored:
        raise KeyError(f"not in the architecture map: {', '.join(sorted(stored))}")
    others = _other_parameters(model, counted)
    return Inventory(
        layers=tuple(layers),
        attentions=tuple(
            replace(attention, query_bits=float_bits, key_value_bits=float_bits)
            for attention in architecture.attention(config)
        ),
        other_parameters=others,
        other_parameter_bits=others * float_bits,
        float_bits=float_bits,
    )


def _other_parameters(model: nn.Module, counted: set[int]) -> int:
    return sum(
        parameter.numel() for parameter in model.parameters() if id(parameter) not in counted
    )
