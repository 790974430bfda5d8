"""Quantized small models to export."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from quant.passes import batches_of, formats_of, stages

from edge_asr.models.loading import Checkpoint
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.sequential import quantize_model
from edge_asr.quant.weight import round_nearest

SIGNED: dict[str, Any] = {"symmetric": True, "signed": True}
GROUPS: dict[str, Any] = {"granularity": "group", "group_size": 8}

BLOCKS: dict[str, Any] = {**SIGNED, "granularity": "group", "group_size": 32}
# What each target of whisper.cpp holds, and how it reads inputs.
GGML = {
    "ggml_q4_0": Grid(4, signed_scale=True, **BLOCKS),
    "ggml_q5_0": Grid(5, signed_scale=True, **BLOCKS),
    "ggml_q8_0": Grid(8, **BLOCKS),
}
READ_IN_BLOCKS = ActivationGrid(8, True, "group", group_size=32, half_scales=True)


def quantized(
    checkpoint: Checkpoint, grid: Grid, inputs: ActivationGrid | None = None, **parts: Any
) -> Checkpoint:
    """A quantized copy, by rounding to nearest but for `parts`."""
    model = copy.deepcopy(checkpoint.model)
    quantize_model(
        model, checkpoint.architecture, batches_of(checkpoint), Recipe.build(stages(**parts)),
        formats_of(checkpoint, grid, inputs), stored_dtype=checkpoint.stored_dtype,
    )  # fmt: skip
    return dataclasses.replace(checkpoint, model=model)


def for_ggml(checkpoint: Checkpoint, target: str) -> Checkpoint:
    """A quantized copy that the target holds, its embedding and head included."""
    own = quantized(checkpoint, GGML[target], READ_IN_BLOCKS)
    embedding: Any = own.model.get_submodule(own.architecture.embedding)
    values = embedding.weight.detach()
    grid = GGML[target]
    embedding.quantized = round_nearest(values, minmax_parameters(values, grid), grid)
    values.copy_(embedding.quantized.dequantize())
    return own
