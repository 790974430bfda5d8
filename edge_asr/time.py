"""Measure exported models on this machine: `python -m edge_asr.time --help`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.console import Console

from edge_asr.cli.main import Parser, exit_code
from edge_asr.errors import UserError
from edge_asr.store.environment import current_environment
from edge_asr.store.files import write_text_atomically
from edge_asr.store.plain_json import finite

if TYPE_CHECKING:
    from edge_asr.timing.results import Times

SECONDS, THREADS, REPEATS = "5,10,30", (1, 2), 5
LONGEST_SECONDS = 600.0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m edge_asr.time",
        description="Measure exported models, and what they are compared with, on this machine: "
        "size, load time, encoder, decoder, memory. All take turns, every time in a process of "
        "their own. Quantization that is simulated in floats is never timed.",
    )
    parser.add_argument("folder", type=Path, nargs="+", help="that python -m edge_asr.export wrote")
    parser.add_argument("--audio", type=Path, help="what to hear (default: embedded test clips)")
    parser.add_argument(
        "--seconds", default=SECONDS, help=f"lengths of clips, cut or repeated ({SECONDS})"
    )
    parser.add_argument("--threads", help="numbers of threads (1,2 or as many as there are)")
    parser.add_argument("--repeats", default=str(REPEATS), help=f"how often ({REPEATS})")
    parser.add_argument(
        "--checkpoint", action="append", default=[],
        help="the float checkpoint of the folders (default: what they were made of, if it is "
        "here); again for another",
    )  # fmt: skip
    parser.add_argument(
        "--against",
        help="torch, torch_bf16, float (the same runtime), faster_whisper, with commas, or none "
        "(default: all that can be)",
    )
    parser.add_argument("--out", type=Path, help="file for all repeats, JSON")
    return parser


def numbers(option: str, text: str, least: float, most: float) -> list[float]:
    """`5,10,30` as numbers, each once. Raises UserError for one that is none or out of range."""
    found = []
    for word in text.split(","):
        try:
            value = float(word)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise UserError(f"{option}={word}: give numbers from {least:g} to {most:g}")
        found.append(value)
    return list(dict.fromkeys(found))


def counts(option: str, text: str, most: int) -> list[int]:
    """The same for whole numbers from 1."""
    found = numbers(option, text, 1, most)
    for value in found:
        if not value.is_integer():
            raise UserError(f"{option}={value:g}: give whole numbers from 1 to {most}")
    return [int(value) for value in found]


def measured(options: Namespace, typed: str, console: Console) -> Times:
    """All that the options ask for; raises as `command`."""
    # Only now what takes seconds to import.
    from edge_asr.models.files import find_files
    from edge_asr.timing.candidates import Comparison, candidates, parse_against
    from edge_asr.timing.machine import this_machine, usable_processors
    from edge_asr.timing.measure import measure_all, write_clips
    from edge_asr.timing.results import SCHEMA_VERSION, Times

    began, machine, processors = datetime.now(UTC), this_machine(), usable_processors()
    seconds = numbers("--seconds", options.seconds, 0.1, LONGEST_SECONDS)
    usual = ",".join(str(one) for one in THREADS if one <= processors)
    threads = counts("--threads", options.threads or usual, processors)
    (repeats, *more) = counts("--repeats", options.repeats, 1000)
    if more:
        raise UserError(f"--repeats={options.repeats}: give one number")
    names = parse_against(options.against)
    with TemporaryDirectory() as made:
        working = Path(made)
        source = write_clips(options.audio, seconds, working / "clips.npz")
        comparison = Comparison(names, tuple(map(find_files, options.checkpoint)), working)
        chosen = candidates(list(dict.fromkeys(options.folder)), comparison)
        for line in dict.fromkeys(comparison.left_out):
            console.print(f"left out: {line}", markup=False, highlight=False, soft_wrap=True)

        def tell(done: int, total: int, what: str) -> None:
            line = f"{done + 1} of {total}: {what}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        found = measure_all(chosen, threads, repeats, working / "clips.npz", tell)

    # Of what was written only to be measured, and is gone, the name says enough.
    def lasting(folder: str) -> str:
        return Path(folder).name if Path(folder).is_relative_to(working) else folder

    chosen = tuple(
        replace(one, exported=lasting(one.exported), weights=one.weights and lasting(one.weights))
        for one in chosen
    )
    environment = current_environment(machine.processor, max(threads))
    return Times(
        SCHEMA_VERSION, typed, began.isoformat(timespec="seconds"), machine, environment, source,
        chosen, found, tuple(dict.fromkeys(comparison.left_out)),
    )  # fmt: skip


def command(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table. Raises UserError for what cannot be measured, FailedRuns where a
    process ended otherwise."""
    options = _parser().parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    typed = shlex.join(["python", "-m", "edge_asr.time", *words])
    if options.out and (options.out.is_dir() or not os.access(options.out.parent, os.W_OK)):
        raise UserError(f"--out={options.out}: is no file that can be written; give another")
    times = measured(options, typed, Console(stderr=True))
    from edge_asr.report.console import open_console
    from edge_asr.timing.table import times_table

    open_console().print(times_table(times))
    if options.out:
        write_text_atomically(options.out, json.dumps(finite(asdict(times)), indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command."""
    return exit_code(lambda: command(arguments))


if __name__ == "__main__":
    sys.exit(main())
