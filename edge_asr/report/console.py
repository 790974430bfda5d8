"""A table for the terminal, at most 120 columns wide."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_asr.report.cells import caption, cells, headings

WIDEST = 120
TEXT_COLUMNS = 2


def to_table(protocol: str, frame: pd.DataFrame, width: int = WIDEST) -> Table:
    """The rich table of one protocol; names fold, figures only where `width` is too small."""
    # Text, not strings: rich would read the brackets of an interval as markup.
    shown = Table(box=box.SIMPLE_HEAD, caption=Text(caption(protocol, frame)), padding=0)
    for index, heading in enumerate(headings(frame)):
        if index < TEXT_COLUMNS:
            shown.add_column(Text(heading), overflow="fold")
        else:
            shown.add_column(
                Text(heading.replace("/", "/\n")),
                justify="right",
                overflow="fold",
                no_wrap=width >= WIDEST,
            )
    for row in cells(frame):
        shown.add_row(*map(Text, row))
    return shown


def print_table(protocol: str, frame: pd.DataFrame, console: Console | None = None) -> None:
    """Print one protocol's table; without a console, to the terminal or 120 columns of a pipe."""
    target = console or Console()
    if console is None and not target.is_terminal:
        target = Console(width=WIDEST)
    width = min(target.width, WIDEST)
    target.print(to_table(protocol, frame, width), width=width)
