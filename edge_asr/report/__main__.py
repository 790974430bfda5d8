"""Turn run records into leaderboards: `python -m edge_asr.report --results runs`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from edge_asr.cli.main import DONE, FAILED, Parser, exit_code, printable
from edge_asr.errors import UserError
from edge_asr.report.console import print_lines, print_table
from edge_asr.report.figures import require_matplotlib, write_figures
from edge_asr.report.long_form import write_long_form
from edge_asr.report.markdown import write_markdown
from edge_asr.report.page import page, write_page
from edge_asr.report.read import Run, read_runs
from edge_asr.report.ship import advice, contest, parse_budget
from edge_asr.report.tables import tables, write_csv
from edge_asr.report.utterances import read_alignments
from edge_asr.settings import nearest
from edge_asr.store.record import FLOAT_METHOD


def _parser() -> Parser:
    parser = Parser(
        prog="python -m edge_asr.report",
        description="Collect run records into tables, one for every protocol and set of clips: "
        "printed, as leaderboard_*.csv and .md, and all of them as one page, report.html; all "
        "results and layers as .parquet.",
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
        help="Folder that receives the files (default: as --results).",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="Only runs of this model; may be given several times.",
    )
    parser.add_argument(
        "--method",
        action="append",
        metavar="NAME",
        help="Only runs of this method, and the float ones; may be given several times.",
    )
    parser.add_argument(
        "--figures",
        action="store_true",
        help="Write the main figures as .svg and .png too (needs edge_asr[figures]).",
    )
    parser.add_argument(
        "--budget",
        action="append",
        metavar="LIMIT",
        help="Say which recipe to ship within size=20MB (of the file), io=200MB (memory traffic an "
        "utterance) or bops=50G (bit operations an utterance); may be given several times.",
    )
    return parser


def _chosen(
    runs: Sequence[Run], models: Sequence[str] | None, methods: Sequence[str] | None
) -> list[Run]:
    """The runs that were asked for. Raises UserError for a name that no run has."""
    wanted = {"--model": models or [], "--method": methods or []}
    names = [(run.record.model.name, run.record.method.name) for run in runs]
    for place, (option, values) in enumerate(wanted.items()):
        for value in values:
            known = {name[place] for name in names}
            if value not in known:
                raise UserError(f"{option}={value}: no run has it; {nearest(value, known)}")
    return [
        run
        for run, (model, method) in zip(runs, names, strict=True)
        if not models or model in models
        if not methods or method in methods or method == FLOAT_METHOD
    ]


def command(arguments: Sequence[str] | None = None) -> int:
    """Write and print the tables; 1 where a record had to be passed over, else 0.

    Raises UserError when there is nothing sound to tabulate.
    """
    options = _parser().parse_args(arguments)
    if options.figures:
        require_matplotlib()
    found = read_runs(options.results)
    runs = _chosen(found.runs, options.model, options.method)
    budget = parse_budget(options.budget or [])
    records = [run.record for run in runs]
    by_id = {run.record.run_id: run for run in runs}
    alignments = {name: read_alignments(run) for name, run in by_id.items()}
    aligned = {name: one for name, one in alignments.items() if one}
    folder = options.out or options.results
    written = []
    try:
        found_tables = tables(records)
        for clips, frame in found_tables.items():
            written += [write_csv(folder, clips, frame), write_markdown(folder, clips, frame)]
            print_table(clips, frame)
            if budget:
                print_lines(advice(contest(frame, by_id, aligned), budget))
            print()
        written.append(write_page(folder, page(found_tables, by_id, aligned)))
        written += write_long_form(folder, records)
        written += write_figures(folder, found_tables) if options.figures else []
    except OSError as error:
        raise UserError(
            f"out: {folder} cannot be written to ({error.strerror}); "
            "give a folder you may write to, --out FOLDER"
        ) from error
    print_lines([f"wrote to {folder}: {', '.join(path.name for path in written)}"])
    for line in found.lines():
        print(printable(line), file=sys.stderr)
    return FAILED if found.refused else DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command."""
    codes: list[int] = []
    ended = exit_code(lambda: codes.append(command(arguments)))
    return ended or codes[0]


if __name__ == "__main__":
    sys.exit(main())
