"""Time and memory of quantization: every method on one model and the same clips.

    python scripts/bench_quantize.py --model FOLDER --manifest calibration.jsonl --clips 64

Each method runs in a process of its own, so that its peak memory is its own too. GPTQ is also
put in relation to its matrix products alone: the forward passes, Hessians and updates of the
same shapes by the same routines, timed right after it. Methods that train take hours on large
models: with --steps they take only so many steps a block, and their whole schedule's time is
estimated from those.

With --out every measurement is kept as soon as it is there. Methods found in that file are not
measured again, so that further calls, with other --clips or --steps, add to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bench_common import (
    Subject,
    add_clip_arguments,
    add_grid_arguments,
    block_contexts,
    draw,
    measured_alone,
    method_of,
    processor,
    quantize,
    run,
    settings_of,
    subject_of,
    write_measurements,
)
from rich.console import Console
from rich.table import Table
from torch import nn

from edge_asr.calibration.batches import CalibrationBatch
from edge_asr.calibration.statistics import add_column_products
from edge_asr.errors import UserError
from edge_asr.memory import peak_memory_bytes, reset_peak_memory
from edge_asr.models.files import find_files
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.context import BlockContext
from edge_asr.quant.recipe import Recipe
from edge_asr.store.plain_json import parse

METHODS = (
    "rtn", "smoothquant", "awq", "omniquant", "gptq", "spqr", "quik", "tesseraq", "quarot",
    "spinquant", "hqq", "autoround", "adaround", "best", "best_tuned",
)  # fmt: skip
# The options that say how long a method learns.
STEPS = {
    "omniquant": ("method.transform.iterations", "method.range.iterations"),
    "tesseraq": ("method.rounding.iterations",),
    "spinquant": ("method.transform.iterations",),
    "autoround": ("method.rounding.iterations",),
    "adaround": ("method.rounding.iterations",),
    "best_tuned": ("method.correction.iterations",),
}
PRODUCTS = "gptq products"
UPDATE_BLOCK = 128
# The whole schedule's looks at the loss are then among them, SignRound's 20 too.
FEWEST_STEPS = 20


@dataclass(frozen=True)
class Measurement:
    """Seconds and peak resident bytes of one method, and its summed layer-output error.

    A method that looks at no clips is given none, and its error is not known.
    `schedule_s` is the estimated time of the whole schedule where only `steps` were taken.
    """

    clips: int
    steps: int | None
    calibrate_s: float
    quantize_s: float
    peak_bytes: int | None
    output_error: float | None
    schedule_s: float | None = None


@dataclass(frozen=True)
class Bench(Subject):
    """Measurements of one model on one corpus in one environment, by method."""

    processor: str
    bits: int
    group_size: str
    measurements: dict[str, Measurement]

    def joined(self, path: Path) -> Bench:
        """This with the measurements that `path` holds already, if it exists.

        Raises UserError where those were made of something else or by other code.
        """
        if not path.exists():
            return self
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"--out={path}: {error.strerror}; give another file") from error
        before = parse(Bench, content, f"--out={path}", "give another file")
        if self.environment.git_dirty:
            raise UserError(
                f"--out={path}: the checkout has changes, so who knows what code measured before; "
                "commit them, keep the file outside of the checkout, or give another file"
            )
        different = first_difference(replace(self, measurements=before.measurements), before)
        if different:
            name, mine, theirs = different
            raise UserError(f"--out={path}: its {name} is {theirs}, not {mine}; give another file")
        return replace(self, measurements=before.measurements | self.measurements)

    @property
    def gptq_over_products(self) -> float | None:
        """GPTQ's time over that of its matrix products, if both were measured on as many clips."""
        gptq, alone = (self.measurements.get(name) for name in ("gptq", PRODUCTS))
        if gptq is None or alone is None or gptq.clips != alone.clips:
            return None
        return gptq.quantize_s / alone.quantize_s


def first_difference(mine: Any, theirs: Any) -> tuple[str, Any, Any] | None:
    """Name and both values of the first field in which two dataclasses of a kind differ, also
    inside of their fields."""
    for entry in dataclasses.fields(mine):
        one, other = getattr(mine, entry.name), getattr(theirs, entry.name)
        if one != other:
            inside = first_difference(one, other) if dataclasses.is_dataclass(one) else None
            return inside or (entry.name, one, other)
    return None


def measure(arguments: argparse.Namespace, method: str) -> Measurement:
    """Quantize the model by `method`, or run GPTQ's matrix products alone."""
    torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(str(arguments.model))
    if method == PRODUCTS:
        batches, calibrate_s = draw(arguments, checkpoint)
        reset_peak_memory()
        began = time.perf_counter()
        products(checkpoint, batches)
        seconds = time.perf_counter() - began
        return Measurement(
            arguments.clips, None, calibrate_s, seconds, peak_memory_bytes(), output_error=None
        )
    steps = [] if arguments.steps is None else STEPS.get(method, ())
    settings = settings_of(arguments, method, [f"{option}={arguments.steps}" for option in steps])
    recipe, formats = method_of(settings, checkpoint)
    looks = recipe.needs_calibration(formats.values())
    batches, calibrate_s = draw(arguments, checkpoint) if looks else ([], 0.0)
    reset_peak_memory()
    began = time.perf_counter()
    result = quantize(checkpoint, batches, recipe, formats)
    seconds = time.perf_counter() - began
    rest = None
    if arguments.steps is not None and method in STEPS:
        learned = [*result.reconstructions]
        learned += [one for block in result.blocks.values() for one in block.reconstructions]
        trained = sum(one.step_seconds for one in learned)
        rest = trained * (schedule_steps(arguments, method) / arguments.steps - 1)
    return Measurement(
        arguments.clips if looks else 0,
        arguments.steps if method in STEPS else None,
        calibrate_s,
        seconds,
        peak_memory_bytes(),
        result.output_error,
        None if rest is None else seconds + rest,
    )


def schedule_steps(arguments: argparse.Namespace, method: str) -> int:
    """Steps a block, or of the whole model, in the method's own schedule."""
    parts = Recipe.build(settings_of(arguments, method).method.stages).identity
    _, stage, name = STEPS[method][0].split(".")
    steps = parts[stage][name]
    assert isinstance(steps, int)
    return steps


class _LastInput(Exception):
    """Ends a forward pass where the last of some modules is about to run."""


def run_to_last_input(context: BlockContext) -> None:
    """Run a block on all batches, each until every site's layers have been given their input, for
    the rows that GPTQ asks for."""
    modules = [context.layer(site.layers[0]) for site in context.block.sites]
    waiting: set[nn.Module] = set()

    def watch(module: nn.Module) -> Callable[..., None]:
        def see(*_: Any) -> None:
            waiting.discard(module)
            if not waiting:
                raise _LastInput

        return see

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(watch(module)))
        for block, call, _ in context.parts():
            waiting.update(modules)
            with suppress(_LastInput):
                call.run(block)


@torch.no_grad()
def products(checkpoint: Checkpoint, batches: list[CalibrationBatch]) -> None:
    """What GPTQ cannot do without: every block forward up to its last layers' input, on the rows
    that count alone where the others can be left out, and then as a whole; XᵀX of these rows at
    every site; the Cholesky factor of each Hessian and its inverse; and the update of the columns
    to the right of every 128 of every layer."""
    for captured, context in block_contexts(checkpoint.model, checkpoint.architecture, batches, {}):
        run_to_last_input(context)
        for site in captured.block.sites:
            layers = list(context.layers(site).values())
            columns = layers[0].matrix.shape[1]
            unit = torch.eye(columns, dtype=torch.float64)
            hessian = unit.clone()
            for weights in captured.row_weights:
                rows = torch.ones(int((weights > 0).sum()), columns)
                add_column_products(hessian, rows)
            root = torch.linalg.cholesky(hessian.flip(0, 1))
            upper = torch.linalg.solve_triangular(root, unit, upper=False).flip(0, 1)
            for layer in layers:
                weight = layer.weight.double()
                for start in range(0, columns, UPDATE_BLOCK):
                    stop = min(start + UPDATE_BLOCK, columns)
                    weight[:, stop:] -= weight[:, start:stop] @ upper[start:stop, stop:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_clip_arguments(parser, clips=64)
    add_grid_arguments(parser)
    parser.add_argument(
        "--steps", type=int, help=f"steps a block of methods that learn, {FEWEST_STEPS} or more"
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--out", type=Path, help="write the measurements as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.steps is not None and arguments.steps < FEWEST_STEPS:
        parser.error(f"--steps {arguments.steps}: give {FEWEST_STEPS} or more")

    def act() -> None:
        if arguments.one:
            print(json.dumps(vars(measure(arguments, arguments.one))))
        else:
            show(bench(arguments))

    run(parser, act)


def bench(arguments: argparse.Namespace) -> Bench:
    """Measure every method that `--out` does not hold yet, each in a process of its own."""
    made = Bench(
        **vars(subject_of(arguments, find_files(str(arguments.model)))),
        processor=processor(),
        bits=arguments.bits,
        group_size=arguments.group_size,
        measurements={},
    )
    if arguments.out:
        made = made.joined(arguments.out)
    console = Console(stderr=True)
    names = [[name, PRODUCTS] if name == "gptq" else [name] for name in arguments.methods]
    for name in itertools.chain.from_iterable(names):
        if name in made.measurements:
            clips = made.measurements[name].clips
            console.print(f"{name}: measured before, on {clips} clips", highlight=False)
            continue
        one = Measurement(**measured_alone([sys.executable, *sys.argv, "--one", name]))
        made = replace(made, measurements=made.measurements | {name: one})
        console.print(f"{name}: {one.quantize_s:.1f} s", highlight=False)
        if arguments.out:
            write_measurements(arguments.out, made)
    return made


def show(made: Bench) -> None:
    """Print the table, and GPTQ's time over that of its products."""
    table = Table(
        "method", "clips", "steps", "calibrate s", "quantize s", "schedule s", "peak GB",
        "output error", box=None,
    )  # fmt: skip
    for name, one in made.measurements.items():
        # That of a training cut short says nothing of the method.
        known = one.output_error is not None and one.steps is None
        error = f"{one.output_error:.4g}" if known else ""
        peak = "-" if one.peak_bytes is None else f"{one.peak_bytes / 1e9:.2f}"
        whole = "" if one.schedule_s is None else f"{one.schedule_s:.0f}"
        seconds = f"{one.calibrate_s:.1f}", f"{one.quantize_s:.1f}"
        steps = "" if one.steps is None else str(one.steps)
        table.add_row(name, str(one.clips), steps, *seconds, whole, peak, error)
    Console().print(table)
    ratio = made.gptq_over_products
    if ratio is not None:
        Console().print(f"gptq takes {ratio:.2f} times its matrix products", highlight=False)


if __name__ == "__main__":
    main()
