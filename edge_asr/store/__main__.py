"""Look after a store: `python -m edge_asr.store list|size|prune --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_asr.cli.main import Parser, exit_code
from edge_asr.errors import UserError
from edge_asr.store.artefacts import Artefact, Store
from edge_asr.store.files import parse_size, show_size

STEPS = ("calibrate", "quantize", "transcribe")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m edge_asr.store",
        description="What finished steps have left in a store, and how to make room. Everything in "
        "a store can be made again; results lie in their run folders.",
    )
    parser.add_argument("action", choices=("list", "size", "prune"))
    parser.add_argument(
        "--store", type=Path, default=Path(".edge_asr"), help="the folder (default: .edge_asr)"
    )
    parser.add_argument(
        "--step",
        choices=STEPS,
        help="only artefacts of this step",
    )
    parser.add_argument("--keep", help="prune: leave at most so much, such as 10GB; 0 for nothing")
    return parser


def _table(artefacts: Sequence[Artefact]) -> Table:
    table = Table("step", "key", "size", "seconds", "made", "of", box=None)
    for one in artefacts:
        label = str(one.notes.get("label", ""))
        # Text, not strings: rich would read brackets as markup.
        cells = (
            one.step,
            one.key[:12],
            show_size(one.bytes),
            f"{one.seconds:.1f}",
            one.created[5:16],
        )
        table.add_row(*map(Text, (*cells, label)))
    return table


def command(arguments: Sequence[str] | None = None) -> None:
    """Print or prune. Raises UserError where there is no such store."""
    options = _parser().parse_args(arguments)
    if not options.store.is_dir():
        raise UserError(f"--store={options.store}: is no folder; it is .edge_asr beside your runs")
    if not any((options.store / name).is_dir() for name in (*STEPS, "unfinished")):
        raise UserError(f"--store={options.store}: is no store; it is .edge_asr beside your runs")
    if (options.keep is None) == (options.action == "prune"):
        raise UserError("--keep: goes with prune, which needs it: prune --keep 1GB, or --keep 0")
    keep = parse_size(options.keep or "0", "--keep")
    store = Store(options.store)
    chosen = [one for one in store.artefacts() if options.step in (None, one.step)]
    if options.action == "list":
        Console().print(_table(chosen))
    elif options.action == "prune":
        removed, freed = store.prune(keep, options.step)
        freed += store.remove_unfinished() if options.step is None else 0
        print(f"removed {removed} artefacts, {show_size(freed)}")
        return
    for step in sorted({one.step for one in chosen}):
        sizes = [one.bytes for one in chosen if one.step == step]
        print(f"{step}: {len(sizes)} artefacts, {show_size(sum(sizes))}")
    print(f"in all: {show_size(sum(one.bytes for one in chosen))} in {options.store}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command."""
    return exit_code(lambda: command(arguments))


if __name__ == "__main__":
    sys.exit(main())
