"""The parts of a record that are made from a quantized model: model, method and cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from edge_asr.config import Settings
from edge_asr.cost.model import cost_of
from edge_asr.cost.records import Inventory, Workload
from edge_asr.cost.summary import StoredWeight, online_record, take_inventory
from edge_asr.evaluation.transcribe import Hypothesis
from edge_asr.models.loading import Checkpoint, weights_sha256
from edge_asr.quant.activation import InputQuantizer
from edge_asr.quant.formats import VALUE_BITS
from edge_asr.quant.layers import QuantizedLinear, RuntimeOp, runtime_ops
from edge_asr.quant.walker import Quantization
from edge_asr.quant.weight import QuantizedWeight
from edge_asr.store.record import (
    FLOAT_METHOD,
    ActivationSection,
    BlockSection,
    CostSection,
    LayerSection,
    MethodSection,
    ModelSection,
)


def cost_section(
    plain: Inventory,
    checkpoint: Checkpoint,
    quantization: Quantization,
    hypotheses: Sequence[Hypothesis],
) -> CostSection:
    """Cost of the quantized and of the float model, whose inventory is `plain`."""
    architecture, config = checkpoint.architecture, checkpoint.model.config
    prompt = len(architecture.prompt(checkpoint.model))
    workloads = [
        Workload(
            seconds=hypothesis.duration,
            positions=architecture.positions(config, hypothesis.samples),
            prompt_tokens=prompt,
            generated_tokens=max(hypothesis.generated_tokens, 1),
        )
        for hypothesis in hypotheses
    ]
    quantized = quantized_inventory(checkpoint, quantization, plain.float_bits)
    return CostSection(cost_of(quantized, workloads), cost_of(plain, workloads))


def quantized_inventory(
    checkpoint: Checkpoint, quantization: Quantization, float_bits: int
) -> Inventory:
    """The inventory of a quantized model: weights as stored, inputs as read, all online work.

    Online work that several layers share is one module, and counted with the first of them.
    """
    model, architecture = checkpoint.model, checkpoint.architecture
    elsewhere = runtime_ops(model)
    stored = {}
    for name, result in quantization.layers.items():
        layer: Any = model.get_submodule(name)
        own = [part for part in elsewhere if part.startswith(f"{name}.")]
        online = [elsewhere.pop(part) for part in own]
        stored[name] = _stored(layer, result.weight, online)
    between = [
        online_record(
            architecture, name, macs_per_row=part.macs_per_row, stored_bits=part.stored_bits
        )
        for name, part in elsewhere.items()
    ]
    return take_inventory(model, architecture, float_bits=float_bits, stored=stored, online=between)


def _stored(
    layer: QuantizedLinear, weight: QuantizedWeight, online: Sequence[RuntimeOp]
) -> StoredWeight:
    """What the cost model is told of one quantized layer."""
    entry = layer.quantize_input
    bits, range_bits = None, 0
    if isinstance(entry, InputQuantizer):
        bits, range_bits = entry.settings.bits, entry.stored_bits
    columns = 0 if weight.float_columns is None else int(weight.float_columns.sum())
    share = columns / layer.in_features
    others = (weight.operand_bits - share * VALUE_BITS) / (1 - share) if share < 1 else 0
    return StoredWeight(
        bits_per_weight=others,
        weight_bits=weight.stored_bits,
        input_bits=bits,
        float_columns=columns,
        float_column_bits=VALUE_BITS if columns else 0,
        online_macs=sum(part.macs_per_row for part in online),
        online_bits=sum(part.stored_bits for part in online) + range_bits,
    )


def model_section(settings: Settings, checkpoint: Checkpoint) -> ModelSection:
    """Which model it is, before anything rewrites it."""
    return ModelSection(
        name=checkpoint.name,
        source=checkpoint.reference,
        family=checkpoint.architecture.family,
        parameters=sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        float_bits=settings.float_bits,
        weights_sha256=weights_sha256(checkpoint.model),
    )


def method_section(
    settings: Settings, checkpoint: Checkpoint, quantization: Quantization
) -> MethodSection:
    """How it was quantized, layer by layer and block by block."""
    if not settings.method.quantizes:
        return MethodSection(FLOAT_METHOD, settings.float_bits, None, None)
    sites = {
        name: site
        for block in checkpoint.architecture.blocks(checkpoint.model.config)
        for site in block.sites
        for name in site.layers
    }
    activation = settings.activation_grid
    return MethodSection(
        name=settings.method.label,
        bits=settings.bits,
        group_size=settings.group_size,
        symmetric=settings.symmetric,
        layers=tuple(
            LayerSection(
                name=name,
                stack=sites[name].stack,
                role=sites[name].role,
                weights=layer.weight.codes.numel(),
                bits=layer.weight.grid.bits,
                effective_bits=layer.weight.effective_bits,
                output_error_before=layer.nearest_error,
                output_error_after=layer.output_error,
            )
            for name, layer in quantization.layers.items()
        ),
        warnings=tuple(quantization.warnings),
        activation=(
            None if activation is None else ActivationSection(**dataclasses.asdict(activation))
        ),
        blocks=_block_sections(quantization),
    )


def _block_sections(quantization: Quantization) -> tuple[BlockSection, ...]:
    """One row a block with its time, and one with losses for every part that learned on it."""
    sections = [
        BlockSection("model", None, learned.loss_before, learned.loss_after)
        for learned in quantization.reconstructions
    ]
    for name, block in quantization.blocks.items():
        sections.append(BlockSection(name, block.seconds))
        sections += [
            BlockSection(name, None, learned.loss_before, learned.loss_after)
            for learned in block.reconstructions
        ]
    return tuple(sections)
