"""What a model heard in every clip, as the files that hold it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edge_asr.data.corpus import ClipEntry
from edge_asr.errors import UserError
from edge_asr.store.files import write_text_atomically
from edge_asr.store.plain_json import parse


@dataclass(frozen=True)
class ClipOutput:
    """What a model made of the audio of one clip, or why that could not be heard.

    Attributes:
        index: Number of the clip in its corpus.
        pred_text: Hypothesis.
        duration: Seconds of the whole clip.
        samples: 16 kHz samples that the model was given.
        generated_tokens: Tokens generated, the end token included.
        hit_limit: The token limit came before an end token: a sign of a loop.
        truncated: The clip was longer than the model's window and cut to it.
        time: Its share of its batch's feature extraction, decoding and detokenization, seconds.
        damage: Why the clip could not be used, or None.
    """

    index: int
    pred_text: str
    duration: float
    samples: int
    generated_tokens: int
    hit_limit: bool
    truncated: bool
    time: float
    damage: str | None = None


@dataclass(frozen=True)
class Hypothesis:
    """One transcribed clip: a row of the Open ASR Leaderboard's manifest, and what we add.

    Attributes:
        id: The utterance's.
        audio_filepath: The clip's source.
        text: Reference.
        metadata: The utterance's.
        duration, time, pred_text, samples, generated_tokens, hit_limit, truncated: See
            `ClipOutput`.
    """

    id: str
    audio_filepath: str
    duration: float
    time: float
    text: str
    pred_text: str
    samples: int
    generated_tokens: int
    hit_limit: bool
    truncated: bool
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DamagedSource:
    """A clip that could not be used: where it came from and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Transcription:
    """A transcribed corpus.

    Attributes:
        hypotheses: In corpus order.
        damaged: The clips that could not be used, in corpus order.
    """

    hypotheses: tuple[Hypothesis, ...]
    damaged: tuple[DamagedSource, ...] = ()

    @property
    def audio_seconds(self) -> float:
        return sum(hypothesis.duration for hypothesis in self.hypotheses)

    @property
    def decode_seconds(self) -> float:
        return sum(hypothesis.time for hypothesis in self.hypotheses)


def joined(entries: Sequence[ClipEntry], transcribed: Iterable[ClipOutput]) -> Transcription:
    """What was heard beside what the corpus says of each clip."""
    hypotheses, damaged = [], []
    for row in sorted(transcribed, key=lambda row: row.index):
        entry = entries[row.index]
        if row.damage is not None:
            damaged.append(DamagedSource(entry.source, row.damage))
            continue
        hypotheses.append(
            Hypothesis(
                id=entry.id,
                audio_filepath=entry.source,
                duration=row.duration,
                time=row.time,
                text=entry.text,
                pred_text=row.pred_text,
                samples=row.samples,
                generated_tokens=row.generated_tokens,
                hit_limit=row.hit_limit,
                truncated=row.truncated,
                metadata=dict(entry.metadata),
            )
        )
    return Transcription(tuple(hypotheses), tuple(damaged))


def to_lines(rows: Iterable[ClipOutput] | Iterable[Hypothesis]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)


def write_hypotheses(path: Path, hypotheses: Iterable[Hypothesis]) -> None:
    """Write a file of hypotheses, whole or not at all."""
    write_text_atomically(path, to_lines(hypotheses))


def read_hypotheses(path: Path) -> tuple[Hypothesis, ...]:
    """Read back a file that `write_hypotheses` wrote.

    Raises:
        UserError: It cannot be read, or a row is not of that form; the message names line and
            field.
    """
    try:
        lines = _lines(path)
    except OSError as error:
        raise UserError(
            f"{path}: hypotheses cannot be read ({error.strerror}); make the run again with "
            "rerun=true"
        ) from error
    return tuple(parse(Hypothesis, line, f"{path}, line {number}") for number, line in lines)


def read_outputs(path: Path) -> list[ClipOutput]:
    """The complete rows of a file, if it exists; an interruption can leave a torn last line."""
    rows = []
    for number, line in _lines(path) if path.exists() else []:
        with suppress(UserError):
            rows.append(parse(ClipOutput, line, f"{path}, line {number}"))
    return rows


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines of a file that hold anything, by number; texts themselves may hold other
    separators, such as U+2028."""
    lines = enumerate(path.read_bytes().split(b"\n"), start=1)
    return [(number, line) for number, line in lines if line]
