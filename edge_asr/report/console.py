"""A table for the terminal, at most 120 columns wide."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_asr.report.cells import HEADINGS, caption, cells

WIDEST = 120
TEXT_COLUMNS = 2


def to_table(protocol: str, frame: pd.DataFrame) -> Table:
    """The rich table of one protocol; long names fold, figures do not."""
    # Text, not strings: rich would read the brackets of an interval as markup.
    shown = Table(box=box.SIMPLE_HEAD, caption=Text(caption(protocol, frame)), padding=(0, 1, 0, 0))
    for index, heading in enumerate(HEADINGS):
        if index < TEXT_COLUMNS:
            shown.add_column(Text(heading), overflow="fold")
        else:
            shown.add_column(Text(heading), justify="right", no_wrap=True)
    for row in cells(frame):
        shown.add_row(*map(Text, row))
    return shown


def print_table(protocol: str, frame: pd.DataFrame, console: Console | None = None) -> None:
    """Print one protocol's table; a file or pipe gets the full 120 columns."""
    target = console or Console()
    width = WIDEST if not target.is_terminal else min(target.width, WIDEST)
    target.print(to_table(protocol, frame), width=width)
