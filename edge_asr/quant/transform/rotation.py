"""Fold orthogonal matrices into a model: residual streams, value heads, inputs of layers.

The folding of QuaRot (Ashkboos et al. 2024, arXiv:2404.00456, section 4, after SliceGPT) for
encoder-decoder models with LayerNorm. Activations are rows: a rotation takes x to x Q, so a
layer that reads x becomes W Q and one that writes x becomes Qᵀ W (weights are
[out_features, in_features]). All functions take any orthogonal matrix.

First `fold_norms` makes every LayerNorm of a stream an RMSNorm without parameters, which
commutes with any rotation; then `rotate_stream` and `rotate_heads` may follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edge_asr.models.families.base import Architecture
from edge_asr.models.families.sites import ResidualStream, Site
from edge_asr.models.tensors import Stack
from edge_asr.quant.layers import QuantizedLinear, RuntimeOp
from edge_asr.quant.transform.stream_modules import (
    ENTRY,
    FoldedNorm,
    MatrixProduct,
    StreamEntry,
    StreamExit,
)


def rotate_inputs(weight: Tensor, matrices: Tensor) -> Tensor:
    """Weight of a layer whose input rows are rotated.

    Args:
        weight: [rows, blocks x n]; a bias or a table of rows rotates in the same way.
        matrices: Orthogonal [n, n], the same for every run of n channels, or [blocks, n, n].

    Returns:
        W diag(matrices), same shape. Differentiable in both.
    """
    blocks = weight.reshape(len(weight), -1, matrices.shape[-1])
    matrices = matrices.expand(blocks.shape[1], -1, -1)
    return torch.einsum("rbi,bij->rbj", blocks, matrices).reshape(weight.shape)


def rotate_outputs(weight: Tensor, matrices: Tensor) -> Tensor:
    """diag(matrices)ᵀ W for `weight` [blocks x n, columns]; see `rotate_inputs`."""
    return rotate_inputs(weight.T, matrices).T


@dataclass(frozen=True)
class Rotation:
    """An orthogonal matrix, float64 [n, n], that acts on rows: x -> x @ matrix."""

    matrix: Tensor

    def runtime_op(self, *, inverse: bool = False) -> RuntimeOp:
        """The module that applies it, or its inverse, to activations."""
        return MatrixProduct(self.matrix.T if inverse else self.matrix)


@contextmanager
def double_precision(model: PreTrainedModel) -> Iterator[None]:
    """Hold all parameters in float64 inside the context and in their own precision after it.

    Tied parameters stay tied; a parameter that is new afterwards takes the model's precision.
    """
    usual = model.dtype
    before = {parameter: parameter.dtype for parameter in model.parameters()}
    for parameter in before:
        parameter.data = parameter.data.double()
    try:
        yield
    finally:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(before.get(parameter, usual))


@torch.no_grad()
def fold_norms(
    model: PreTrainedModel, architecture: Architecture, *, untie: bool = False
) -> list[str]:
    """Turn every LayerNorm of both residual streams into an RMSNorm without parameters.

    Scales and biases move into the readers; writers are centred over their output channels, so
    that the mean a LayerNorm would subtract is zero. Where a stream starts with something that
    cannot be centred in place (the encoder's GELU; a token embedding that is also the head), a
    `StreamEntry` in front of the first block centres instead, and tables that are added before
    it stay as they are. A tied head also stays, behind a `StreamExit`.

    A reader without bias would need one for W β. Keys without rotary positions do without it:
    the constant adds the same to all logits of a query, which softmax ignores.

    Args:
        model: Rewritten in place; computes the same as before.
        architecture: Its map.
        untie: Give head and embedding a table each, folded, instead of entry and exit.

    Returns:
        Warnings about parameters that the model did not have before.

    Raises:
        TypeError: when a norm of a stream is no LayerNorm, for example folded already.
    """
    warnings = _untie(model, architecture) if untie and architecture.is_tied(model) else []
    invariant = {
        name
        for block in architecture.blocks(model.config)
        for site in block.sites
        for name in site.shift_invariant_layers
    }
    for stream in architecture.residual_streams(model.config):
        entry = _needs_entry(model, architecture, stream)
        readers = _readers(architecture, stream, model.config)
        for name in stream.norms:
            norm = model.get_submodule(name)
            if not isinstance(norm, nn.LayerNorm):
                raise TypeError(f"{name} is no LayerNorm but {type(norm).__name__}")
            if entry and architecture.head in readers[name]:
                StreamExit().attach(model, name)
                continue
            for reader in readers[name]:
                warnings += _fold_norm(model, norm, reader, droppable=reader in invariant)
            plain = FoldedNorm(norm.normalized_shape[0], norm.eps)
            plain.train(norm.training).attach(model, name)
        for writer in _writers(model, stream, entry):
            _centre(writer)
        if entry:
            width = architecture.width(model.config)
            StreamEntry(width).attach(model, _entry(architecture, stream.stack))
    return warnings


@torch.no_grad()
def rotate_stream(
    model: PreTrainedModel, architecture: Architecture, stack: Stack, rotation: Rotation
) -> None:
    """Rotate the residual stream of `stack`, after `fold_norms`; the outputs stay the same.

    Raises:
        ValueError: when its norms are not folded, or it is rotated already.
    """
    stream = next(
        stream
        for stream in architecture.residual_streams(model.config)
        if stream.stack == stack
    )  # fmt: skip
    if isinstance(model.get_submodule(stream.norms[0]), nn.LayerNorm):
        raise ValueError(f"fold the norms of the {stack} before its stream is rotated")
    entered = _needs_entry(model, architecture, stream)
    matrix = rotation.matrix.to(model.device)
    if entered:
        entry = model.get_submodule(_entry(architecture, stack))
        assert isinstance(entry, StreamEntry)
        entry.rotate(rotation.runtime_op().to(model.device))
    for writer in _writers(model, stream, entered):
        if isinstance(writer, nn.Embedding):
            writer.weight.copy_(rotate_inputs(writer.weight.double(), matrix))
            continue
        writer.weight.copy_(rotate_outputs(writer.weight.double(), matrix))
        if writer.bias is not None:
            writer.bias.copy_(rotate_inputs(writer.bias.double()[None], matrix)[0])
    for name in stream.norms:
        norm = model.get_submodule(name)
        if isinstance(norm, StreamExit):
            norm.rotation = rotation.runtime_op(inverse=True).to(model.device)
            continue
        for reader in _readers(architecture, stream, model.config)[name]:
            weight: Any = model.get_submodule(reader).weight
            weight.copy_(rotate_inputs(weight.double(), matrix))


@dataclass(frozen=True)
class StreamTensors:
    """Paths of what a rotation of one residual stream acts on, after `fold_norms`.

    Attributes:
        outputs: Layers that write the stream: weights (and biases) rotate on their outputs.
        tables: Embeddings that write it.
        inputs: Layers that read it.
        entry, exit: Matrices of the explicit rotations into and out of it, where it has them.
    """

    outputs: tuple[str, ...]
    tables: tuple[str, ...]
    inputs: tuple[str, ...]
    entry: str | None
    exit: str | None


def stream_tensors(
    model: PreTrainedModel, architecture: Architecture, stream: ResidualStream
) -> StreamTensors:
    """What `rotate_stream` rotates, by path, for those who rotate differentiably.

    Entry and exit have a matrix only once a dense `Rotation` is in place.
    """
    entered = _needs_entry(model, architecture, stream)
    kept = set(map(id, _writers(model, stream, entered)))
    writers = [name for name in stream.writers if id(model.get_submodule(name)) in kept]
    tables = [name for name in writers if isinstance(model.get_submodule(name), nn.Embedding)]
    exits = [name for name in stream.norms if isinstance(model.get_submodule(name), StreamExit)]
    readers = _readers(architecture, stream, model.config)
    return StreamTensors(
        outputs=tuple(name for name in writers if name not in tables),
        tables=tuple(tables),
        inputs=tuple(name for norm in stream.norms if norm not in exits for name in readers[norm]),
        entry=f"{_entry(architecture, stream.stack)}.rotation.matrix" if entered else None,
        exit=f"{exits[0]}.rotation.matrix" if exits else None,
    )


@torch.no_grad()
def rotate_heads(model: nn.Module, site: Site, matrices: Tensor) -> None:
    """Rotate the values of every head of an attention, and back in the layer that reads them.

    Mixing positions commutes with a rotation of the channels of a head, so this is exact for
    self- and cross-attention.

    Args:
        model: Rewritten in place.
        site: An `out` site: its layer reads, its source writes the values.
        matrices: Orthogonal float64 [head_dim, head_dim], or [heads, head_dim, head_dim].
    """
    value: Any = model.get_submodule(str(site.source))
    out: Any = model.get_submodule(site.layers[0])
    matrices = matrices.to(value.weight.device)
    value.weight.copy_(rotate_outputs(value.weight.double(), matrices))
    if value.bias is not None:
        value.bias.copy_(rotate_inputs(value.bias.double()[None], matrices)[0])
    out.weight.copy_(rotate_inputs(out.weight.double(), matrices))


@torch.no_grad()
def rotate_at_runtime(layer: QuantizedLinear, op: RuntimeOp) -> None:
    """Let the orthogonal `op` run on the layer's input and undo it in the layer's weight.

    Rows of the weight [out_features, in_features] rotate as rows of the input do: with input x Q
    and weight W Q the output is x Q Qᵀ Wᵀ.
    """
    op = op.to(layer.weight.device)
    layer.weight.copy_(op(layer.weight.double()))
    layer.input_ops.append(op)


def _untie(model: PreTrainedModel, architecture: Architecture) -> list[str]:
    """Give the head a table of its own; returns a warning about its size."""
    head: Any = model.get_submodule(architecture.head)
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return [f"head and embedding are untied: {head.weight.numel()} more parameters to store"]


def _needs_entry(model: nn.Module, architecture: Architecture, stream: ResidualStream) -> bool:
    """Whether the start of the stream cannot be centred and rotated in place."""
    return architecture.embedding not in stream.writers or architecture.is_tied(model)


def _readers(
    architecture: Architecture, stream: ResidualStream, config: Any
) -> dict[str, tuple[str, ...]]:
    """The layers behind every norm of the stream."""
    readers = {
        site.source: site.layers
        for block in architecture.blocks(config)
        for site in block.sites
        if site.source in stream.norms
    }
    readers[architecture.decoder_norm] = (architecture.head,)
    return {norm: readers[norm] for norm in stream.norms}


def _writers(model: nn.Module, stream: ResidualStream, entered: bool) -> list[Any]:
    """The writers behind the entry, if there is one: tables are added before it."""
    writers = [model.get_submodule(name) for name in stream.writers]
    return [writer for writer in writers if not (entered and isinstance(writer, nn.Embedding))]


def _entry(architecture: Architecture, stack: Stack) -> str:
    """Where the entry of a stack is: in its first block."""
    first = {"encoder": architecture.encoder_block, "decoder": architecture.decoder_block}[stack](0)
    return f"{first.module}.{ENTRY}"


def _fold_norm(model: nn.Module, norm: nn.LayerNorm, reader: str, *, droppable: bool) -> list[str]:
    """Move scale γ and bias β of `norm` into a reader: W diag(γ) and b + W β."""
    layer: Any = model.get_submodule(reader)
    weight = layer.weight.double()
    warnings = []
    if norm.bias is not None:
        constant = weight @ norm.bias.double()
        if layer.bias is not None:
            layer.bias.copy_(layer.bias.double() + constant)
        elif not droppable:
            layer.bias = nn.Parameter(constant.to(layer.weight.dtype), requires_grad=False)
            warnings.append(f"{reader} has a bias now: {len(constant)} more parameters to store")
    layer.weight.copy_(weight * norm.weight.double())
    return warnings


def _centre(writer: Any) -> None:
    """Subtract the mean over output channels from everything that `writer` can write."""
    if isinstance(writer, nn.Embedding):
        table = writer.weight.double()
        writer.weight.copy_(table - table.mean(1, keepdim=True))
        return
    weight = writer.weight.double()
    writer.weight.copy_(weight - weight.mean(0))
    if writer.bias is not None:
        bias = writer.bias.double()
        writer.bias.copy_(bias - bias.mean())
