"""A run's folder: its record, and beside it what was heard of every data set, aligned."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import write_hypotheses
from edge_asr.evaluation.pairs import Edit
from edge_asr.evaluation.scoring import DataSetScore
from edge_asr.store.files import write_text_atomically
from edge_asr.store.record import FLOAT_METHOD, RECORD_NAME, Record, read_record

TOO_LITTLE_MEMORY = "memory was not enough"  # in a warning
ALIGNMENTS_NAME = "alignments.json"
LONGEST_PART = 80  # of a file's name


def stored_record(folder: Path) -> Record | None:
    """The finished record of a run's folder; one that cannot be read counts as missing."""
    if not (folder / RECORD_NAME).exists():
        return None
    try:
        record = read_record(folder / RECORD_NAME)
    except UserError:
        return None
    files = [folder / name for name in record.hypotheses_files.values()]
    return record if files and all(path.exists() for path in files) else None


def is_for_memory(record: Record) -> bool:
    """Whether it was made with less clips decoded together than were asked for."""
    return any(TOO_LITTLE_MEMORY in warning for warning in record.warnings)


def is_complete(record: Record) -> bool:
    """Whether it has all that it can have: of a quantized run, the difference to the float model,
    whose hypotheses another process may have been making."""
    if record.method.name == FLOAT_METHOD or not any(row.scored for row in record.results):
        return True
    return any(row.difference is not None for row in record.results)


def manifest_name(model: str, label: str, data_set: str, origin: Mapping[str, str]) -> str:
    """How the leaderboard calls a file of hypotheses: its tools read model and data set from it."""
    published = [origin[key] for key in ("path", "config", "split") if origin.get(key)]
    if Path(origin.get("path", "")).is_absolute():  # a folder, of which only the name is anybody's
        published[0] = Path(published[0]).name
    named = "_".join(published) if "split" in origin else data_set
    parts = (f"{model} {label}", named)
    model_part, data_part = (
        re.sub(r"[^A-Za-z0-9._+=-]+", "-", part)[-LONGEST_PART:].lstrip(".") for part in parts
    )
    return f"MODEL_{model_part}_DATASET_{data_part}.jsonl"


def write_manifest(path: Path, scored: DataSetScore) -> None:
    """Write a data set's hypotheses; those that do not count, aside."""
    clips, left_out = scored.transcription.hypotheses, set(scored.own.dropped)
    write_hypotheses(
        path,
        [clip for index, clip in enumerate(clips) if index not in left_out],
        [clip for index, clip in enumerate(clips) if index in left_out],
    )


def write_alignments(folder: Path, scored: Sequence[DataSetScore]) -> None:
    """Write what was taken for what, word by word: {data set: {id: [[kind, words, words], ...]}}.

    An equal run has its words once, unless the two sides are written differently.
    """
    plain = {
        one.name: {
            one.transcription.hypotheses[pair.rows[0]].id: [_plain(edit) for edit in alignment]
            for pair, alignment in zip(one.own.pairs, one.own.alignments, strict=True)
        }
        for one in scored
    }
    content = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
    write_text_atomically(folder / ALIGNMENTS_NAME, content + "\n")


def _plain(edit: Edit) -> list[str]:
    reference, hypothesis = " ".join(edit.reference), " ".join(edit.hypothesis)
    same = reference == hypothesis
    return [edit.kind, reference] if same else [edit.kind, reference, hypothesis]
