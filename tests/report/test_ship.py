"""Which recipe to ship, against the paired comparison of `edge_asr.compare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_asr.compare import compare
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import Hypothesis
from edge_asr.evaluation.protocols import protocol_named
from edge_asr.evaluation.stored import read_stored
from edge_asr.report.__main__ import main
from edge_asr.report.read import read_runs
from edge_asr.report.ship import Contest, advice, contest, parse_budget
from edge_asr.report.tables import tables
from edge_asr.report.utterances import read_alignments
from edge_asr.store.record import Record

RecordMaker = Callable[..., Record]
RunMaker = Callable[..., Path]
HeardMaker = Callable[..., list[Hypothesis]]
METHODS = ("float", "gptq", "awq", "rtn")


@pytest.fixture
def folders(make_run: RunMaker, heard: HeardMaker) -> dict[str, Path]:
    """Runs on 100 clips of 25 speakers: the first three are nearly as good as one another."""
    generator = np.random.default_rng(0)
    base = generator.binomial(10, 0.2, 100)
    counts = {
        "float": base,
        "gptq": np.clip(base + generator.integers(-2, 3, 100), 0, 10),
        "awq": np.clip(base + generator.integers(-2, 3, 100), 0, 10),
        "rtn": np.clip(base + 3, 0, 10),
    }
    return {name: make_run(name, heard(counts[name])) for name in METHODS}


def of(folder: Path) -> Contest:
    runs = {run.record.run_id: run for run in read_runs(folder).runs}
    (frame,) = tables([run.record for run in runs.values()]).values()
    aligned = {name: found for name, run in runs.items() if (found := read_alignments(run))}
    return contest(frame, runs, aligned)


def test_rivals_are_compared_as_two_runs_are(folders: dict[str, Path], tmp_path: Path) -> None:
    found = of(tmp_path)
    methods = found.frame["method"].tolist()
    winner = methods.index("awq")
    rivals = found.rivals(winner, [row for row in range(4) if row != winner])
    stored = {name: read_stored(folder) for name, folder in folders.items()}
    for rival in rivals:
        name = methods[rival.row]
        (wanted,) = compare(stored[name], stored["awq"], protocol_named("open_asr_2024"))
        assert rival.paired
        assert rival.difference == pytest.approx(wanted.difference)
        assert rival.distinguishable == (wanted.low > 0)
        if wanted.low <= 0 <= wanted.high:
            assert (rival.low, rival.high) == pytest.approx((wanted.low, wanted.high))


@pytest.mark.usefixtures("folders")
def test_the_advice_names_the_lowest_and_those_like_it(tmp_path: Path) -> None:
    found = of(tmp_path)
    said = advice(found, {"size_mb": 0.1})
    lowest, like_it = found.frame["method"][1:3]
    assert said[0] == "Within 0.100 MB, the lowest WER of 3:"
    assert said[1].startswith(f"  whisper-micro {lowest} W4 g64: ")
    assert said[3].startswith(f"  whisper-micro {like_it} W4 g64: +")
    assert said[4] == "Worse by more than chance explains: 1."
    assert said[5].startswith("Compared clip by clip")


def test_without_hypotheses_intervals_are_compared_and_it_says_so(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for folder in folders.values():
        (folder / "alignments.json").unlink()
    found = of(tmp_path)
    (rival,) = found.rivals(1, [2])
    one, other = (found.frame.loc[row] for row in (1, 2))
    half = np.hypot(one["wer_high"] - one["wer_low"], other["wer_high"] - other["wer_low"]) / 2
    assert (rival.low, rival.high) == pytest.approx(
        (rival.difference - half, rival.difference + half)
    )
    said = "\n".join(advice(found, {"size_mb": 0.1}))
    assert "unpaired; " in said
    assert "Where it says unpaired, the hypotheses of one are not there" in said


def test_alignments_of_other_words_or_counts_are_not_taken(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    text = (folders["rtn"] / "alignments.json").read_text()
    for content in (text.replace('"equal"', '"insert"', 1), "{", "[]", '{"speech": {"a": [1]}}'):
        (folders["rtn"] / "alignments.json").write_text(content)
        found = of(tmp_path)
        methods = found.frame["method"].tolist()
        assert {methods[row] for row in found.places} == {"float", "gptq", "awq"}
    assert len(of(tmp_path).rivals(0, [1, 2, 3])) == 3


def test_of_those_alike_the_smallest_file_is_named(make_record: RecordMaker) -> None:
    records = [make_record("awq", 4, 26.0), make_record("gptq", 2, 26.5), make_record("rtn", 3, 27)]
    (frame,) = tables(records).values()
    assert "The smallest file of them: whisper-micro gptq W2 g64, 0.0250 MB." in advice(
        Contest(frame), {"size_mb": 1.0}
    )
    (frame,) = tables(records[1:]).values()
    assert not any("smallest" in line for line in advice(Contest(frame), {"size_mb": 1.0}))


def test_nothing_within_the_budget_says_what_is_least(
    make_record: RecordMaker,
) -> None:
    (frame,) = tables([make_record()]).values()
    (line,) = advice(Contest(frame), {"size_mb": 0.001})
    assert line.startswith("Nothing is within 0.00100 MB; the least of each: 0.0500 MB")


@pytest.mark.parametrize(
    ("word", "limit"),
    [
        ("size=20MB", {"size_mb": 20.0}),
        ("size=1.5gb", {"size_mb": 1500.0}),
        ("io=200M", {"memory_io_mb": 200.0}),
        ("bops=1.5T", {"gbops": 1500.0}),
        ("bops=50 GBOPs", {"gbops": 50.0}),
    ],
)
def test_budgets(word: str, limit: dict[str, float]) -> None:
    assert parse_budget([word]) == limit


@pytest.mark.parametrize("word", ["size", "size=", "wer=3", "size=-1MB", "size=1MiB", "io=1e3"])
def test_a_budget_that_cannot_be_read_is_a_user_error(word: str) -> None:
    with pytest.raises(UserError, match=f"--budget {word}: give size=20MB"):
        parse_budget([word])


def test_the_command_says_what_to_ship(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(folders) == 4
    arguments = ["--results", str(tmp_path / "runs"), "--budget", "size=100KB"]
    assert main([*arguments, "--budget", "bops=1G"]) == 0
    assert "Within 0.100 MB, 1.00 GBOPs, the lowest WER of 3:" in capsys.readouterr().out
