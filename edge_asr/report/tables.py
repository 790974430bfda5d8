"""Run records as tables: one for every protocol and set of clips, and the leaderboard CSV."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from edge_asr.cli.main import printable
from edge_asr.errors import UserError
from edge_asr.evaluation.paired_tests import holm
from edge_asr.report.clips import Clips, clips_of
from edge_asr.report.rows import (
    DETAILS,
    NAMES,
    SUMMARY,
    rate_column,
    row,
    settings_of,
)
from edge_asr.store.files import write_text_atomically
from edge_asr.store.record import ALL, FLOAT_METHOD, Record

# A program that opens a CSV takes a cell that begins so for a formula.
FORMULA = ("=", "+", "-", "@")


def tables(records: Sequence[Record]) -> dict[Clips, pd.DataFrame]:
    """A table for every protocol and set of clips; a record under several has a row in each.

    Rows are sorted by model, the float run first, then by average WER. A column for a setting is
    there where rows differ in it.
    """
    groups: dict[Clips, list[Record]] = {}
    for record in records:
        for protocol in {result.protocol for result in record.results}:
            groups.setdefault(clips_of(record, protocol), []).append(record)
    named = {replace(one, limits=_limits(group)): group for one, group in sorted(groups.items())}
    return {clips: _table(group, clips) for clips, group in named.items()}


def _limits(records: Sequence[Record]) -> tuple[str, ...]:
    """What all have in common of the limits on clips and tokens."""
    found = []
    for group, name in (("data", "limit"), ("", "max_new_tokens")):
        values = {
            (one.config.get(group) or {} if group else one.config).get(name) for one in records
        }
        if len(values) == 1 and (value := values.pop()) is not None:
            found.append(f"{group}{'.' if group else ''}{name}={value}")
    return tuple(found)


def _table(records: Sequence[Record], clips: Clips) -> pd.DataFrame:
    rows = [row(record, clips.protocol) for record in records]
    raw = [math.nan if cells["p_value"] is None else cells["p_value"] for cells in rows]
    for cells, adjusted in zip(rows, holm(raw), strict=True):
        cells["p_holm"] = None if math.isnan(adjusted) else adjusted
    settings = differing([(record.model.name, settings_of(record)) for record in records])
    for cells, values in zip(rows, settings, strict=True):
        cells |= values
    results = [one for record in records for one in record.results if one.by == "condition"]
    rates = list(dict.fromkeys(rate_column(one) for one in results if one.condition == ALL))
    parts = sorted({rate_column(one) for one in results if one.condition != ALL})
    columns = (*NAMES, *rates, *SUMMARY, *parts, *DETAILS)
    added = [name for name in (settings[0] if settings else {}) if name not in columns]
    where = columns.index("bits")
    frame = pd.DataFrame(rows).reindex(columns=[*columns[:where], *added, *columns[where:]])
    ranked = frame.assign(quantized=frame["method"] != FLOAT_METHOD)
    ranked = ranked.sort_values(
        ["model", "quantized", "wer_average", "run_id"], kind="stable", na_position="last"
    )
    return ranked.drop(columns="quantized").reset_index(drop=True)


def differing(settings: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """`settings` without those that all rows of a model have alike, as far as they know them."""
    values: dict[tuple[str, str], set[str]] = {}
    for model, one in settings:
        for name, value in one.items():
            values.setdefault((name, model), set()).add(json.dumps(value))
    names = sorted({name for (name, _), found in values.items() if len(found) > 1})
    return [{name: _plain(one.get(name)) for name in names} for _, one in settings]


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def added_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of a table that readers need because rows differ in that setting."""
    columns = [str(name) for name in frame.columns]
    known = {*NAMES, *SUMMARY}
    found = [
        name
        for name in columns[: columns.index(DETAILS[0])]
        if name not in known and not name.endswith(" WER") and not name.startswith("wer_")
    ]
    return found + [name for name in ("batch_size",) if frame[name].nunique() > 1]


def table_path(folder: Path, clips: Clips, suffix: str) -> Path:
    """`folder/leaderboard_<protocol>_<clips><suffix>`; the name cannot leave the folder."""
    return folder / f"leaderboard_{clips.slug}{suffix}"


def safe_cell(text: str) -> str:
    """Text that no program takes for a formula, and no terminal for a command."""
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(FORMULA) else shown


def safe_to_open(frame: pd.DataFrame) -> pd.DataFrame:
    """The same with every text and title as `safe_cell`."""
    return frame.rename(columns=safe_cell).map(
        lambda cell: safe_cell(cell) if isinstance(cell, str) else cell
    )


def table_csv(frame: pd.DataFrame) -> str:
    """A table as CSV, numbers to 6 significant digits."""
    return safe_to_open(frame).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def write_csv(folder: Path, clips: Clips, frame: pd.DataFrame) -> Path:
    """Write a table's full columns as CSV; return the path."""
    path = table_path(folder, clips, ".csv")
    write_text_atomically(path, table_csv(frame))
    return path


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write any table as CSV where `--out` says. Raises UserError where it cannot be written."""
    try:
        write_text_atomically(path, safe_to_open(frame).to_csv(index=False, lineterminator="\n"))
    except OSError as error:
        raise UserError(
            f"--out={path}: cannot be written ({error.strerror}); give a file you may write"
        ) from error
