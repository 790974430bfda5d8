"""Set finished runs against one another, clip by clip: `python -m edge_asr.compare --help`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from rich.table import Table
from rich.text import Text

from edge_asr.cli.main import Parser, exit_code
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import Hypothesis, read_hypotheses
from edge_asr.evaluation.scoring import paired, score_hypotheses
from edge_asr.evaluation.significance import paired_difference
from edge_asr.report.cells import with_interval
from edge_asr.report.console import open_console
from edge_asr.report.tables import scheme_of
from edge_asr.store.files import write_text_atomically
from edge_asr.store.record import (
    ALL,
    FLOAT_METHOD,
    LEVEL,
    RECORD_NAME,
    RESAMPLES,
    Record,
    Result,
    read_record,
)


@dataclass(frozen=True)
class Run:
    """A finished run: its record, the row of all its clips, and what it heard."""

    record: Record
    result: Result
    hypotheses: tuple[Hypothesis, ...]

    @property
    def label(self) -> str:
        """Its model, method and widths: `whisper-micro awq W4 g32 sym A8`."""
        method = self.record.method
        name = f"{self.record.model.name} {method.name}"
        return name if method.name == FLOAT_METHOD else f"{name} {scheme_of(method)}"


@dataclass(frozen=True)
class Comparison:
    """WER of two runs on the same clips and the paired difference with its interval, in percent.

    Bits are stored bits a weight, scales and outliers included.
    """

    run: str
    run_id: str
    effective_bits: float
    wer: float
    against: str
    against_id: str
    against_effective_bits: float
    against_wer: float
    difference: float
    low: float
    high: float
    level: float
    resamples: int
    dataset: str
    protocol: str
    utterances: int


def read_run(folder: Path) -> Run:
    """The run that was stored in `folder`.

    Raises:
        UserError: No record there, one without results, or hypotheses that stayed behind or are
            not those that the record was made of.
    """
    if folder.name == RECORD_NAME and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder of a run; give one such as runs/MODEL/RUN")
    record = read_record(folder / RECORD_NAME)
    result = next((row for row in record.results if row.condition == ALL), None)
    if result is None or result.wer is None:
        raise UserError(f"{folder}: the record holds no WER; finish the run first")
    again = "make the run again with the same options and rerun=true"
    path = folder / (record.hypotheses_file or "")
    if not path.is_file():
        raise UserError(f"{folder}: no hypotheses lie beside the record; {again}")
    run = Run(record, result, read_hypotheses(path))
    wer = score_hypotheses(result.protocol, run.hypotheses).wer
    if len(run.hypotheses) != result.utterances or not math.isclose(wer, result.wer):
        raise UserError(
            f"{path}: {len(run.hypotheses)} hypotheses with a WER of {wer:.2f} are not those of "
            f"the record ({result.utterances}, {result.wer:.2f}); {again}"
        )
    return run


def compare(run: Run, against: Run, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """The WER of `run` less that of `against`, every clip paired with itself.

    The interval is the bootstrap of `paired_difference`, of `resamples` draws.

    Raises:
        UserError: The two were scored by different protocols or heard other clips.
    """
    one, other = run.result, against.result
    if one.protocol != other.protocol:
        raise UserError(
            f"protocol: {run.label} was scored by {one.protocol}, {against.label} by "
            f"{other.protocol}; make one of them again with the other's protocol="
        )
    rows = paired(run.hypotheses, against.hypotheses, f"{run.label} and {against.label}")
    own, plain = (
        score_hypotheses(one.protocol, transcribed) for transcribed in (run.hypotheses, rows)
    )
    difference = paired_difference(own, plain, resamples=resamples, level=LEVEL, seed=seed)
    return Comparison(
        run=run.label,
        run_id=run.record.run_id,
        effective_bits=run.record.method.effective_bits,
        wer=own.wer,
        against=against.label,
        against_id=against.record.run_id,
        against_effective_bits=against.record.method.effective_bits,
        against_wer=plain.wer,
        difference=difference.estimate,
        low=difference.low,
        high=difference.high,
        level=difference.level,
        resamples=resamples,
        dataset=one.dataset,
        protocol=one.protocol,
        utterances=one.utterances,
    )


def _table(comparisons: Sequence[Comparison]) -> Table:
    table = Table(box=None)
    for heading in ("run", "bits", "WER %", "against", "bits", "WER %", "difference [95 %]"):
        # Names may be longer than a line, figures are never.
        table.add_column(heading, no_wrap=heading not in ("run", "against"), overflow="fold")
    for one in comparisons:
        row = (
            one.run, f"{one.effective_bits:.2f}", f"{one.wer:.1f}",
            one.against, f"{one.against_effective_bits:.2f}", f"{one.against_wer:.1f}",
            with_interval(one.difference, one.low, one.high, sign=True),
        )  # fmt: skip
        # Text, not strings: rich would read the brackets of an interval as markup.
        table.add_row(*map(Text, row))
    return table


def _write(path: Path, comparisons: Sequence[Comparison]) -> None:
    frame = pd.DataFrame([asdict(one) for one in comparisons])
    try:
        write_text_atomically(path, frame.to_csv(index=False, lineterminator="\n"))
    except OSError as error:
        raise UserError(
            f"--out={path}: cannot be written ({error.strerror}); give a file you may write"
        ) from error


def _parser() -> Parser:
    parser = Parser(
        prog="python -m edge_asr.compare",
        description="WER of runs less that of another on the same clips, with a paired interval. "
        "Bits are stored bits a weight, scales and outliers included.",
    )
    parser.add_argument("run", type=Path, nargs="+", help="folder of a finished run")
    parser.add_argument("--against", type=Path, required=True, help="folder of the other run")
    parser.add_argument("--out", type=Path, help="write the table to this CSV file too")
    return parser


def command(arguments: Sequence[str] | None = None) -> None:
    """Print the comparisons. Raises UserError where two runs cannot be compared."""
    options = _parser().parse_args(arguments)
    against = read_run(options.against)
    comparisons = [compare(read_run(folder), against) for folder in options.run]
    if options.out:
        _write(options.out, comparisons)
    open_console().print(_table(comparisons))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command."""
    return exit_code(lambda: command(arguments))


if __name__ == "__main__":
    sys.exit(main())
