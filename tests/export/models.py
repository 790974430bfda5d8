"""Quantized small models to export."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from quant.passes import batches_of, formats_of, stages

from edge_asr.models.loading import Checkpoint
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.sequential import quantize_model

SIGNED: dict[str, Any] = {"symmetric": True, "signed": True}
GROUPS: dict[str, Any] = {"granularity": "group", "group_size": 8}


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
