"""A table fits its terminal: columns are left out, names and figures never broken."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from edge_asr.report.console import print_table, table_lines
from edge_asr.report.tables import tables
from edge_asr.store.record import Record, Result

RecordMaker = Callable[..., Record]
LONG = "quarot+outliers=unstructured+range=mse_double_quant+rounding=adaround"


def lines(records: list[Record], width: int) -> list[str]:
    ((clips, frame),) = tables(records).items()
    return [line.plain.rstrip() for line in table_lines(clips, frame, width)]


def test_a_table_of_80_columns(make_record: RecordMaker) -> None:
    small = dataclasses.replace(make_record().model, name="moonshine-micro")
    records = [
        make_record("float", 32, 20.0, model=small),
        make_record("smoothquant", 4, 94.6, model=small),
        make_record(LONG, 2, 31.0),
        make_record("awq", 4, 26.8),
    ]
    assert lines(records, 80) == [
        "open_asr_2024: speech; 100 clips",
        "                            WER % [95 %]        Δ WER [95 %]  Failures      MB",
        "moonshine-micro",
        "  float        32      20.0 [18.3, 21.8]                   –    3 loop   0.400",
        "  smoothquant  W4 g64  94.6 [92.9, 96.4]  +74.6 [73.1, 76.1]    3 loop  0.0500",
        "whisper-micro",
        "  awq          W4 g64  26.8 [25.1, 28.6]     +6.8 [5.3, 8.3]    3 loop  0.0500",
        f"  {LONG} W2 g64",
        "                       31.0 [29.3, 32.8]   +11.0 [9.5, 12.5]    3 loop  0.0250",
        "The CSV also has I/O MB, Bits, GBOPs.",
    ]


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(40, 120),
    st.lists(st.text("ab-+_=.é漢", min_size=1, max_size=60), min_size=1, max_size=4),
)
def test_no_width_breaks_a_name_or_a_figure(
    make_record: RecordMaker, width: int, names: list[str]
) -> None:
    records = [make_record(name, 4, 26.8 + number) for number, name in enumerate(names)]
    shown = lines(records, width)
    text = "\n".join(shown)
    assert all(name in text for name in names)
    assert all(f"{26.8 + number:.1f} [" in text for number in range(len(names)))
    console = Console(width=200)
    widest = max(console.measure(f"  {name} W4 g64").maximum for name in names)
    assert all(console.measure(line).maximum <= max(width, widest) for line in shown)


def test_settings_in_which_rows_differ_are_shown_in_80_columns(make_record: RecordMaker) -> None:
    records = [make_record(wer=20.0 + i, config={"calibration": {"seed": i}}) for i in (0, 1)]
    assert "calibration.seed" in lines(records, 80)[1]


def test_a_column_that_tells_nothing_is_not_shown(make_record: RecordMaker) -> None:
    result = Result("speech", "open_asr_2024", 100, 250.0, wer=20.0)
    shown = lines([make_record("float", 32, results=(result,))], 120)
    assert "Failures" not in shown[1]
    assert "Δ" not in "".join(shown)


@pytest.mark.parametrize(("width", "widest"), [(80, 80), (200, 120)])
def test_printing_takes_the_width_of_the_terminal(
    make_record: RecordMaker, width: int, widest: int
) -> None:
    ((clips, frame),) = tables([make_record("float", 32, 20.0), make_record()]).items()
    console = Console(width=width, file=io.StringIO(), record=True)
    print_table(clips, frame, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= widest
    assert "+6.8 [5.3, 8.3]" in text


def test_no_name_gives_a_terminal_commands(make_record: RecordMaker) -> None:
    model = dataclasses.replace(make_record().model, name="a\x1b[31mb")
    assert "\x1b" not in "".join(lines([make_record("c\x07", model=model)], 80))
