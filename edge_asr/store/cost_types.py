"""The results of the cost model as plain records; `edge_asr.cost.model` defines the terms."""

from __future__ import annotations

import math
from dataclasses import dataclass


def _check_counts(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: {value} is not a finite count >= 0")


@dataclass(frozen=True)
class PhaseMacs:
    """Multiply-accumulates of one phase: weight layers, attention products, online work."""

    layers: float
    attention: float
    online: float

    def __post_init__(self) -> None:
        _check_counts(layers=self.layers, attention=self.attention, online=self.online)

    @property
    def total(self) -> float:
        """All MACs of the phase."""
        return self.layers + self.attention + self.online


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates per utterance, by phase."""

    encoder: PhaseMacs
    prefill: PhaseMacs
    decode: PhaseMacs

    @property
    def total(self) -> float:
        """All MACs of the utterance."""
        return self.encoder.total + self.prefill.total + self.decode.total


@dataclass(frozen=True)
class BitOperations:
    """Bit operations per utterance, by phase."""

    encoder: float
    prefill: float
    decode: float

    def __post_init__(self) -> None:
        _check_counts(encoder=self.encoder, prefill=self.prefill, decode=self.decode)

    @property
    def total(self) -> float:
        """All bit operations of the utterance."""
        return self.encoder + self.prefill + self.decode


@dataclass(frozen=True)
class PhaseBytes:
    """Bytes over the memory bus in one phase, by what they carry."""

    weights: float
    key_value: float
    activations: float

    def __post_init__(self) -> None:
        _check_counts(weights=self.weights, key_value=self.key_value, activations=self.activations)

    @property
    def total(self) -> float:
        """All bytes of the phase."""
        return self.weights + self.key_value + self.activations


@dataclass(frozen=True)
class MemoryIO:
    """Bytes over the memory bus per utterance, by phase."""

    encoder: PhaseBytes
    prefill: PhaseBytes
    decode: PhaseBytes

    @property
    def total(self) -> float:
        """All bytes of the utterance."""
        return self.encoder.total + self.prefill.total + self.decode.total


@dataclass(frozen=True)
class Size:
    """The packed checkpoint.

    Attributes:
        bytes: Bytes on disk, headers apart.
        parameters: Stored parameters; a tied one counts once.
        bits_per_parameter: Stored bits over parameters.
        bits_per_parameter_without_embeddings: The same without embedding tables (a table that
            a head shares is one); an untied head stays in.
    """

    bytes: int
    parameters: int
    bits_per_parameter: float
    bits_per_parameter_without_embeddings: float

    def __post_init__(self) -> None:
        _check_counts(
            bytes=self.bytes,
            parameters=self.parameters,
            bits_per_parameter=self.bits_per_parameter,
            bits_per_parameter_without_embeddings=self.bits_per_parameter_without_embeddings,
        )


@dataclass(frozen=True)
class Cost:
    """What a model costs on a data set; per-utterance values are means over its utterances.

    Attributes:
        utterances: Utterances averaged over.
        seconds: Mean audio seconds per utterance.
        macs, bit_operations, memory_io: Means per utterance.
        size: The packed checkpoint.
        float_bits: Width of an unquantized value in this model.
    """

    utterances: int
    seconds: float
    macs: Macs
    bit_operations: BitOperations
    memory_io: MemoryIO
    size: Size
    float_bits: int

    def __post_init__(self) -> None:
        if self.utterances < 1:
            raise ValueError(f"utterances: {self.utterances} is below 1")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"seconds: {self.seconds} is not a positive length")

    @property
    def bit_operations_per_second(self) -> float:
        """Bit operations per second of audio, over the whole data set."""
        return self.bit_operations.total / self.seconds

    @property
    def bytes_per_second(self) -> float:
        """Bytes over the memory bus per second of audio, over the whole data set."""
        return self.memory_io.total / self.seconds
