"""How near recipes come to the float model: how far the next token each expects is from its own.

    python scripts/ablation.py --model FOLDER --manifest FILE --where set=CALIBRATION \\
        --held-out set=OTHERS --bits 3 --group-size null --out FILE \\
        gptq "gptq method/range=hessian" "best method.rounding.polish=0"

A recipe is a method and whatever else a command line could change. Each is quantized in a process
of its own; then the divergence (Kullback and Leibler's, nats a token) of its next token from the
float model's is taken on held-out clips, along their transcripts or, without one, the float model's
own. That takes seconds and tells settings apart that hundreds of transcribed clips do not: it is
for choosing them. What a recipe is worth, WER says, on other clips.

With --out every recipe is kept as soon as it is measured, and what that file holds is not measured
again.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import torch
from bench_common import (
    Subject,
    add_clip_arguments,
    add_grid_arguments,
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
from transformers import PreTrainedModel

from edge_asr.calibration.batches import CalibrationBatch
from edge_asr.errors import UserError
from edge_asr.memory import peak_memory_bytes, reset_peak_memory
from edge_asr.models.files import find_files
from edge_asr.models.loading import load_checkpoint
from edge_asr.quant.layers import quantized_layers
from edge_asr.store.plain_json import parse


@dataclass(frozen=True)
class Measurement:
    """One recipe.

    Attributes:
        quantize_s: Seconds.
        peak_bytes: Most resident memory while it was quantized; None: not known.
        bits: Stored bits a quantized weight.
        divergences: Mean nats a token of every held-out clip.
        agreement: Share of tokens whose likeliest successor is the float model's.
    """

    quantize_s: float
    peak_bytes: int | None
    bits: float
    divergences: tuple[float, ...]
    agreement: float

    @property
    def divergence(self) -> float:
        return mean(self.divergences)


@dataclass(frozen=True)
class Ablation(Subject):
    """Recipes for one model and grid on the same clips, by what was typed."""

    processor: str
    clips: int
    held_out: tuple[str, ...]
    held_out_clips: int
    bits: int
    group_size: str
    measurements: dict[str, Measurement]

    def joined(self, path: Path) -> Ablation:
        """This with what `path` holds already. Raises UserError where that is of something else."""
        if not path.exists():
            return self
        before = parse(Ablation, path.read_bytes(), f"--out={path}", "give another file")
        same = replace(before, environment=self.environment, measurements=self.measurements)
        if same != self or before.environment.git_commit != self.environment.git_commit:
            raise UserError(
                f"--out={path}: was measured on other clips, another grid or by other code; give "
                "another file"
            )
        return replace(self, measurements=before.measurements | self.measurements)


@torch.no_grad()
def divergences(
    exact: PreTrainedModel, found: PreTrainedModel, batches: Sequence[CalibrationBatch]
) -> tuple[list[float], float]:
    """Nats a token of every clip in `batches`, and the share of tokens on which both agree."""
    clips: list[float] = []
    agree = tokens = 0
    for batch in batches:
        mask = batch.token_mask.bool()
        wanted, given = (
            model(
                **batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids, use_cache=False
            ).logits.double().log_softmax(-1)
            for model in (exact, found)
        )  # fmt: skip
        nats = (wanted.exp() * (wanted - given)).sum(-1)
        clips += [
            float(row[valid].mean())
            for row, valid in zip(nats, mask, strict=True)
            if bool(valid.any())
        ]
        agree += int((wanted.argmax(-1) == given.argmax(-1))[mask].sum())
        tokens += int(mask.sum())
    return clips, agree / max(tokens, 1)


def measure(arguments: argparse.Namespace, words: str) -> Measurement:
    """Quantize by one recipe, and compare."""
    torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(str(arguments.model))
    exact = copy.deepcopy(checkpoint.model)
    held_out = {"where": arguments.held_out, "clips": arguments.held_out_clips, "pack": False}
    others, _ = draw(argparse.Namespace(**vars(arguments) | held_out), checkpoint)
    batches, _ = draw(arguments, checkpoint)
    method, *changes = words.split()
    recipe, formats = method_of(settings_of(arguments, method, changes), checkpoint)
    reset_peak_memory()
    began = time.perf_counter()
    quantize(checkpoint, batches, recipe, formats)
    seconds, peak = time.perf_counter() - began, peak_memory_bytes()
    weights = [one.quantized for one in quantized_layers(checkpoint.model).values()]
    stored = sum(one.stored_bits for one in weights if one is not None)
    values = sum(one.codes.numel() for one in weights if one is not None)
    clips, agreement = divergences(exact, checkpoint.model, others)
    return Measurement(seconds, peak, stored / max(values, 1), tuple(clips), agreement)


def ablate(arguments: argparse.Namespace) -> Ablation:
    """Measure every recipe that `--out` does not hold yet."""
    if set(arguments.held_out) == set(arguments.where):
        raise UserError(
            f"--held-out {' '.join(arguments.held_out)}: calibration has these clips; give others"
        )
    made = Ablation(
        **vars(subject_of(arguments, find_files(str(arguments.model)))),
        processor=processor(),
        clips=arguments.clips,
        held_out=tuple(arguments.held_out),
        held_out_clips=arguments.held_out_clips,
        bits=arguments.bits,
        group_size=arguments.group_size,
        measurements={},
    )
    if arguments.out:
        made = made.joined(arguments.out)
    console = Console(stderr=True)
    for words in arguments.recipes:
        if words in made.measurements:
            console.print(f"{words}: measured before", highlight=False)
            continue
        plain = measured_alone([sys.executable, *sys.argv, "--one", words])
        one = Measurement(**plain | {"divergences": tuple(plain["divergences"])})
        made = replace(made, measurements=made.measurements | {words: one})
        console.print(
            f"{words}: {one.divergence:.4f} nats, {one.quantize_s:.0f} s", highlight=False
        )
        if arguments.out:
            write_measurements(arguments.out, made)
    return made


def show(made: Ablation, recipe: str) -> None:
    """Print the table; differences are to `recipe`, clip by clip."""
    first = made.measurements[recipe]
    table = Table("recipe", "bits", "nats a token", f"less than {recipe}", "agree %", "s", "GB")
    for words, one in made.measurements.items():
        changes = [a - b for a, b in zip(first.divergences, one.divergences, strict=True)]
        error = stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else 0.0
        table.add_row(
            words,
            f"{one.bits:.2f}",
            f"{one.divergence:.4f}",
            f"{mean(changes):+.4f} ± {2 * error:.4f}",
            f"{100 * one.agreement:.1f}",
            f"{one.quantize_s:.0f}",
            "" if one.peak_bytes is None else f"{one.peak_bytes / 1e9:.2f}",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_clip_arguments(parser, clips=24)
    add_grid_arguments(parser)
    parser.add_argument(
        "--held-out", action="append", required=True, help="FIELD=VALUE, as --where"
    )
    parser.add_argument("--held-out-clips", type=int, default=32)
    parser.add_argument("--out", type=Path, help="write the measurements as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    arguments = parser.parse_args()

    def act() -> None:
        if arguments.one:
            print(json.dumps(vars(measure(arguments, arguments.one))))
        else:
            show(ablate(arguments), arguments.recipes[0])

    run(parser, act)


if __name__ == "__main__":
    main()
