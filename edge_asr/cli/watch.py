"""How far a sweep is: a line for every run that ends, seen from the run's folder alone, whatever
process or machine makes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from edge_asr.cli.main import printable
from edge_asr.experiments.sweeps import SweepRun, first_record
from edge_asr.store.failure import ERROR_NAME
from edge_asr.store.record import ALL, RECORD_NAME, Record

LOOK_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Stamps:
    """When what tells of a run's end was written, None where it was not."""

    records: tuple[int | None, ...]
    errors: tuple[int | None, ...]

    @classmethod
    def of(cls, run: SweepRun) -> Stamps:
        return cls(
            tuple(_written(folder / RECORD_NAME) for folder in run.folders),
            tuple(_written(folder / ERROR_NAME) for folder in (run.folders[0], run.unresolved)),
        )


class Watch:
    """Sees runs end.

    Attributes:
        failed: Why each run failed that did, by its words.
    """

    def __init__(self, runs: Sequence[SweepRun], console: Console) -> None:
        self.failed: dict[tuple[str, ...], str] = {}
        self._total = len(runs)
        self._open = {run.words: run for run in runs}
        self._before = {run.words: Stamps.of(run) for run in runs}
        columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("runs", total=len(runs))
        self._lock, self._stopped = threading.Lock(), threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look again and again within the block, and tell what is seen."""
        thread = threading.Thread(target=self._watch, daemon=True)
        with self._bar:
            thread.start()
            try:
                yield
            finally:
                self._stopped.set()
                thread.join()
                self.look()

    def is_open(self, run: SweepRun) -> bool:
        """Whether nothing has been seen of its end."""
        return run.words in self._open

    def look(self) -> None:
        """Tell of every run that has ended since."""
        with self._lock:
            for run in list(self._open.values()):
                before, now = self._before[run.words], Stamps.of(run)
                if now.records != before.records and (record := run.record):
                    self._tell(run, result_line(record))
                elif now.errors != before.errors and (reason := run.failure):
                    self._give_up(run, reason)

    def give_up(self, run: SweepRun, reason: str) -> None:
        """Count a run as failed of whose end there is nothing to see, unless all that it lacks is
        its difference to the float model, which another sweep may be at."""
        with self._lock:
            if record := first_record(run.folders):
                self._tell(run, f"{result_line(record)}, no difference to the float model yet")
            else:
                self._give_up(run, reason)

    def _give_up(self, run: SweepRun, reason: str) -> None:
        self.failed[run.words] = reason
        self._tell(run, f"failed: {reason}")

    def _tell(self, run: SweepRun, line: str) -> None:
        del self._open[run.words]
        ended = self._total - len(self._open)
        self._bar.update(self._task, completed=ended)
        text = printable(f"{ended} of {self._total}: {run.name}: {line}")
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _watch(self) -> None:
        while not self._stopped.wait(LOOK_EVERY_SECONDS):
            self.look()


def result_line(record: Record) -> str:
    """`WER 12.3 %, 41 s`."""
    rates = [one.wer for one in record.results if one.condition == ALL and one.wer is not None]
    seconds = sum(stage.seconds for stage in record.stages if not stage.stored)
    wer = f"WER {sum(rates) / len(rates):.1f} %" if rates else "no WER"
    return f"{wer}, {seconds:.0f} s"


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
