"""What is said of a sweep before it starts and when it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console

from edge_asr.cli.main import printable
from edge_asr.config import Settings
from edge_asr.experiments.estimate import Estimate, estimate, read_records
from edge_asr.experiments.sweeps import DONE, SweepRun, first_record
from edge_asr.report.console import open_console, print_table
from edge_asr.report.tables import tables
from edge_asr.store.files import show_size
from edge_asr.store.record import Record

MINUTE, HOUR = 60, 3600


def show_start(
    runs: Sequence[SweepRun], new: Sequence[SweepRun], settings: Settings, console: Console
) -> None:
    """Say how many runs are new and what they will take; which of them cannot be made."""
    lines = [f"{len(runs)} runs, {len(new)} new"]
    if hopeless := sum(run.problem is not None for run in runs):
        lines[0] += f", {hopeless} that cannot be made"
    if new:
        left = estimate_of(new, settings)
        lines[0] += f": {estimate_in_words(left)}"
        lines.append(
            f"store: {settings.store_folder}; quantized models are kept up to "
            f"{show_size(settings.store_cap_bytes)} (store_cap=)"
        )
    for line in lines:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def states_in_words(runs: Sequence[SweepRun]) -> str:
    """`12 of 18 runs done, 1 failed, 5 to do`."""
    counts = Counter(run.state for run in runs)
    done = f"{counts.pop(DONE, 0)} of {len(runs)} runs done"
    return ", ".join([done, *(f"{count} {state}" for state, count in counts.items())])


def estimate_of(
    runs: Sequence[SweepRun], settings: Settings, counted: set[str] | None = None
) -> Estimate:
    """What `runs` will take, by the records in the results folder, but for steps that are `counted`
    already, to which theirs are added."""
    work = [one for run in runs for one in run.work if one.key not in (counted or set())]
    if counted is not None:
        counted.update(one.key for one in work)
    return estimate(work, read_records(settings.results_folder))


def estimate_in_words(left: Estimate) -> str:
    """`about 1.3 h one after the other, 0.2 GB of quantized models, 1.1 GB of memory a run`."""
    said = []
    if left.seconds:
        said.append(f"about {show_seconds(left.seconds)} one after the other")
    if left.unknown:
        more = "further " if left.seconds else ""
        said.append(f"no estimate of {more}{left.unknown} steps, like which none was made yet")
    if left.bytes:
        said.append(f"{show_size(left.bytes)} of quantized models")
    if left.memory_bytes is not None:
        said.append(f"{show_size(left.memory_bytes)} of memory a run")
    return ", ".join(said) or "all their steps are made"


def show_seconds(seconds: float) -> str:
    """`41 s`, `12 min` or `1.3 h`."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"


def show_results(runs: Sequence[SweepRun], failed: Mapping[tuple[str, ...], str]) -> None:
    """Print one table of all runs, each under the float run of its model, and what failed."""
    records: dict[str, Record] = {}
    for folders in (one for run in runs for one in (run.baselines, run.folders)):
        if record := first_record(folders):
            records[record.run_id] = record
    console = open_console()
    for clips, frame in tables(list(records.values())).items():
        print_table(clips, frame, console)
    warned = sum(bool(one.warnings or one.method.warnings) for one in records.values())
    results = runs[0].folders[0].parent.parent
    lines = [f"records: {results}; python -m edge_asr.report --results {results} tells the rest"]
    if warned:
        lines.append(f"{warned} of {len(records)} records hold warnings")
    for line in lines:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
    show_failures(runs, failed, Console(stderr=True))


def show_failures(
    runs: Sequence[SweepRun], failed: Mapping[tuple[str, ...], str], console: Console
) -> None:
    """Print a line for every run that failed: what makes it another than the others, and why."""
    shared = set.intersection(*(set(run.words) for run in runs))
    for run in runs:
        if run.words in failed:
            own = " ".join(word for word in run.words if word not in shared) or run.name
            line = printable(f"failed: {own}: {failed[run.words]}")
            console.print(line, highlight=False, markup=False, soft_wrap=True)
