"""A record as the row of a table.

Rates in percent, sizes and traffic in MB (10^6 bytes), arithmetic in GBOPs (10^9 bit
operations); their ratios are float over quantized, so higher is cheaper. The output error is a
layer's, in units of its output's variance, summed over layers; its ratio is that of the method
over rounding to nearest on the inputs it saw (of a rotated model: of its rotated weights). Seconds
and peak memory are those of calibration and quantization, on the machine of whoever ran it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edge_asr.quant.formats import ActivationGrid
from edge_asr.quant.target import Target
from edge_asr.report.clips import scored
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

# How the Open ASR leaderboard calls its columns (github.com/huggingface/open_asr_leaderboard:
# scripts/data/en_shortform.csv and normalizer/eval_utils.py at 452f9ef).
AVERAGE = "Avg. WER"
SPEED = "RTFx"
LEADERBOARD = {
    "ami": "AMI WER",
    "ami_cleaned": "AMI-Cleaned WER",
    "earnings22": "Earnings22 WER",
    "earnings22_cleaned_aa_chunked": "Earnings22-Cleaned-AA-chunked WER",
    "gigaspeech": "Gigaspeech WER",
    "gigaspeech_cleaned": "Gigaspeech-Cleaned WER",
    "librispeech_clean": "LS Clean WER",
    "librispeech_other": "LS Other WER",
    "spgispeech": "SPGISpeech WER",
    "tedlium": "Tedlium WER",
    "voxpopuli": "Voxpopuli WER",
    "voxpopuli_cleaned_aa": "Voxpopuli-Cleaned-AA WER",
}
DECIMALS = 2  # of its rates

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
# The columns of a table: these, the data sets' rates, these, the rates of conditions, these.
NAMES = ("model", "method", "scheme", AVERAGE, SPEED)
SUMMARY = (
    "effective_bits",
    "bits_per_parameter",
    "size_mb",
    "memory_io_mb",
    "memory_io_ratio",
    "gbops",
    "gbops_ratio",
    "wer_average",
    "wer_low",
    "wer_high",
    "wer_complete",
    "delta_wer",
    "delta_wer_low",
    "delta_wer_high",
    "p_value",
    "p_holm",
    *COUNTS,
    "damaged",
    "warnings",
    "cer",
    "rare_wer",
    "rare_words",
)
DETAILS = (
    "bits",
    "group_size",
    "symmetric",
    "activation",
    "activation_bits",
    "datasets",
    "utterances",
    "scored",
    "output_error",
    "output_error_ratio",
    "quantize_seconds",
    "peak_memory_mb",
    "float_bits",
    "protocol",
    "batch_size",
    "run_id",
    "git_commit",
)
# Settings that neither the label nor the clips of a row tell.
TOLD = {
    "": {"bits", "act_bits", "group_size", "symmetric", "layer_errors", "batch_size", "float_bits"},
    "model": {"name", "path"},
    "target": {one.name for one in dataclasses.fields(Target)} - {"name"},
    **dict.fromkeys(("method", "scheme", "data", "encoder", "decoder", "activation")),
}


def rate_column(result: Result) -> str:
    """The column of a data set as the leaderboard calls it; of its conditions, as we do."""
    if result.condition == ALL:
        return LEADERBOARD.get(result.dataset, f"{result.dataset} WER")
    return f"wer_{result.dataset}_{result.condition}"


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

    `wer_average` is the unweighted mean over the data sets of the record, `datasets` their number.
    """
    results = [
        result
        for result in record.results
        if result.protocol == protocol and result.by == "condition"
    ]
    whole = [result for result in results if result.condition == ALL]
    inputs = record.method.activation
    activation = None if inputs is None else ActivationGrid(**inputs)
    cells = {
        "model": record.model.name,
        "method": record.method.name,
        "scheme": scheme_of(record.method),
        SPEED: record.rtfx,
        "effective_bits": record.method.effective_bits,
        **_cost_cells(record.cost),
        **_rate_cells(record, whole, protocol),
        **_failure_cells(whole),
        "warnings": "; ".join((*record.method.warnings, *record.warnings)) or None,
        "bits": record.method.bits,
        "group_size": record.method.group_size,
        "symmetric": record.method.symmetric,
        "activation": None if activation is None else activation.label,
        "activation_bits": None if activation is None else activation.bits,
        "datasets": len(whole),
        "utterances": sum(result.utterances for result in whole),
        "scored": sum(scored(result) for result in whole),
        "output_error": record.method.output_error,
        "output_error_ratio": record.method.output_error_ratio,
        **_effort_cells(record),
        "float_bits": record.model.float_bits,
        "protocol": protocol,
        "batch_size": record.batch_size,
        "run_id": record.run_id,
        "git_commit": _commit(record),
    }
    for result in results:
        exact = result.wer is None or result.condition != ALL
        cells[rate_column(result)] = result.wer if exact else round(result.wer or 0, DECIMALS)
    return cells


def settings_of(record: Record) -> dict[str, Any]:
    """What was set, by the name of its option, of all that neither label nor clips tell."""
    found = {
        name: value
        for name, value in _leaves(record.config)
        if (told := TOLD.get(name.rpartition(".")[0].partition(".")[0], set())) is not None
        and name.rpartition(".")[2] not in told
    }
    # What was asked for may be null; what it came to is known, where a model takes it at all.
    for name, value in record.decoding.items():
        found.pop(f"decode.{name}", None)
        found |= {} if value is None else {f"decode.{name}": value}
    if record.method.name == FLOAT_METHOD:  # which is not calibrated, and the same for any target
        found = {
            name: one
            for name, one in found.items()
            if not name.startswith(("calibration.", "target."))
        }
    return found


def _leaves(plain: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in plain.items():
        inner = place if name == "options" else f"{place}{name}."
        if isinstance(value, Mapping):
            yield from _leaves(value, inner)
        else:
            yield f"{place}{name}", value


def _rate_cells(record: Record, whole: Sequence[Result], protocol: str) -> dict[str, Any]:
    """Average WER and difference with their intervals; of a single data set, its own."""
    known = [result.wer for result in whole if result.wer is not None]
    # A mean over fewer data sets than the row claims would compare with nothing.
    mean = sum(known) / len(known) if known and len(known) == len(whole) else None
    average: Average | None = next((a for a in record.averages if a.protocol == protocol), None)
    single = whole[0] if len(whole) == 1 else None
    source = average or single
    rounded = None if mean is None else round(mean, DECIMALS)
    return {
        **_interval_cells("wer", "wer_average", source.interval if source else None),
        **_interval_cells("delta_wer", "delta_wer", source.difference if source else None),
        "p_value": source.p_value if source else None,
        "wer_complete": average.complete if average else None,
        "wer_average": mean,
        AVERAGE: average.rounded if average and average.rounded is not None else rounded,
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
