"""Set finished runs against one another, clip by clip: `python -m edge_asr.compare --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from edge_asr.config import ProtocolSettings
from edge_asr.errors import UserError
from edge_asr.experiment import HYPOTHESES_NAME
from edge_asr.metrics.significance import Interval, paired_difference
from edge_asr.metrics.wer import Score
from edge_asr.plain_json import write_text_atomically
from edge_asr.record import FLOAT_METHOD, RECORD_NAME, Record, read_record
from edge_asr.report.cells import with_interval
from edge_asr.scoring import paired, score_hypotheses
from edge_asr.transcribe import Hypothesis, read_hypotheses

USAGE_ERROR = 2
WIDEST = 120


@dataclass(frozen=True)
class Run:
    """A finished run: its record and what it heard."""

    record: Record
    protocol: ProtocolSettings
    hypotheses: tuple[Hypothesis, ...]

    @property
    def label(self) -> str:
        """Its model, method and width: `whisper-micro awq W4 g32 A8`."""
        method = self.record.method
        words = [self.record.model.name, method.name]
        words += [] if method.name == FLOAT_METHOD else [f"W{method.bits:g}"]
        words += [] if method.group_size is None else [f"g{method.group_size}"]
        words += [] if method.activation is None else [method.activation.label]
        return " ".join(words)


@dataclass(frozen=True)
class Comparison:
    """WER of two runs on the same clips and the paired difference, in percent."""

    run: str
    effective_bits: float
    wer: float
    against: str
    against_effective_bits: float
    against_wer: float
    difference: Interval


def read_run(folder: Path) -> Run:
    """The run that was stored in `folder`.

    Raises:
        UserError: No record there, one without results, or one whose hypotheses stayed behind.
    """
    record = read_record(folder / RECORD_NAME)
    if not record.results:
        raise UserError(f"{folder}: the run has no results; finish it first")
    if not (folder / HYPOTHESES_NAME).exists():
        raise UserError(
            f"{folder}: {HYPOTHESES_NAME} is not beside the record; "
            "make the run again with the same options and rerun=true"
        )
    settings = record.config["protocol"]
    return Run(record, ProtocolSettings(**settings), read_hypotheses(folder / HYPOTHESES_NAME))


def compare(run: Run, against: Run) -> Comparison:
    """The WER of `run` less that of `against`, every clip paired with itself.

    The interval is the bootstrap of `paired_difference`.

    Raises:
        UserError: The two were scored differently or heard other clips.
    """
    if run.protocol != against.protocol:
        raise UserError(f"{run.label} and {against.label} were scored by different protocols")
    other = paired(run.hypotheses, against.hypotheses, f"{run.label} and {against.label}")
    scores: list[Score] = [score_hypotheses(run.protocol, rows) for rows in (run.hypotheses, other)]
    difference = paired_difference(
        *scores, resamples=run.protocol.resamples, seed=run.protocol.seed
    )
    return Comparison(
        run=run.label,
        effective_bits=run.record.method.effective_bits,
        wer=scores[0].wer,
        against=against.label,
        against_effective_bits=against.record.method.effective_bits,
        against_wer=scores[1].wer,
        difference=difference,
    )


def _frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    rows = []
    for one in comparisons:
        interval = asdict(one.difference)
        rows.append(
            {name: value for name, value in asdict(one).items() if name != "difference"}
            | {"difference": interval["estimate"], "low": interval["low"], "high": interval["high"]}
        )
    return pd.DataFrame(rows)


def _table(comparisons: Sequence[Comparison]) -> Table:
    table = Table("run", "bits", "WER", "against", "bits", "WER", "difference", box=None)
    for one in comparisons:
        difference = one.difference
        table.add_row(
            one.run, f"{one.effective_bits:.2f}", f"{one.wer:.1f}", one.against,
            f"{one.against_effective_bits:.2f}", f"{one.against_wer:.1f}",
            with_interval(difference.estimate, difference.low, difference.high, sign=True),
        )  # fmt: skip
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edge_asr.compare",
        description="WER of runs less that of another on the same clips, with a paired interval. "
        "Bits are stored bits a weight, scales and outliers included.",
    )
    parser.add_argument("run", type=Path, nargs="+", help="folder of a finished run")
    parser.add_argument("--against", type=Path, required=True, help="folder of the other run")
    parser.add_argument("--out", type=Path, help="write the table to this CSV file too")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparisons; the exit code is 2 where two runs cannot be compared."""
    options = _parser().parse_args(arguments)
    try:
        against = read_run(options.against)
        comparisons = [compare(read_run(folder), against) for folder in options.run]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    console = Console()
    table = _table(comparisons)
    (console if console.is_terminal else Console(width=WIDEST)).print(table)
    if options.out:
        text = _frame(comparisons).to_csv(index=False, lineterminator="\n")
        write_text_atomically(options.out, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
