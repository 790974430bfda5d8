"""The parts of a record that are made from a quantized model: model, method and cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edge_asr.cost.records import ModelSummary, Workload
from edge_asr.cost.summary import StoredWeight, runtime_op_record, summarize_model
from edge_asr.evaluation.hypotheses import ClipOutput, Hypothesis
from edge_asr.experiments.files import manifest_name
from edge_asr.experiments.plan import DataSet, Plan
from edge_asr.models.families.base import Architecture
from edge_asr.models.loading import Checkpoint, empty_model
from edge_asr.quant.activation import InputQuantizer
from edge_asr.quant.formats import VALUE_BITS, TensorFormat
from edge_asr.quant.layers import QuantizedLayer, RuntimeOp, quantized_layers, runtime_ops
from edge_asr.quant.result import Quantization
from edge_asr.quant.scheme import WEIGHTS
from edge_asr.quant.weight import QuantizedWeight
from edge_asr.runtimes.base import runtimes
from edge_asr.store.phases import PhaseSeconds
from edge_asr.store.record import (
    FLOAT_METHOD,
    BlockSection,
    DataSection,
    LayerSection,
    MethodSection,
    ModelSection,
)


def workloads_of(
    architecture: Architecture, config: Any, prompt_tokens: int, hypotheses: Sequence[Hypothesis]
) -> list[Workload]:
    """What every clip that was transcribed made the model do."""
    return [
        Workload(
            seconds=hypothesis.duration,
            positions=architecture.positions(config, hypothesis.samples),
            prompt_tokens=prompt_tokens,
            generated_tokens=max(hypothesis.generated_tokens, 1),
        )
        for hypothesis in hypotheses
    ]


def float_summary(plan: Plan, float_bits: int) -> ModelSummary:
    """The summary of the float model, of which nothing but shapes is needed."""
    with torch.device("meta"):
        model = empty_model(plan.files.folder)
    return summarize_model(model, plan.architecture, float_bits=float_bits)


def quantized_summary(model: Any, architecture: Architecture, float_bits: int) -> ModelSummary:
    """The summary of a quantized model: weights as stored, inputs as read, all runtime ops.

    A runtime op that several layers share is one module, and counted with the first of them.
    """
    elsewhere = runtime_ops(model)
    stored = {}
    table = model.get_submodule(architecture.embedding)
    for name in (slot.name for slot in architecture.slots(model.config) if slot.kind in WEIGHTS):
        layer = model.get_submodule(name)
        own = [part for part in elsewhere if part.startswith(f"{name}.")]
        ops = [elsewhere.pop(part) for part in own]
        if isinstance(layer, QuantizedLayer):
            stored[name] = _stored(layer, layer.quantized, ops, float_bits)
    if isinstance(table, QuantizedLayer) and architecture.is_tied(model):
        head = model.get_submodule(architecture.head)
        stored[architecture.head] = _stored(head, table.quantized, [], float_bits)
    between = [
        runtime_op_record(
            architecture, name, macs_per_row=part.macs_per_row, stored_bits=part.stored_bits
        )
        for name, part in elsewhere.items()
    ]
    return summarize_model(
        model, architecture, float_bits=float_bits, stored=stored, runtime_ops=between
    )


def _stored(
    layer: Any, weight: QuantizedWeight | None, ops: Sequence[RuntimeOp], float_bits: int
) -> StoredWeight:
    """What the cost model is told of one layer."""
    entry = getattr(layer, "quantize_input", None)
    bits, range_bits = None, 0
    if isinstance(entry, InputQuantizer):
        bits, range_bits = entry.settings.bits, entry.stored_bits
    runtime_op_macs = sum(part.macs_per_row for part in ops)
    runtime_op_bits = sum(part.stored_bits for part in ops) + range_bits
    if weight is None:
        values = layer.weight.numel() * float_bits
        return StoredWeight(
            float_bits,
            values,
            bits,
            runtime_op_macs=runtime_op_macs,
            runtime_op_bits=runtime_op_bits,
        )
    columns = 0 if weight.float_columns is None else int(weight.float_columns.sum())
    share = columns / weight.codes.shape[1]
    others = (weight.operand_bits - share * VALUE_BITS) / (1 - share) if share < 1 else 0
    return StoredWeight(
        bits_per_weight=others,
        weight_bits=weight.stored_bits,
        input_bits=bits,
        float_columns=columns,
        float_column_bits=VALUE_BITS if columns else 0,
        runtime_op_macs=runtime_op_macs,
        runtime_op_bits=runtime_op_bits,
    )


def model_section(plan: Plan, float_bits: int) -> ModelSection:
    """Which model it is; parameters are those that its files hold."""
    return ModelSection(
        name=plan.model_name,
        source=plan.files.reference,
        family=plan.architecture.family,
        parameters=plan.files.parameters,
        float_bits=float_bits,
        weights_sha256=plan.files.weights_fingerprint,
    )


def data_section(plan: Plan, data: DataSet, rows: Sequence[ClipOutput]) -> DataSection:
    """Which data set was transcribed, and the seconds that took."""
    seconds = sum((row.seconds for row in rows), start=PhaseSeconds())
    audio = sum(row.duration for row in rows)
    simulated = plan.quantize is not None and runtimes[plan.settings.runtime].simulates
    timed = not simulated and seconds.transcription > 0
    return DataSection(
        data.name,
        len(data.corpus),
        data.audio_digest,
        dict(data.corpus.origin),
        manifest_name(plan.model_name, plan.label, data.name, data.corpus.origin),
        seconds,
        # Of simulated quantization it would say nothing.
        audio / seconds.transcription if timed else None,
    )


def layer_sections(
    checkpoint: Checkpoint, served: Mapping[str, TensorFormat], result: Quantization
) -> tuple[LayerSection, ...]:
    """One row a quantized layer."""
    slots = {slot.name: slot for slot in checkpoint.architecture.slots(checkpoint.model.config)}
    weights: dict[str, QuantizedWeight] = {
        name: layer.quantized
        for name, layer in quantized_layers(checkpoint.model).items()
        if layer.quantized is not None
    }
    return tuple(
        LayerSection(
            name=name,
            stack=slots[name].stack,
            role=str(slots[name].role),
            weights=weight.codes.numel(),
            bits=weight.grid.bits,
            effective_bits=weight.effective_bits,
            output_error_before=result.layers[name].nearest_error,
            output_error_after=result.layers[name].output_error,
            format=served[name].label,
        )
        for name, weight in weights.items()
    )


def method_section(
    plan: Plan, layers: tuple[LayerSection, ...], result: Quantization, float_bits: int
) -> MethodSection:
    """How it was quantized, layer by layer and block by block."""
    if plan.quantize is None:
        return MethodSection(FLOAT_METHOD, float_bits, None, None)
    formats = [one for one in plan.formats.values() if one.weights is not None]
    weights = sum(layer.weights for layer in layers)
    groups = {one.weights.group_size for one in formats if one.weights}
    symmetric = {one.weights.symmetric for one in formats if one.weights}
    inputs = {
        plan.formats[name].inputs for name, slot in plan.slots.items() if slot.kind == "linear"
    }
    only_inputs = next(iter(inputs)) if len(inputs) == 1 else None
    bits = {one.weights.bits for one in formats if one.weights}
    # Of quantized activations alone, every weight stays float.
    mean_bits: float = float_bits
    if weights:
        mean_bits = sum(layer.bits * layer.weights for layer in layers) / weights
    return MethodSection(
        name=plan.method_label,
        bits=bits.pop() if len(bits) == 1 else mean_bits,
        group_size=groups.pop() if len(groups) == 1 else None,
        symmetric=symmetric.pop() if len(symmetric) == 1 else None,
        layers=layers,
        warnings=tuple(result.warnings),
        activation=None if only_inputs is None else dataclasses.asdict(only_inputs),
        blocks=_block_sections(result),
        scheme=plan.scheme_label,
        parts=plan.recipe.identity,
    )


def _block_sections(quantization: Quantization) -> tuple[BlockSection, ...]:
    """One row a block with its time, and one with losses for every part that learned on it."""
    sections = [
        BlockSection("model", None, learned.loss_before, learned.loss_after)
        for learned in quantization.reconstructions
    ]
    for name, block in quantization.blocks.items():
        sections.append(BlockSection(name, block.seconds, phases=dict(block.phases)))
        sections += [
            BlockSection(name, None, learned.loss_before, learned.loss_after)
            for learned in block.reconstructions
        ]
    return tuple(sections)
