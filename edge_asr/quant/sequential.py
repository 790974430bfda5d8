"""The sequential pass: quantize block after block, each on inputs of the quantized ones before it.

First the layers outside of blocks are quantized, where the scheme asks for that. Then for every
block in forward order: (1) capture its inputs, (2) rewrite, range, round and repair it
with the parts of the recipe, (3) put the dequantized weights in place and run the inputs through
it. So later layers are fitted to the errors of earlier ones (as GPTQ's authors do). A recipe that
looks at no clips is given none, and nothing is run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from edge_asr.calibration.capture import Batch, CalibrationPass
from edge_asr.models.families.base import Architecture
from edge_asr.quant.artefact import StoredDtype
from edge_asr.quant.formats import TensorFormat
from edge_asr.quant.layers import install_layers
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.result import Quantization
from edge_asr.quant.sequential_pass import SequentialPass

Progress = Callable[[str, int, int], None]


@torch.no_grad()
def quantize_model(
    model: PreTrainedModel,
    architecture: Architecture,
    batches: Sequence[Batch],
    recipe: Recipe,
    formats: Mapping[str, TensorFormat],
    *,
    stored_dtype: StoredDtype = lambda _: torch.float32,
    layer_errors: bool = True,
    dtype: torch.dtype = torch.float32,
    finished: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Quantization:
    """Quantize `model` in place by `recipe`.

    Args:
        model: The float model; the Linears of its blocks, and what else has a format, become
            `QuantizedLayer`s.
        architecture: Its map.
        batches: Calibration batches; none where nothing looks at clips.
        recipe: The method.
        formats: What the scheme asks for, for every Linear inside a block and what else it
            quantizes.
        stored_dtype: The dtype in which a parameter is stored that stays floating point. Those that
            a part changes are rounded to it before later blocks see them.
        layer_errors: Measure the output error of every layer on `batches`, a diagnostic.
        dtype: Of the products and attention of blocks that calibration batches pass through,
            float32 or bfloat16.
        finished: A folder in which finished blocks are kept, and found again by a later call with
            the same arguments.
        progress: Called with (what goes on, blocks done, total) while a part learns, and with
            (block and its losses, done, total) after every block.
    """
    recipe.correction.check_clips(batches)
    blocks = list(architecture.blocks(model.config))
    install_layers(model, {*(name for block in blocks for name in block.layers), *formats})
    engine = SequentialPass(
        model, architecture, recipe, formats, stored_dtype, layer_errors, finished
    )
    engine.rewrite_model(batches, lambda text: progress(text, 0, len(blocks)))
    reference = floats_of_blocks = None
    if recipe.follows_float or recipe.correction.trains_model:
        reference = copy.deepcopy(model)
    if recipe.follows_float and reference is not None:
        beside = CalibrationPass(reference, architecture, batches, dtype)
        floats_of_blocks = beside.captured_blocks()
    engine.quantize_outside(batches, partial(_show, progress, 0, len(blocks)))
    captured_blocks = CalibrationPass(model, architecture, batches, dtype).captured_blocks()
    for done in range(len(blocks)):
        with engine.clock.phase("forward"):
            captured = next(captured_blocks)
        with engine.clock.phase("targets"):
            floats = None if floats_of_blocks is None else next(floats_of_blocks)
        shown = partial(_show, progress, done, len(blocks))
        engine.quantize(f"block-{done:03d}", captured, floats, shown)
        progress(engine.result.summary(captured.block.module), done + 1, len(blocks))
    engine.repair_model(batches, lambda text: progress(text, len(blocks), len(blocks)), reference)
    return engine.result


def _show(progress: Progress, done: int, total: int, text: str) -> None:
    progress(text, done, total)
