"""Transcribe a corpus: sorted by length, batched, hypotheses written as they come."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from edge_asr.data.corpus import Corpus, DamagedClip, Utterance
from edge_asr.errors import UserError
from edge_asr.models.generation import clip_to_window, greedy, token_limit
from edge_asr.models.loading import Checkpoint


@dataclass(frozen=True)
class DecodeSettings:
    """How to decode.

    Attributes:
        batch_size: Clips decoded together. It changes Moonshine's outputs, whose first norm
            sees the padding; a batch of one is its exact mode.
        max_new_tokens: A cap on every clip's tokens below the model's own limit, or None.
        sort_window: Clips held in memory and sorted by length together, so that a batch pads
            little and a corpus of any size fits.
    """

    batch_size: int = 16
    max_new_tokens: int | None = None
    sort_window: int = 2048

    def __post_init__(self) -> None:
        for name, value in (
            ("batch_size", self.batch_size),
            ("max_new_tokens", self.max_new_tokens),
            ("sort_window", self.sort_window),
        ):
            if value is not None and value < 1:
                raise UserError(f"decode.{name}={value} must be at least 1")


@dataclass(frozen=True)
class Hypothesis:
    """One transcribed clip: a row of the Open ASR Leaderboard's manifest, and what we add.

    Attributes:
        id: The utterance's.
        audio_filepath: The clip's source.
        duration: Seconds of the whole clip.
        time: Its share of its batch's feature extraction, decoding and detokenization, seconds.
        text: Reference.
        pred_text: Hypothesis.
        samples: 16 kHz samples that the model was given.
        generated_tokens: Tokens generated, the end token included.
        hit_limit: The token limit came before an end token: a sign of a loop.
        truncated: The clip was longer than the model's window and cut to it.
        metadata: The utterance's.
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
class Transcription:
    """A transcribed corpus.

    Attributes:
        hypotheses: In corpus order.
        damaged: The clips that could not be used, in corpus order.
        resumed: How many hypotheses an interrupted run had already written.
    """

    hypotheses: tuple[Hypothesis, ...]
    damaged: tuple[DamagedClip, ...]
    resumed: int = 0

    @property
    def audio_seconds(self) -> float:
        return sum(hypothesis.duration for hypothesis in self.hypotheses)

    @property
    def decode_seconds(self) -> float:
        return sum(hypothesis.time for hypothesis in self.hypotheses)


def transcribe(
    checkpoint: Checkpoint,
    corpus: Corpus,
    settings: DecodeSettings,
    output: Path | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    resume_key: str = "",
) -> Transcription:
    """Transcribe every clip of `corpus` greedily.

    Hypotheses go to `<output>.partial` batch by batch, and to `output`, in corpus order, when all
    are there. A run that finds a partial file written under the same `resume_key` keeps its
    complete batches, so that the result is that of an uninterrupted run.

    Args:
        checkpoint: The model, float or quantized, on any device.
        corpus: The clips. Damaged ones are returned as such.
        settings: Batch size and limits.
        output: JSON-lines file to write, or None to write nothing.
        on_batch: Called with (clips done, clips in the corpus) after every batch.
        resume_key: Identifies everything that can change a hypothesis; the caller's run id.

    Raises:
        UserError: when two clips share an id, or the decoder starts on the wrong prompt.
    """
    journal = _Journal(output, resume_key) if output else None
    earlier = journal.resume() if journal else {}
    hypotheses: dict[str, Hypothesis] = {}
    damaged: list[DamagedClip] = []
    order: dict[str, int] = {}
    resumed = 0
    items = iter(corpus)
    while window := list(islice(items, settings.sort_window)):
        for item in window:
            if item.id in order:
                raise UserError(
                    f"corpus {corpus.name!r} has two clips with the id {item.id!r}; "
                    "give every clip an id of its own"
                )
            order[item.id] = len(order)
        damaged += [item for item in window if isinstance(item, DamagedClip)]
        for batch in _batches(window, settings.batch_size):
            # A batch is kept or decoded as a whole: its padding can change its hypotheses.
            done = [earlier[utterance.id] for utterance in batch if utterance.id in earlier]
            if len(done) == len(batch):
                resumed += len(done)
            else:
                done = _transcribe_batch(checkpoint, batch, settings.max_new_tokens)
                if journal:
                    journal.append(done)
            hypotheses |= {hypothesis.id: hypothesis for hypothesis in done}
            if on_batch:
                on_batch(len(hypotheses) + len(damaged), len(corpus))
    result = tuple(sorted(hypotheses.values(), key=lambda hypothesis: order[hypothesis.id]))
    if journal:
        journal.publish(result)
    return Transcription(result, tuple(damaged), resumed)


def read_hypotheses(path: Path) -> tuple[Hypothesis, ...]:
    """Read back a file that `transcribe` wrote.

    Raises:
        UserError: when it is missing or holds anything else.
    """
    try:
        with path.open(encoding="utf-8") as file:
            rows = [_from_json(line) for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"hypotheses {str(path)!r} cannot be read: {error}") from error
    complete = [row for row in rows if row is not None]
    if len(complete) < len(rows):
        raise UserError(
            f"hypotheses {str(path)!r}, line {rows.index(None) + 1}: no row written by edge_asr; "
            "transcribe again"
        )
    return tuple(complete)


def _batches(
    items: Sequence[Utterance | DamagedClip], batch_size: int
) -> Iterator[list[Utterance]]:
    """Batches of the usable clips, longest first, so that memory runs out at once or never."""
    usable = [item for item in items if isinstance(item, Utterance)]
    usable.sort(key=lambda utterance: -len(utterance.samples))
    for start in range(0, len(usable), batch_size):
        yield usable[start : start + batch_size]


def _transcribe_batch(
    checkpoint: Checkpoint, batch: Sequence[Utterance], max_new_tokens: int | None
) -> list[Hypothesis]:
    waves: list[np.ndarray] = [clip_to_window(checkpoint, item.samples) for item in batch]
    limits = [token_limit(checkpoint, len(wave), max_new_tokens) for wave in waves]
    # `greedy` returns Python integers, so an accelerator has finished when the clock stops.
    start = time.perf_counter()
    generated = greedy(checkpoint, waves, limits)
    texts = checkpoint.tokenizer.batch_decode(
        [list(row.tokens) for row in generated], skip_special_tokens=True
    )
    share = (time.perf_counter() - start) / len(batch)
    return [
        Hypothesis(
            id=item.id,
            audio_filepath=item.source,
            duration=item.seconds,
            time=share,
            text=item.text,
            pred_text=text.strip(),
            samples=len(wave),
            generated_tokens=row.steps,
            hit_limit=row.hit_limit,
            truncated=len(wave) < len(item.samples),
            metadata=dict(item.metadata),
        )
        for item, wave, row, text in zip(batch, waves, generated, texts, strict=True)
    ]


class _Journal:
    """The file of hypotheses while it grows, and the key of the run that writes it."""

    def __init__(self, output: Path, key: str) -> None:
        self._output = output
        self._partial = output.with_name(output.name + ".partial")
        self._key_file = output.with_name(output.name + ".partial.key")
        self._key = key

    def resume(self) -> dict[str, Hypothesis]:
        """Start the partial file, with the rows that a run of the same key left in it."""
        rows: list[Hypothesis] = []
        if self._same_key() and self._partial.exists():
            # An interruption can leave a torn last line; its batch is decoded again.
            with self._partial.open(encoding="utf-8", errors="replace") as file:
                rows = [row for row in map(_from_json, file) if row is not None]
        self._output.parent.mkdir(parents=True, exist_ok=True)
        # In this order, so that at no moment do rows of one run lie under the key of another.
        if not rows:
            self._partial.unlink(missing_ok=True)
        self._key_file.write_text(self._key, encoding="utf-8")
        _write(self._partial, rows)
        return {row.id: row for row in rows}

    def _same_key(self) -> bool:
        return self._key_file.exists() and self._key_file.read_text(encoding="utf-8") == self._key

    def append(self, hypotheses: Sequence[Hypothesis]) -> None:
        with self._partial.open("a", encoding="utf-8") as file:
            file.writelines(_to_json(hypothesis) for hypothesis in hypotheses)

    def publish(self, hypotheses: Sequence[Hypothesis]) -> None:
        _write(self._output, hypotheses)
        self._partial.unlink()
        self._key_file.unlink()


def _write(path: Path, hypotheses: Sequence[Hypothesis]) -> None:
    """Replace `path` in one step, so that it never exists in part."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(_to_json(hypothesis) for hypothesis in hypotheses)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _to_json(hypothesis: Hypothesis) -> str:
    return json.dumps(asdict(hypothesis), ensure_ascii=False) + "\n"


def _from_json(line: str) -> Hypothesis | None:
    """The row of a line, or None when the line is torn or of another form."""
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(row, dict) or row.keys() != {item.name for item in fields(Hypothesis)}:
        return None
    return Hypothesis(**row)
