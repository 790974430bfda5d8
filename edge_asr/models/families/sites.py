"""Blocks and sites: the parts of a model that an architecture map names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from edge_asr.models.tensors import Role, Stack

Axis = Literal["frame", "token"]


@dataclass(frozen=True)
class Site:
    """The layers that read the same activation.

    Attributes:
        role: Place in the block.
        stack: The stack whose forward pass computes them.
        layers: Module paths.
        source: The norm or layer whose output channels can absorb a per-channel scale exactly,
            or None where something non-linear lies between.
        axis: Whether the activation has one row per encoder frame or per decoder token.
        source_rows: Which output channels of `source` feed this site linearly.
        logit_layers: Those of `layers` that make queries or keys.
        reader: The attention that reads this site's outputs, where one does: a rewrite of
            queries, keys and values is judged by what comes out of it.
        shift_invariant_layers: Those of `layers` whose outputs may all move by one constant vector
            without any change behind the softmax: keys without rotary positions.
    """

    role: Role
    stack: Stack
    layers: tuple[str, ...]
    source: str | None
    axis: Axis
    source_rows: Literal["all", "first_half"] = "all"
    logit_layers: tuple[str, ...] = ()
    reader: str | None = None
    shift_invariant_layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """A residual block, or the cross-attention memory that all decoder blocks share.

    `module` is the path of the module that is run; `axis` that of its hidden states.
    """

    module: str
    stack: Stack
    sites: tuple[Site, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(name for site in self.sites for name in site.layers)

    @property
    def modules(self) -> frozenset[str]:
        """Modules whose parameters are the block's own, or those of what feeds it."""
        sources = (site.source for site in self.sites if site.source)
        return frozenset({self.module, *self.layers, *sources})


@dataclass(frozen=True)
class ResidualStream:
    """What a rotation of one stack's residual stream must touch.

    Attributes:
        stack: Which of the two independent streams.
        writers: Layers and tables whose output is added to the stream. The encoder's stem ends
            in a GELU and is not among them: a rotation must follow it explicitly.
        readers: Layers that read the stream through a norm.
        norms: The norms between them, whose scale (and bias) must first move into the readers.
    """

    stack: Stack
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    norms: tuple[str, ...]


@dataclass(frozen=True)
class StemAxis:
    """A convolution of the encoder stem and the name of the axis it is applied along."""

    layer: str
    axis: str


def counted_rows(weights: torch.Tensor) -> slice | torch.Tensor:
    """Positions at which a row of `weights` [batch, positions] is above zero, at least one.

    Leading ones, which is what they are where padding has no weight, come as a slice: it copies
    nothing.
    """
    rows = weights.any(0).nonzero().flatten()
    if not len(rows) or int(rows[-1]) + 1 == len(rows):
        return slice(max(len(rows), 1))
    return rows


def layers_with_roles(blocks: Sequence[Block], roles: Sequence[Role]) -> tuple[str, ...]:
    """The layers of `blocks` whose site has one of `roles`, in forward order."""
    return tuple(
        name
        for block in blocks
        for site in block.sites
        if site.role in roles
        for name in site.layers
    )


def norms_of(blocks: Sequence[Block]) -> tuple[str, ...]:
    """The norms that feed the sites of `blocks`, in forward order."""
    return tuple(
        site.source
        for block in blocks
        for site in block.sites
        if site.role in ("qkv", "cross_q", "fc1") and site.source
    )


def self_attention_site(
    attention: str, norm: str, stack: Stack, axis: Axis, *, rotary: bool = False
) -> Site:
    """The projections of the self-attention module `attention`, which read one activation."""
    query, key, value = (f"{attention}.{part}_proj" for part in "qkv")
    return Site(
        "qkv",
        stack,
        (query, key, value),
        norm,
        axis,
        logit_layers=(query, key),
        reader=attention,
        shift_invariant_layers=() if rotary else (key,),
    )


def cross_query_site(attention: str, norm: str) -> Site:
    """The query projection of the cross-attention module `attention`."""
    query = f"{attention}.q_proj"
    return Site(
        "cross_q", "decoder", (query,), norm, "token", logit_layers=(query,), reader=attention
    )
