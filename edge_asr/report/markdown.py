"""A table as Markdown, with every cell escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from edge_asr.cli.main import printable
from edge_asr.report.cells import TEXT_COLUMNS, caption, cells, headings
from edge_asr.report.clips import Clips
from edge_asr.report.tables import table_path
from edge_asr.store.files import write_text_atomically


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no further table cell."""
    flat = printable(" ".join(text.split()))
    marked = re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", flat)
    return html.escape(marked, quote=False)


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def to_markdown(clips: Clips, frame: pd.DataFrame) -> str:
    """A table as a Markdown document: heading, caption and the columns people read."""
    numbers = len(headings(frame)) - TEXT_COLUMNS
    lines = [
        f"# {escape(clips.title)}",
        "",
        escape(caption(frame)),
        "",
        _line(map(escape, headings(frame))),
        _line([":--"] * TEXT_COLUMNS + ["--:"] * numbers),
        *(_line(map(escape, row)) for row in cells(frame)),
    ]
    return "\n".join(lines) + "\n"


def write_markdown(folder: Path, clips: Clips, frame: pd.DataFrame) -> Path:
    """Write the Markdown table of a set of clips and return its path."""
    path = table_path(folder, clips, ".md")
    write_text_atomically(path, to_markdown(clips, frame))
    return path
