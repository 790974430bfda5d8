"""Arithmetic, memory traffic and size of a model, from its summary and its workload.

Definitions, per utterance; p = prompt tokens, n = generated tokens, F = encoder frames:

Phases. *Encoder*: stem and encoder blocks. *Prefill*: the decoder's first pass, over p tokens
at once, which yields the first generated token; the cross-attention keys and values of all F
frames are computed here. *Decode*: n - 1 further passes of one token each. The head and every
other `token` layer thus run p + n - 1 positions.

MACs. A weight layer: its weights x its output positions; an embedding: none. An attention of Q
queries on K keys: 2 x Q x K x heads x padded head_dim (scores and mixing), counted dense, as
kernels without mask skipping compute it. Encoder F x F; decoder self-attention p x p, then
p + i keys in decode step i = 1 ... n - 1 (its own included); cross-attention p x F, then F a
step.

Bit operations (BOPs). MACs x weight operand bits x activation operand bits; attention: MACs x
query bits x key and value bits. Input channels kept in floating point: MACs x the width of their
weights x float bits.
MACs of runtime ops (rotations, un-fused scalings) come before the quantizer and have an activation
and a constant that are both float: float bits x float bits.

Memory I/O, in bytes that cross the memory bus, with nothing kept on chip between operations:
- weights: every layer's stored bits with its bias and the constants of its runtime ops: encoder
  once; decoder once per pass (n), but cross-attention key and value layers once and an embedding
  one row per token position. A tied head reads the whole table each pass.
- key_value: decoder self-attention writes a key and a value per new position and reads all
  cached positions each pass; cross-attention writes F once and reads F each pass; encoder
  self-attention reads F once. The cache is a buffer of its own: its write adds to the
  projection's output.
- activations: input and output values of every weight layer, the input at its quantized width
  (whatever writes it quantizes it); queries and mixed values of every attention. Scores and
  probabilities stay on chip (a fused attention).
- not counted: norms, residual additions, position tables, audio, logits after the head, the
  arithmetic of quantizing activations and their dynamic scales, and values on their way into
  and out of runtime ops (whatever writes them does it on the way, as with quantizing).

Size. Bytes of the packed checkpoint: every stored weight (scales, zero points, outliers with
it), bias, runtime op constant (no parameter, but stored) and other parameter once; a tied layer
stores nothing but its bias and those of its runtime ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from edge_asr.cost.records import LayerRecord, ModelSummary, Workload
from edge_asr.cost.usage import (
    PHASES,
    MeanCounts,
    Phase,
    attention_uses,
    layer_uses,
    runtime_op_uses,
)
from edge_asr.store.cost_types import (
    BitOperations,
    Cost,
    Macs,
    MemoryIO,
    PhaseBytes,
    PhaseMacs,
    Size,
)

__all__ = [
    "BitOperations",
    "Cost",
    "Macs",
    "MemoryIO",
    "PhaseBytes",
    "PhaseMacs",
    "Size",
    "bit_operations",
    "cost_of",
    "macs",
    "memory_io",
    "model_size",
]

EMBEDDING = "embedding"
BITS_PER_BYTE = 8

T = TypeVar("T")


def _by_phase(make: Callable[[Phase], T]) -> dict[str, T]:
    return {phase: make(phase) for phase in PHASES}


def _macs(summary: ModelSummary, counts: MeanCounts) -> Macs:
    layers = dict.fromkeys(PHASES, 0.0)
    runtime_ops = dict.fromkeys(PHASES, 0.0)
    attention = dict.fromkeys(PHASES, 0.0)
    for layer, use in layer_uses(summary, counts):
        layers[use.phase] += layer.macs_per_position * use.positions
        runtime_ops[use.phase] += layer.runtime_op_macs * use.positions
    for extra, use in runtime_op_uses(summary, counts):
        runtime_ops[use.phase] += extra.macs * use.positions
    for record, attend in attention_uses(summary, counts):
        attention[attend.phase] += 2 * record.width * attend.products
    return Macs(
        **_by_phase(lambda phase: PhaseMacs(layers[phase], attention[phase], runtime_ops[phase]))
    )


def _bits_per_mac(layer: LayerRecord, float_bits: int) -> float:
    """Weight bits x activation bits, averaged over the layer's MACs."""
    coded = (1 - layer.float_share) * layer.bits_per_weight * layer.input_bits
    return coded + layer.float_share * layer.float_column_bits * float_bits


def _bits_per_input(layer: LayerRecord, float_bits: int) -> float:
    """Width of an activation value read, averaged over the layer's inputs."""
    return (1 - layer.float_share) * layer.input_bits + layer.float_share * float_bits


def _bit_operations(summary: ModelSummary, counts: MeanCounts) -> BitOperations:
    total = dict.fromkeys(PHASES, 0.0)
    float_bits = summary.float_bits
    for layer, use in layer_uses(summary, counts):
        weight = layer.macs_per_position * _bits_per_mac(layer, float_bits)
        runtime_ops = layer.runtime_op_macs * float_bits**2
        total[use.phase] += (weight + runtime_ops) * use.positions
    for extra, use in runtime_op_uses(summary, counts):
        total[use.phase] += extra.macs * float_bits**2 * use.positions
    for record, attend in attention_uses(summary, counts):
        widths = record.query_bits * record.key_value_bits
        total[attend.phase] += 2 * record.width * attend.products * widths
    return BitOperations(**_by_phase(total.__getitem__))


def _memory_io(summary: ModelSummary, counts: MeanCounts) -> MemoryIO:
    weights = dict.fromkeys(PHASES, 0.0)
    key_value = dict.fromkeys(PHASES, 0.0)
    activations = dict.fromkeys(PHASES, 0.0)
    stored = {layer.name: layer.weight_bits for layer in summary.layers}
    for layer, use in layer_uses(summary, counts):
        table = stored[layer.tied_to or layer.name]
        if layer.role == EMBEDDING:
            weights[use.phase] += table / layer.weight_shape[0] * use.positions
        else:
            weights[use.phase] += (table + layer.bias_bits + layer.runtime_op_bits) * use.fetches
        read = layer.input_values * _bits_per_input(layer, summary.float_bits)
        written = layer.output_values * layer.output_bits
        activations[use.phase] += (read + written) * use.positions
    for extra, use in runtime_op_uses(summary, counts):
        weights[use.phase] += extra.bits * use.fetches
    for record, attend in attention_uses(summary, counts):
        keys = attend.keys_read + attend.keys_written
        key_value[attend.phase] += 2 * record.width * record.key_value_bits * keys
        activations[attend.phase] += 2 * record.width * record.query_bits * attend.queries

    def phase_bytes(phase: Phase) -> PhaseBytes:
        bits = (weights[phase], key_value[phase], activations[phase])
        return PhaseBytes(*(value / BITS_PER_BYTE for value in bits))

    return MemoryIO(**_by_phase(phase_bytes))


def macs(summary: ModelSummary, workload: Workload) -> Macs:
    """Multiply-accumulates of one utterance, by phase (definitions at the top of this module).

    Raises:
        ValueError: A layer's axis is missing from the workload's positions.
    """
    return _macs(summary, MeanCounts.of([workload]))


def bit_operations(summary: ModelSummary, workload: Workload) -> BitOperations:
    """Bit operations of one utterance, by phase (definitions at the top of this module).

    Raises:
        ValueError: A layer's axis is missing from the workload's positions.
    """
    return _bit_operations(summary, MeanCounts.of([workload]))


def memory_io(summary: ModelSummary, workload: Workload) -> MemoryIO:
    """Bytes over the memory bus of one utterance, by phase (definitions above).

    Raises:
        ValueError: A layer's axis is missing from the workload's positions.
    """
    return _memory_io(summary, MeanCounts.of([workload]))


def model_size(summary: ModelSummary) -> Size:
    """Bytes of the packed checkpoint and bits per parameter.

    Raises:
        ValueError: The summary holds no parameter outside its embedding tables.
    """
    tables = {layer.tied_to or layer.name for layer in summary.layers if layer.role == EMBEDDING}
    bits, parameters = float(summary.other_parameter_bits), summary.other_parameters
    bits += sum(extra.bits for extra in summary.runtime_ops)
    table_bits, table_parameters = 0.0, 0
    for layer in summary.layers:
        bits += layer.bias_bits + layer.runtime_op_bits
        parameters += layer.weight_shape[0] if layer.bias_bits else 0
        if layer.tied_to is None:
            bits += layer.weight_bits
            parameters += layer.weights
            table_bits += layer.weight_bits if layer.name in tables else 0
            table_parameters += layer.weights if layer.name in tables else 0
    if parameters <= table_parameters:
        raise ValueError("summary: no parameter outside the embedding tables")
    return Size(
        bytes=math.ceil(bits / BITS_PER_BYTE),
        parameters=parameters,
        bits_per_parameter=bits / parameters,
        bits_per_parameter_without_embeddings=(bits - table_bits) / (parameters - table_parameters),
    )


def cost_of(summary: ModelSummary, workloads: Sequence[Workload]) -> Cost:
    """Mean cost per utterance of a data set; `Cost` also gives it per second of audio.

    Raises:
        ValueError: No workload, no audio, or a layer's axis missing from a workload's positions.
    """
    counts = MeanCounts.of(workloads)
    return Cost(
        utterances=len(workloads),
        seconds=sum(one.seconds for one in workloads) / len(workloads),
        macs=_macs(summary, counts),
        bit_operations=_bit_operations(summary, counts),
        memory_io=_memory_io(summary, counts),
        size=model_size(summary),
        float_bits=summary.float_bits,
    )
