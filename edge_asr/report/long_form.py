"""Everything that records hold as long tables: a row for each result, and for each layer."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from edge_asr.report.clips import clips_of
from edge_asr.report.rows import row, settings_of
from edge_asr.store.files import write_bytes_atomically
from edge_asr.store.record import Record, Result

# What identifies a run and what it costs, beside every one of its results.
RUN = (
    *("run_id", "model", "method", "scheme", "bits", "effective_bits", "bits_per_parameter"),
    *("size_mb", "memory_io_mb", "gbops", "float_bits", "batch_size", "git_commit", "warnings"),
)
TEXTS = ("dataset", "protocol", "condition", "by")


def results_frame(records: Sequence[Record]) -> pd.DataFrame:
    """A row for every result of every record: all clips, a condition or a range of lengths.

    Fields are those of `Result`, an interval's as `interval_low`; `clips` is the same where rows
    compare. A setting is a column of the name of its option, as text.
    """
    frame = pd.DataFrame(_results(records))
    for field in dataclasses.fields(Result):
        # A figure that no record has is a column of numbers all the same.
        if field.name in frame and field.name not in TEXTS and frame[field.name].dtype == object:
            frame[field.name] = frame[field.name].astype(float)
    return frame


def _results(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    for record in records:
        settings = {name: str(value) for name, value in settings_of(record).items()}
        for protocol in dict.fromkeys(result.protocol for result in record.results):
            clips = clips_of(record, protocol).digest
            cells = row(record, protocol)
            run = {name: cells.get(name) for name in RUN}
            for result in record.results:
                if result.protocol == protocol:
                    fields = dict(_flat(dataclasses.asdict(result)))
                    for missing in fields.keys() & {"interval", "difference"}:
                        del fields[missing]
                    fields["damaged"] = len(result.damaged)
                    yield {**run, "clips": clips, **fields, **settings}


def layers_frame(records: Sequence[Record]) -> pd.DataFrame:
    """A row for every quantized layer of every record; fields are those of `LayerSection`."""
    return pd.DataFrame(
        {"run_id": record.run_id, "model": record.model.name, "method": record.method.name}
        | dataclasses.asdict(layer)
        for record in records
        for layer in record.method.layers
    )


def _flat(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in plain.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}_")
        else:
            yield f"{prefix}{name}", value


def write_long_form(folder: Path, records: Sequence[Record]) -> list[Path]:
    """Write `results.parquet` and, where layers were quantized, `layers.parquet`."""
    written = []
    for name, frame in (("results", results_frame(records)), ("layers", layers_frame(records))):
        if frame.empty:
            continue
        content = io.BytesIO()
        frame.to_parquet(content, index=False)
        path = folder / f"{name}.parquet"
        write_bytes_atomically(path, content.getvalue())
        written.append(path)
    return written
