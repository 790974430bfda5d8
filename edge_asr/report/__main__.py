"""Turn run records into leaderboards: `python -m edge_asr.report --results runs`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from edge_asr.cli.main import Parser, exit_code
from edge_asr.errors import UserError
from edge_asr.report.console import print_table
from edge_asr.report.markdown import write_markdown
from edge_asr.report.tables import newest_versions, tables, write_csv
from edge_asr.store.record import Record, find_records, read_record


def _parser() -> Parser:
    parser = Parser(
        prog="python -m edge_asr.report",
        description="Collect run records into one leaderboard per scoring protocol.",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("runs"),
        help="Folder searched, with all below it, for record.json files (default: runs).",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="Folder that receives leaderboard_<protocol>.csv and .md (default: as --results).",
    )
    return parser


def _read(results: Path) -> list[Record]:
    records = [read_record(path) for path in find_records(results)]
    if not any(record.results for record in records):
        raise UserError(
            f"results: {results} holds no record.json with results; finish a run there first"
        )
    return records


def _write(folder: Path, protocol: str, frame: pd.DataFrame) -> list[Path]:
    """The files of one table. Raises UserError for a folder that cannot be written to."""
    try:
        return [write_csv(folder, protocol, frame), write_markdown(folder, protocol, frame)]
    except OSError as error:
        raise UserError(
            f"out: {folder} cannot be written to ({error.strerror}); "
            "give a folder you may write to, --out FOLDER"
        ) from error


def command(arguments: Sequence[str] | None = None) -> None:
    """Write and print the tables. Raises UserError when there is nothing sound to tabulate."""
    options = _parser().parse_args(arguments)
    found = _read(options.results)
    records = newest_versions(found)
    for protocol, frame in tables(records).items():
        folder = options.out or options.results
        written = _write(folder, protocol, frame)
        print_table(protocol, frame)
        print("wrote " + " and ".join(map(str, written)))
    idle = sum(not record.results for record in records)
    if idle:
        print(f"{idle} record(s) without results are in no table", file=sys.stderr)
    if len(found) > len(records):
        print(
            f"{len(found) - len(records)} record(s) are in no table: another version of the "
            "package has made the same runs since",
            file=sys.stderr,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command."""
    return exit_code(lambda: command(arguments))


if __name__ == "__main__":
    sys.exit(main())
