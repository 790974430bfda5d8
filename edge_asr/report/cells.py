"""The few columns people read, as text; Markdown and console show the same cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from edge_asr.evaluation.failures import FREQUENT_WORDS
from edge_asr.report.tables import SUMMARY

_HEADINGS = (
    "Model",
    "Method",
    "Scheme",
    "Clips",
    "WER % [95 %]",
    "Δ WER [95 %]",
    "Rare",
    "Failures",
    "MB",
    "I/O MB",
    "GBOPs",
)


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
    """A number with fixed digits, or a dash where there is none."""
    if value is None or pd.isna(value):  # type: ignore[call-overload]
        return "–"
    return f"{float(value):.{digits}f}"  # type: ignore[arg-type]


def significant(value: object) -> str:
    """A positive number with three significant digits and no exponent; else a dash or 0."""
    if number(value, 0) == "–":
        return "–"
    exact = float(value)  # type: ignore[arg-type]
    return number(exact, max(0, 2 - math.floor(math.log10(exact)))) if exact > 0 else "0"


def with_interval(value: object, low: object, high: object, *, sign: bool = False) -> str:
    """A percentage with its interval: `26.8 [25.1, 28.6]`; signed for a difference."""
    shown = [number(one, 1) for one in (value, low, high)]
    if sign and not shown[0].startswith(("-", "–")):
        shown[0] = f"+{shown[0]}"
    if shown[1] == "–":
        return shown[0]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def p_value(value: object) -> str:
    """A p-value with two significant digits, or below what matters."""
    if number(value, 0) == "–":
        return "–"
    exact = float(value)  # type: ignore[arg-type]
    return "<.0001" if exact < 1e-4 else f"{exact:.2g}"


def failures(row: Mapping[str, Any]) -> str:
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
    return ", ".join(found) or "–"


def _with_ratio(value: object, ratio: object) -> str:
    times = number(ratio, 1)
    return significant(value) if times == "–" else f"{significant(value)} ({times}×)"


def _conditions(frame: pd.DataFrame) -> dict[str, str]:
    """The conditions of a table's only data set, such as clean and noisy; none of several.

    Each with its column.
    """
    measured = sorted((name for name in frame.columns if name.startswith("wer_")), key=len)
    measured = [name for name in measured if name not in SUMMARY]
    if not measured or not all(name.startswith(f"{measured[0]}_") for name in measured[1:]):
        return {}
    return {name.removeprefix(f"{measured[0]}_"): name for name in sorted(measured[1:])}


def _condition_cells(row: pd.Series, columns: Iterable[str]) -> tuple[str, ...]:
    rates = [number(row[column], 1) for column in columns]
    return (" / ".join(rates),) if rates else ()


def headings(frame: pd.DataFrame) -> tuple[str, ...]:
    """The column titles of `cells(frame)`."""
    conditions = _conditions(frame)
    titles = (" / ".join(conditions),) if conditions else ()
    before = _HEADINGS.index("Δ WER [95 %]")
    return (*_HEADINGS[:before], *titles, *_HEADINGS[before:])


def cells(frame: pd.DataFrame) -> list[tuple[str, ...]]:
    """One tuple of texts per row of a table, under `headings(frame)`."""
    columns = _conditions(frame).values()
    return [
        (
            str(row["model"]),
            str(row["method"]),
            str(row["scheme"]),
            str(int(row["scored"])),
            with_interval(row["wer_average"], row["wer_low"], row["wer_high"]),
            *_condition_cells(row, columns),
            with_interval(row["delta_wer"], row["delta_wer_low"], row["delta_wer_high"], sign=True),
            number(row["rare_wer"], 1),
            failures({str(name): value for name, value in row.items()}),
            significant(row["size_mb"]),
            _with_ratio(row["memory_io_mb"], row["memory_io_ratio"]),
            _with_ratio(row["gbops"], row["gbops_ratio"]),
        )
        for _, row in frame.iterrows()
    ]


def _activations(frame: pd.DataFrame) -> str:
    """What `A8` in a scheme means, where a row has it."""
    if not frame["activation"].notna().any():
        return ""
    return (
        "; A8 in a scheme is 8-bit activations, a scale per token, or static (a scale per tensor)"
    )


def caption(protocol: str, frame: pd.DataFrame) -> str:
    """One sentence with what every figure of the table depends on."""
    widths = "/".join(sorted({str(int(bits)) for bits in frame["float_bits"]}, key=int))
    sets = sorted({int(count) for count in frame["datasets"]})
    averaged = ""
    if sets != [1]:
        averaged = f"WER is the mean over {'/'.join(map(str, sets))} data sets; "
    return (
        f"Protocol {protocol}; {averaged}Rare is the WER in % of words outside the "
        f"{FREQUENT_WORDS} most frequent; I/O and GBOPs are per utterance, × is "
        f"how many times less than {widths}-bit float{_activations(frame)}."
    )
