"""Published results keep their promises, and each promise that is broken is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from check_results import main

from edge_asr.report.clips import Clips
from edge_asr.report.tables import table_path, tables, write_csv
from edge_asr.store.record import Record, read_record, write_record

RESULTS = Path(__file__).parents[2] / "results"
RUNS = ("rtn", "gptq", "autoround", "smoothquant")
Runs = dict[str, Record]
Shown = pytest.CaptureFixture[str]


@pytest.fixture
def runs() -> Runs:
    """A published run of each method, all on one grid."""
    paths = {
        name: (RESULTS / "embedded").glob(f"moonshine-micro/{name}-w2-{'?' * 12}/*.json")
        for name in RUNS
    }
    return {name: read_record(*path) for name, path in paths.items()}


def with_error(record: Record, factor: float) -> Record:
    layers = [
        replace(layer, output_error_after=factor * (layer.output_error_after or 0))
        for layer in record.method.layers
    ]
    return change(record, "method", layers=tuple(layers))


def change(record: Record, section: str, **fields: Any) -> Record:
    changed: Any = replace(getattr(record, section), **fields)
    return replace(record, **{section: changed})


def without_like(record: Record) -> Record:
    """On a grid that no other run is on."""
    return change(record, "method", group_size=7)


def with_loss(record: Record, after: float | None) -> Record:
    *others, last = record.method.blocks
    assert last.loss_before is not None
    last = replace(last, loss_after=after and after * last.loss_before)
    return change(record, "method", blocks=(*others, last))


def written(folder: Path, runs: Runs) -> Path:
    """The runs and their leaderboard as published results; the path of the leaderboard."""
    for name, record in runs.items():
        write_record(folder / name, record)
    ((clips, frame),) = tables([*runs.values()]).items()
    return write_csv(folder, clips, frame)


def checked(folder: Path, capsys: Shown) -> tuple[int, list[str], str]:
    """Exit code, lines and the final count."""
    code = main([str(folder)])
    *lines, count = capsys.readouterr().out.splitlines()
    return code, lines, count.removeprefix(f"{folder}: ")


def test_the_published_results_keep_every_promise(capsys: Shown) -> None:
    assert main([str(RESULTS)]) == 0
    lines = capsys.readouterr().out.splitlines()
    known = {
        "embedded": 34,
        "librispeech_test_other_100": 0,
        "micro_grid": 18,
        "real": 0,
        "real_draws": 0,
        "runtimes": 0,
        "test_other_100_common_voice_100": 0,
    }
    folders = {name: RESULTS / name for name in known}
    assert lines == [
        f"{folder}: {len(list(folder.rglob('record.json')))} records, {known[name]} known "
        "exceptions, 0 broken promises"
        for name, folder in folders.items()
    ]
    assert {path.parent for path in RESULTS.rglob("leaderboard_*.csv")} == {*folders.values()}


def test_results_without_a_fault_pass(runs: Runs, tmp_path: Path, capsys: Shown) -> None:
    written(tmp_path, runs)
    count = "4 records, 1 known exceptions, 0 broken promises"
    assert checked(tmp_path, capsys) == (0, [], count)


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("rtn", partial(replace, results=()), "has no results"),
        ("gptq", partial(change, section="environment", git_commit=None), "clean commit"),
        ("gptq", partial(change, section="environment", git_dirty=True), "clean commit"),
        ("autoround", partial(with_loss, after=1.0), "learning took the loss from"),
        ("autoround", partial(with_loss, after=None), "learning took the loss from"),
        ("gptq", partial(with_error, factor=1e3), "output error"),
        # Known of the learned methods at 8 bits and 4-bit activations, not here.
        ("autoround", partial(with_error, factor=1e3), "output error"),
        ("gptq", partial(change, section="method", layers=()), "was not measured"),
        ("gptq", lambda one: with_error(without_like(one), 1e3), "output error"),
    ],
)
def test_a_broken_promise_is_one_line(
    name: str,
    spoil: Callable[[Record], Record],
    said: str,
    runs: Runs,
    tmp_path: Path,
    capsys: Shown,
) -> None:
    written(tmp_path, {**runs, name: spoil(runs[name])})
    code, lines, count = checked(tmp_path, capsys)
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"{tmp_path / name / 'record.json'}: ")
    assert said in lines[0]
    assert count.endswith("1 broken promises")


def test_what_no_run_of_rtn_is_like_is_compared_with_what_it_measured_itself(
    runs: Runs, tmp_path: Path, capsys: Shown
) -> None:
    written(tmp_path, {**runs, "gptq": without_like(runs["gptq"])})
    assert checked(tmp_path, capsys)[:2] == (0, [])


def test_training_that_found_nothing_better_is_to_say_so(
    runs: Runs, tmp_path: Path, capsys: Shown
) -> None:
    stayed = with_loss(runs["autoround"], 1.0)
    name = stayed.method.blocks[-1].name
    warned = change(stayed, "method", warnings=(f"{name}: 5 steps did not lower its loss",))
    written(tmp_path, {**runs, "autoround": warned})
    assert checked(tmp_path, capsys)[:2] == (0, [])


def test_two_runs_to_compare_with_are_noticed(runs: Runs, tmp_path: Path, capsys: Shown) -> None:
    again = replace(runs["rtn"], run_id="again")
    written(tmp_path, {"gptq": runs["gptq"], "rtn": runs["rtn"], "again": again})
    _, lines, _ = checked(tmp_path, capsys)
    assert lines == [f"{tmp_path}/gptq/record.json: 2 runs of rtn are like it, not one"]


def test_a_torn_record_is_one_line_and_hides_no_other(
    runs: Runs, tmp_path: Path, capsys: Shown
) -> None:
    path = written(tmp_path, {**runs, "gptq": with_error(runs["gptq"], 1e3)})
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "record.json").write_text('{"run_id": ')
    code, lines, _ = checked(tmp_path, capsys)
    assert (code, len(lines)) == (1, 2)
    assert "torn/record.json" in lines[0]
    assert "gptq/record.json" in lines[1]
    assert path.exists()


def test_a_leaderboard_that_is_not_of_the_records_is_noticed(
    runs: Runs, tmp_path: Path, capsys: Shown
) -> None:
    path = written(tmp_path, runs)
    header, first, *others = path.read_text().splitlines(keepends=True)
    for content, said in (
        (header + first.replace("moonshine", "moonshite") + "".join(others), "line 2 is not"),
        (header + "".join(others) + first, "line 2 is not"),
        (header + first + "".join(others[:-1]), "has 3 rows; the records give 4"),
        (f"{header.strip()},made_up\n" + first + "".join(others), "line 2 is not"),
    ):
        path.write_text(content)
        code, lines, _ = checked(tmp_path, capsys)
        assert code == 1
        assert lines[0].startswith(f"{path}: {said}")
    other = path.rename(table_path(tmp_path, Clips("other", ()), ".csv"))
    _, lines, _ = checked(tmp_path, capsys)
    assert lines == [f"{path}: is missing", f"{other}: is of no record"]


def test_a_folder_without_records_is_an_error(tmp_path: Path, capsys: Shown) -> None:
    assert main([str(tmp_path)]) == main([str(tmp_path / "none")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
