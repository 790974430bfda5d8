from __future__ import annotations

import dataclasses
import html.parser
import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from edge_asr.errors import UserError
from edge_asr.quant.formats import ActivationGrid
from edge_asr.report.cells import caption, cells, headings, significant, with_interval
from edge_asr.report.console import print_table
from edge_asr.report.markdown import escape, to_markdown
from edge_asr.report.tables import (
    newest_versions,
    scheme_of,
    table,
    table_path,
    tables,
    write_csv,
)
from edge_asr.store.record import (
    Average,
    Interval,
    MethodSection,
    Record,
    Result,
)

RecordMaker = Callable[..., Record]


def result(dataset: str, wer: float | None, **fields: object) -> Result:
    return Result(dataset, "open_asr_2024", 10, 20.0, wer=wer, **fields)  # type: ignore[arg-type]


def test_a_row_has_the_numbers_of_its_record(make_record: RecordMaker) -> None:
    row = table([make_record()]).iloc[0]
    assert (row["model"], row["method"], row["bits"]) == ("whisper-micro", "rtn", 4)
    assert (row["group_size"], row["effective_bits"]) == (64, 4.5)
    assert row["wer_speech"] == row["wer_average"] == 26.8
    assert (row["wer_low"], row["wer_high"]) == pytest.approx((25.1, 28.6))
    delta = (row["delta_wer"], row["delta_wer_low"], row["delta_wer_high"])
    assert delta == pytest.approx((6.8, 5.3, 8.3))
    assert row["size_mb"] == pytest.approx((4e5 + 320) / 8 / 1e6)
    # 4 positions x 100,000 weights x 4 bits x 32 bits; eight times that in float.
    assert row["gbops"] == pytest.approx(4 * 1e5 * 4 * 32 / 1e9)
    assert row["gbops_ratio"] == pytest.approx(8)
    assert 5 < row["memory_io_ratio"] < 8
    assert (row["empty"], row["looping"], row["float_bits"]) == (2, 3, 32)
    assert (row["run_id"], row["git_commit"]) == ("rtn400000000", "abc123")


def test_a_dirty_checkout_shows(make_record: RecordMaker) -> None:
    record = make_record()
    dirty = dataclasses.replace(record.environment, git_dirty=True)
    frame = table([dataclasses.replace(record, environment=dirty)])
    assert frame["git_commit"][0] == "abc123-dirty"


def test_conditions_have_columns_but_no_part_in_the_average(make_record: RecordMaker) -> None:
    results = (
        result("libri", 10.0),
        result("voices", 30.0),
        result("voices", 90.0, condition="noisy"),
    )
    row = table([make_record(results=results)]).iloc[0]
    assert row["wer_average"] == 20
    assert (row["wer_voices"], row["wer_voices_noisy"]) == (30, 90)
    assert (row["datasets"], row["utterances"]) == (2, 20)
    # Two intervals do not make one of their mean.
    assert pd.isna(row["wer_low"])
    assert pd.isna(row["delta_wer"])


def test_a_condition_is_shown_from_its_own_column(make_record: RecordMaker) -> None:
    results = (
        result("voices", 30.0),
        result("voices", 50.0, condition="noisy"),
        result("voices", 90.0, condition="bits"),
    )
    frame = table([make_record(results=results)])
    shown = dict(zip(headings(frame), cells(frame)[0], strict=True))
    assert shown["bits / noisy"] == "90.0 / 50.0"


def test_rows_tell_their_clips_and_grid_apart(make_record: RecordMaker) -> None:
    grids = [(None, True), (64, True), (64, False)]
    methods = [MethodSection("rtn", 4, group, symmetric) for group, symmetric in grids]
    records = [make_record(method="rtn", wer=wer) for wer in (20.0, 21.0, 22.0)]
    few = dataclasses.replace(records[2].results[0], utterances=7)
    records[2] = dataclasses.replace(records[2], results=(few,))
    frame = table(
        [
            dataclasses.replace(record, method=method)
            for record, method in zip(records, methods, strict=True)
        ]
        + [make_record("float", 32, 19.0)]
    )
    columns = frame.columns.tolist()
    assert columns[columns.index("group_size") + 1] == "symmetric"
    assert frame["symmetric"].tolist() == [None, True, True, False]
    shown = [dict(zip(headings(frame), row, strict=True)) for row in cells(frame)]
    assert [row["Scheme"] for row in shown] == ["32", "W4 sym", "W4 g64 sym", "W4 g64"]
    assert frame["scheme"].tolist() == [row["Scheme"] for row in shown]
    assert [row["Clips"] for row in shown] == ["100", "100", "100", "7"]


def test_rows_tell_quantized_activations_apart(make_record: RecordMaker) -> None:
    grids = [
        None,
        dataclasses.asdict(ActivationGrid(8)),
        dataclasses.asdict(ActivationGrid(8, True, "tensor", "mean")),
    ]
    records = [
        dataclasses.replace(
            make_record(wer=20.0 + index),
            method=MethodSection("rtn", 4, 64, False, activation=grid),
        )
        for index, grid in enumerate(grids)
    ]
    frame = table([*records, make_record("float", 32, 19.0)])
    assert frame["activation"].fillna("").tolist() == ["", "", "A8", "A8 static mean sym"]
    assert frame["activation_bits"].tolist()[2:] == [8, 8]
    assert [row[2] for row in cells(frame)] == [
        "32",
        "W4 g64",
        "W4 g64 A8",
        "W4 g64 A8 static mean sym",
    ]
    assert "A8 in a scheme" in caption("open_asr_2024", frame)
    assert "A8 in a scheme" not in caption("open_asr_2024", table(records[:1]))


def test_a_scheme_in_words_is_shown_as_it_is(make_record: RecordMaker) -> None:
    record = make_record()
    method = dataclasses.replace(
        record.method, bits=5.25, group_size=None, symmetric=None, scheme="W4 g64 sym, encoder W8"
    )
    row = table([dataclasses.replace(record, method=method)]).iloc[0]
    assert row["scheme"] == scheme_of(method) == "W4 g64 sym, encoder W8"
    assert row["bits"] == 5.25
    # A record of schema 1 has none, and a float run only a width.
    assert scheme_of(record.method) == "W4 g64"
    assert scheme_of(make_record("float", 32).method) == "32"


@pytest.mark.parametrize(
    ("grid", "label"),
    [
        (ActivationGrid(8), "A8"),
        (ActivationGrid(4, True, clip_ratio=0.9), "A4 sym clip 0.9"),
        (ActivationGrid(8, False, "tensor", "extreme"), "A8 static"),
        (ActivationGrid(8, True, "tensor", "mean"), "A8 static mean sym"),
    ],
)
def test_activation_labels_tell_settings_apart(
    make_record: RecordMaker, grid: ActivationGrid, label: str
) -> None:
    record = make_record()
    method = dataclasses.replace(record.method, activation=dataclasses.asdict(grid))
    frame = table([dataclasses.replace(record, method=method)])
    assert frame["activation"].tolist() == [label]
    assert scheme_of(method) == f"W4 g64 {label}"


def test_of_runs_made_again_by_a_later_version_the_later_is_shown(
    make_record: RecordMaker,
) -> None:
    old = make_record("rtn", 3, 40.0)
    later = dataclasses.replace(old.environment, package="0.9")
    made = {"environment": later, "created": "2026-02-02T03:04:05+00:00"}
    new = dataclasses.replace(old, run_id="f" * 12, **made)
    config = {"model": "tiny", "bits": 4}
    kept = [
        dataclasses.replace(old, config=config),
        dataclasses.replace(old, run_id="e" * 12, config=config),
        dataclasses.replace(old, model=dataclasses.replace(old.model, weights_sha256="11")),
    ]
    assert newest_versions([old, *kept, new]) == [new, *kept]
    assert newest_versions([old]) == [old]


def test_the_interval_of_the_average_comes_from_the_record(make_record: RecordMaker) -> None:
    results = (result("libri", 10.0), result("voices", 30.0))
    average = Average("open_asr_2024", Interval(20, 18, 23), Interval(1, -1, 2))
    row = table([make_record(results=results, averages=(average,))]).iloc[0]
    assert (row["wer_low"], row["wer_high"], row["delta_wer"]) == (18, 23, 1)


def test_a_data_set_without_rate_leaves_no_average(make_record: RecordMaker) -> None:
    row = table([make_record(results=(result("a", 10.0), result("b", None)))]).iloc[0]
    assert pd.isna(row["wer_average"])


def test_one_result_twice_is_a_user_error(make_record: RecordMaker) -> None:
    record = make_record(results=(result("a", 10.0), result("a", 11.0)))
    with pytest.raises(UserError, match="wer_a twice"):
        table([record])


def test_float_comes_first_then_the_best(make_record: RecordMaker) -> None:
    records = [make_record("rtn", 3, 40.0), make_record("awq", 3, 35.0), make_record("float", 32)]
    assert table(records)["method"].tolist() == ["float", "awq", "rtn"]
    assert table(records)["effective_bits"].tolist() == [32, 3.5, 3.5]


def test_protocols_never_share_a_table(make_record: RecordMaker) -> None:
    new = (dataclasses.replace(result("speech", 9.0), protocol="open_asr_2026"),)
    records = [make_record(), make_record("awq", results=new)]
    with pytest.raises(UserError, match="open_asr_2024, open_asr_2026"):
        table(records)
    split = tables(records)
    assert {name: frame["method"].tolist() for name, frame in split.items()} == {
        "open_asr_2024": ["rtn"],
        "open_asr_2026": ["awq"],
    }
    both = make_record(results=(result("speech", 8.0), *new))
    assert [frame["wer_average"][0] for frame in tables([both]).values()] == [8, 9]


def test_a_run_without_cost_still_has_a_row(make_record: RecordMaker) -> None:
    frame = table([make_record(cost=None)])
    assert pd.isna(frame["size_mb"][0])
    assert "–" in cells(frame)[0]


def test_csv_reads_back(make_record: RecordMaker, tmp_path: Path) -> None:
    frame = table([make_record(), make_record("float", 32, 20.0)])
    path = write_csv(tmp_path, "open_asr_2024", frame)
    assert path.name == "leaderboard_open_asr_2024.csv"
    back = pd.read_csv(path)
    assert back.columns.tolist() == frame.columns.tolist()
    assert back["wer_speech"].tolist() == pytest.approx(frame["wer_speech"].tolist())
    assert list(tmp_path.iterdir()) == [path]


@given(st.text())
def test_a_protocol_cannot_name_another_folder(protocol: str) -> None:
    assert table_path(Path("out"), protocol, ".csv").parent == Path("out")


def test_intervals_as_text() -> None:
    assert with_interval(26.81, 25.1, 28.6) == "26.8 [25.1, 28.6]"
    assert with_interval(1.0, -0.5, 2.5, sign=True) == "+1.0 [-0.5, 2.5]"
    assert with_interval(None, None, None, sign=True) == "–"
    assert with_interval(3.0, None, None) == "3.0"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1234"), (12.34, "12.3"), (1.0, "1.00"), (0.01234, "0.0123"), (0, "0"), (None, "–")],
)
def test_three_significant_digits(value: float | None, text: str) -> None:
    assert significant(value) == text


def test_console_table_fits_120_columns(make_record: RecordMaker) -> None:
    long = dataclasses.replace(make_record().model, name="organisation/whisper-small.en-distilled")
    records = [make_record(), make_record("omniquant+gptq", 3, 104.6, model=long)]
    console = Console(width=200, file=io.StringIO(), record=True)
    print_table("open_asr_2024", table(records), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 120
    text = "\n".join(lines)
    for shown in ("26.8 [25.1, 28.6]", "+84.6 [83.1, 86.1]", "W4 g64", "2 empty,", "3 loop"):
        assert shown in text
    assert "…" not in text


def test_the_widest_ordinary_table_fits_120_columns(make_record: RecordMaker) -> None:
    """With conditions, a symmetric grouped grid and a corpus of thousands of clips."""
    record = make_record("smoothquant", 4, 94.6)
    whole = dataclasses.replace(record.results[0], utterances=12_345)
    parts = (result("speech", 99.9, condition="clean"), result("speech", 104.9, condition="noisy"))
    method = dataclasses.replace(
        record.method,
        symmetric=True,
        group_size=128,
        activation=dataclasses.asdict(ActivationGrid(8, True, "tensor", "mean", 0.95)),
    )
    record = dataclasses.replace(record, results=(whole, *parts), method=method)
    console = Console(width=120, file=io.StringIO(), record=True)
    print_table("open_asr_2024", table([record]), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 120
    for shown in (
        "whisper-micro",
        "smoothquant",
        "W4 g128",
        "sym",
        "A8",
        "static",
        "0.95",
        "12345",
        "104.9",
        "(8.0×)",
    ):
        assert shown in text
    assert "…" not in text


def test_ordinary_names_stay_whole(make_record: RecordMaker) -> None:
    console = Console(width=120, file=io.StringIO(), record=True)
    print_table("open_asr_2024", table([make_record(), make_record("smoothquant", 3)]), console)
    text = console.export_text()
    assert "whisper-micro" in text
    assert "smoothquant" in text


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_loses_no_column(make_record: RecordMaker, width: int) -> None:
    console = Console(width=width, file=io.StringIO(), record=True)
    print_table("open_asr_2024", table([make_record()]), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    # Folded or not, every letter of the names is there.
    assert not set("whisper-micro rtn") - set(text)


class TextOf(html.parser.HTMLParser):
    """Table cells of an HTML page, as a browser would show them."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: set[str] = set()
        self.inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data


def rendered(markdown: str) -> TextOf:
    page = TextOf()
    page.feed(MarkdownIt("commonmark").enable("table").render(markdown))
    return page


def test_markdown_renders_every_cell(make_record: RecordMaker) -> None:
    hostile = "<script>alert(1)</script> | [x](javascript:1) `a` *b* \\"
    model = dataclasses.replace(make_record().model, name=hostile)
    frame = table([make_record(model=model), make_record("float", 32, 20.0)])
    page = rendered(to_markdown("open_asr_2024", frame))
    assert hostile in [cell.strip() for cell in page.cells]
    assert "26.8 [25.1, 28.6]" in page.cells
    assert not page.tags & {"script", "a", "code", "em"}


printable = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1)


@settings(deadline=None)
@given(printable)
def test_escaped_text_renders_as_itself(text: str) -> None:
    page = rendered(f"| h |\n|---|\n| {escape(text)} |\n")
    assert page.cells[1:] == [" ".join(text.split())]
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td"}
