"""A table as Markdown, with every cell escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from edge_asr.report.cells import caption, cells, headings
from edge_asr.report.tables import table_path
from edge_asr.store.files import write_text_atomically

TEXT_COLUMNS = 2


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no further table cell."""
    flat = " ".join(text.split())
    marked = re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", flat)
    return html.escape(marked, quote=False)


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def to_markdown(protocol: str, frame: pd.DataFrame) -> str:
    """A table as a Markdown document: heading, caption and the columns people read."""
    numbers = len(headings(frame)) - TEXT_COLUMNS
    lines = [
        f"# Leaderboard: {escape(protocol)}",
        "",
        escape(caption(protocol, frame)),
        "",
        _line(map(escape, headings(frame))),
        _line([":--"] * TEXT_COLUMNS + ["--:"] * numbers),
        *(_line(map(escape, row)) for row in cells(frame)),
    ]
    return "\n".join(lines) + "\n"


def write_markdown(folder: Path, protocol: str, frame: pd.DataFrame) -> Path:
    """Write the Markdown table of a protocol and return its path."""
    path = table_path(folder, protocol, ".md")
    write_text_atomically(path, to_markdown(protocol, frame))
    return path
