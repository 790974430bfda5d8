"""Static figures: of every table, the same each time, whatever names hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from edge_asr.errors import UserError
from edge_asr.report.__main__ import main
from edge_asr.report.figures import heatmap, require_matplotlib, tradeoffs, write_figures
from edge_asr.report.tables import tables
from edge_asr.store.record import Record, write_record

RecordMaker = Callable[..., Record]
needs_matplotlib = pytest.mark.skipif(
    find_spec("matplotlib") is None, reason="needs matplotlib, edge_asr[figures]"
)


@needs_matplotlib
def test_figures_have_a_point_a_row_and_a_cell_a_recipe(
    make_record: RecordMaker, tmp_path: Path
) -> None:
    named = replace(make_record().model, name="$x$_{1}")
    records = [
        make_record("float", 32, 20.0),
        make_record(),
        make_record("awq", 3, 31, model=named),
    ]
    found = tables(records)
    ((clips, frame),) = found.items()
    points, cells = tradeoffs(frame), heatmap(frame)
    assert points is not None
    assert cells is not None
    assert [len(one.containers) for one in points.axes] == [3, 3, 3]
    assert [one.get_title() for one in cells.axes[:2]] == ["$x$_{1}", "whisper-micro"]
    assert [text.get_text() for text in cells.axes[0].texts] == ["11.0"]
    written = write_figures(tmp_path, found)
    assert [path.name for path in written] == [
        f"{name}_{clips.slug}.{form}"
        for name in ("tradeoffs", "heatmap")
        for form in ("svg", "png")
    ]
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_figures(tmp_path, found)] == before


@needs_matplotlib
def test_a_table_without_costs_or_differences_has_no_figure(make_record: RecordMaker) -> None:
    (frame,) = tables([make_record("float", 32, cost=None)]).values()
    assert tradeoffs(frame) is None
    assert heatmap(frame) is None


@needs_matplotlib
def test_the_command_writes_them_where_asked(make_record: RecordMaker, tmp_path: Path) -> None:
    write_record(tmp_path / "a", make_record())
    assert main(["--results", str(tmp_path), "--figures"]) == 0
    assert len(list(tmp_path.glob("*.svg"))) == 2


def test_without_matplotlib_it_is_one_line(make_record: RecordMaker, tmp_path: Path) -> None:
    if find_spec("matplotlib") is None:
        write_record(tmp_path / "a", make_record())
        with pytest.raises(UserError, match=r"pip install 'edge_asr\[figures\]'"):
            require_matplotlib()
        assert main(["--results", str(tmp_path), "--figures"]) == 2
        assert not list(tmp_path.glob("*.csv"))
    else:
        require_matplotlib()
