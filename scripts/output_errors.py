"""What GPTQ changes in a model, and what it changes if padding counts in calibration.

    python scripts/output_errors.py --model FOLDER --manifest FILE --bits 3 --group-size 32

Whisper pads every clip to its window, and attention reads that silence. GPTQ quantizes with
calibration.padding_weight=0 and with every padded frame as speech; the errors are of valid rows.
"""

from __future__ import annotations

import argparse
import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from bench_common import (
    Subject,
    add_clip_arguments,
    add_grid_arguments,
    block_contexts,
    draw_valid_rows,
    method_of,
    quantize,
    run,
    settings_of,
    subject_of,
    write_measurements,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor

from edge_asr.calibration.batches import CalibrationBatch
from edge_asr.models.families.sites import Site
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.context import BlockContext, Layer, SiteContext
from edge_asr.quant.formats import TensorFormat
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.stages import LayerFit

Weights = Mapping[str, Tensor]
Formats = Mapping[str, TensorFormat]
VALID_FRAMES = "valid frames"
EVERY_FRAME = "every frame"
# What a recipe leaves on the inputs of the float model if it is fitted to them.
REFITTED = "refitted"


@dataclass(frozen=True)
class Errors:
    """What quantized weights change, in units of the float model's variance.

    Attributes:
        on_float_inputs: Of every layer's output on the inputs that the float model gives it,
            summed over layers.
        on_own_inputs: The same on the inputs that the quantized layers before it give.
        of_states: Of the last decoder block's outputs, all layers being quantized.
    """

    on_float_inputs: float
    on_own_inputs: float
    of_states: float


@dataclass(frozen=True)
class OutputErrors(Subject):
    """Errors of a method that is calibrated on valid frames and on every frame.

    `valid_share` is the share of the encoder's frames that hold audio.
    """

    clips: int
    method: str
    bits: int
    group_size: str
    valid_share: float
    valid_frames: Errors
    every_frame: Errors


def layer_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weight of every linear layer inside a block, by its name in the checkpoint."""
    blocks = checkpoint.architecture.blocks(checkpoint.model.config)
    keys = [f"{name}.weight" for block in blocks for name in block.layers]
    return {key: checkpoint.model.get_parameter(key).detach() for key in keys}


def check_same_layers(weights: Weights, sides: Sequence[Weights]) -> None:
    """Raises ValueError where a side lacks a layer or has one that the model's blocks do not."""
    for side in sides:
        if differing := weights.keys() ^ side.keys():
            raise ValueError(f"layers quantized by one side only: {', '.join(sorted(differing))}")


@torch.no_grad()
def visit_blocks(
    checkpoint: Checkpoint,
    batches: Sequence[CalibrationBatch],
    formats: Formats,
    visit: Callable[[BlockContext], None],
) -> Tensor:
    """Show `visit` every block of a copy of the model, whose weights it may change before the
    batches go on; the last one's outputs [valid tokens, width]."""
    model = copy.deepcopy(checkpoint.model)
    for captured, context in block_contexts(model, checkpoint.architecture, batches, formats):
        visit(context)
        last = captured
    pairs = zip(last.outputs(), last.row_weights, strict=True)
    return torch.cat([states[weights > 0] for states, weights in pairs])


def rounded_here(recipe: Recipe, context: BlockContext, site: Site) -> dict[str, Tensor]:
    """Weights of the site's layers rounded by `recipe`, fitted to the inputs of `context`."""
    statistics, grids = context.statistics(site), context.grids(site.layers)
    fits = {
        name: LayerFit(recipe.range, grid, statistics, Layer(name, name in site.logit_layers))
        for name, grid in grids.items()
    }
    weights = {name: layer.weight.detach() for name, layer in context.layers(site).items()}
    site_context = SiteContext(site, weights, statistics, grids, fits)
    rounded = recipe.rounding.round_block(context, [site_context])
    return {f"{name}.weight": weight.dequantize() for name, weight in rounded.items()}


def errors_on_float_inputs(
    checkpoint: Checkpoint,
    batches: Sequence[CalibrationBatch],
    sides: Mapping[str, Weights],
    recipe: Recipe,
    formats: Formats,
) -> tuple[dict[str, float], Tensor]:
    """`Errors.on_float_inputs` of every side and of `recipe` fitted there, and the last states."""
    weights = layer_weights(checkpoint)
    check_same_layers(weights, list(sides.values()))
    totals: dict[str, float] = defaultdict(float)

    def add(context: BlockContext) -> None:
        for site in context.block.sites:
            statistics = context.statistics(site)
            fitted = {REFITTED: rounded_here(recipe, context, site)}
            for key in (f"{name}.weight" for name in site.layers):
                for side, tensors in {**sides, **fitted}.items():
                    rounded = tensors[key].float()
                    totals[side] += statistics.relative_output_error(weights[key], rounded)

    states = visit_blocks(checkpoint, batches, formats, add)
    return dict(totals), states


def error_on_own_inputs(
    checkpoint: Checkpoint, batches: Sequence[CalibrationBatch], side: Weights
) -> tuple[float, Tensor]:
    """`Errors.on_own_inputs` of one side, and the last states that it gives."""
    weights = layer_weights(checkpoint)
    check_same_layers(weights, [side])
    total = 0.0

    def add(context: BlockContext) -> None:
        nonlocal total
        for name in context.block.layers:
            context.layer(name).weight.copy_(side[f"{name}.weight"])
        for site in context.block.sites:
            statistics = context.statistics(site)
            for key in (f"{name}.weight" for name in site.layers):
                total += statistics.relative_output_error(weights[key], side[key].float())

    states = visit_blocks(checkpoint, batches, {}, add)
    return total, states


def relative_change(states: Tensor, exact: Tensor) -> float:
    """Mean squared distance of rows [tokens, width] in units of the variance of `exact`."""
    exact = exact.double()
    distance = (states.double() - exact).square().sum(1).mean()
    return float(distance / exact.var(0, correction=0).sum())


def errors_of(
    checkpoint: Checkpoint,
    batches: Sequence[CalibrationBatch],
    sides: Mapping[str, Weights],
    recipe: Recipe,
    formats: Formats,
) -> tuple[dict[str, Errors], float]:
    """Errors of every side; and the summed error that `recipe`, whose rewrites are left out, has
    on the float model's inputs when it is fitted to them."""
    on_float, exact = errors_on_float_inputs(checkpoint, batches, sides, recipe, formats)
    errors = {}
    for name, side in sides.items():
        own, states = error_on_own_inputs(checkpoint, batches, side)
        errors[name] = Errors(on_float[name], own, relative_change(states, exact))
    return errors, on_float[REFITTED]


def every_frame(batches: Sequence[CalibrationBatch]) -> list[CalibrationBatch]:
    """The batches as if their padding were speech."""
    return [replace(one, frame_weights=torch.ones_like(one.frame_weights)) for one in batches]


def quantized(
    checkpoint: Checkpoint,
    batches: Sequence[CalibrationBatch],
    recipe: Recipe,
    formats: Formats,
) -> Weights:
    """The dequantized weights of a copy of the model."""
    changed = replace(checkpoint, model=copy.deepcopy(checkpoint.model))
    quantize(changed, batches, recipe, formats)
    return layer_weights(changed)


def measure(arguments: argparse.Namespace) -> OutputErrors:
    """Quantize both ways and take the errors of both."""
    torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(str(arguments.model))
    recipe, formats = method_of(settings_of(arguments, "gptq"), checkpoint)
    batches = draw_valid_rows(arguments, checkpoint, arguments.batch_size)
    alone = draw_valid_rows(arguments, checkpoint, batch_size=1)
    sides = {
        VALID_FRAMES: quantized(checkpoint, batches, recipe, formats),
        EVERY_FRAME: quantized(checkpoint, every_frame(batches), recipe, formats),
    }
    errors, _ = errors_of(checkpoint, alone, sides, recipe, formats)
    return OutputErrors(
        **vars(subject_of(arguments, checkpoint.files)),
        clips=arguments.clips,
        method="gptq",
        bits=arguments.bits,
        group_size=arguments.group_size,
        valid_share=float(torch.cat([one.frame_weights.flatten() for one in batches]).mean()),
        valid_frames=errors[VALID_FRAMES],
        every_frame=errors[EVERY_FRAME],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_clip_arguments(parser, clips=64)
    add_grid_arguments(parser)
    parser.add_argument("--out", type=Path, help="write the errors as JSON")
    arguments = parser.parse_args()
    run(parser, lambda: show(measure(arguments), arguments.out))


def show(made: OutputErrors, out: Path | None) -> None:
    """Print both, and write them if asked to."""
    table = Table("GPTQ calibrated on", "float inputs", "own inputs", "last states", box=None)
    for name, one in ((VALID_FRAMES, made.valid_frames), (EVERY_FRAME, made.every_frame)):
        table.add_row(name, *(f"{number:.4g}" for number in vars(one).values()))
    Console().print(table)
    Console().print(f"{made.valid_share:.0%} of the frames are valid", highlight=False)
    if out:
        write_measurements(out, made)


if __name__ == "__main__":
    main()
