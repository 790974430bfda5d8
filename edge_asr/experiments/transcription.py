"""One data set's transcription by the processes of a run, together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edge_asr.config import Settings
from edge_asr.data.corpus import Corpus
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import ClipOutput
from edge_asr.evaluation.transcribe import BatchTooLarge, DecodeSettings, transcribe
from edge_asr.models.languages import language_conflict
from edge_asr.processes import Processes
from edge_asr.runtimes.base import Runtime

OUTPUTS = "heard.jsonl"
# Where a corpus says what is spoken.
LANGUAGE_FIELDS = ("language", "lang", "locale")


def heard_together(
    settings: Settings,
    runtime: Runtime,
    corpus: Corpus,
    working: Path,
    on_batch: Callable[[int, int], None],
    processes: Processes,
) -> list[ClipOutput]:
    """A row for every clip; the processes take turns at the batches.

    Args:
        settings: Of the run.
        runtime: Who transcribes.
        corpus: The clips.
        working: Folder that keeps what is heard, for a run that goes on.
        on_batch: Hears of how many clips how many are done.
        processes: Those that make the run; all call this.

    Raises:
        BatchTooLarge: in all of them where one has too little memory.
    """
    decoding = DecodeSettings(
        settings.batch_size, settings.max_new_tokens, too_long=settings.decode.too_long
    )
    journal = working / (OUTPUTS if processes.is_main else f"{processes.index}-{OUTPUTS}")
    part = (processes.index, processes.count)
    rows: list[ClipOutput] | None = None
    with suppress(BatchTooLarge):
        rows = transcribe(runtime, corpus, decoding, journal, on_batch, part)
    heard: dict[int, ClipOutput] = {}
    for other in processes.gathered(rows):
        if other is None:
            raise BatchTooLarge(settings.batch_size)
        heard |= {row.index: row for row in other}
    return [heard[index] for index in sorted(heard)]


def check_languages(corpus: Corpus, language: str | None) -> None:
    """Raises UserError for a clip that says it is of another language than is decoded."""
    for entry in corpus.entries if language else ():
        declared = next(filter(None, map(entry.metadata.get, LANGUAGE_FIELDS)), None)
        if declared and language and language_conflict(language, declared):
            raise UserError(
                f"data: clip {entry.id!r} of {corpus.name!r} is of language {declared!r}, but "
                f"{language!r} is decoded; set decode.language, or choose other clips"
            )
