"""Transcribe a corpus: sorted by length, batched, outputs written as they come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from edge_asr.audio import SAMPLE_RATE
from edge_asr.data.corpus import Corpus, DamagedClip, Utterance
from edge_asr.data.overlap import audio_digest
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import ClipOutput, read_outputs, to_lines
from edge_asr.models.decoding import TooLong
from edge_asr.runtimes.base import Runtime
from edge_asr.store.files import write_text_atomically

Clip = tuple[int, Utterance]


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

    Raises UserError for a clip longer than the window where the settings want an error.
    """
    earlier = {row.index: row for row in read_outputs(journal)} if journal else {}
    if journal:
        # Without the line that an interruption may have torn.
        write_text_atomically(journal, to_lines(earlier.values()))
    done: dict[int, ClipOutput] = {}
    items = enumerate(corpus)
    while window := list(islice(items, settings.sort_window)):
        for index, item in window:
            if isinstance(item, DamagedClip):
                done[index] = ClipOutput(
                    index, "", 0.0, samples=0, generated_tokens=0, hit_limit=False,
                    truncated=False, time=0.0, damage=item.reason,
                )  # fmt: skip
        for batch in _batches(window, settings.batch_size):
            # A batch is kept or decoded as a whole: its padding can change its hypotheses.
            rows = [earlier[index] for index, _ in batch if index in earlier]
            if len(rows) < len(batch):
                rows = _transcribe_batch(runtime, batch, settings)
                if journal:
                    _append(journal, rows)
            done |= {row.index: row for row in rows}
            on_batch(len(done), len(corpus))
    return [done[index] for index in sorted(done)]


def _batches(
    items: Sequence[tuple[int, Utterance | DamagedClip]], batch_size: int
) -> Iterator[list[Clip]]:
    """Batches of the usable clips, longest first, so that memory runs out at once or never."""
    usable = [(index, item) for index, item in items if isinstance(item, Utterance)]
    usable.sort(key=lambda clip: -len(clip[1].samples))
    for start in range(0, len(usable), batch_size):
        yield usable[start : start + batch_size]


def _transcribe_batch(
    runtime: Runtime, batch: Sequence[Clip], settings: DecodeSettings
) -> list[ClipOutput]:
    waves = [runtime.window(item.samples) for _, item in batch]
    if settings.too_long == "error":
        for (_, item), wave in zip(batch, waves, strict=True):
            if len(wave) < len(item.samples):
                raise UserError(
                    f"clip {item.id!r} ({item.source}): {item.seconds:.2f} s is longer than the "
                    f"model's window of {len(wave) / SAMPLE_RATE:g} s; leave it out, or cut such "
                    "clips with decode.too_long=cut"
                )
    limits = [runtime.token_limit(len(wave), settings.max_new_tokens) for wave in waves]
    # A runtime returns Python integers, so an accelerator has finished when the clock stops.
    start = time.perf_counter()
    transcripts = runtime.transcribe(waves, limits)
    share = (time.perf_counter() - start) / len(batch)
    return [
        ClipOutput(
            index=index,
            pred_text=transcript.text,
            duration=item.seconds,
            samples=len(wave),
            generated_tokens=transcript.steps,
            hit_limit=transcript.hit_limit,
            truncated=len(wave) < len(item.samples),
            time=share,
            flags=item.flags,
            audio_digest=audio_digest(item.samples),
        )
        for (index, item), wave, transcript in zip(batch, waves, transcripts, strict=True)
    ]


def _append(journal: Path, rows: Sequence[ClipOutput]) -> None:
    with journal.open("a", encoding="utf-8") as file:
        file.write(to_lines(rows))
        file.flush()
        os.fsync(file.fileno())
