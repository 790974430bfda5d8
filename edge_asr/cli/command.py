"""The command behind `python -m edge_asr.run`: compose, check, run, show.

A mistake is told before torch is imported; what takes seconds to import stands in the functions
that need it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from edge_asr.cli.arguments import Arguments, take_apart
from edge_asr.cli.compose import LAUNCHER, Composer
from edge_asr.cli.help import print_help
from edge_asr.cli.main import printable
from edge_asr.cli.overrides import parse, prepare, values
from edge_asr.cli.progress import logged, shown_progress
from edge_asr.cli.sweep import run_sweep
from edge_asr.config import CONF, Settings
from edge_asr.errors import UserError, first_line
from edge_asr.processes import Processes

if TYPE_CHECKING:
    from edge_asr.experiments.ptq import Outcome


def run_command(
    arguments: Sequence[str], show_outcome: Callable[[Outcome], None] | None = None
) -> None:
    """Make the run, or with -m all runs, that `arguments` ask for, and show what came of it.

    `show_outcome` stands for the table of a single run's row; no sweep is made with one.

    Raises:
        UserError: for the first mistake, before anything is made.
        FailedRuns: runs of a sweep failed; the others are made.
        Exception: what ended a single run.
    """
    asked = take_apart(arguments)
    sweep = bool(asked.flags.multirun)
    if sweep and show_outcome is not None:
        raise UserError("-m: this command looks at one run; leave -m out")
    words = prepare(asked.words, sweep=sweep)
    with Composer(asked.flags.config_dir, asked.flags.config_name or "config") as composer:
        if asked.flags.help:
            # Of a sweep, for the first of its runs.
            print_help(composer, [next(values(one)) for one in parse(words)] if sweep else words)
            return
        if asked.runs and not sweep:
            run_one(_settings(composer, words), show_outcome=show_outcome)
            return
        if asked.runs:
            run_sweep(composer, words)
            return
        if not asked.flags.shell_completion:
            composer.config(words)
    _hydra(asked, words)


def _settings(composer: Composer, words: Sequence[str]) -> Settings:
    """The settings of a single run. Raises UserError for what asks for a sweep."""
    hydra_config = composer.config(words, with_hydra=True).hydra
    launcher = hydra_config.runtime.choices[LAUNCHER]
    if launcher != "basic":
        raise UserError(f"{LAUNCHER}={launcher}: launches sweeps; add -m")
    params = hydra_config.sweeper.params
    if params:
        raise UserError(
            f"{_experiment(words)}: this is a sweep over {', '.join(params)}; add -m to run it"
        )
    return composer.settings(words)


def _experiment(words: Sequence[str]) -> str:
    return next((word for word in words if "experiment=" in word), "hydra.sweeper.params")


def _hydra(asked: Arguments, words: Sequence[str]) -> None:
    """Leave a look at the configuration to Hydra."""
    # Otherwise Hydra prints what ends it, many lines, and exits.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = [*asked.hydra_flags, *words]
    try:
        looked_at()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(first_line(error)) from error


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def looked_at(composed: DictConfig) -> None:
    """Nothing: Hydra is asked to show, not to run."""
    del composed


def run_one(settings: Settings, *, show_outcome: Callable[[Outcome], None] | None = None) -> None:
    """Make one run and show what came of it, by default its row.

    Where several processes make it, the main one does the showing.

    Raises UserError for what the user can mend.
    """
    from edge_asr.experiments.plan import check_settings
    from edge_asr.experiments.ptq import run_experiment

    check_settings(settings)
    if not Processes.of_environment().is_main:
        run_experiment(settings)
        return
    tell_store(settings)
    with logged(), shown_progress() as progress:
        outcome = run_experiment(settings, progress.show)
    (show_outcome or show)(outcome)


def tell_store(settings: Settings) -> None:
    """Say, before anything is made, what may stay on the disk."""
    from edge_asr.store.artefacts import Store
    from edge_asr.store.files import show_size

    folder = settings.store_folder
    held = sum(one.bytes for one in Store(folder).artefacts()) if folder.is_dir() else 0
    print(
        f"store: {folder} holds {show_size(held)}; quantized models are kept up to "
        f"{show_size(settings.store_cap_bytes)} (store_cap=)",
        file=sys.stderr,
    )


def show(outcome: Outcome) -> None:
    """Print the run's row under its float baseline, its warnings and where it lies."""
    from edge_asr.report.console import open_console, print_table
    from edge_asr.report.tables import tables
    from edge_asr.store.record import FLOAT_METHOD

    console = open_console()
    records = [outcome.record]
    if outcome.baseline is not None:
        records.insert(0, outcome.baseline)
    for protocol, frame in tables(records).items():
        print_table(protocol, frame, console)
    stages = ", ".join(
        f"{stage.name} {stage.seconds:.1f} s{' (from the store)' if stage.stored else ''}"
        for stage in outcome.record.stages
    )
    said = [f"stages: {stages}"]
    said += [
        f"warning: {one}" for one in (*outcome.record.method.warnings, *outcome.record.warnings)
    ]
    if outcome.record.file_texts is not None:
        said.append(outcome.record.file_texts.in_words)
    elif outcome.record.method.name != FLOAT_METHOD and outcome.record.config["runtime"] != "torch":
        said.append("runtime=torch, and then this again, compares texts with the simulation's")
    state = "stored record (rerun=true makes it again)" if outcome.stored else "record"
    said.append(f"{state}: {outcome.folder}")
    for line in said:
        style = "yellow" if line.startswith("warning") else ""
        console.print(printable(line), style=style, highlight=False, markup=False, soft_wrap=True)
