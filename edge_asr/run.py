"""`python -m edge_asr.run`: compress a checkpoint and measure what it costs and gains."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from edge_asr.config import check_choices, settings_from
from edge_asr.errors import UserError
from edge_asr.experiment import Outcome, run_experiment
from edge_asr.report.console import print_table
from edge_asr.report.tables import tables

CONF = Path(__file__).resolve().parent.parent / "conf"
USER_MISTAKE, INTERRUPTED = 2, 130


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line for a user's mistake, and quietly for Ctrl-C."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_MISTAKE)
    except MissingMandatoryValue as error:
        print(f"error: {error.full_key}=???: give it a value", file=sys.stderr)
        sys.exit(USER_MISTAKE)
    except KeyboardInterrupt:
        print(
            "interrupted: no record was written; the same command goes on from the "
            "hypotheses already there",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _run(composed: DictConfig) -> None:
    with one_line_errors():
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        assert isinstance(plain, dict)
        plain.pop("experiment", None)
        settings = settings_from({str(key): value for key, value in plain.items()})
        with _progress() as report:
            outcome = run_experiment(settings, report.show)
        show(outcome)


class _Report:
    """Shows the stage of a run, and how far it is, in one line of progress."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("start", total=None)

    def show(self, stage: str, done: int, total: int) -> None:
        self._bar.update(self._task, description=stage, completed=done, total=total or None)


@contextmanager
def _progress() -> Iterator[_Report]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Report(bar)


def show(outcome: Outcome) -> None:
    """Print the run's row under its float baseline, its warnings and where it lies."""
    console = Console()
    records = [outcome.record]
    if outcome.baseline is not None:
        records.insert(0, outcome.baseline.record)
    for protocol, frame in tables(records).items():
        print_table(protocol, frame)
    stages = ", ".join(f"{stage.name} {stage.seconds:.1f} s" for stage in outcome.record.stages)
    console.print(f"stages: {stages}", highlight=False)
    for warning in (*outcome.record.method.warnings, *outcome.record.warnings):
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    state = "stored record (rerun=true makes it again)" if outcome.stored else "record"
    console.print(f"{state}: {outcome.folder}", highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    """Check the choices on the command line, then compose and run."""
    with one_line_errors():
        check_choices([word for word in sys.argv[1:] if "=" in word], CONF)
        _run()


if __name__ == "__main__":
    main()
