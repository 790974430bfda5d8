"""Set finished runs against one another, clip by clip: `python -m edge_asr.compare --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from edge_asr.cli.main import Parser, exit_code
from edge_asr.errors import UserError
from edge_asr.evaluation.paired_tests import holm, mapsswe, mcnemar
from edge_asr.evaluation.pairs import marks_of
from edge_asr.evaluation.protocols import Protocol, protocol_named
from edge_asr.evaluation.scoring import paired, sample_of
from edge_asr.evaluation.significance import difference_of, wer_interval
from edge_asr.evaluation.stored import StoredRun, read_stored
from edge_asr.evaluation.wer import Score, score
from edge_asr.report.cells import p_value, with_interval
from edge_asr.report.console import open_console
from edge_asr.report.rows import scheme_of
from edge_asr.report.tables import write_table
from edge_asr.store.record import FLOAT_METHOD, RESAMPLES

DEFAULT_PROTOCOL = "open_asr_2024"
MEAN = "mean"


@dataclass(frozen=True)
class Comparison:
    """WER of two runs on the same clips and the paired difference with its interval, in percent.

    Bits are stored bits a weight, scales and outliers included; null where a manifest has no
    record. `dataset` is one of theirs, or `mean`. `mapsswe` is the p-value of the matched-pairs
    test over segments, `mapsswe_holm` that adjusted for all comparisons made with it; `mcnemar`
    that of clips that are entirely right in one run alone.
    """

    run: str
    run_id: str | None
    effective_bits: float | None
    wer: float
    against: str
    against_id: str | None
    against_effective_bits: float | None
    against_wer: float
    difference: float
    low: float
    high: float
    level: float
    resamples: int
    mapsswe: float
    mapsswe_holm: float
    mcnemar: float
    dataset: str
    protocol: str
    utterances: int


def label_of(run: StoredRun) -> str:
    """Its model, method and widths: `whisper-micro awq W4 g32 sym A8`."""
    if run.record is None:
        return run.name
    method = run.record.method
    name = f"{run.name} {method.name}"
    return name if method.name == FLOAT_METHOD else f"{name} {scheme_of(method)}"


def compare(
    run: StoredRun,
    against: StoredRun,
    protocol: Protocol,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Comparison]:
    """The WER of `run` less that of `against`, every clip paired with itself.

    One of every data set, and of their mean where there are several. Intervals are those of
    `wer_interval`, of `resamples` draws.

    Raises:
        UserError: The two are of other clips.
    """
    scores = _scores(run, against, protocol)
    rows = [_comparison(run, against, {name: both}, resamples, seed) for name, both in scores]
    if len(rows) > 1:
        rows.append(_comparison(run, against, dict(scores), resamples, seed))
    return rows


def _scores(
    run: StoredRun, against: StoredRun, protocol: Protocol
) -> list[tuple[str, tuple[Score, Score]]]:
    """The two scores of every data set, by its name."""
    named = f"{label_of(run)} and {label_of(against)}"
    names = list(run.data_sets)
    others = dict(against.data_sets)
    if len(names) == len(others) == 1:  # published ones have other names than ours
        others = {names[0]: next(iter(others.values()))}
    if set(names) != set(others):
        raise UserError(
            f"{named} are of other data sets: {', '.join(names)}, and {', '.join(others)}; "
            "compare runs on the same data"
        )
    found = []
    for name in names:
        rows = run.data_sets[name]
        twins = paired(rows, others[name], protocol, named)
        found.append((name, (score(rows, protocol), score(twins, protocol))))
    return found


def _comparison(
    run: StoredRun,
    against: StoredRun,
    scores: dict[str, tuple[Score, Score]],
    resamples: int,
    seed: int,
) -> Comparison:
    own, other = (list(one) for one in zip(*scores.values(), strict=True))
    samples = [
        difference_of(sample_of(one, rows), sample_of(two, rows))
        for (name, (one, two)), rows in ((item, run.data_sets[item[0]]) for item in scores.items())
    ]
    difference = wer_interval(samples, resamples=resamples, seed=seed)
    segments, other_segments = (
        [marks_of(alignment) for one in side for alignment in one.alignments]
        for side in (own, other)
    )
    right, other_right = (
        np.concatenate([one.errors == 0 for one in side]) for side in (own, other)
    )
    test = mapsswe(segments, other_segments).p_value
    return Comparison(
        run=label_of(run),
        run_id=run.record.run_id if run.record else None,
        effective_bits=run.record.method.effective_bits if run.record else None,
        wer=float(np.mean([one.wer for one in own])),
        against=label_of(against),
        against_id=against.record.run_id if against.record else None,
        against_effective_bits=against.record.method.effective_bits if against.record else None,
        against_wer=float(np.mean([one.wer for one in other])),
        difference=difference.estimate,
        low=difference.low,
        high=difference.high,
        level=difference.level,
        resamples=resamples,
        mapsswe=test,
        mapsswe_holm=test,
        mcnemar=mcnemar(right, other_right).p_value,
        dataset=next(iter(scores)) if len(scores) == 1 else MEAN,
        protocol=own[0].protocol,
        utterances=sum(len(one.pairs) for one in own),
    )


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same with p-values adjusted for their number (Holm)."""
    corrected = holm([one.mapsswe for one in comparisons])
    return [
        replace(one, mapsswe_holm=float(value))
        for one, value in zip(comparisons, corrected, strict=True)
    ]


def _table(comparisons: Sequence[Comparison]) -> Table:
    against = comparisons[0]
    table = Table(
        box=None,
        title=Text(f"against {against.against}, {_bits(against.against_effective_bits)} bits"),
        title_justify="left",
    )
    headings = ("run", "bits", "set", "WER %", "against", "difference [95 %]")
    for heading in (*headings, "p", "p Holm", "p clips"):
        # Names may be longer than a line, figures are never.
        table.add_column(heading, no_wrap=heading not in ("run", "set"), overflow="fold")
    for one in comparisons:
        row = (
            one.run, _bits(one.effective_bits), one.dataset,
            f"{one.wer:.1f}", f"{one.against_wer:.1f}",
            with_interval(one.difference, one.low, one.high, sign=True),
            p_value(one.mapsswe), p_value(one.mapsswe_holm), p_value(one.mcnemar),
        )  # fmt: skip
        # Text, not strings: rich would read the brackets of an interval as markup.
        table.add_row(*map(Text, row))
    return table


def _bits(bits: float | None) -> str:
    return "–" if bits is None else f"{bits:.2f}"


def _protocol(runs: Sequence[StoredRun], chosen: str | None) -> Protocol:
    """The protocol to score by. Raises UserError where two runs were scored by different ones."""
    if chosen is not None:
        return protocol_named(chosen)
    known = {run.protocol: label_of(run) for run in runs if run.protocol}
    if len(known) > 1:
        said = ", ".join(f"{label} by {name}" for name, label in known.items())
        raise UserError(
            f"protocol: {said}: two protocols do not compare; score all by one, --protocol NAME"
        )
    return protocol_named(next(iter(known), DEFAULT_PROTOCOL))


def _parser() -> Parser:
    parser = Parser(
        prog="python -m edge_asr.compare",
        description="WER of runs less that of another on the same clips, with a paired interval. "
        "Bits are stored bits a weight, scales and outliers included; p is that of the "
        "matched-pairs test (MAPSSWE), alone and adjusted for all rows (Holm); p clips "
        "(McNemar) looks at clips that are entirely right.",
    )
    parser.add_argument(
        "run", type=Path, nargs="+", help="folder of a finished run, or a manifest of hypotheses"
    )
    parser.add_argument("--against", type=Path, help="the other run (default: the last one given)")
    parser.add_argument("--protocol", help="score all by this (default: as they were scored)")
    parser.add_argument("--out", type=Path, help="write the table to this CSV file too")
    return parser


def command(arguments: Sequence[str] | None = None) -> None:
    """Print the comparisons. Raises UserError where two runs cannot be compared."""
    options = _parser().parse_args(arguments)
    paths: list[Path] = options.run + ([options.against] if options.against else [])
    if len(paths) < 2:
        raise UserError(f"{paths[0]}: give two runs, or another with --against RUN")
    *runs, against = map(read_stored, paths)
    protocol = _protocol([*runs, against], options.protocol)
    comparisons = adjusted([row for run in runs for row in compare(run, against, protocol)])
    if options.out:
        write_table(options.out, pd.DataFrame([asdict(one) for one in comparisons]))
    open_console().print(_table(comparisons))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command."""
    return exit_code(lambda: command(arguments))


if __name__ == "__main__":
    sys.exit(main())
