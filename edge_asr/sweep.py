"""How far a sweep is: `python -m edge_asr.sweep status|failed|cost EXPERIMENT`.

Read from the records and the store alone, so it can be asked at any time and on any machine that
sees them, while the sweep runs or when it has ended.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from rich.table import Column, Table
from rich.text import Text

from edge_asr.cli.compose import Composer
from edge_asr.cli.main import Parser, exit_code
from edge_asr.cli.overrides import prepare
from edge_asr.cli.summary import (
    estimate_in_words,
    estimate_of,
    show_failures,
    show_seconds,
    states_in_words,
)
from edge_asr.cli.sweep import sweep_members
from edge_asr.config import Settings
from edge_asr.experiments.sweeps import BEGUN, DONE, FAILED, TO_DO, SweepRun, sweep_runs
from edge_asr.report.console import open_console
from edge_asr.store.files import show_size


def _parser() -> Parser:
    parser = Parser(
        prog="python -m edge_asr.sweep",
        description="How far a sweep is (status), what failed and why (failed), what it has taken "
        "and what is left (cost), from its records and its store.",
    )
    parser.add_argument("action", choices=("status", "failed", "cost"))
    parser.add_argument(
        "words",
        nargs="+",
        metavar="EXPERIMENT",
        help="a name from conf/experiment, and whatever else was given to python -m edge_asr.run "
        "-m, such as results=FOLDER",
    )
    parser.add_argument(
        "--config-dir", metavar="FOLDER", help="your own conf/, as given to python -m edge_asr.run"
    )
    return parser


def _runs(words: Sequence[str], config_dir: str | None) -> tuple[list[SweepRun], Settings]:
    given = [one if "=" in one or one.startswith("~") else f"experiment={one}" for one in words]
    prepared = prepare(given, sweep=True)
    with Composer(config_dir) as composer:
        members = [(one, composer.settings(one)) for one in sweep_members(composer, prepared)]
    return sweep_runs(members), members[0][1]


def status_table(runs: Sequence[SweepRun]) -> Table:
    """How many runs of every model and method are how far."""
    states = (DONE, FAILED, BEGUN, TO_DO)
    table = Table("model", "method", *_right(*states), box=None)
    counts = Counter((run.model, run.method, run.state) for run in runs)
    for model, method in dict.fromkeys((run.model, run.method) for run in runs):
        cells = [str(counts[model, method, state] or "") for state in states]
        table.add_row(*map(Text, (model, method, *cells)))
    return table


def cost_table(runs: Sequence[SweepRun], settings: Settings) -> Table:
    """What the runs of every method have taken, and what is left of them.

    A step that runs of several methods share is counted with the first.
    """
    table = Table("method", *_right("runs", "taken", "left", "models left"), "", box=None)
    counted: set[str] = set()
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        done = [record for run in own if (record := run.record) is not None]
        taken = sum(s.seconds for one in done for s in one.stages if not s.stored)
        left = estimate_of([run for run in own if run.record is None], settings, counted)
        unknown = f"and {left.unknown} steps like which none was made" if left.unknown else ""
        cells = (
            str(len(own)), show_seconds(taken), show_seconds(left.seconds), show_size(left.bytes),
        )  # fmt: skip
        table.add_row(*map(Text, (method, *cells, unknown)))
    return table


def _right(*titles: str) -> list[Column]:
    return [Column(title, justify="right") for title in titles]


def command(arguments: Sequence[str] | None = None) -> None:
    """Print what is asked for. Raises UserError for words that do not fit."""
    options = _parser().parse_args(arguments)
    runs, settings = _runs(options.words, options.config_dir)
    console = open_console()
    failed = {run.words: run.failure or "" for run in runs if run.state == FAILED}
    if options.action == "failed":
        show_failures(runs, failed, console)
        if not failed:
            console.print("no run has failed")
        return
    if options.action == "status":
        console.print(status_table(runs))
    else:
        console.print(cost_table(runs, settings))
    left = estimate_of([run for run in runs if run.record is None], settings)
    said = f"{states_in_words(runs)}; left: {estimate_in_words(left)}"
    console.print(said, highlight=False, markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command."""
    return exit_code(lambda: command(arguments))


if __name__ == "__main__":
    sys.exit(main())
