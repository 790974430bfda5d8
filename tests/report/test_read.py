"""A record that is no good costs a line, never the report."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_asr.errors import UserError
from edge_asr.report.read import fault_of, newest_versions, read_runs
from edge_asr.store.record import Average, Interval, Record, find_records, read_record, write_record

RecordMaker = Callable[..., Record]
ROOT = Path(__file__).resolve().parents[2]


def written(folder: Path, *contents: Record | str | bytes) -> Path:
    for number, content in enumerate(contents):
        if isinstance(content, Record):
            write_record(folder / str(number), content)
            continue
        (folder / str(number)).mkdir(parents=True)
        plain = content.encode() if isinstance(content, str) else content
        (folder / str(number) / "record.json").write_bytes(plain)
    return folder


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be read as a run record"),
        ('{"schema_version": 4, "run_id"', "cannot be read as a run record"),
        ("[" * 100_000, "cannot be read as a run record"),
        ("\ufeff{}", "cannot be read as a run record"),
        (b"\xff\xfe{}", "cannot be read as a run record"),
        ('{"schema_version": 99}', "schema_version: 99 is none of"),
        ('{"name": "of another program"}', "schema_version: None is none of"),
        ("[1, 2]", "schema_version: None is none of"),
        ('{"schema_version": 4}', "run_id: is missing"),
    ],
)
def test_what_is_no_record_is_one_line(
    make_record: RecordMaker, tmp_path: Path, content: str | bytes, said: str
) -> None:
    found = read_runs(written(tmp_path, make_record(), content))
    assert len(found.runs) == 1
    (line,) = found.lines()
    assert line.startswith(f"passed over: {tmp_path}/1/record.json: ")
    assert said in line


def test_a_record_that_cannot_be_opened_is_one_line(
    make_record: RecordMaker, tmp_path: Path
) -> None:
    written(tmp_path, make_record())
    for name in ("pipe", "folder"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "record.json")
    (tmp_path / "folder" / "record.json").mkdir()
    found = read_runs(tmp_path)
    assert (len(found.runs), len(found.refused)) == (1, 2)


def test_two_thousand_foreign_files_are_one_line_and_take_no_time(
    make_record: RecordMaker, tmp_path: Path
) -> None:
    written(tmp_path, make_record(), *['{"some": "other program"}'] * 2000)
    start = time.perf_counter()
    found = read_runs(tmp_path)
    assert time.perf_counter() - start < 3
    (line,) = found.lines()
    assert f"{tmp_path}/1/record.json and 1999 more: schema_version: None" in line


def test_many_reasons_are_told_up_to_a_number(make_record: RecordMaker, tmp_path: Path) -> None:
    written(tmp_path, make_record(), *(f'{{"schema_version": {n}}}' for n in range(100, 130)))
    lines = [*read_runs(tmp_path).lines()]
    assert len(lines) == 21
    assert lines[-1] == "and 10 more are passed over for reasons of their own"


def hand_edited(record: Record, **changes: object) -> Record:
    (result,) = record.results
    changed = {"reference_words": 1000, "substitutions": 268, **changes}
    return dataclasses.replace(
        record,
        results=(dataclasses.replace(result, **changed),),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"wer": -5.0}, "wer=-5 is below 0"),
        ({"wer": 3.0}, "wer=3 is not 268 errors in 1000 words"),
        ({"insertions": 7}, "wer=26.8 is not 275 errors in 1000 words"),
        ({"interval": Interval(20.0, 19.0, 21.0)}, "interval=20 is not 268 errors"),
        ({"utterances": -1}, "a count is below 0"),
    ],
)
def test_figures_that_no_run_can_write_are_refused(
    make_record: RecordMaker, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    sound = hand_edited(make_record())
    assert fault_of(sound, "any") is None
    written(tmp_path, sound, hand_edited(make_record("gptq"), **changes))
    found = read_runs(tmp_path)
    assert len(found.runs) == 1
    assert said in next(found.lines())


def test_an_id_that_is_not_the_folders_and_a_false_mean_are_refused(
    make_record: RecordMaker,
) -> None:
    record = make_record()
    assert fault_of(record, f"rtn-W4-{'0' * 12}") == (
        "run_id: rtn400000000 is not that of its folder"
    )
    assert fault_of(record, "my favourite run") is None
    average = Average("open_asr_2024", Interval(20.0, 19, 21))
    assert "averages: 20 is not the mean" in str(
        fault_of(dataclasses.replace(record, averages=(average,)), "any")
    )
    twice = dataclasses.replace(record, results=record.results * 2)
    assert "speech all is there twice" in str(fault_of(twice, "any"))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_are_refused(
    make_record: RecordMaker, tmp_path: Path, value: str
) -> None:
    written(tmp_path, make_record(), make_record("gptq"))
    path = tmp_path / "1" / "record.json"
    path.write_text(path.read_text().replace('"wer": 26.8', f'"wer": {value}'))
    assert len(read_runs(tmp_path).refused) == 1


def test_a_copied_folder_and_a_run_made_again_have_one_row(
    make_record: RecordMaker, tmp_path: Path
) -> None:
    record = make_record()
    renamed = dataclasses.replace(record, run_id="f" * 12)
    again = dataclasses.replace(record, created="2026-02-02T03:04:05+00:00", batch_size=2)
    found = read_runs(written(tmp_path, record, record, renamed, again))
    assert [run.record for run in found.runs] == [again]
    assert [*found.lines()] == ["3 record(s) are in no table: other records are of the same runs"]


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


def test_nothing_is_wrong_with_the_published_records() -> None:
    """Of schemas 1, 3 and 5."""
    paths = find_records(ROOT / "results")
    records = {path: read_record(path) for path in paths}
    assert {record.schema_version for record in records.values()} == {1, 3, 5}
    faults = [fault_of(record, path.parent.name) for path, record in records.items()]
    assert faults == [None] * len(paths)


def test_a_folder_without_results_says_what_it_holds(
    make_record: RecordMaker, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"holds no record.json with results; finish a run"):
        read_runs(tmp_path)
    written(tmp_path, make_record(results=()), json.dumps([]))
    with pytest.raises(UserError, match="but 1 that are none of ours"):
        read_runs(tmp_path)
