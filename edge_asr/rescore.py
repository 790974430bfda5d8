"""Score stored hypotheses again, without a model: `python -m edge_asr.rescore --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.table import Table
from rich.text import Text

from edge_asr.cli.main import Parser, exit_code
from edge_asr.compare import DEFAULT_PROTOCOL, label_of
from edge_asr.config import ProtocolSettings
from edge_asr.evaluation.hypotheses import Transcription
from edge_asr.evaluation.protocols import protocol_named, protocols
from edge_asr.evaluation.scoring import (
    DataSetScore,
    average_of,
    results_of,
    score_data_set,
    worst_utterances,
)
from edge_asr.evaluation.stored import read_stored
from edge_asr.report.cells import failures, number, with_interval
from edge_asr.report.console import open_console
from edge_asr.report.tables import write_table
from edge_asr.store.record import Result, WorstUtterance


def _rates(label: str, rows: Sequence[Result]) -> Table:
    table = Table(box=None, title=Text(label), title_justify="left")
    for heading in ("set", "part", "clips", "WER % [95 %]", "CER %", "rare %", "failures"):
        table.add_column(heading, no_wrap=heading not in ("set", "failures"), overflow="fold")
    for row in rows:
        interval = row.interval
        cells = (
            row.dataset, row.condition, str(row.scored),
            with_interval(row.wer, interval and interval.low, interval and interval.high),
            number(row.cer, 1), number(row.rare_wer, 1), failures(asdict(row)),
        )  # fmt: skip
        # Text, not strings: rich would read the brackets of an interval as markup.
        table.add_row(*map(Text, cells))
    return table


def _worst(found: Sequence[WorstUtterance]) -> Table:
    table = Table(box=None, title=Text("The worst utterances"), title_justify="left")
    for heading in ("errors", "words", "clip", "reference", "hypothesis"):
        table.add_column(heading, overflow="fold")
    for one in found:
        cells = (str(one.errors), str(one.words), one.id, one.reference, one.hypothesis)
        table.add_row(*map(Text, cells))
    return table


def _flat(row: Result) -> dict[str, object]:
    plain = asdict(row) | {"damaged": len(row.damaged)}
    interval = row.interval
    del plain["interval"], plain["difference"]
    ends = (interval.low, interval.high) if interval else (None, None)
    return plain | {"wer_low": ends[0], "wer_high": ends[1]}


def _parser() -> Parser:
    parser = Parser(
        prog="python -m edge_asr.rescore",
        description="Score the hypotheses of finished runs, or manifests in the form of the Open "
        "ASR leaderboard, by any protocol: " + ", ".join(protocols) + ".",
    )
    parser.add_argument(
        "run", type=Path, nargs="+", help="folder of a finished run, or a manifest of hypotheses"
    )
    parser.add_argument(
        "--protocol", help=f"how to score (default: as the run was, else {DEFAULT_PROTOCOL})"
    )
    parser.add_argument(
        "--worst", type=int, default=0, metavar="N", help="show the N utterances of most errors"
    )
    parser.add_argument("--out", type=Path, help="write all rows to this CSV file too")
    return parser


def command(arguments: Sequence[str] | None = None) -> None:
    """Print the tables. Raises UserError for what cannot be read or scored."""
    options = _parser().parse_args(arguments)
    console, written = open_console(), []
    for path in options.run:
        run = read_stored(path)
        settings = ProtocolSettings(options.protocol or run.protocol or DEFAULT_PROTOCOL)
        protocol = protocol_named(settings.name)
        scored = [
            score_data_set(protocol, name, Transcription(clips), None)
            for name, clips in run.data_sets.items()
        ]
        rows = [row for one in scored for row in results_of(settings, one)]
        written += [(label_of(run), row) for row in rows]
        console.print(_rates(f"{label_of(run)}, protocol {settings.name}", rows))
        console.print(Text(_mean(settings, scored)))
        if options.worst:
            console.print(_worst(worst_utterances(scored, options.worst)))
    if options.out:
        table = pd.DataFrame([{"run": label} | _flat(row) for label, row in written])
        write_table(options.out, table)


def _mean(settings: ProtocolSettings, scored: Sequence[DataSetScore]) -> str:
    """The mean over data sets, where there are several or the protocol rounds it."""
    average = average_of(settings, scored)
    shown = with_interval(average.interval.estimate, average.interval.low, average.interval.high)
    line = f"mean over {len(scored)} data set{'s' if len(scored) > 1 else ''}: {shown}"
    if average.rounded is not None:
        line += f"; as the leaderboard rounds it {average.rounded}"
    return line if average.complete is not False else f"{line}; not the protocol's own data sets"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command."""
    return exit_code(lambda: command(arguments))


if __name__ == "__main__":
    sys.exit(main())
