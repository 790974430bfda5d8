"""A series of measurements: what is asked for, what a file holds of it, and what is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edge_asr.errors import UserError
from edge_asr.models.files import find_files
from edge_asr.store.environment import current_environment
from edge_asr.store.files import write_text_atomically
from edge_asr.store.plain_json import finite, parse
from edge_asr.timing.candidates import Comparison, candidates, parse_against
from edge_asr.timing.machine import this_machine
from edge_asr.timing.measure import measure_all, turns, write_clips
from edge_asr.timing.results import SCHEMA_VERSION, Candidate, Times

REMEDY = "give another file, or remove it to measure anew"


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        command: What was typed.
        folders: Exported folders.
        audio: What to hear; None: embedded test clips.
        seconds: Lengths of clips.
        threads: Numbers of threads.
        repeats: How often.
        checkpoints: Float checkpoints that were named.
        against: What to compare with, with commas; None: all that can be.
        out: File that every measurement is written to at once; None: no file.
    """

    command: str
    folders: tuple[Path, ...]
    audio: Path | None
    seconds: tuple[float, ...]
    threads: tuple[int, ...]
    repeats: int
    checkpoints: tuple[str, ...]
    against: str | None
    out: Path | None


def measure_series(
    request: Request, tell: Callable[[str], None], show: Callable[[Times], None]
) -> None:
    """Measure what `request.out` does not hold yet.

    Args:
        request: What is asked for.
        tell: Hears of the progress, of what is left out and of what fails.
        show: Gets all that was measured, at the end, whatever ends it.

    Raises:
        UserError: something cannot be measured, or the file holds something else.
        FailedRuns: a process ended otherwise.
    """
    if request.out:
        check_writable(request.out)
    names = parse_against(request.against)
    with TemporaryDirectory() as made:
        working = Path(made)
        clips = working / "clips.npz"
        source = write_clips(request.audio, request.seconds, clips)
        comparison = Comparison(names, tuple(map(find_files, request.checkpoints)), working)
        chosen = candidates(request.folders, comparison)
        left_out = tuple(dict.fromkeys(comparison.left_out))
        for line in left_out:
            tell(f"left out: {line}")
        machine = this_machine()
        times = Times(
            SCHEMA_VERSION, request.command, datetime.now(UTC).isoformat(timespec="seconds"),
            machine, current_environment(machine.processor, max(request.threads)), source,
            tuple(lasting(one, working) for one in chosen), (), left_out,
        )  # fmt: skip
        times = went_on(times, request.out) if request.out else times
        there = {(one.repeat, one.threads, one.candidate) for one in times.measurements}
        if there:
            tell(f"{request.out}: {len(there)} are measured already; remove it to measure anew")
        every = turns([one.name for one in chosen], request.threads, request.repeats)
        order = [turn for turn in every if turn not in there]
        try:
            for one in measure_all(chosen, order, clips, tell):
                times = replace(times, measurements=(*times.measurements, one))
                if request.out:
                    text = json.dumps(finite(asdict(times)), indent=2)
                    write_text_atomically(request.out, text + "\n")
        finally:
            if times.measurements:
                show(times)


def went_on(times: Times, out: Path) -> Times:
    """`times` with what `out` holds already.

    Raises UserError where that is something else, or of another machine or code.
    """
    if not out.exists():
        return times
    before = parse(Times, out.read_bytes(), out, REMEDY)

    def compared(one: Times) -> dict[str, Any]:
        # What a candidate is its hashes say, wherever it lies.
        candidates = {own.name: replace(own, exported="", weights=None) for own in one.candidates}
        return {
            "schema_version": one.schema_version,
            "machine": asdict(replace(one.machine, load=None)),
            "environment": asdict(replace(one.environment, threads=0)),
            "audio": one.audio,
            "candidates": {name: asdict(own) for name, own in candidates.items()},
        }

    if field := first_difference(compared(before), compared(times)):
        raise UserError(f"--out={out}: holds measurements with another {field}; {REMEDY}")
    threads = max(before.environment.threads, times.environment.threads)
    return replace(
        before,
        command=times.command,
        environment=replace(before.environment, threads=threads),
        left_out=times.left_out,
    )


def first_difference(one: Any, other: Any, place: str = "") -> str | None:
    """The path of a value in which two nested dictionaries differ, `a.b.c`; None: they are equal.

    What only one of them has differs too.
    """
    if not isinstance(one, dict) or not isinstance(other, dict):
        return place if one != other else None
    for name in sorted(one.keys() | other.keys()):
        own = f"{place}.{name}" if place else name
        if name not in one or name not in other:
            return own
        if found := first_difference(one[name], other[name], own):
            return found
    return None


def lasting(candidate: Candidate, working: Path) -> Candidate:
    """As it is told: of what is written to `working` only to be measured, the name says enough."""

    def told(folder: str) -> str:
        return Path(folder).name if Path(folder).is_relative_to(working) else folder

    weights = candidate.weights and told(candidate.weights)
    return replace(candidate, exported=told(candidate.exported), weights=weights)


def check_writable(out: Path) -> None:
    """Raises UserError where no file can be written at `out`; makes the folder that it is in."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(out.parent, os.W_OK) and not out.is_dir()
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"--out={out}: is no file that can be written; give another")
