"""How far a run is: bars on a terminal, and lines of the log where there is none."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

log = logging.getLogger("edge_asr")

TELL_EVERY_SECONDS = 30.0


class LoggedProgress:
    """Tells the log of a stage that begins and, from a thread of its own, every half minute how far
    it is: a batch of long clips or a block may take longer than that."""

    def __init__(self, every: float = TELL_EVERY_SECONDS) -> None:
        self._every, self._stage, self._state = every, "", ""
        self._ended = threading.Event()

    def show(self, stage: str, done: int = 0, total: int = 0, detail: str = "") -> None:
        """See `edge_asr.experiments.steps.Progress`."""
        count = f"{done} of {total}" if total else "goes on"
        self._state = f"{stage}: {count}{f', {detail}' if detail else ''}"
        if stage != self._stage:
            self._stage = stage
            log.info(stage)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Tell now and then within the block."""
        thread = threading.Thread(target=self._beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._every):
            if self._state:
                log.info(self._state)


class BarProgress:
    """Shows the stage of a run, how far it is and how long still, in one line of a terminal."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._stage = bar, "start"
        self._task = bar.add_task(self._stage, total=None)

    def show(self, stage: str, done: int = 0, total: int = 0, detail: str = "") -> None:
        """See `edge_asr.experiments.steps.Progress`."""
        if stage != self._stage:
            # A bar of its own: total and time left are those of this stage alone.
            self._bar.remove_task(self._task)
            self._stage, self._task = stage, self._bar.add_task(stage, total=total or None)
        shown = f"{stage}: {detail}" if detail else stage
        # The total of a stage may be known only once it goes on.
        self._bar.update(self._task, description=shown, completed=done, total=total or None)


@contextmanager
def shown_progress() -> Iterator[LoggedProgress | BarProgress]:
    """Bars where standard error is a terminal, else the log."""
    console = Console(stderr=True)
    if not console.is_terminal:
        progress = LoggedProgress()
        with progress.beating():
            yield progress
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        yield BarProgress(bar)


@contextmanager
def logged() -> Iterator[None]:
    """Send what the package has to say to standard error: a line a step with its seconds, and on a
    terminal, which has bars, warnings alone."""
    if sys.stderr.isatty():
        handler: logging.Handler = RichHandler(
            console=Console(stderr=True), show_path=False, show_level=False, log_time_format="%X"
        )
        level = logging.WARNING
    else:
        handler = logging.StreamHandler()
        level = logging.INFO
    with _handled(handler, level):
        yield


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """The same, all of it, at the end of a file instead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _handled(logging.FileHandler(path, encoding="utf-8"), logging.INFO):
        yield


@contextmanager
def _handled(handler: logging.Handler, level: int) -> Iterator[None]:
    if handler.formatter is None:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    before = log.level
    log.setLevel(level)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
        handler.close()
