"""Measure exported models on this machine: `python -m edge_asr.time --help`."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from edge_asr.cli.main import Parser, exit_code
from edge_asr.errors import UserError

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
    parser.add_argument(
        "--out", type=Path,
        help="file for all repeats, JSON, written after every one; the same command, or one with "
        "more repeats or threads, then measures what is missing",
    )  # fmt: skip
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


def chosen_numbers(options: Namespace) -> tuple[tuple[float, ...], tuple[int, ...], int]:
    """Lengths of clips, numbers of threads and repeats. Raises UserError for one out of range."""
    from edge_asr.timing.machine import usable_processors

    processors = usable_processors()
    seconds = numbers("--seconds", options.seconds, 0.1, LONGEST_SECONDS)
    usual = ",".join(str(one) for one in THREADS if one <= processors)
    threads = counts("--threads", options.threads or usual, processors)
    (repeats, *more) = counts("--repeats", options.repeats, 1000)
    if more:
        raise UserError(f"--repeats={options.repeats}: give one number")
    return tuple(seconds), tuple(threads), repeats


def command(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table. Raises UserError for what cannot be measured, FailedRuns where a
    process ended otherwise."""
    options = _parser().parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    typed = shlex.join(["python", "-m", "edge_asr.time", *words])
    seconds, threads, repeats = chosen_numbers(options)
    # Only now what takes seconds to import.
    from edge_asr.timing.series import Request, measure_series

    request = Request(
        typed, tuple(dict.fromkeys(options.folder)), options.audio, seconds, threads, repeats,
        tuple(options.checkpoint), options.against, options.out,
    )  # fmt: skip
    console = Console(stderr=True)

    def tell(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(times: Times) -> None:
        from edge_asr.report.console import open_console
        from edge_asr.timing.table import times_table

        open_console().print(times_table(times))

    measure_series(request, tell, show)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command."""
    return exit_code(lambda: command(arguments))


if __name__ == "__main__":
    sys.exit(main())
