"""A table for the terminal, at most 120 columns wide."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_asr.report.cells import caption, cells, headings

WIDEST = 120
TEXT_COLUMNS = 2


def _natural_width(rows: Sequence[Sequence[str]]) -> int:
    """Columns a table takes when no cell is folded, one between any two of its own included."""
    widths = [
        max(len(line) for cell in column for line in cell.split("\n"))
        for column in zip(*rows, strict=True)
    ]
    return sum(widths) + len(widths) - 1


def _broken(cell: str) -> str:
    """A cell on lines of its parts: figure and ratio, conditions, failures, grid, activations."""
    return re.sub(
        r" / |(?<=,) (?=\d+ [a-z])| (?=\(|sym|A\d|static|mean|clip)|(?<=clip) ", "\n", cell
    )


def to_table(protocol: str, frame: pd.DataFrame, width: int = WIDEST) -> Table:
    """The rich table of one protocol; names fold, figures only where `width` is too small."""
    # Text, not strings: rich would read the brackets of an interval as markup.
    shown = Table(
        box=box.SIMPLE_HEAD, caption=Text(caption(protocol, frame)), padding=0, show_edge=False
    )
    titles = [
        heading if index < TEXT_COLUMNS else heading.replace("/", "/\n")
        for index, heading in enumerate(headings(frame))
    ]
    rows = cells(frame)
    if _natural_width([titles, *rows]) > width:
        rows = [(*row[:TEXT_COLUMNS], *map(_broken, row[TEXT_COLUMNS:])) for row in rows]
    for index, heading in enumerate(titles):
        if index < TEXT_COLUMNS:
            shown.add_column(Text(heading), overflow="fold")
        else:
            shown.add_column(
                Text(heading),
                justify="right",
                overflow="fold",
                no_wrap=width >= WIDEST,
            )
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown


def open_console() -> Console:
    """The terminal, or the 120 columns of a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDEST)


def print_table(protocol: str, frame: pd.DataFrame, console: Console | None = None) -> None:
    """Print one protocol's table."""
    target = console or open_console()
    width = min(target.width, WIDEST)
    target.print(to_table(protocol, frame, width), width=width)
