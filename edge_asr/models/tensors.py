"""Which tensors a model has, in words that need no model: stacks, roles, kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stack = Literal["encoder", "decoder"]
Role = Literal["qkv", "out", "cross_q", "cross_kv", "fc1", "fc2", "conv", "head", "embedding"]
TensorKind = Literal["linear", "convolution", "embedding", "head", "kv_cache", "attention"]

# The roles of Linear layers inside blocks.
ROLES: dict[Stack, tuple[Role, ...]] = {
    "encoder": ("qkv", "out", "fc1", "fc2"),
    "decoder": ("qkv", "out", "cross_q", "cross_kv", "fc1", "fc2"),
}


@dataclass(frozen=True)
class Slot:
    """A tensor that a scheme can give a format: a weight, or the operands of an operation.

    `name` is a module path; `role` is None where nothing in a block plays one.
    """

    name: str
    stack: Stack
    role: Role | None
    kind: TensorKind


@dataclass(frozen=True)
class AttentionShape:
    """One attention: scores (query x key) and mixing (probabilities x value).

    Attributes:
        name: Module path in the model.
        stack: `encoder` or `decoder`.
        kind: `self`, or `cross` (decoder queries on encoder frames).
        heads, head_dim: Number of heads and values per head.
        padded_head_dim: Values per head in the two products, where the model pads heads with
            zeros for them (after caching, so that nothing stored grows), or None for `head_dim`.
    """

    name: str
    stack: Stack
    kind: Literal["self", "cross"]
    heads: int
    head_dim: int
    padded_head_dim: int | None = None
