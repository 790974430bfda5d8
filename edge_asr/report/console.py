"""A table for the terminal: as many columns as fit, every one whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from textwrap import wrap

import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from edge_asr.cli.main import printable
from edge_asr.report.cells import NONE, TEXT_COLUMNS, Column, Row, columns_of, rows_of
from edge_asr.report.clips import Clips

WIDEST = 120
GAP = "  "
WIDEST_NAME = 0.4  # of the width; longer ones stand on lines of their own
LAST_NEEDED = 1  # rank of the columns without which a row says nothing: rates, and settings


def open_console() -> Console:
    """The terminal, or the 120 columns of a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDEST)


def print_table(clips: Clips, frame: pd.DataFrame, console: Console | None = None) -> None:
    """Print a table under its heading, a block for every model."""
    target = console or open_console()
    for line in table_lines(clips, frame, min(target.width, WIDEST)):
        target.print(line, soft_wrap=True)


def print_lines(lines: Iterable[str], console: Console | None = None) -> None:
    """Print sentences, each folded between words where it is too long."""
    target = console or open_console()
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        for part in _wrapped(line, min(target.width, WIDEST), f"{indent}  "):
            target.print(Text(part), soft_wrap=True)


def table_lines(clips: Clips, frame: pd.DataFrame, width: int) -> list[Text]:
    """The lines of a table, at most `width` wide but for a name that is wider by itself.

    A name that leaves figures no room stands on a line of its own.
    """
    rows, columns = rows_of(frame), columns_of(frame)
    figures = _told(columns[TEXT_COLUMNS:], rows)
    least = _width([texts for column, texts in figures.items() if column.rank <= LAST_NEEDED])
    most = min(width - least - 2 * len(GAP), int(width * WIDEST_NAME))
    names = [[column.cell(row) for column in columns[1:TEXT_COLUMNS]] for row in rows]
    labels = _labels(names, most)
    margin = max((size for size in map(cell_len, labels) if size <= most), default=0)
    kept, left_out = _fitting(figures, rows, width - margin - 2 * len(GAP))
    titles, *lines = _aligned(kept, right=True)
    shown = [Text(line, style="bold") for line in _wrapped(clips.title, width)]
    shown.append(Text(f"{GAP}{' ' * margin}{GAP}{titles}", style="bold"))
    table = zip(rows, labels, lines, strict=True)
    for model, block in groupby(table, lambda one: one[0]["model"]):
        shown.append(Text(printable(str(model)), style="bold"))
        for _, label, line in block:
            if cell_len(label) > margin:
                shown.append(Text(f"{GAP}{label}"))
                label = ""
            padding = " " * (margin - cell_len(label))
            shown.append(Text(f"{GAP}{label}{padding}{GAP}{line}"))
    if left_out:
        also = f"The CSV also has {', '.join(left_out)}."
        shown += [Text(line, style="dim") for line in _wrapped(also, width)]
    return shown


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return wrap(
        printable(text),
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _labels(names: Sequence[Sequence[str]], most: int) -> list[str]:
    """Method and scheme of every row; those of at most `most` under one another if that fits."""
    labels = [printable(" ".join(name)) for name in names]
    short = [place for place, label in enumerate(labels) if cell_len(label) <= most]
    aligned = _aligned([names[place] for place in short])
    if aligned and cell_len(aligned[0]) <= most:
        for place, label in zip(short, aligned, strict=True):
            labels[place] = label
    return labels


def _aligned(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """Every row as one line, its cells under one another."""
    safe = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*safe, strict=True)]
    lines = []
    for row in safe:
        padding = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = zip(row, padding, strict=True)
        lines.append(GAP.join(pad + cell if right else cell + pad for cell, pad in cells))
    return lines


def _told(columns: Sequence[Column], rows: Sequence[Row]) -> dict[Column, list[str]]:
    """Title and cells of every column that tells something of any row."""
    texts = {column: [column.cell(row) for row in rows] for column in columns}
    return {
        column: [column.heading, *cells]
        for column, cells in texts.items()
        if any(cell != NONE for cell in cells)
    }


def _fitting(
    full: Mapping[Column, list[str]], rows: Sequence[Row], room: int
) -> tuple[list[list[str]], list[str]]:
    """Titles and cells, line by line, of the columns that fit in `room`; titles of the others."""
    kept = dict(full)
    if _width(kept.values()) > room:
        for column in kept:
            if column.short:
                kept[column] = [column.heading, *(column.short(row) for row in rows)]
    left_out = []
    while _width(kept.values()) > room and len(kept) > 1:
        last = max(kept, key=lambda column: column.rank)
        left_out.append(last.heading)
        del kept[last]
    return [list(row) for row in zip(*kept.values(), strict=True)], left_out[::-1]


def _width(columns: Iterable[Sequence[str]]) -> int:
    widths = [max(map(cell_len, texts)) for texts in columns]
    return sum(widths) + len(GAP) * (len(widths) - 1)
