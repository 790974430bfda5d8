"""Times as a table: a row for every candidate and number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from rich.table import Column, Table
from rich.text import Text

from edge_asr.cli.main import printable
from edge_asr.timing.results import Candidate, Measured, Times

MB = 1e6
NONE = "–"


def load_seconds(measured: Measured) -> float:
    """From files to a model that is ready."""
    return measured.load_seconds


def encoder_ms(measured: Measured, clip: int) -> float:
    """Of clip number `clip`."""
    return 1e3 * measured.clips[clip].seconds.encoder


def ms_per_token(measured: Measured) -> float | None:
    """Of the decoder, over all clips, the prompt's time shared among the tokens written."""
    steps = sum(one.steps for one in measured.clips)
    return 1e3 * sum(one.seconds.decoder for one in measured.clips) / steps if steps else None


def rtfx(measured: Measured) -> float:
    """Seconds of audio a second of transcribing it, over all clips."""
    audio = sum(one.audio_seconds for one in measured.clips)
    return audio / sum(one.seconds.transcription for one in measured.clips)


def peak_mb(measured: Measured) -> float | None:
    """Of the whole process."""
    return None if measured.peak_memory_bytes is None else measured.peak_memory_bytes / MB


def model_mb(measured: Measured) -> float | None:
    """The part of the peak that was not there before the model was loaded."""
    if measured.peak_memory_bytes is None or measured.memory_before_bytes is None:
        return None
    return (measured.peak_memory_bytes - measured.memory_before_bytes) / MB


def times_table(times: Times) -> Table:
    """All that was measured: the median of the repeats, and below it the least and the most."""
    figures = _figures(times.audio.seconds)
    repeats = max(one.repeat for one in times.measurements)
    spread = ", below them the least and the most" if repeats > 1 else ""
    machine = times.machine
    table = Table(
        Column("model", overflow="fold"),
        *(Column(one, justify="right", no_wrap=True) for one in ("threads", "disk\nMB", *figures)),
        box=None, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left",
        title=Text(f"measured on {machine.processor}, {machine.processors} processors"),
        caption=Text(
            f"Medians of {repeats} processes{spread}. Audio: {times.audio.name}. RTFx: seconds of "
            "audio a second, over all lengths. Memory: of the whole process, Python and PyTorch "
            "included, and what loading and running the model added."
        ),
    )  # fmt: skip
    for candidate in times.candidates:
        for threads in dict.fromkeys(one.threads for one in times.measurements):
            own = [
                one.measured
                for one in times.measurements
                if (one.candidate, one.threads) == (candidate.name, threads)
            ]
            cells = [_cell([figure(one) for one in own]) for figure in figures.values()]
            # Text, not strings: rich would read brackets of a name as markup.
            row = (_label(candidate), str(threads), number(candidate.bytes / MB), *cells)
            table.add_row(*map(Text, row))
    return table


def _figures(seconds: Sequence[float]) -> dict[str, Callable[[Measured], float | None]]:
    """What is told of every measurement, by the heading of its column."""
    return {
        "load\ns": load_seconds,
        **{
            f"encoder\nms {length:g} s": partial(encoder_ms, clip=clip)
            for clip, length in enumerate(seconds)
        },
        "decoder\nms/token": ms_per_token,
        "RTFx": rtfx,
        "peak\nMB": peak_mb,
        "model\nMB": model_mb,
    }


def _label(candidate: Candidate) -> str:
    return f"{printable(candidate.name)}\n{candidate.runtime}, {printable(candidate.formats)}"


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    middle = number(median(known))
    return f"{middle}\n{number(min(known))}–{number(max(known))}" if len(known) > 1 else middle


def number(value: float) -> str:
    """With three significant digits, and no fewer before the point than there are."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
