"""Quantized small models to export."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from quant.passes import batches_of, formats_of, stages

from edge_asr.models.loading import Checkpoint
from edge_asr.quant.formats import ActivationGrid, Grid, TensorFormat
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.sequential import quantize_model

# What layers of published models read: widths, and four times as many.
WIDTHS = (288, 384, 416, 1152, 1536, 1664)
SIGNED: dict[str, Any] = {"symmetric": True, "signed": True}
GROUPS: dict[str, Any] = {"granularity": "group", "group_size": 8}

BLOCKS_OF_32: dict[str, Any] = {"granularity": "group", "group_size": 32}
BLOCKS: dict[str, Any] = {**SIGNED, **BLOCKS_OF_32}
MINIMA: dict[str, Any] = {**BLOCKS_OF_32, "zero_point": "minimum", "include_zero": False}
# What each target of whisper.cpp holds, and how it reads inputs.
GGML = {
    "ggml_q4_0": Grid(4, signed_scale=True, **BLOCKS),
    "ggml_q4_1": Grid(4, **MINIMA),
    "ggml_q5_0": Grid(5, signed_scale=True, **BLOCKS),
    "ggml_q5_1": Grid(5, **MINIMA),
    "ggml_q8_0": Grid(8, **BLOCKS),
}
READ_IN_BLOCKS = ActivationGrid(8, True, "group", group_size=32, half_scales=True)


def quantized(
    checkpoint: Checkpoint,
    grid: Grid,
    inputs: ActivationGrid | None = None,
    *,
    others: Mapping[str, ActivationGrid | None] | None = None,
    layers: bool = True,
    **parts: Any,
) -> Checkpoint:
    """A quantized copy, by rounding to nearest but for `parts`; `others` are kinds outside of
    blocks that are quantized too, with how they read their inputs. Without `layers` only those."""
    model = copy.deepcopy(checkpoint.model)
    formats = formats_of(checkpoint, grid, inputs)
    if not layers:
        formats = dict.fromkeys(formats, TensorFormat())
    for slot in checkpoint.architecture.slots(model.config):
        if slot.kind in (others or {}):
            formats[slot.name] = TensorFormat(grid, (others or {})[slot.kind])
    quantize_model(
        model, checkpoint.architecture, batches_of(checkpoint), Recipe.build(stages(**parts)),
        formats, stored_dtype=checkpoint.stored_dtype,
    )  # fmt: skip
    return dataclasses.replace(checkpoint, model=model)


def for_ggml(checkpoint: Checkpoint, target: str) -> Checkpoint:
    """A quantized copy that the target holds, its embedding and head included."""
    others = {"embedding": None, "head": READ_IN_BLOCKS}
    return quantized(checkpoint, GGML[target], READ_IN_BLOCKS, others=others)
