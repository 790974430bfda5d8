"""The sweep behind `python -m edge_asr.run -m`: which runs it has, and making those that are new.

They are made by Hydra's launchers, in whatever processes or on whatever machines those start; what
has become of a run is seen from its folder (`edge_asr.cli.watch`), in the same way for all of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from edge_asr.cli.compose import Composer, settings_of
from edge_asr.cli.main import printable
from edge_asr.cli.overrides import parse, prepare, values
from edge_asr.cli.progress import LoggedProgress, logged_to
from edge_asr.config import Settings
from edge_asr.errors import FailedRuns, UserError, first_line
from edge_asr.processes import Processes

if TYPE_CHECKING:
    from edge_asr.cli.watch import Watch
    from edge_asr.experiments.sweeps import SweepRun

log = logging.getLogger("edge_asr")

# Of a run that ends without a word, such as one whose process is killed for the memory it takes.
ATTEMPTS = 3


def run_sweep(composer: Composer, words: Sequence[str]) -> None:
    """Make every run of a sweep that is not there, and show what came of all of them.

    Args:
        composer: In use.
        words: Prepared.

    Raises:
        UserError: before anything is made.
        FailedRuns: when all others are made.
    """
    members = sweep_members(composer, words)
    launched = composer.launched(words)
    from edge_asr.cli.summary import show_results, show_start
    from edge_asr.cli.watch import Watch
    from edge_asr.experiments.sweeps import sweep_runs

    processes = Processes.of_environment()
    console = Console(stderr=True, quiet=not processes.is_main)
    with console.status(f"{len(members)} runs: which are new"):
        settings = [(one, composer.settings(one)) for one in members]
        runs = processes.from_main(sweep_runs(settings, note=processes.is_main))
    new = [run for run in runs if run.problem is None and (run.rerun or run.record is None)]
    show_start(runs, new, settings[0][1], console)
    watch = Watch(new, console)
    ended = None
    if new:
        with watch.watching():
            ended = _launch(launched, new, watch, processes)
    hopeless = {run.words: run.problem for run in runs if run.problem is not None}
    failed = hopeless | watch.failed
    if processes.is_main:
        show_results(runs, failed)
    if ended is not None:
        raise FailedRuns(ended)
    if failed:
        raise FailedRuns(
            f"{len(failed)} of {len(runs)} runs failed; the same command tries them again"
        )


def sweep_members(composer: Composer, words: Sequence[str]) -> list[tuple[str, ...]]:
    """The overrides of every run that prepared `words`, and experiments among them, ask for.

    Several experiments are one sweep after the other. Every value is checked with the first ones
    of the others.

    Raises UserError where one does not fit, so that no sweep ends half-way for a typo.
    """
    given = parse(words)
    own = {one.get_key_element(): one for one in given if not one.is_hydra_override()}
    of_hydra = [one.input_line or "" for one in given if one.is_hydra_override()]
    experiment = own.pop("experiment", None)
    members: list[tuple[str, ...]] = []
    checked: list[tuple[str, Settings]] = []
    for chosen in [[one] for one in values(experiment)] if experiment else [[]]:
        first = {key: next(values(one)) for key, one in own.items()}
        config = composer.config([*chosen, *first.values(), *of_hydra], with_hydra=True)
        params = config.hydra.sweeper.params or {}
        swept = {str(key): _swept(str(key), str(value)) for key, value in params.items()} | own
        first = {key: next(values(one)) for key, one in swept.items()}
        checked.append(("", composer.settings([*chosen, *first.values()])))
        checked += [
            (value, composer.settings([*chosen, *(first | {key: value}).values()]))
            for key, override in swept.items()
            for value in list(values(override))[1:]
        ]
        members += [
            (*chosen, *one) for one in product(*(list(values(one)) for one in swept.values()))
        ]
    # What is chosen is there; whether its settings are in range only the parts know.
    from edge_asr.experiments.plan import check_settings

    problems: dict[str, UserError] = {}
    for value, settings in checked:
        try:
            check_settings(settings)
        except UserError as error:
            if not value:  # the first values of all: others may fail for them alone
                raise
            problems[value] = error
    if problems:
        first_problem, *_ = problems.values()
        raise UserError(
            f"{first_problem}; with the first values of the others these do not fit: "
            + ", ".join(problems)
        )
    return list(dict.fromkeys(members))


def _swept(name: str, value: str) -> Override:
    return parse(prepare([f"{name}={value}"], sweep=True))[0]


def _launch(
    config: DictConfig, new: Sequence[SweepRun], watch: Watch, processes: Processes
) -> str | None:
    """Launch `new` runs; again those that have ended without a word, last of all.

    Returns what has ended the launcher itself, None where nothing has.
    """
    context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks(config))
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=job, config=config
    )
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")  # as Hydra's own sweeper does
    size = config.hydra.sweeper.get("max_batch_size") or len(new)
    waiting, number = list(new), 0
    attempts: Counter[tuple[str, ...]] = Counter()
    while waiting:
        batch, waiting = waiting[:size], waiting[size:]
        try:
            launcher.launch([list(run.words) for run in batch], initial_job_idx=number)
        except BrokenProcessPool:
            log.debug("joblib ends all its workers when one is killed")
        except Exception as error:
            return (
                f"the launcher ended: {first_line(error)}; jobs of its may go on, python -m "
                f"edge_asr.sweep status tells; see {folder}"
            )
        watch.look()
        logs = {run.words: _log(folder, number + place) for place, run in enumerate(batch)}
        number += len(batch)
        silent = processes.from_main([run for run in batch if watch.is_open(run)])
        begun = [run for run in silent if logs[run.words].exists()]
        attempts.update(run.words for run in begun or silent)
        for run in silent:
            if attempts[run.words] >= ATTEMPTS:
                reason = "ended without a word: killed, or out of memory or disk?"
                watch.give_up(run, f"{reason} See {logs[run.words]}")
        left = [run for run in silent if attempts[run.words] < ATTEMPTS]
        waiting += sorted(left, key=lambda run: attempts[run.words])
    return None


def job(composed: DictConfig) -> None:
    """One run of a sweep, in whatever process a launcher puts it; it logs to a file of its own.

    Raises FailedRuns when the run has failed and has noted why.
    """
    hydra = HydraConfig.get()
    progress = LoggedProgress()
    with logged_to(_log(Path(hydra.runtime.output_dir), hydra.job.num)), progress.beating():
        from edge_asr.experiments.ptq import run_noted

        try:
            run_noted(settings_of(composed), progress.show)
        except Exception as error:
            log.error(printable(f"failed: {' '.join(hydra.overrides.task)}: {error}"))
            # Launchers pickle it, which not every exception survives.
            raise FailedRuns(first_line(error)) from None


def _log(folder: Path, number: int) -> Path:
    return folder / f"{number}.log"
