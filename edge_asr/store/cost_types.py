"""The results of the cost model as plain records; `edge_asr.cost.model` defines the terms."""

from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, Field
from pydantic.dataclasses import dataclass

from edge_asr.store.plain_json import STRICT

Count = Annotated[float, Field(ge=0)]
# What records of schema 1 and 2 call it.
RuntimeOps = Annotated[Count, Field(validation_alias=AliasChoices("runtime_ops", "online"))]


@dataclass(frozen=True, config=STRICT)
class PhaseMacs:
    """Multiply-accumulates of one phase: weight layers, attention products, runtime ops."""

    layers: Count
    attention: Count
    runtime_ops: RuntimeOps

    @property
    def total(self) -> float:
        """All MACs of the phase."""
        return self.layers + self.attention + self.runtime_ops


@dataclass(frozen=True, config=STRICT)
class Macs:
    """Multiply-accumulates per utterance, by phase."""

    encoder: PhaseMacs
    prefill: PhaseMacs
    decode: PhaseMacs

    @property
    def total(self) -> float:
        """All MACs of the utterance."""
        return self.encoder.total + self.prefill.total + self.decode.total


@dataclass(frozen=True, config=STRICT)
class BitOperations:
    """Bit operations per utterance, by phase."""

    encoder: Count
    prefill: Count
    decode: Count

    @property
    def total(self) -> float:
        """All bit operations of the utterance."""
        return self.encoder + self.prefill + self.decode


@dataclass(frozen=True, config=STRICT)
class PhaseBytes:
    """Bytes over the memory bus in one phase, by what they carry."""

    weights: Count
    key_value: Count
    activations: Count

    @property
    def total(self) -> float:
        """All bytes of the phase."""
        return self.weights + self.key_value + self.activations


@dataclass(frozen=True, config=STRICT)
class MemoryIO:
    """Bytes over the memory bus per utterance, by phase."""

    encoder: PhaseBytes
    prefill: PhaseBytes
    decode: PhaseBytes

    @property
    def total(self) -> float:
        """All bytes of the utterance."""
        return self.encoder.total + self.prefill.total + self.decode.total


@dataclass(frozen=True, config=STRICT)
class Size:
    """The packed checkpoint.

    Attributes:
        bytes: Bytes on disk, headers apart.
        parameters: Stored parameters; a tied one counts once.
        bits_per_parameter: Stored bits over parameters.
        bits_per_parameter_without_embeddings: The same without embedding tables (a table that
            a head shares is one); an untied head stays in.
    """

    bytes: Annotated[int, Field(ge=0)]
    parameters: Annotated[int, Field(ge=0)]
    bits_per_parameter: Count
    bits_per_parameter_without_embeddings: Count


@dataclass(frozen=True, config=STRICT)
class Cost:
    """What a model costs on a data set; per-utterance values are means over its utterances.

    Attributes:
        utterances: Utterances averaged over.
        seconds: Mean audio seconds per utterance.
        macs, bit_operations, memory_io: Means per utterance.
        size: The packed checkpoint.
        float_bits: Width of an unquantized value in this model.
    """

    utterances: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(gt=0)]
    macs: Macs
    bit_operations: BitOperations
    memory_io: MemoryIO
    size: Size
    float_bits: int

    @property
    def bit_operations_per_second(self) -> float:
        """Bit operations per second of audio, over the whole data set."""
        return self.bit_operations.total / self.seconds

    @property
    def bytes_per_second(self) -> float:
        """Bytes over the memory bus per second of audio, over the whole data set."""
        return self.memory_io.total / self.seconds
