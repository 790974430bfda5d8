"""GPTQ here against GPTQ of llm-compressor: time, memory and output error on the same clips.

    python scripts/bench_llm_compressor.py --model FOLDER --manifest FILE --peer PYTHON --out FILE

PYTHON is the interpreter of an environment with llm-compressor (a virtual environment of its own:
`pip install llmcompressor`). Both quantize the same linear layers to 4 bits, asymmetric, in groups
of 128, each in a process of its own, one after the other. Errors are then taken the same way for
both, on valid rows and in units of the variance of what the float model gives there. What the two
fit to differs: GPTQ here to valid rows behind the quantized layers, llm-compressor's to all frames
of the float model. So ours is also fitted to the float model's inputs, and to every frame.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from bench_common import (
    add_clip_arguments,
    draw,
    file_sha256,
    measured_alone,
    processor,
    settings_of,
    write_measurements,
)
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge_asr.data.calibration import CalibrationBatch
from edge_asr.errors import UserError
from edge_asr.memory import peak_memory_bytes
from edge_asr.models.architecture import Site
from edge_asr.models.loading import Checkpoint, load_checkpoint, weights_sha256
from edge_asr.quant.grid import Grid
from edge_asr.quant.layers import install_layers
from edge_asr.quant.passage import Passage
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.stages import LayerFit
from edge_asr.quant.walker import quantize_model
from edge_asr.quant.work import BlockWork, Layer, SiteWork
from edge_asr.record import Environment, current_environment

PEER = Path(__file__).with_name("gptq_of_llm_compressor.py")


Weights = Mapping[str, Tensor]
FITTED_TO_FLOAT = "edge_asr on float inputs"
FITTED_TO_SILENCE = "edge_asr on every frame"


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
class Side:
    """Seconds, peak resident bytes of the whole process, and errors."""

    seconds: float
    peak_bytes: int
    errors: Errors
    versions: dict[str, str]


@dataclass(frozen=True)
class Comparison:
    """Both sides on one model and one choice of clips.

    `fitted_to_float_inputs` is what ours leaves on the float model's inputs if it is fitted to
    them, `fitted_to_every_frame` what it leaves if the silence that pads a clip counts as well.
    """

    environment: Environment
    processor: str
    model: str
    weights_sha256: str
    manifest_sha256: str
    where: tuple[str, ...]
    clips: int
    batch_size: int
    ours: Side
    llm_compressor: Side
    fitted_to_float_inputs: float
    fitted_to_every_frame: Errors


def peer_inputs(batches: Sequence[CalibrationBatch]) -> dict[str, Tensor]:
    """The model's inputs of batches of one clip each, as `gptq_of_llm_compressor.py` reads them."""
    inputs: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        named = batch.encoder_inputs | {"decoder_input_ids": batch.decoder_input_ids}
        inputs |= {f"{number:05d}.{name}": value.contiguous() for name, value in named.items()}
    return inputs


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
def walk(
    checkpoint: Checkpoint,
    batches: Sequence[CalibrationBatch],
    visit: Callable[[BlockWork], None],
) -> Tensor:
    """Show `visit` every block of a copy of the model, whose weights it may change before the
    batches go on; the last one's outputs [valid tokens, width]."""
    model, architecture = copy.deepcopy(checkpoint.model), checkpoint.architecture
    blocks = list(architecture.blocks(model.config))
    install_layers(model, (name for block in blocks for name in block.layers))
    for station in Passage(model, architecture, batches).stations():
        visit(
            BlockWork(
                model, architecture, station.block, station.module,
                station.calls, station.masks, Grid(4),
            )
        )  # fmt: skip
    pairs = zip(station.outputs(), station.masks, strict=True)
    return torch.cat([states[mask] for states, mask in pairs])


def rounded_here(recipe: Recipe, grid: Grid, work: BlockWork, site: Site) -> dict[str, Tensor]:
    """Weights of the site's layers rounded by `recipe`, fitted to the inputs that `work` shows."""
    statistics = work.statistics(site)
    fits = {
        name: LayerFit(recipe.range, grid, statistics, Layer(name, name in site.logit_layers))
        for name in site.layers
    }
    weights = {name: layer.weight.detach() for name, layer in work.layers(site).items()}
    bench = SiteWork(site, weights, statistics, grid, fits)
    rounded = recipe.rounding.round_block(work, [bench])
    return {f"{name}.weight": weight.dequantize() for name, weight in rounded.items()}


def errors_on_float_inputs(
    checkpoint: Checkpoint,
    batches: Sequence[CalibrationBatch],
    sides: Mapping[str, Weights],
    recipe: Recipe,
    grid: Grid,
) -> tuple[dict[str, float], Tensor]:
    """`Errors.on_float_inputs` of every side and of `recipe` fitted there, and the last states."""
    weights = layer_weights(checkpoint)
    check_same_layers(weights, list(sides.values()))
    totals: dict[str, float] = defaultdict(float)

    def add(work: BlockWork) -> None:
        for site in work.block.sites:
            statistics = work.statistics(site)
            fitted = {FITTED_TO_FLOAT: rounded_here(recipe, grid, work, site)}
            for key in (f"{name}.weight" for name in site.layers):
                for side, tensors in {**sides, **fitted}.items():
                    rounded = tensors[key].float()
                    totals[side] += statistics.relative_output_error(weights[key], rounded)

    states = walk(checkpoint, batches, add)
    return dict(totals), states


def error_on_own_inputs(
    checkpoint: Checkpoint, batches: Sequence[CalibrationBatch], side: Weights
) -> tuple[float, Tensor]:
    """`Errors.on_own_inputs` of one side, and the last states that it gives."""
    weights = layer_weights(checkpoint)
    check_same_layers(weights, [side])
    total = 0.0

    def add(work: BlockWork) -> None:
        nonlocal total
        for name in work.block.layers:
            work.layer(name).weight.copy_(side[f"{name}.weight"])
        for site in work.block.sites:
            statistics = work.statistics(site)
            for key in (f"{name}.weight" for name in site.layers):
                total += statistics.relative_output_error(weights[key], side[key].float())

    states = walk(checkpoint, batches, add)
    return total, states


def relative_change(states: Tensor, exact: Tensor) -> float:
    """Mean squared distance of rows [tokens, width] in units of the variance of `exact`."""
    exact = exact.double()
    distance = (states.double() - exact).square().sum(1).mean()
    return float(distance / exact.var(0, correction=0).sum())


def quantize_here(arguments: argparse.Namespace, weights: Path) -> None:
    """Quantize by this package, write the dequantized weights, print seconds and peak bytes."""
    torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(str(arguments.model))
    batches, _ = draw(arguments, checkpoint)
    settings = settings_of(arguments, "gptq")
    recipe = Recipe.build(settings.method.stages)
    began = time.perf_counter()
    quantize_model(checkpoint.model, checkpoint.architecture, batches, recipe, settings.grid)
    seconds, peak = time.perf_counter() - began, peak_memory_bytes()
    save_file({k: v.contiguous() for k, v in layer_weights(checkpoint).items()}, weights)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "versions": {}}))


def fitted_to_every_frame(
    checkpoint: Checkpoint, batches: Sequence[CalibrationBatch], recipe: Recipe, grid: Grid
) -> Weights:
    """The layers' weights quantized as if padding were speech."""
    heard = [replace(one, frame_mask=torch.ones_like(one.frame_mask)) for one in batches]
    changed = replace(checkpoint, model=copy.deepcopy(checkpoint.model))
    quantize_model(changed.model, changed.architecture, heard, recipe, grid)
    return layer_weights(changed)


def compare(arguments: argparse.Namespace, folder: Path) -> Comparison:
    """Run both sides, one after the other, and take the errors of both."""
    console = Console(stderr=True)
    checkpoint = load_checkpoint(str(arguments.model))
    batches, _ = draw(arguments, checkpoint, batch_size=1)
    inputs, ours, theirs = (folder / name for name in ("inputs", "ours", "theirs"))
    save_file(peer_inputs(batches), inputs)
    commands: dict[Path, list[object]] = {
        ours: [sys.executable, *sys.argv, "--one", ours],
        theirs: [arguments.peer, PEER, arguments.model, inputs, theirs, arguments.threads],
    }
    measured = {}
    for path, command in commands.items():
        measured[path] = measured_alone(command)
        console.print(f"{path.name}: {measured[path]['seconds']:.1f} s", highlight=False)
    settings = settings_of(arguments, "gptq")
    recipe = Recipe.build(settings.method.stages)
    sides: dict[str, Weights] = {path.name: load_file(path) for path in commands}
    padded, _ = draw(arguments, checkpoint)
    sides[FITTED_TO_SILENCE] = fitted_to_every_frame(checkpoint, padded, recipe, settings.grid)
    on_float, exact = errors_on_float_inputs(checkpoint, batches, sides, recipe, settings.grid)
    errors = {}
    for name, side in sides.items():
        own, states = error_on_own_inputs(checkpoint, batches, side)
        errors[name] = Errors(on_float[name], own, relative_change(states, exact))
        console.print(f"{name}: {errors[name]}", highlight=False)
    return Comparison(
        environment=current_environment("cpu", arguments.threads),
        processor=processor(),
        model=arguments.model.name,
        weights_sha256=weights_sha256(checkpoint.model),
        manifest_sha256=file_sha256(arguments.manifest),
        where=tuple(arguments.where),
        clips=arguments.clips,
        batch_size=arguments.batch_size,
        ours=Side(**measured[ours], errors=errors[ours.name]),
        llm_compressor=Side(**measured[theirs], errors=errors[theirs.name]),
        fitted_to_float_inputs=on_float[FITTED_TO_FLOAT],
        fitted_to_every_frame=errors[FITTED_TO_SILENCE],
    )


def show(made: Comparison) -> None:
    """Print both sides and the ratios of ours to theirs."""
    columns = "seconds", "peak GB", "error, float inputs", "own inputs", "last states"
    table = Table("GPTQ W4 g128", *columns, box=None)
    ours, theirs = (
        (one.seconds, one.peak_bytes / 1e9, *vars(one.errors).values())
        for one in (made.ours, made.llm_compressor)
    )
    for name, numbers in (("edge_asr", ours), ("llm-compressor", theirs)):
        table.add_row(name, *(f"{number:.4g}" for number in numbers))
    table.add_row("ratio", *(f"{one / other:.2f}" for one, other in zip(ours, theirs, strict=True)))
    table.add_row(FITTED_TO_FLOAT, "", "", f"{made.fitted_to_float_inputs:.4g}")
    silence = vars(made.fitted_to_every_frame).values()
    table.add_row(FITTED_TO_SILENCE, "", "", *(f"{number:.4g}" for number in silence))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_clip_arguments(parser, clips=32)
    parser.add_argument("--peer", help="python of an environment that has llm-compressor")
    parser.add_argument("--out", type=Path, help="write the comparison as JSON")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(bits=4, group_size="128", steps=None)
    arguments = parser.parse_args()
    try:
        if arguments.one:
            quantize_here(arguments, arguments.one)
            return
        if not arguments.peer or shutil.which(arguments.peer) is None:
            raise UserError(
                f"--peer {arguments.peer}: name the python of an environment with llm-compressor"
            )
        with tempfile.TemporaryDirectory() as folder:
            made = compare(arguments, Path(folder))
    except UserError as error:
        parser.error(str(error))
    show(made)
    if arguments.out:
        write_measurements(arguments.out, made)


if __name__ == "__main__":
    main()
