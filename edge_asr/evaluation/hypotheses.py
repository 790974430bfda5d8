"""What a model heard in every clip, as the files that hold it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from edge_asr.data.corpus import ClipEntry
from edge_asr.errors import UserError
from edge_asr.store.file_texts import DifferingText
from edge_asr.store.files import write_text_atomically
from edge_asr.store.phases import PhaseSeconds
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
        time: Its share of its batch's features, decoding and detokenization, seconds.
        seconds: The same phase by phase, reading its file too.
        near_ties: See `Transcript`.
        damage: Why the clip could not be used, or None.
        flags: What is doubtful about its audio, see `Utterance`.
        audio_digest: Of the decoded samples of the whole clip, see `edge_asr.data.overlap`.
    """

    index: int
    pred_text: str
    duration: float
    samples: int
    generated_tokens: int
    hit_limit: bool
    truncated: bool
    time: float
    seconds: PhaseSeconds = field(default_factory=PhaseSeconds)
    near_ties: int = 0
    damage: str | None = None
    flags: tuple[str, ...] = ()
    audio_digest: str = ""


@dataclass(frozen=True)
class Hypothesis:
    """One transcribed clip: a row of the Open ASR Leaderboard's manifest, and what we add.

    Attributes:
        audio_filepath: The clip's source.
        duration, time, pred_text, samples, generated_tokens, hit_limit, near_ties, truncated,
            flags: See `ClipOutput`.
        text: Reference; of a chunk that of its whole recording.
        id: The utterance's.
        parent_id, chunk_index: Of a chunk: its recording, and its number there from 0.
        metadata: The utterance's.
    """

    audio_filepath: str
    text: str
    pred_text: str
    duration: float = 0.0
    time: float = 0.0
    id: str = ""
    samples: int = 0
    generated_tokens: int = 0
    hit_limit: bool = False
    near_ties: int = 0
    truncated: bool = False
    flags: tuple[str, ...] = ()
    parent_id: str | None = None
    chunk_index: int | None = None
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
        parent, chunk = (entry.metadata.get(name, "") for name in ("parent_id", "chunk_index"))
        is_chunk = bool(parent) and chunk.isdecimal()
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
                near_ties=row.near_ties,
                truncated=row.truncated,
                flags=row.flags,
                parent_id=parent if is_chunk else None,
                chunk_index=int(chunk) if is_chunk else None,
                metadata=dict(entry.metadata),
            )
        )
    return Transcription(tuple(hypotheses), tuple(damaged))


def same_clips(
    one: Iterable[Hypothesis], other: Iterable[Hypothesis]
) -> list[tuple[Hypothesis, Hypothesis]]:
    """Those that both heard; a clip may have been readable once alone."""
    others = {(clip.id, clip.chunk_index): clip for clip in other}
    pairs = ((clip, others.get((clip.id, clip.chunk_index))) for clip in one)
    return [(clip, found) for clip, found in pairs if found is not None]


def differing_texts(
    dataset: str, clips: Iterable[tuple[Hypothesis, Hypothesis]]
) -> list[DifferingText]:
    """Where the texts of a file (first) differ from those of its simulation."""
    return [
        DifferingText(
            dataset, own.id, own.pred_text, other.pred_text, own.near_ties + other.near_ties
        )
        for own, other in clips
        if own.pred_text != other.pred_text
    ]


def to_lines(rows: Iterable[ClipOutput] | Iterable[Hypothesis]) -> str:
    """One JSON object a line, without what a row does not have."""
    return "".join(
        json.dumps(
            {name: value for name, value in asdict(row).items() if value is not None},
            ensure_ascii=False,
        )
        + "\n"
        for row in rows
    )


def write_hypotheses(
    path: Path, hypotheses: Iterable[Hypothesis], unscored: Iterable[Hypothesis] = ()
) -> None:
    """Write a file of hypotheses, whole or not at all.

    Those whose references count for nothing lie in a second file beside it: the leaderboard's
    tools take every row of a manifest for one that counts.
    """
    aside = list(unscored)
    if aside:
        write_text_atomically(_aside(path), to_lines(aside))
    else:
        _aside(path).unlink(missing_ok=True)
    write_text_atomically(path, to_lines(hypotheses))


def read_hypotheses(path: Path) -> tuple[Hypothesis, ...]:
    """Read a manifest that `write_hypotheses` wrote, or one that the leaderboard has published.

    Raises:
        UserError: It cannot be read, or a row is not of that form; the message names line and
            field.
    """
    rows: list[Hypothesis] = []
    for file in (path, *([_aside(path)] if _aside(path).is_file() else [])):
        try:
            lines = _lines(file)
        except OSError as error:
            raise UserError(
                f"{file}: hypotheses cannot be read ({error.strerror}); make the run again with "
                "rerun=true"
            ) from error
        rows += [_hypothesis(line, f"{file}, line {number}") for number, line in lines]
    if not rows:
        raise UserError(f"{path}: holds no hypotheses; make the run again with rerun=true")
    return _with_ids(rows)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.unscored.ndjson")


def _hypothesis(line: bytes, place: str) -> Hypothesis:
    try:
        plain: Any = json.loads(line)
    except (ValueError, RecursionError):
        plain = None
    if isinstance(plain, dict):
        known = {one.name for one in fields(Hypothesis)}
        # What others add to their rows is no field of ours.
        own = {name: value for name, value in plain.items() if name in known and value is not None}
        own.setdefault("pred_text", "")
        line = json.dumps(own).encode()
    return parse(Hypothesis, line, place)


def _with_ids(rows: Sequence[Hypothesis]) -> tuple[Hypothesis, ...]:
    """`rows`, every one with an id of its own: published ones have only a file, often all one."""
    seen: set[str] = set()
    named = []
    for number, row in enumerate(rows, 1):
        own = row.id or row.audio_filepath
        own = f"{own}#{number}" if own in seen else own
        seen.add(own)
        named.append(replace(row, id=own))
    return tuple(named)


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
