from __future__ import annotations

import csv
import dataclasses
import html.parser
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from edge_asr.quant.formats import ActivationGrid
from edge_asr.report.cells import caption, cells, headings, significant, with_interval
from edge_asr.report.clips import Clips, DataSet
from edge_asr.report.markdown import escape, to_markdown
from edge_asr.report.rows import scheme_of
from edge_asr.report.tables import safe_cell, table_csv, table_path, tables, write_csv
from edge_asr.store.record import Average, DataSection, Interval, MethodSection, Record, Result

RecordMaker = Callable[..., Record]
CLIPS = Clips("open_asr_2024", ())


def table(records: Sequence[Record]) -> pd.DataFrame:
    (frame,) = tables(records).values()
    return frame


def result(dataset: str, wer: float | None, **fields: object) -> Result:
    return Result(dataset, "open_asr_2024", 10, 20.0, wer=wer, **fields)  # type: ignore[arg-type]


def test_a_row_has_the_numbers_of_its_record(make_record: RecordMaker) -> None:
    row = table([make_record()]).iloc[0]
    assert (row["model"], row["method"], row["bits"]) == ("whisper-micro", "rtn", 4)
    assert (row["group_size"], row["effective_bits"]) == (64, 4.5)
    assert row["speech WER"] == row["wer_average"] == 26.8
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
    assert (row["voices WER"], row["wer_voices_noisy"]) == (30, 90)
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


def test_rows_tell_their_grid_apart(make_record: RecordMaker) -> None:
    grids = [(None, True), (64, True), (64, False)]
    methods = [MethodSection("rtn", 4, group, symmetric) for group, symmetric in grids]
    records = [make_record(method="rtn", wer=wer) for wer in (20.0, 21.0, 22.0)]
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
    assert "A8 in a scheme" in caption(frame)
    assert "A8 in a scheme" not in caption(table(records[:1]))


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


def test_the_interval_of_the_average_comes_from_the_record(make_record: RecordMaker) -> None:
    results = (result("libri", 10.0), result("voices", 30.0))
    average = Average("open_asr_2024", Interval(20, 18, 23), Interval(1, -1, 2))
    row = table([make_record(results=results, averages=(average,))]).iloc[0]
    assert (row["wer_low"], row["wer_high"], row["delta_wer"]) == (18, 23, 1)


def test_a_data_set_without_rate_leaves_no_average(make_record: RecordMaker) -> None:
    row = table([make_record(results=(result("a", 10.0), result("b", None)))]).iloc[0]
    assert pd.isna(row["wer_average"])


def test_float_comes_first_then_the_best(make_record: RecordMaker) -> None:
    records = [make_record("rtn", 3, 40.0), make_record("awq", 3, 35.0), make_record("float", 32)]
    assert table(records)["method"].tolist() == ["float", "awq", "rtn"]
    assert table(records)["effective_bits"].tolist() == [32, 3.5, 3.5]


def test_a_run_without_cost_still_has_a_row(make_record: RecordMaker) -> None:
    frame = table([make_record(cost=None)])
    assert pd.isna(frame["size_mb"][0])
    assert "–" in cells(frame)[0]


def test_csv_reads_back(make_record: RecordMaker, tmp_path: Path) -> None:
    ((clips, frame),) = tables([make_record(), make_record("float", 32, 20.0)]).items()
    path = write_csv(tmp_path, clips, frame)
    assert path.name == f"leaderboard_open_asr_2024_speech_100_{clips.digest[:6]}.csv"
    back = pd.read_csv(path)
    assert back.columns.tolist() == frame.columns.tolist()
    assert back["speech WER"].tolist() == pytest.approx(frame["speech WER"].tolist())
    assert list(tmp_path.iterdir()) == [path]


def test_the_leaderboards_columns_come_first_as_it_writes_them(make_record: RecordMaker) -> None:
    """Names and decimals of its scripts/data/en_shortform.csv."""
    results = (result("librispeech_clean", 5.6612), result("ami", 24.238))
    frame = table([make_record(results=results)])
    assert frame.columns.tolist()[:7] == [
        "model", "method", "scheme", "Avg. WER", "RTFx", "LS Clean WER", "AMI WER",
    ]  # fmt: skip
    assert frame.iloc[0].tolist()[3:7:2] == [14.95, 5.66]
    rounded = Average("open_asr_2024", Interval(14.9496, 1, 20), rounded=14.95, complete=False)
    frame = table([make_record(results=results, averages=(rounded,))])
    assert frame["Avg. WER"][0] == 14.95


def test_other_clips_are_another_table(make_record: RecordMaker) -> None:
    """By protocol, data set, number of clips, words of the references, and audio."""
    record = make_record()
    (one,) = record.results
    others = [
        dataclasses.replace(one, **change)  # type: ignore[arg-type]
        for change in (
            {"protocol": "open_asr_2026"},
            {"dataset": "music"},
            {"utterances": 99},
            {"reference_words": 900},
        )
    ]
    records = [record, *(make_record(results=(other,)) for other in others)]
    for digest in ("a" * 32, "b" * 32):
        records.append(make_record(data=(DataSection("speech", 100, digest),)))
    found = tables(records)
    assert [len(frame) for frame in found.values()] == [1] * 7
    assert len({table_path(Path(), clips, ".csv") for clips in found}) == 7
    titles = [clips.title for clips in found]
    assert "open_asr_2024: speech; 100 clips" in titles
    assert "open_asr_2026: speech; 100 clips" in titles


def test_a_record_under_two_protocols_has_a_row_in_each(make_record: RecordMaker) -> None:
    newer = dataclasses.replace(result("speech", 9.0), protocol="open_asr_2026")
    both = make_record(results=(result("speech", 8.0), newer))
    assert [frame["wer_average"][0] for frame in tables([both]).values()] == [8, 9]


def test_a_setting_has_a_column_where_rows_differ_in_it(make_record: RecordMaker) -> None:
    def config(seed: int, cap: int | None, limit: int | None = 100) -> dict[str, Any]:
        calibration = {"seed": seed, "clips": 64, "options": {"where": {"set": "a"}}}
        return {
            "max_new_tokens": cap,
            "calibration": calibration,
            "data": {"limit": limit},
            "bits": 3 + seed,
        }

    float_run = make_record("float", 32, 20.0, config=config(7, None))
    records = [float_run, *(make_record(wer=30.0 + i, config=config(i, None)) for i in (0, 1))]
    ((clips, frame),) = tables(records).items()
    assert clips.title == "open_asr_2024: speech; 100 clips; data.limit=100"
    # The float run has another seed but no use for it; bits are told by the scheme.
    assert "calibration.seed" in headings(frame)
    assert frame["calibration.seed"].tolist()[1:] == [0, 1]
    assert pd.isna(frame["calibration.seed"][0])
    assert not {"calibration.clips", "max_new_tokens", "bits"} & {*headings(frame)}

    capped = [make_record(config=config(0, cap)) for cap in (3, 3)]
    ((clips, frame),) = tables(capped).items()
    assert clips.title.endswith("; data.limit=100; max_new_tokens=3")
    assert "max_new_tokens" not in frame
    decoded = [make_record(decoding={"language": one}) for one in ("de", "en")]
    assert table(decoded)["decode.language"].tolist() == ["de", "en"]
    # Of models that are told nothing the language is not another one.
    moonshine = dataclasses.replace(float_run.model, name="moonshine")
    mixed = [make_record(decoding={"language": "en"}), make_record(decoding={}, model=moonshine)]
    assert "decode.language" not in table(mixed)


def test_only_a_float_row_has_a_speed(make_record: RecordMaker) -> None:
    timed, untimed = (
        dataclasses.replace(record, data=(DataSection("speech", 100, "ab", rtfx=rtfx),))
        for record, rtfx in ((make_record("float", 32, 20.0), 31.5), (make_record(), None))
    )
    (frame,) = tables([timed, untimed]).values()
    assert frame["RTFx"].tolist()[0] == pytest.approx(31.5)
    assert pd.isna(frame["RTFx"][1])


@given(st.text(), st.text())
def test_no_name_leaves_the_folder(protocol: str, name: str) -> None:
    clips = Clips(protocol, (DataSet(name, 1, 1, 1, 1.0, ""),))
    path = table_path(Path("out"), clips, ".csv")
    assert path.parent == Path("out")
    assert len(path.name) < 200


HOSTILE = [
    ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
    ("+1", "'+1"),
    ("-1", "'-1"),
    ("@SUM(A1)", "'@SUM(A1)"),
    (" =1", "' =1"),
    ("a\nb\x1b[31m", "a\\nb\\x1b[31m"),
    ("\t=1", "\\t=1"),
    ("<b>|x|</b>", "<b>|x|</b>"),
    ('say "a, b"', 'say "a, b"'),
]


@pytest.mark.parametrize(("name", "written"), HOSTILE)
def test_no_cell_of_a_csv_is_a_formula_or_a_command(
    make_record: RecordMaker, name: str, written: str
) -> None:
    assert safe_cell(name) == written
    model = dataclasses.replace(make_record().model, name=name)
    results = (result(name, 10.0),)
    difference = {"difference": Interval(-1.5, -2, -1)}
    results = (result(name, 10.0, **difference),)
    text = table_csv(table([make_record(model=model, results=results, warnings=(name,))]))
    (header, row) = csv.reader(io.StringIO(text))
    assert row[0] == row[header.index("warnings")] == written
    assert safe_cell(f"{name} WER") in header
    # A negative number stays one.
    assert row[header.index("delta_wer")] == "-1.5"
    assert not re.search(r"[^\n\x20-\uffff]", text)


def test_intervals_as_text() -> None:
    assert with_interval(26.81, 25.1, 28.6) == "26.8 [25.1, 28.6]"
    assert with_interval(1.0, -0.5, 2.5, sign=True) == "+1.0 [-0.5, 2.5]"
    assert with_interval(None, None, None, sign=True) == "–"
    assert with_interval(3.0, None, None) == "3.0"
    assert with_interval(-0.01, -0.04, 0.0, sign=True) == "+0.0 [0.0, 0.0]"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1234"), (12.34, "12.3"), (1.0, "1.00"), (0.01234, "0.0123"), (0, "0"), (None, "–")],
)
def test_three_significant_digits(value: float | None, text: str) -> None:
    assert significant(value) == text


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
    page = rendered(to_markdown(CLIPS, frame))
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


def test_a_float_runs_speed_is_over_all_its_data_sets(make_record: RecordMaker) -> None:
    """250 s of audio at 10 and 250 s at 40 times real time take 31.25 s."""
    record = make_record("float", 32)
    (one,) = record.results
    speeds = {one.dataset: 10.0, "other": 40.0}
    results = one, dataclasses.replace(one, dataset="other")

    def timed(rates: dict[str, float | None]) -> Record:
        data = tuple(DataSection(name, 100, "ab", rtfx=rtfx) for name, rtfx in rates.items())
        return dataclasses.replace(record, results=results, data=data)

    assert timed({**speeds}).rtfx == pytest.approx(500 / 31.25)
    assert timed({**speeds, "other": None}).rtfx is None
    assert record.rtfx is None
