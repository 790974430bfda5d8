"""Run records as table rows, one table per protocol, and the leaderboard CSV.

Rates in percent, sizes and traffic in MB (10^6 bytes), arithmetic in GBOPs (10^9 bit
operations); their ratios are float over quantized, so higher is cheaper. The output error is a
layer's, in units of its output's variance, summed over layers; its ratio is that of the method
over rounding to nearest on the inputs it saw (of a rotated model: of its rotated weights). Seconds
and peak memory are those of calibration and quantization, on the machine of whoever ran it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from edge_asr.errors import UserError
from edge_asr.evaluation.paired_tests import holm
from edge_asr.quant.formats import ActivationGrid
from edge_asr.store.files import write_text_atomically
from edge_asr.store.record import (
    ALL,
    FLOAT_METHOD,
    Average,
    CostSection,
    Interval,
    MethodSection,
    Record,
    Result,
)

MB = 1e6
GIGA = 1e9

LEADING = (
    "model",
    "method",
    "scheme",
    "bits",
    "group_size",
    "symmetric",
    "activation",
    "activation_bits",
    "effective_bits",
)
# Of the results of all data sets together.
COUNTS = (
    "empty",
    "looping",
    "over_long",
    "hit_limit",
    "truncated",
    "invented_clips",
    "invented_words",
    "flagged",
    "dropped",
)
SUMMARY = (
    "datasets",
    "utterances",
    "scored",
    "wer_average",
    "wer_low",
    "wer_high",
    "wer_rounded",
    "wer_complete",
    "delta_wer",
    "delta_wer_low",
    "delta_wer_high",
    "p_value",
    "p_holm",
    "cer",
    "rare_wer",
    "rare_words",
    *COUNTS,
    "damaged",
    "output_error",
    "output_error_ratio",
    "quantize_seconds",
    "peak_memory_mb",
    "size_mb",
    "bits_per_parameter",
    "memory_io_mb",
    "memory_io_ratio",
    "gbops",
    "gbops_ratio",
    "float_bits",
    "protocol",
    "batch_size",
    "run_id",
    "git_commit",
)


def _wer_column(result: Result) -> str:
    condition = "" if result.condition == ALL else f"_{result.condition}"
    return f"wer_{result.dataset}{condition}"


def _summary(record: Record, whole: Sequence[Result], protocol: str) -> dict[str, Any]:
    """Average WER and difference with their intervals; of a single data set, its own."""
    interval: Interval | None = None
    difference, rounded, complete, p_value = interval, None, None, None
    average: Average | None = next((a for a in record.averages if a.protocol == protocol), None)
    if average is not None:
        interval, difference, p_value = average.interval, average.difference, average.p_value
        rounded, complete = average.rounded, average.complete
    elif len(whole) == 1:
        interval, difference, p_value = whole[0].interval, whole[0].difference, whole[0].p_value
    return {
        **_interval_cells("wer", "wer_average", interval),
        **_interval_cells("delta_wer", "delta_wer", difference),
        "wer_rounded": rounded,
        "wer_complete": complete,
        "p_value": p_value,
    }


def _failure_cells(whole: Sequence[Result]) -> dict[str, Any]:
    """Counts over all data sets; the rates are means of theirs, as WER is."""
    rare = [one.rare_wer for one in whole if one.rare_wer is not None]
    characters = [one.cer for one in whole if one.cer is not None]
    return {
        "cer": sum(characters) / len(characters) if characters else None,
        "rare_wer": sum(rare) / len(rare) if rare else None,
        "rare_words": sum(one.rare_words for one in whole),
        **{name: sum(getattr(one, name) for one in whole) for name in COUNTS},
        "damaged": sum(len(one.damaged) for one in whole),
    }


def _interval_cells(prefix: str, name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {name: None, f"{prefix}_low": None, f"{prefix}_high": None}
    return {name: interval.estimate, f"{prefix}_low": interval.low, f"{prefix}_high": interval.high}


def _scored(result: Result) -> int:
    # Records up to schema 3 do not say it.
    return result.utterances - result.dropped if result.scored is None else result.scored


def _ratio(baseline: float, quantized: float) -> float | None:
    return baseline / quantized if quantized else None


def _cost_cells(cost: CostSection | None) -> dict[str, Any]:
    if cost is None:
        return {}
    quantized, baseline = cost.quantized, cost.baseline
    traffic, work = quantized.memory_io.total, quantized.bit_operations.total
    return {
        "size_mb": quantized.size.bytes / MB,
        "bits_per_parameter": quantized.size.bits_per_parameter,
        "memory_io_mb": traffic / MB,
        "memory_io_ratio": _ratio(baseline.memory_io.total, traffic),
        "gbops": work / GIGA,
        "gbops_ratio": _ratio(baseline.bit_operations.total, work),
    }


def _effort_cells(record: Record) -> dict[str, float | None]:
    stages = [stage for stage in record.stages if stage.name in ("calibrate", "quantize")]
    peaks = [stage.peak_memory_bytes for stage in stages if stage.peak_memory_bytes is not None]
    return {
        "quantize_seconds": sum(stage.seconds for stage in stages) if stages else None,
        "peak_memory_mb": max(peaks) / MB if peaks else None,
    }


def _commit(record: Record) -> str | None:
    commit = record.environment.git_commit
    return f"{commit}-dirty" if commit and record.environment.git_dirty else commit


def scheme_of(method: MethodSection) -> str:
    """What every layer is stored as, in words: `W4 g64 sym A8 static`."""
    if method.scheme is not None or method.name == FLOAT_METHOD:
        return method.scheme or f"{method.bits:g}"
    words = [f"W{method.bits:g}"]
    words += [] if method.group_size is None else [f"g{method.group_size}"]
    words += ["sym"] if method.symmetric else []
    words += [] if method.activation is None else [ActivationGrid(**method.activation).label]
    return " ".join(words)


def row(record: Record, protocol: str) -> dict[str, Any]:
    """One table row: a record's results under one protocol.

    `wer_average` is the unweighted mean over the data sets of the record, `datasets` their
    number: rows over different data sets do not compare.

    Raises:
        UserError: The record has two results for one data set and condition.
    """
    results = [
        result
        for result in record.results
        if result.protocol == protocol and result.by == "condition"
    ]
    whole = [result for result in results if result.condition == ALL]
    measured = [result.wer for result in whole]
    known = [wer for wer in measured if wer is not None]
    inputs = record.method.activation
    activation = None if inputs is None else ActivationGrid(**inputs)
    cells: dict[str, Any] = {
        "model": record.model.name,
        "method": record.method.name,
        "scheme": scheme_of(record.method),
        "bits": record.method.bits,
        "group_size": record.method.group_size,
        "symmetric": record.method.symmetric,
        "activation": None if activation is None else activation.label,
        "activation_bits": None if activation is None else activation.bits,
        "effective_bits": record.method.effective_bits,
        "datasets": len(whole),
        "utterances": sum(result.utterances for result in whole),
        "scored": sum(_scored(result) for result in whole),
        **_summary(record, whole, protocol),
        **_failure_cells(whole),
        "output_error": record.method.output_error,
        "output_error_ratio": record.method.output_error_ratio,
        **_effort_cells(record),
        **_cost_cells(record.cost),
        "float_bits": record.model.float_bits,
        "protocol": protocol,
        "batch_size": record.batch_size,
        "run_id": record.run_id,
        "git_commit": _commit(record),
    }
    # A mean over fewer data sets than the row claims would compare with nothing.
    complete = bool(measured) and len(known) == len(measured)
    cells["wer_average"] = sum(known) / len(known) if complete else None
    for result in results:
        column = _wer_column(result)
        if column in cells:
            raise UserError(
                f"results: run {record.run_id} has {column} twice; "
                "give every data set and condition its own name"
            )
        cells[column] = result.wer
    return cells


def table(records: Sequence[Record]) -> pd.DataFrame:
    """One row per record, sorted by model (the float run first) and average WER.

    Raises:
        UserError: The records hold results under different protocols, or none.
    """
    protocols = sorted({result.protocol for record in records for result in record.results})
    if len(protocols) != 1:
        found = ", ".join(protocols) or "none"
        raise UserError(
            f"protocol: one table needs results under exactly one, found {found}; "
            "make one table per protocol"
        )
    return _table(records, protocols[0])


def _table(records: Sequence[Record], protocol: str) -> pd.DataFrame:
    rows = [row(record, protocol) for record in records]
    raw = [math.nan if cells["p_value"] is None else cells["p_value"] for cells in rows]
    for cells, adjusted in zip(rows, holm(raw), strict=True):
        cells["p_holm"] = None if math.isnan(adjusted) else adjusted
    fixed = {*LEADING, *SUMMARY}
    measured = sorted({column for cells in rows for column in cells if column not in fixed})
    frame = pd.DataFrame(rows).reindex(columns=[*LEADING, *measured, *SUMMARY])
    ranked = frame.assign(quantized=frame["method"] != FLOAT_METHOD)
    ranked = ranked.sort_values(
        ["model", "quantized", "wer_average", "run_id"], kind="stable", na_position="last"
    )
    return ranked.drop(columns="quantized").reset_index(drop=True)


def newest_versions(records: Sequence[Record]) -> list[Record]:
    """`records` without those that another version of the package has made anew since.

    Those are of the same settings, weights, clips and device, but carry another run id.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        clips = [(one.dataset, one.utterances, one.seconds) for one in record.results]
        subject = record.config, record.model.weights_sha256, clips, record.environment.device
        run = json.dumps(subject, sort_keys=True)
        groups.setdefault(run, []).append(record)
    newest = {
        run: max(group, key=lambda record: record.created).environment.package
        for run, group in groups.items()
    }
    return [
        record
        for run, group in groups.items()
        for record in group
        if record.environment.package == newest[run]
    ]


def tables(records: Sequence[Record]) -> dict[str, pd.DataFrame]:
    """A table for every protocol; a record under several of them has a row in each."""
    protocols = sorted({result.protocol for record in records for result in record.results})
    return {
        protocol: _table(
            [r for r in records if any(result.protocol == protocol for result in r.results)],
            protocol,
        )
        for protocol in protocols
    }


def table_path(folder: Path, protocol: str, suffix: str) -> Path:
    """`folder/leaderboard_<protocol><suffix>`; the name cannot leave the folder."""
    return folder / f"leaderboard_{re.sub(r'[^A-Za-z0-9_-]+', '_', protocol)}{suffix}"


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write any table as CSV where `--out` says. Raises UserError where it cannot be written."""
    try:
        write_text_atomically(path, frame.to_csv(index=False, lineterminator="\n"))
    except OSError as error:
        raise UserError(
            f"--out={path}: cannot be written ({error.strerror}); give a file you may write"
        ) from error


def table_csv(frame: pd.DataFrame) -> str:
    """A table as CSV, numbers to 6 significant digits."""
    return frame.to_csv(index=False, float_format="%.6g")


def write_csv(folder: Path, protocol: str, frame: pd.DataFrame) -> Path:
    """Write a table's full columns as CSV; return the path."""
    path = table_path(folder, protocol, ".csv")
    write_text_atomically(path, table_csv(frame))
    return path
