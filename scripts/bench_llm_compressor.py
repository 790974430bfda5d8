"""GPTQ here against GPTQ of llm-compressor: time, memory and output error on the same clips.

    python scripts/bench_llm_compressor.py --model FOLDER --manifest FILE --peer PYTHON --out FILE

PYTHON is the interpreter of an environment with llm-compressor (a virtual environment of its own:
`pip install llmcompressor`). Both quantize the same linear layers to 4 bits, asymmetric, in groups
of 128, each in a process of its own, one after the other. Output errors are taken the same way for
both: on the valid rows that the float model gives each layer, in units of its output's variance.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_quantize import add_clip_arguments, draw, processor, settings_of
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge_asr.data.calibration import CalibrationBatch
from edge_asr.errors import UserError
from edge_asr.memory import peak_memory_bytes
from edge_asr.models.loading import Checkpoint, load_checkpoint, weights_sha256
from edge_asr.plain_json import finite, write_text_atomically
from edge_asr.quant.grid import Grid
from edge_asr.quant.layers import install_layers
from edge_asr.quant.passage import Passage
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.walker import quantize_model
from edge_asr.quant.work import BlockWork
from edge_asr.record import Environment, current_environment

PEER = Path(__file__).with_name("gptq_of_llm_compressor.py")


@dataclass(frozen=True)
class Side:
    """Seconds, peak resident bytes of the whole process, and summed output error of all layers."""

    seconds: float
    peak_bytes: int
    output_error: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Comparison:
    """Both sides on one model and one choice of clips."""

    environment: Environment
    processor: str
    model: str
    weights_sha256: str
    where: tuple[str, ...]
    clips: int
    ours: Side
    llm_compressor: Side


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


@torch.no_grad()
def summed_errors(
    checkpoint: Checkpoint,
    batches: Sequence[CalibrationBatch],
    sides: Sequence[dict[str, Tensor]],
) -> list[float]:
    """Summed relative output error of every side's weights, on the float model's valid rows.

    Raises ValueError where a side lacks a layer or has one that the model's blocks do not.
    """
    model, architecture = checkpoint.model, checkpoint.architecture
    weights = layer_weights(checkpoint)
    for side in sides:
        if differing := weights.keys() ^ side.keys():
            raise ValueError(f"layers quantized by one side only: {', '.join(sorted(differing))}")
    blocks = list(architecture.blocks(model.config))
    install_layers(model, (name for block in blocks for name in block.layers))
    totals = [0.0 for _ in sides]
    for station in Passage(model, architecture, batches).stations():
        work = BlockWork(
            model, architecture, station.block, station.module,
            station.calls, station.masks, Grid(4),
        )  # fmt: skip
        for site in station.block.sites:
            statistics = work.statistics(site)
            for name in site.layers:
                key = f"{name}.weight"
                for index, side in enumerate(sides):
                    rounded = side[key].float()
                    totals[index] += statistics.relative_output_error(weights[key], rounded)
    return totals


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


def compare(arguments: argparse.Namespace, folder: Path) -> Comparison:
    """Run both sides, one after the other."""
    checkpoint = load_checkpoint(str(arguments.model))
    alone = argparse.Namespace(**vars(arguments) | {"batch_size": 1})
    batches, _ = draw(alone, checkpoint)
    inputs, ours, theirs = (folder / name for name in ("inputs", "ours", "theirs"))
    save_file(peer_inputs(batches), inputs)
    commands: list[list[object]] = [
        [sys.executable, *sys.argv, "--one", ours],
        [arguments.peer, PEER, arguments.model, inputs, theirs, arguments.threads],
    ]
    measured = []
    for command in commands:
        words = [str(word) for word in command]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        measured.append(json.loads(done.stdout.splitlines()[-1]))
    sha256 = weights_sha256(checkpoint.model)
    errors = summed_errors(checkpoint, batches, [load_file(ours), load_file(theirs)])
    sides = [Side(**one, output_error=e) for one, e in zip(measured, errors, strict=True)]
    return Comparison(
        current_environment("cpu", arguments.threads), processor(), arguments.model.name,
        sha256, tuple(arguments.where), arguments.clips, *sides,
    )  # fmt: skip


def show(made: Comparison) -> None:
    """Print both sides and the ratios of ours to theirs."""
    table = Table("GPTQ W4 g128", "seconds", "peak GB", "output error", box=None)
    for name, side in (("edge_asr", made.ours), ("llm-compressor", made.llm_compressor)):
        cells = f"{side.seconds:.1f}", f"{side.peak_bytes / 1e9:.2f}", f"{side.output_error:.4g}"
        table.add_row(name, *cells)
    ours, theirs = made.ours, made.llm_compressor
    pairs = (
        (ours.seconds, theirs.seconds),
        (ours.peak_bytes, theirs.peak_bytes),
        (ours.output_error, theirs.output_error),
    )
    table.add_row("ratio", *(f"{one / other:.2f}" for one, other in pairs))
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
    if arguments.one:
        quantize_here(arguments, arguments.one)
        return
    if not arguments.peer or shutil.which(arguments.peer) is None:
        parser.error(
            f"--peer {arguments.peer}: name the python of an environment that has llm-compressor"
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = compare(arguments, Path(folder))
    except UserError as error:
        parser.error(str(error))
    show(made)
    if arguments.out:
        plain = finite(dataclasses.asdict(made))
        write_text_atomically(arguments.out, json.dumps(plain, indent=2) + "\n")


if __name__ == "__main__":
    main()
