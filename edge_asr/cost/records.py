"""What a model computes and stores, as plain records: the cost model's only input.

Every weight layer multiplies its whole weight once per output position, so its MACs are
`weight values x positions`. Attention products have two activation operands and no weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_asr.models.tensors import AttentionShape, Stack


@dataclass(frozen=True)
class Workload:
    """How much one utterance makes a model do.

    Attributes:
        seconds: Audio length in seconds.
        positions: Output positions of each encoder axis for this utterance: `"frame"` (encoder
            frames) and one axis for every convolution of the stem, named by the
            architecture map.
        prompt_tokens: Decoder tokens fed at once before the first generated token.
        generated_tokens: Tokens generated, the end token included, so at least 1; the decoder
            runs once a token, the first time over the whole prompt.

    Raises:
        ValueError: A count is negative, or no token is fed or generated.
    """

    seconds: float
    positions: dict[str, int]
    prompt_tokens: int
    generated_tokens: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError(f"seconds: {self.seconds} is not a finite length >= 0")
        for axis, count in self.positions.items():
            if count < 0:
                raise ValueError(f"positions[{axis!r}]: {count} is negative")
        if self.prompt_tokens < 1:
            raise ValueError(f"prompt_tokens: {self.prompt_tokens}; the start token makes 1")
        if self.generated_tokens < 1:
            raise ValueError(f"generated_tokens: {self.generated_tokens}; the end token makes 1")


@dataclass(frozen=True)
class LayerRecord:
    """One weight layer.

    Attributes:
        name: Module path in the model.
        stack: `encoder` or `decoder`; the cross-attention key and value layers belong to the
            decoder although they read encoder frames.
        role: Place in the block (`qkv`, `out`, `cross_q`, `cross_kv`, `fc1`, `fc2`, `conv`,
            `head`, `embedding`).
        weight_shape: Shape of the weight; out_features first (an embedding: rows first).
        axis: Where it is applied: `token` (once per decoder position), `frame` (once per
            encoder frame) or a stem axis of `Workload.positions`.
        weight_bits: Total bits stored for the weight: codes, scales, zero points, outlier
            values and indices. Of a tied layer the cost model reads the storing layer's.
        bits_per_weight: Width of one weight operand in the multiplier.
        bias_bits: Bits stored for the bias, 0 without one.
        input_bits, output_bits: Width of one activation value read and written.
        tied_to: Name of the layer that stores the weight, when this one only refers to it.
        runtime_op_macs: MACs per position of runtime ops (a Hadamard, a divide), on float operands.
        runtime_op_bits: Bits stored for them and for a static activation range.
        stride: Input positions consumed per output position (a strided convolution), else 1.
        float_columns: Input channels that are read in floating point, whatever `input_bits` is.
        float_column_bits: Width of their weights in the multiplier; `bits_per_weight` is that of
            all others.

    Raises:
        ValueError: A width is negative, or the shape has fewer than two dimensions.
    """

    name: str
    stack: Stack
    role: str
    weight_shape: tuple[int, ...]
    axis: str
    weight_bits: float
    bits_per_weight: float
    bias_bits: int = 0
    input_bits: int = 32
    output_bits: int = 32
    tied_to: str | None = None
    runtime_op_macs: int = 0
    stride: int = 1
    runtime_op_bits: float = 0.0
    float_columns: int = 0
    float_column_bits: float = 0.0

    def __post_init__(self) -> None:
        if len(self.weight_shape) < 2 or min(self.weight_shape) < 1:
            raise ValueError(f"{self.name}: weight_shape {self.weight_shape} is no weight matrix")
        widths = (self.weight_bits, self.bits_per_weight, self.bias_bits, self.input_bits)
        extra = (
            self.output_bits,
            self.runtime_op_macs,
            self.runtime_op_bits,
            self.float_column_bits,
        )
        if min(*widths, *extra) < 0 or self.stride < 1:
            raise ValueError(f"{self.name}: a width or runtime op is negative, or stride < 1")
        if not 0 <= self.float_columns <= self.weight_shape[1]:
            raise ValueError(
                f"{self.name}: float_columns {self.float_columns} of {self.weight_shape[1]} columns"
            )
        if self.stack == "encoder" and self.axis == "token":
            raise ValueError(f"{self.name}: axis 'token' belongs to the decoder")

    @property
    def weights(self) -> int:
        """Number of weight values."""
        return math.prod(self.weight_shape)

    @property
    def macs_per_position(self) -> int:
        """Multiply-accumulates of the weight per output position; an embedding only looks up."""
        return 0 if self.role == "embedding" else self.weights

    @property
    def float_share(self) -> float:
        """Part of the values it reads, and of its MACs, whose activation is float."""
        return self.float_columns / self.weight_shape[1]

    @property
    def input_values(self) -> int:
        """Activation values read per output position (ungrouped layers; ids are not counted)."""
        return 0 if self.role == "embedding" else self.weight_shape[1] * self.stride

    @property
    def output_values(self) -> int:
        """Activation values written per output position."""
        return self.weight_shape[1] if self.role == "embedding" else self.weight_shape[0]


@dataclass(frozen=True)
class AttentionRecord(AttentionShape):
    """One attention and the widths of its operands.

    Attributes:
        query_bits: Width of a query, a probability and a mixed value.
        key_value_bits: Width of a key and a value, also as they are cached.

    Raises:
        ValueError: A cross-attention in the encoder, a size that is not positive, or a padded head
            narrower than the head.
    """

    query_bits: int = 32
    key_value_bits: int = 32

    def __post_init__(self) -> None:
        if self.stack == "encoder" and self.kind == "cross":
            raise ValueError(f"{self.name}: an encoder has no cross-attention")
        if min(self.heads, self.head_dim, self.query_bits, self.key_value_bits) < 1:
            raise ValueError(f"{self.name}: heads, head_dim and widths must be positive")
        if self.padded_head_dim is not None and self.padded_head_dim < self.head_dim:
            raise ValueError(f"{self.name}: padded_head_dim is less than head_dim {self.head_dim}")

    @property
    def width(self) -> int:
        """Values of one query, key or value vector over all heads."""
        return self.heads * self.head_dim

    @property
    def padding(self) -> float:
        """Values multiplied per value of `width`: 1 unless heads are padded."""
        return (self.padded_head_dim or self.head_dim) / self.head_dim


@dataclass(frozen=True)
class RuntimeOpRecord:
    """An operation on activations between layers, such as a rotation before the head.

    Attributes:
        name: Module path in the model.
        stack, axis: Where and how often it runs, as of a `LayerRecord`.
        macs: MACs per position, on float operands.
        bits: Bits stored for it.

    Raises:
        ValueError: A count is negative, or the axis belongs to the other stack.
    """

    name: str
    stack: Stack
    axis: str
    macs: int
    bits: float = 0.0

    def __post_init__(self) -> None:
        if min(self.macs, self.bits) < 0:
            raise ValueError(f"{self.name}: macs or bits is negative")
        if self.stack == "encoder" and self.axis == "token":
            raise ValueError(f"{self.name}: axis 'token' belongs to the decoder")


@dataclass(frozen=True)
class ModelSummary:
    """All layers and attentions of a model, and the parameters that belong to neither.

    Attributes:
        layers: Weight layers; names are unique.
        attentions: Attentions.
        other_parameters: Number of norm, position-table and similar parameters, never quantized.
        other_parameter_bits: Bits stored for them.
        float_bits: Width of an unquantized value.
        runtime_ops: Those that belong to no layer.

    Raises:
        ValueError: Two layers share a name, or `tied_to` names no layer that stores a weight.
    """

    layers: tuple[LayerRecord, ...]
    attentions: tuple[AttentionRecord, ...]
    other_parameters: int
    other_parameter_bits: int
    float_bits: int = 32
    runtime_ops: tuple[RuntimeOpRecord, ...] = ()

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if len(set(names)) != len(names):
            raise ValueError("layers: two layers share a name")
        storing = {layer.name for layer in self.layers if layer.tied_to is None}
        for layer in self.layers:
            if layer.tied_to is not None and layer.tied_to not in storing:
                raise ValueError(f"{layer.name}: tied_to {layer.tied_to!r} stores no weight here")
