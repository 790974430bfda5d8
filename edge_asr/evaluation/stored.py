"""Hypotheses that a run left, or that somebody published, read without a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import Hypothesis, read_hypotheses
from edge_asr.evaluation.protocols import protocol_named
from edge_asr.evaluation.wer import score
from edge_asr.store.record import ALL, RECORD_NAME, Record, read_record

AGAIN = "make the run again with the same options and rerun=true"


@dataclass(frozen=True)
class StoredRun:
    """What was heard.

    Attributes:
        name: What it is called in messages and tables, if it has no record.
        data_sets: The hypotheses of every data set, by its name.
        record: Of a run of ours; None for a manifest alone.
    """

    name: str
    data_sets: Mapping[str, tuple[Hypothesis, ...]]
    record: Record | None = None

    @property
    def protocol(self) -> str | None:
        """What it was scored by, if that is known."""
        return self.record.results[0].protocol if self.record else None


def read_stored(path: Path) -> StoredRun:
    """The run in a folder, or the manifest in a file: ours, or one that the leaderboard published.

    Raises:
        UserError: No record there, one without results, or hypotheses that stayed behind or are
            not those that the record was made of.
    """
    if path.name == RECORD_NAME and path.is_file():
        path = path.parent
    if path.is_file():
        return StoredRun(path.stem, {_data_set(path.stem): read_hypotheses(path)})
    if not path.is_dir():
        raise UserError(
            f"{path}: is no folder of a run and no manifest; give one such as runs/MODEL/RUN"
        )
    record = read_record(path / RECORD_NAME)
    rows = {row.dataset: row for row in record.results if row.condition == ALL}
    if not rows or any(row.wer is None for row in rows.values()):
        raise UserError(f"{path}: the record holds no WER; finish the run first")
    found = {}
    for name, file in record.hypotheses_files.items():
        if not (path / file).is_file():
            raise UserError(f"{path}: no hypotheses lie beside the record ({file}); {AGAIN}")
        found[name] = read_hypotheses(path / file)
        if record.schema_version < 4:  # another normalizer may have given another WER
            continue
        wer = score(found[name], protocol_named(rows[name].protocol)).wer
        if not math.isclose(wer, float(rows[name].wer or 0)):
            raise UserError(
                f"{path / file}: {len(found[name])} hypotheses with a WER of {wer:.2f} are not "
                f"those of the record ({rows[name].utterances}, {rows[name].wer:.2f}); {AGAIN}"
            )
    if not found:
        raise UserError(f"{path}: no hypotheses lie beside the record; {AGAIN}")
    return StoredRun(record.model.name, found, record)


def _data_set(stem: str) -> str:
    """What the name of a manifest says that it is of."""
    return stem.partition("DATASET_")[2] or stem
