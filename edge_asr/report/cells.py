"""The few columns people read, as text; Markdown, console and page show the same cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from edge_asr.evaluation.failures import FREQUENT_WORDS
from edge_asr.report.rows import AVERAGE, LEADERBOARD, SPEED
from edge_asr.report.tables import added_columns

NONE = "–"
Row = Mapping[str, Any]

# What a table calls the failures that a result counts.
FAILURES = {
    "empty": "empty",
    "looping": "loop",
    "over_long": "long",
    "hit_limit": "at limit",
    "truncated": "cut",
    "invented_clips": "invented",
    "flagged": "flagged",
    "damaged": "damaged",
}


def number(value: object, digits: int) -> str:
    """A number with fixed digits, never a negative zero, or a dash where there is none."""
    if value is None or pd.isna(value):  # type: ignore[call-overload]
        return NONE
    # Adding zero takes the sign from a zero.
    return f"{round(float(value), digits) + 0.0:.{digits}f}"  # type: ignore[arg-type]


def significant(value: object) -> str:
    """A positive number with three significant digits and no exponent; else a dash or 0."""
    if number(value, 0) == NONE:
        return NONE
    exact = float(value)  # type: ignore[arg-type]
    return number(exact, max(0, 2 - math.floor(math.log10(exact)))) if exact > 0 else "0"


def with_interval(value: object, low: object, high: object, *, sign: bool = False) -> str:
    """A percentage with its interval: `26.8 [25.1, 28.6]`; signed for a difference."""
    shown = [number(one, 1) for one in (value, low, high)]
    if sign and not shown[0].startswith(("-", NONE)):
        shown[0] = f"+{shown[0]}"
    if shown[1] == NONE:
        return shown[0]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def p_value(value: object) -> str:
    """A p-value with two significant digits, or below what matters."""
    if number(value, 0) == NONE:
        return NONE
    exact = float(value)  # type: ignore[arg-type]
    return "<.0001" if exact < 1e-4 else f"{exact:.2g}"


def failures(row: Row) -> str:
    """How outputs failed, of those ways that occurred: `2 empty, 1 loop`; a dash for none.

    `row` has the counts of a `Result` by name; damaged clips may be names or their number.
    """
    counts: dict[str, Any] = {name: row.get(name) or 0 for name in FAILURES}
    if isinstance(counts["damaged"], tuple):
        counts["damaged"] = len(counts["damaged"])
    found = [
        f"{int(counts[name])} {word}"
        for name, word in FAILURES.items()
        if counts[name] and not pd.isna(counts[name])
    ]
    return ", ".join(found) or NONE


def _count(failure: str) -> int:
    count = failure.partition(" ")[0]
    return int(count) if count.isdecimal() else 0


def _with_ratio(value: object, ratio: object) -> str:
    times = number(ratio, 1)
    return significant(value) if times == NONE else f"{significant(value)} ({times}×)"


def _setting(row: Row, name: str) -> str:
    value = row[name]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rates(row: Row, names: Sequence[str]) -> str:
    return " / ".join(number(row[name], 1) for name in names)


def _warnings(row: Row) -> str:
    said = row["warnings"]
    return NONE if said is None or pd.isna(said) else str(said.count("; ") + 1)


@dataclass(frozen=True)
class Column:
    """A column as people read it.

    Attributes:
        heading: Its title.
        cell: The text of a row.
        short: The same in less space, or None.
        rank: Where a terminal is narrow the highest are left out first.
    """

    heading: str
    cell: Callable[[Row], str]
    rank: int = 0
    short: Callable[[Row], str] | None = None


TEXT_COLUMNS = 3
COLUMNS = (
    Column("Model", lambda row: str(row["model"])),
    Column("Method", lambda row: str(row["method"])),
    Column("Scheme", lambda row: str(row["scheme"])),
    Column("Bits", lambda row: number(row["effective_bits"], 2), 5),
    Column(
        "WER % [95 %]",
        lambda row: with_interval(row["wer_average"], row["wer_low"], row["wer_high"]),
    ),
    Column(
        "Δ WER [95 %]",
        lambda row: with_interval(
            row["delta_wer"], row["delta_wer_low"], row["delta_wer_high"], sign=True
        ),
        1,
    ),
    Column("p Holm", lambda row: p_value(row["p_holm"]), 8),
    Column("Rare", lambda row: number(row["rare_wer"], 1), 10),
    Column("Failures", failures, 3, lambda row: max(failures(row).split(", "), key=_count)),
    Column("MB", lambda row: significant(row["size_mb"]), 2),
    Column(
        "I/O MB",
        lambda row: _with_ratio(row["memory_io_mb"], row["memory_io_ratio"]),
        4,
        lambda row: significant(row["memory_io_mb"]),
    ),
    Column(
        "GBOPs",
        lambda row: _with_ratio(row["gbops"], row["gbops_ratio"]),
        6,
        lambda row: significant(row["gbops"]),
    ),
    Column(SPEED, lambda row: significant(row[SPEED]), 11),
    Column("Warnings", _warnings, 7),
)


def columns_of(frame: pd.DataFrame) -> list[Column]:
    """The columns of a table: those that every one has, and the settings in which rows differ."""
    added = [Column(name, partial(_setting, name=name), 1) for name in added_columns(frame)]
    if parts := _conditions(frame):
        added.append(Column(" / ".join(parts), partial(_rates, names=tuple(parts.values())), 9))
    return [*COLUMNS[:TEXT_COLUMNS], *added, *COLUMNS[TEXT_COLUMNS:]]


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows, each by the names of its columns."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def headings(frame: pd.DataFrame) -> tuple[str, ...]:
    """The column titles of `cells(frame)`."""
    return tuple(column.heading for column in columns_of(frame))


def cells(frame: pd.DataFrame) -> list[tuple[str, ...]]:
    """One tuple of texts per row of a table, under `headings(frame)`."""
    columns = columns_of(frame)
    return [tuple(column.cell(row) for column in columns) for row in rows_of(frame)]


def _conditions(frame: pd.DataFrame) -> dict[str, str]:
    """The conditions of a table's only data set, such as clean and noisy, each with its column;
    none of several data sets."""
    rates = [str(name) for name in frame.columns if str(name).endswith(" WER")]
    rates.remove(AVERAGE)
    if len(rates) != 1:
        return {}
    names = {column: name for name, column in LEADERBOARD.items()}
    prefix = f"wer_{names.get(rates[0], rates[0].removesuffix(' WER'))}_"
    found = (str(name) for name in frame.columns if str(name).startswith(prefix))
    return {name.removeprefix(prefix): name for name in found}


def caption(frame: pd.DataFrame) -> str:
    """One sentence with what every figure of the table depends on."""
    widths = "/".join(sorted({str(int(bits)) for bits in frame["float_bits"]}, key=int))
    sets = int(frame["datasets"].max())
    averaged = f"WER is the mean over {sets} data sets; " if sets > 1 else ""
    inputs = ""
    if frame["activation"].notna().any():
        inputs = "; A8 in a scheme is 8-bit activations, a scale per token, or static (per tensor)"
    return (
        f"{averaged}Bits are stored bits a quantized weight; Rare is the WER in % of words outside "
        f"the {FREQUENT_WORDS} most frequent; I/O and GBOPs are per utterance, × is "
        f"how many times less than {widths}-bit float{inputs}."
    )
