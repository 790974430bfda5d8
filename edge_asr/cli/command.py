"""The command behind `python -m edge_asr.run`: compose, run, show."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from edge_asr.cli.compose import settings_of
from edge_asr.config import CONF, Settings, check_choices
from edge_asr.errors import UserError
from edge_asr.experiments.ptq import Outcome, run_experiment
from edge_asr.report.console import print_table
from edge_asr.report.tables import tables
from edge_asr.store.artefacts import Store
from edge_asr.store.files import show_size


def run_command(arguments: Sequence[str]) -> bool:
    """Compose and make the run, or with -m all runs, that `arguments` ask for.

    A run that a user's mistake ends is told in one line, and a sweep goes on without it.

    Returns:
        Whether every run was made.

    Raises:
        UserError: for an unknown choice, or a prepared sweep without -m.
    """
    options = [word for word in arguments if "=" in word]
    check_choices(options, CONF)
    _check_sweep(arguments)
    # A manifest may have any field, so these keys are new to the configuration.
    opened = ("data.where.", "calibration.where.")
    sys.argv[1:] = [f"++{word}" if word.startswith(opened) else word for word in arguments]
    mistakes: list[UserError | MissingMandatoryValue] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(composed: DictConfig) -> None:
        try:
            _run(composed)
        except (UserError, MissingMandatoryValue) as error:
            mistakes.append(error)
            told = (
                f"{error.full_key}=???: give it a value"
                if isinstance(error, MissingMandatoryValue)
                else str(error)
            )
            print(f"error: {told}", file=sys.stderr)

    job()
    return not mistakes


def _check_sweep(arguments: Sequence[str]) -> None:
    if {"-m", "--multirun"} & set(arguments):
        return
    for word in arguments:
        group, _, choice = word.lstrip("+").partition("=")
        path = CONF / group / f"{choice}.yaml"
        if group == "experiment" and path.exists():
            plain = OmegaConf.to_container(OmegaConf.load(path))
            if isinstance(plain, dict) and "sweeper" in plain.get("hydra", {}):
                raise UserError(f"{word}: this is a sweep; add -m to run it")


def _run(composed: DictConfig) -> None:
    settings = settings_of(composed)
    # Once: of a sweep, at its first run.
    job = HydraConfig.get().job
    if OmegaConf.is_missing(job, "num") or job.num == 0:
        _tell_store(settings)
    with _progress() as report:
        outcome = run_experiment(settings, report.show)
    show(outcome)


def _tell_store(settings: Settings) -> None:
    """Say, before anything is made, what may stay on the disk."""
    folder = settings.store_folder
    held = sum(one.bytes for one in Store(folder).artefacts()) if folder.is_dir() else 0
    Console(stderr=True).print(
        f"store: {folder} holds {show_size(held)}; quantized models are kept up to "
        f"{show_size(settings.store_cap_bytes)} (store_cap=)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


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
        records.insert(0, outcome.baseline)
    for protocol, frame in tables(records).items():
        print_table(protocol, frame)
    stages = ", ".join(
        f"{stage.name} {stage.seconds:.1f} s{' (from the store)' if stage.stored else ''}"
        for stage in outcome.record.stages
    )
    console.print(f"stages: {stages}", highlight=False, soft_wrap=True)
    for warning in (*outcome.record.method.warnings, *outcome.record.warnings):
        console.print(
            f"warning: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True
        )
    state = "stored record (rerun=true makes it again)" if outcome.stored else "record"
    console.print(f"{state}: {outcome.folder}", highlight=False, markup=False, soft_wrap=True)
