"""How long work will take and how much room it needs, from records of runs already made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from edge_asr.errors import UserError
from edge_asr.store.record import FLOAT_METHOD, Record, find_records, read_record


@dataclass(frozen=True)
class Work:
    """A step that is to be made.

    Attributes:
        step: Its name: `calibrate`, `quantize`, `transcribe`, `score`.
        key: Its key in the store; runs of which it is the same share it.
        model: Digest of the float model's weights.
        parameters: Of that model.
        method: The recipe of the quantize step; `float` of the others, which do not depend on it.
        clips: How many clips it looks at, 1 where it looks at none.
        done: Whether the store has it.
    """

    step: str
    key: str
    model: str
    parameters: int
    method: str
    clips: int
    done: bool = False


@dataclass(frozen=True)
class Made:
    """A step that some run has made, the seconds it took and the bytes of the quantized model."""

    step: str
    model: str
    parameters: int
    method: str
    clips: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Estimate:
    """What is left of a sweep.

    Attributes:
        seconds: Of steps like which some have been made, one after the other.
        bytes: Of quantized models.
        memory_bytes: At most, of a process that makes a run of these models; None: not known.
        unknown: Steps like which none has been made.
    """

    seconds: float = 0.0
    bytes: int = 0
    memory_bytes: int | None = None
    unknown: int = 0


def read_records(results: Path) -> list[Record]:
    """The sound records below a folder, which need not exist."""
    records = []
    for path in find_records(results) if results.is_dir() else ():
        try:
            records.append(read_record(path))
        except UserError:
            continue  # the report tells of it
    return records


def estimate(work: Iterable[Work], records: Sequence[Record]) -> Estimate:
    """What of `work` is not done, each step once.

    A step takes as long a clip as the median of the same method's on the same model, else on
    others, in proportion to their parameters.
    """
    left = {one.key: one for one in work if not one.done}
    made = [one for record in records for one in steps_of(record)]
    seconds = [_seconds(one, made) for one in left.values()]
    models = {one.model for one in left.values()}
    peaks = [
        stage.peak_memory_bytes
        for record in records
        if record.model.weights_sha256 in models
        for stage in record.stages
        if stage.peak_memory_bytes is not None
    ]
    return Estimate(
        seconds=sum(one for one in seconds if one is not None),
        bytes=sum(_bytes(one, made) for one in left.values() if one.step == "quantize"),
        memory_bytes=max(peaks, default=None),
        unknown=seconds.count(None),
    )


def steps_of(record: Record) -> list[Made]:
    """The steps behind a record, those of one name together."""
    whole: dict[str, float] = {}
    for stage in record.stages:
        name = stage.name.partition(" ")[0]  # `transcribe` of every data set
        whole[name] = whole.get(name, 0.0) + stage.seconds
    calibration = record.config.get("calibration") or {}
    drawn = int(calibration.get("clips", 1)) if "calibrate" in record.keys else 1
    heard = sum(one.clips for one in record.data)
    clips = {"calibrate": drawn, "quantize": drawn, "transcribe": heard, "score": heard}
    return [
        Made(
            step,
            record.model.weights_sha256,
            record.model.parameters,
            record.method.name if step == "quantize" else FLOAT_METHOD,
            count,
            whole[step],
            record.cost.quantized.size.bytes if record.cost else 0,
        )
        for step, count in clips.items()
        if step in whole and count
    ]


def _seconds(work: Work, made: Sequence[Made]) -> float | None:
    alike = [one for one in made if (one.step, one.method) == (work.step, work.method)]
    if own := [one.seconds / one.clips for one in alike if one.model == work.model]:
        return median(own) * work.clips
    others = [one.seconds / one.clips / one.parameters for one in alike]
    return median(others) * work.clips * work.parameters if others else None


def _bytes(work: Work, made: Sequence[Made]) -> int:
    """Of a quantized model: as others of the same model, else its float weights in 16 bits."""
    own = [one.bytes for one in made if (one.step, one.model) == (work.step, work.model)]
    return round(median(own)) if own else 2 * work.parameters
