"""Layers outside of blocks, as blocks of one layer each: convolutions, embedding and head.

They are quantized before the first block, in forward order, so that blocks are fitted to what they
really read. A table that is the head too is rounded for what the head reads; any other one for
its rows as they are, for that is what a lookup gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edge_asr.calibration.capture import Batch, CalibrationPass, Call, CapturedBlock
from edge_asr.errors import UserError
from edge_asr.models.families.base import Architecture
from edge_asr.models.families.sites import Axis, Block, Site
from edge_asr.models.tensors import Slot
from edge_asr.quant.formats import TensorFormat
from edge_asr.quant.layers import QuantizedEmbedding, QuantizedLayer


class ReadRows(nn.Module):
    """A layer up to its product: what it reads, as rows, passes its input quantizer."""

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        rows: Tensor = self.layer.quantize_input(self.layer.rows(input))
        return rows


def refuse_head_of_its_own(
    formats: Mapping[str, TensorFormat], architecture: Architecture, tied: bool
) -> None:
    """Raises UserError where embedding and head are one tensor and asked to have two formats."""
    head, table = (
        formats.get(name, TensorFormat()) for name in (architecture.head, architecture.embedding)
    )
    if tied and head.weights != table.weights:
        raise UserError(
            f"scheme: the head ({architecture.head}) is the embedding ({architecture.embedding}), "
            f"one tensor, and is to be {head.label} and {table.label}; give the rule to kind: "
            "embedding, which serves both"
        )


def with_one_table(
    formats: Mapping[str, TensorFormat], model: nn.Module, architecture: Architecture
) -> dict[str, TensorFormat]:
    """`formats`, the weight of a head that is the embedding left to the embedding."""
    formats = dict(formats)
    refuse_head_of_its_own(formats, architecture, architecture.is_tied(model))
    if architecture.head in formats and architecture.is_tied(model):
        formats[architecture.head] = replace(formats[architecture.head], weights=None)
    return formats


def captured_layers(
    model: PreTrainedModel,
    architecture: Architecture,
    batches: Sequence[Batch],
    formats: Mapping[str, TensorFormat],
) -> Iterator[CapturedBlock]:
    """The layers outside of blocks that `formats` ask something of, with what they read."""
    for slot in architecture.slots(model.config):
        if slot.kind == "linear" or formats.get(slot.name, TensorFormat()) == TensorFormat():
            continue
        layer = model.get_submodule(slot.name)
        assert isinstance(layer, QuantizedLayer)
        calls, weights = _read(model, architecture, batches, slot, layer)
        assert slot.role is not None
        axis: Axis = "token" if slot.stack == "decoder" else "frame"
        site = Site(slot.role, slot.stack, (slot.name,), None, axis)
        block = Block(slot.name, slot.stack, (site,))
        yield CapturedBlock(model, block, ReadRows(layer), calls, weights)


def _read(
    model: PreTrainedModel,
    architecture: Architecture,
    batches: Sequence[Batch],
    slot: Slot,
    layer: QuantizedLayer,
) -> tuple[list[Call], list[Tensor]]:
    """What the layer reads of every batch, and what its rows count."""
    if not batches:
        return [], []
    reader, device = slot.name, layer.weight.device
    if isinstance(layer, QuantizedEmbedding):
        if not architecture.is_tied(model):
            # Every column of a row by itself, as errors of what is looked up add up.
            columns = torch.eye(layer.embedding_dim, device=device)[None]
            return [Call((columns,), {})], [torch.ones(columns.shape[:2], device=device)]
        reader = architecture.head
    calls = CalibrationPass(model, architecture, batches).calls_of(reader)
    if slot.stack == "decoder":
        return calls, [batch.token_mask.to(device).float() for batch in batches]
    weights = []
    for call, batch in zip(calls, batches, strict=True):
        frames = batch.frame_weights.to(device)
        positions = layer.rows(call.hidden[:1]).shape[1]
        # A position counts as much as the frame it becomes a part of.
        index = torch.arange(positions, device=device) * frames.shape[1] // positions
        weights.append(frames[:, index])
    return calls, weights
