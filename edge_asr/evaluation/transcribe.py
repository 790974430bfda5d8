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
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.greedy import clip_to_window, greedy, token_limit
from edge_asr.store.record import RECORD_NAME


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
    complete batches, so that the result is that of an uninterrupted run. So it does with a finished
    `output` whose run never came to its record; `<output>.key` tells whose it is. Where a record
    lies beside it, the caller wants the clips transcribed anew.

    Args:
        checkpoint: The model, float or quantized, on any device.
        corpus: The clips. Damaged ones are returned as such.
        settings: Batch size and limits.
        output: JSON-lines file to write, or None to write nothing.
        on_batch: Called with (clips done, clips in the corpus) after every batch.
        resume_key: Identifies everything that can change a hypothesis; the caller's run id. A
            finished file is reused only under a key that is not empty.

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
            done = [earlier[item.id] for item in batch if _is_of(earlier.get(item.id), item)]
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


def _is_of(row: Hypothesis | None, clip: Utterance) -> bool:
    """Whether an earlier run's row is of this clip as it is now; its file may have changed."""
    return row is not None and (row.text, row.duration, row.metadata) == (
        clip.text,
        clip.seconds,
        dict(clip.metadata),
    )


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
    """The file of hypotheses while it grows and when finished, each with its run's key beside it.

    The two keys are apart because a run may grow its file beside the finished one of another.
    """

    def __init__(self, output: Path, key: str) -> None:
        self._output = output
        self._partial = output.with_name(output.name + ".partial")
        self._partial_key = output.with_name(output.name + ".partial.key")
        self._output_key = output.with_name(output.name + ".key")
        self._key = key

    def resume(self) -> dict[str, Hypothesis]:
        """Start the partial file, with the rows that a run of the same key left behind."""
        same = self._is_own(self._partial_key)
        rows = _complete_rows(self._partial) if same else []
        if not rows and self._is_unrecorded():
            rows = _complete_rows(self._output)
        self._output.parent.mkdir(parents=True, exist_ok=True)
        # In this order, so that at no moment do rows of one run lie under the key of another.
        if not same:
            self._partial.unlink(missing_ok=True)
        self._partial_key.write_text(self._key, encoding="utf-8")
        _write(self._partial, rows)
        return {row.id: row for row in rows}

    def _is_own(self, key_file: Path) -> bool:
        return key_file.exists() and key_file.read_text(encoding="utf-8") == self._key

    def _is_unrecorded(self) -> bool:
        """Whether this run finished `output` before, and was stopped before its record."""
        recorded = self._output.with_name(RECORD_NAME).exists()
        return bool(self._key) and self._is_own(self._output_key) and not recorded

    def append(self, hypotheses: Sequence[Hypothesis]) -> None:
        with self._partial.open("a", encoding="utf-8") as file:
            file.writelines(_to_json(hypothesis) for hypothesis in hypotheses)

    def publish(self, hypotheses: Sequence[Hypothesis]) -> None:
        # In this order, so that a stop at any moment leaves the rows under their own key.
        self._output_key.unlink(missing_ok=True)
        _write(self._output, hypotheses)
        if self._key:
            self._output_key.write_text(self._key, encoding="utf-8")
        self._partial.unlink()
        self._partial_key.unlink()


def _complete_rows(path: Path) -> list[Hypothesis]:
    """The rows of a file, if it exists.

    An interruption can leave a torn last line; its batch is decoded again.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        return [row for row in map(_from_json, file) if row is not None]


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
