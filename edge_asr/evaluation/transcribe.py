"""Transcribe a corpus: sorted by length, batched, outputs written as they come.

The features of a batch are made while the one before is decoded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np

from edge_asr.audio import SAMPLE_RATE
from edge_asr.data.corpus import Corpus, DamagedClip, Utterance
from edge_asr.data.overlap import audio_digest
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import ClipOutput, read_outputs, to_lines
from edge_asr.memory import is_out_of_memory
from edge_asr.models.decoding import TooLong
from edge_asr.runtimes.base import Runtime
from edge_asr.store.files import write_text_atomically
from edge_asr.store.phases import PhaseSeconds


class BatchTooLarge(MemoryError):
    """Memory is not enough for batches of so many clips."""

    def __init__(self, batch_size: int) -> None:
        super().__init__(f"for batches of {batch_size} clips")


@dataclass(frozen=True)
class _Clip:
    """A clip that can be heard: its number in the corpus, and the seconds of reading it."""

    index: int
    item: Utterance
    audio_seconds: float


@dataclass(frozen=True)
class _Prepared:
    """A batch on its way: what each clip's window is cut to, and what the runtime made of them."""

    batch: Sequence[_Clip]
    waves: Sequence[np.ndarray]
    features: Any
    seconds: float


@dataclass(frozen=True)
class DecodeSettings:
    """How to decode.

    Attributes:
        batch_size: Clips decoded together. It changes Moonshine's outputs, whose first norm
            sees the padding; a batch of one is its exact mode.
        max_new_tokens: A cap on every clip's tokens below the model's own limit, or None.
        sort_window: Clips held in memory and sorted by length together, so that a batch pads
            little and a corpus of any size fits.
        too_long: What becomes of a clip that is longer than the model's window: cut, and flagged,
            or an error.
    """

    batch_size: int = 16
    max_new_tokens: int | None = None
    sort_window: int = 2048
    too_long: TooLong = "cut"

    def __post_init__(self) -> None:
        for name, value in (
            ("batch_size", self.batch_size),
            ("max_new_tokens", self.max_new_tokens),
            ("sort_window", self.sort_window),
        ):
            if value is not None and value < 1:
                raise UserError(f"decode.{name}={value} must be at least 1")


def transcribe(
    runtime: Runtime,
    corpus: Corpus,
    settings: DecodeSettings,
    journal: Path | None = None,
    on_batch: Callable[[int, int], None] = lambda *_: None,
    part: tuple[int, int] = (0, 1),
) -> list[ClipOutput]:
    """Transcribe every clip of `corpus` greedily, in corpus order.

    Args:
        runtime: The model, float or quantized.
        corpus: The clips. Damaged ones give a row as well.
        settings: Batch size and limits.
        journal: A file to which outputs are added batch by batch. The batches that an earlier call
            with the same arguments left there are kept, so that the result is that of an
            uninterrupted one.
        on_batch: Called with (clips done, clips in the corpus) after every batch.
        part: Which of how many parts of the batches; the rows are then only of those.

    Raises:
        UserError: for a clip longer than the window where the settings want an error.
        BatchTooLarge: where memory is not enough for the batch size.
    """
    earlier = {row.index: row for row in read_outputs(journal)} if journal else {}
    if journal:
        # Without the line that an interruption may have torn.
        write_text_atomically(journal, to_lines(earlier.values()))
    done: dict[int, ClipOutput] = {}
    items, warm = _timed(corpus), False
    while window := list(islice(items, settings.sort_window)):
        clips = [one for one in window if isinstance(one, _Clip)]
        done |= {one.index: one for one in window if isinstance(one, ClipOutput)}
        batches = list(_batches(clips, settings.batch_size))[part[0] :: part[1]]
        # A batch is kept or decoded as a whole: its padding can change its hypotheses.
        missing = [any(one.index not in earlier for one in batch) for batch in batches]
        if any(missing) and not warm:
            with _memory_watched(settings):
                runtime.warm_up()
            warm = True
        prepared = _one_ahead(
            lambda batch: _prepare(runtime, batch, settings), compress(batches, missing)
        )
        for batch, wanted in zip(batches, missing, strict=True):
            if wanted:
                with _memory_watched(settings):
                    rows = _decode(runtime, next(prepared), settings)
                if journal:
                    _append(journal, rows)
            else:
                rows = [earlier[one.index] for one in batch]
            done |= {row.index: row for row in rows}
            on_batch(len(done), len(corpus))
    return [done[index] for index in sorted(done)]


def _timed(corpus: Corpus) -> Iterator[_Clip | ClipOutput]:
    """Every clip of the corpus, or the row that a damaged one gives, as it is read."""
    began = time.perf_counter()
    for index, item in enumerate(corpus):
        seconds = time.perf_counter() - began
        if isinstance(item, DamagedClip):
            yield ClipOutput(
                index, "", 0.0, samples=0, generated_tokens=0, hit_limit=False, truncated=False,
                time=0.0, seconds=PhaseSeconds(audio=seconds), damage=item.reason,
            )  # fmt: skip
        else:
            yield _Clip(index, item, seconds)
        began = time.perf_counter()


def _batches(clips: Sequence[_Clip], batch_size: int) -> Iterator[list[_Clip]]:
    """Batches of clips, longest first, so that memory runs out at once or never."""
    ordered = sorted(clips, key=lambda clip: -len(clip.item.samples))
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


def _one_ahead(
    prepare: Callable[[Sequence[_Clip]], _Prepared], batches: Iterable[Sequence[_Clip]]
) -> Iterator[_Prepared]:
    """Every batch prepared, by another thread while the one before is decoded."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming: Future[_Prepared] | None = None
        for batch in batches:
            following = pool.submit(prepare, batch)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


def _prepare(runtime: Runtime, batch: Sequence[_Clip], settings: DecodeSettings) -> _Prepared:
    waves = [runtime.window(clip.item.samples) for clip in batch]
    if settings.too_long == "error":
        for clip, wave in zip(batch, waves, strict=True):
            item = clip.item
            if len(wave) < len(item.samples):
                raise UserError(
                    f"clip {item.id!r} ({item.source}): {item.seconds:.2f} s is longer than the "
                    f"model's window of {len(wave) / SAMPLE_RATE:g} s; leave it out, or cut such "
                    "clips with decode.too_long=cut"
                )
    began = time.perf_counter()
    features = runtime.prepare(waves)
    return _Prepared(batch, waves, features, time.perf_counter() - began)


@contextmanager
def _memory_watched(settings: DecodeSettings) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise BatchTooLarge(settings.batch_size) from error
        raise


def _decode(runtime: Runtime, prepared: _Prepared, settings: DecodeSettings) -> list[ClipOutput]:
    batch, waves = prepared.batch, prepared.waves
    limits = [runtime.token_limit(len(wave), settings.max_new_tokens) for wave in waves]
    decoded = runtime.decode(prepared.features, limits)
    share = replace(decoded.seconds, features=prepared.seconds).share(len(batch))
    return [
        ClipOutput(
            index=clip.index,
            pred_text=transcript.text,
            duration=clip.item.seconds,
            samples=len(wave),
            generated_tokens=transcript.steps,
            hit_limit=transcript.hit_limit,
            truncated=len(wave) < len(clip.item.samples),
            time=share.transcription,
            seconds=replace(share, audio=clip.audio_seconds),
            near_ties=transcript.near_ties,
            flags=clip.item.flags,
            audio_digest=audio_digest(clip.item.samples),
        )
        for clip, wave, transcript in zip(batch, waves, decoded.transcripts, strict=True)
    ]


def _append(journal: Path, rows: Sequence[ClipOutput]) -> None:
    with journal.open("a", encoding="utf-8") as file:
        file.write(to_lines(rows))
        file.flush()
        os.fsync(file.fileno())
