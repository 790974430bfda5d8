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
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_common import (
    Subject,
    add_clip_arguments,
    draw,
    draw_valid_rows,
    measured_alone,
    method_of,
    processor,
    quantize,
    run,
    settings_of,
    subject_of,
    write_measurements,
)
from output_errors import (
    EVERY_FRAME,
    Errors,
    Weights,
    errors_of,
    every_frame,
    layer_weights,
    quantized,
)
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge_asr.calibration.batches import CalibrationBatch
from edge_asr.errors import UserError
from edge_asr.memory import peak_memory_bytes
from edge_asr.models.loading import load_checkpoint

PEER = Path(__file__).with_name("gptq_of_llm_compressor.py")


@dataclass(frozen=True)
class Side:
    """Seconds, peak resident bytes of the whole process, and errors."""

    seconds: float
    peak_bytes: int
    errors: Errors
    versions: dict[str, str]


@dataclass(frozen=True)
class Comparison(Subject):
    """Both sides on one model and one choice of clips.

    `fitted_to_float_inputs` is what ours leaves on the float model's inputs if it is fitted to
    them, `fitted_to_every_frame` what it leaves if the silence that pads a clip counts as well.
    """

    processor: str
    clips: int
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


def quantize_here(arguments: argparse.Namespace, weights: Path) -> None:
    """Quantize by this package, write the dequantized weights, print seconds and peak bytes."""
    torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(str(arguments.model))
    batches, _ = draw(arguments, checkpoint)
    recipe, formats = method_of(settings_of(arguments, "gptq"), checkpoint)
    began = time.perf_counter()
    quantize(checkpoint, batches, recipe, formats)
    seconds, peak = time.perf_counter() - began, peak_memory_bytes()
    save_file({k: v.contiguous() for k, v in layer_weights(checkpoint).items()}, weights)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "versions": {}}))


def compare(arguments: argparse.Namespace, folder: Path) -> Comparison:
    """Run both sides, one after the other, and take the errors of both."""
    console = Console(stderr=True)
    checkpoint = load_checkpoint(str(arguments.model))
    batches = draw_valid_rows(arguments, checkpoint, batch_size=1)
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
    recipe, formats = method_of(settings_of(arguments, "gptq"), checkpoint)
    sides: dict[str, Weights] = {path.name: load_file(path) for path in commands}
    padded = draw_valid_rows(arguments, checkpoint, arguments.batch_size)
    sides[EVERY_FRAME] = quantized(checkpoint, every_frame(padded), recipe, formats)
    errors, fitted_to_float_inputs = errors_of(checkpoint, batches, sides, recipe, formats)
    return Comparison(
        **vars(subject_of(arguments, checkpoint.files)),
        processor=processor(),
        clips=arguments.clips,
        ours=Side(**measured[ours], errors=errors[ours.name]),
        llm_compressor=Side(**measured[theirs], errors=errors[theirs.name]),
        fitted_to_float_inputs=fitted_to_float_inputs,
        fitted_to_every_frame=errors[EVERY_FRAME],
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
    table.add_row("edge_asr on float inputs", "", "", f"{made.fitted_to_float_inputs:.4g}")
    silence = vars(made.fitted_to_every_frame).values()
    table.add_row(f"edge_asr, {EVERY_FRAME}", "", "", *(f"{number:.4g}" for number in silence))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_clip_arguments(parser, clips=32)
    parser.add_argument("--peer", help="python of an environment that has llm-compressor")
    parser.add_argument("--out", type=Path, help="write the comparison as JSON")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(bits=4, group_size="128")
    arguments = parser.parse_args()

    def act() -> None:
        if arguments.one:
            quantize_here(arguments, arguments.one)
            return
        if not arguments.peer or shutil.which(arguments.peer) is None:
            raise UserError(
                f"--peer {arguments.peer}: name the python of an environment with llm-compressor"
            )
        with tempfile.TemporaryDirectory() as folder:
            made = compare(arguments, Path(folder))
        show(made)
        if arguments.out:
            write_measurements(arguments.out, made)

    run(parser, act)


if __name__ == "__main__":
    main()
