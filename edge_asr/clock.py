"""Where the time of a piece of work goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseClock:
    """Wall seconds of named phases. What a phase inside another takes is that one's alone."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._inside = [0.0]  # of every open phase, what those inside it took

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Whatever is done inside the context counts as the phase `name`."""
        began = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - began
            own = whole - self._inside.pop()
            self._inside[-1] += whole
            self._seconds[name] = self._seconds.get(name, 0.0) + own

    def take(self) -> dict[str, float]:
        """Seconds of every phase since the last call, the first phase that ended first."""
        taken, self._seconds = self._seconds, {}
        return taken
