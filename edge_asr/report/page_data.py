"""What the page shows, as plain JSON: tables at once, details of runs and utterances packed."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from edge_asr.report.cells import (
    FAILURES,
    NONE,
    TEXT_COLUMNS,
    caption,
    columns_of,
    rows_of,
    with_interval,
)
from edge_asr.report.cells import number as digits
from edge_asr.report.clips import Clips
from edge_asr.report.read import Run
from edge_asr.report.reproduce import command_of
from edge_asr.report.rows import rate_column
from edge_asr.report.ship import COLUMNS, Contest
from edge_asr.report.utterances import Aligned, Alignments
from edge_asr.store.plain_json import finite
from edge_asr.store.record import ALL, Record, Result

# Columns whose numbers the page sorts, plots or filters by.
VALUES = (
    *("model", "method", "scheme", "run_id", "wer_average", "wer_low", "wer_high", "delta_wer"),
    *("rare_wer", "effective_bits", "size_mb", "memory_io_mb", "gbops"),
)
SORTED_BY = {
    "Bits": "effective_bits",
    "WER % [95 %]": "wer_average",
    "Δ WER [95 %]": "delta_wer",
    "p Holm": "p_holm",
    "Rare": "rare_wer",
    "MB": "size_mb",
    "I/O MB": "memory_io_mb",
    "GBOPs": "gbops",
    "RTFx": "RTFx",
}
PACKED_BYTES = 1_500_000  # details of a page take at most so much


def table_data(
    clips: Clips, frame: pd.DataFrame, records: Mapping[str, Record], contest: Contest
) -> dict[str, Any]:
    """A table as the page draws it; `records` by run id."""
    rows = rows_of(frame)
    columns = []
    for place, column in enumerate(columns_of(frame)):
        known = SORTED_BY.get(column.heading)
        values = [row[known] for row in rows] if known else None
        if column.heading == "Failures":
            values = [sum(row[name] or 0 for name in FAILURES) for row in rows]
        texts = [column.cell(row) for row in rows]
        if all(text == NONE for text in texts):
            continue
        columns.append(
            {
                "heading": column.heading,
                "text": place < TEXT_COLUMNS,
                "texts": texts,
                "values": _json(values),
            }
        )
    return {
        "title": clips.title,
        "slug": clips.slug,
        "caption": caption(frame),
        "size": len(rows),
        "columns": columns,
        "values": {name: _json([row[name] for row in rows]) for name in VALUES},
        "rates": _rates(clips, frame, records),
        "paired": list(contest.places),
        "rivals": _rivals(contest),
    }


def _json(values: Sequence[Any] | None) -> list[Any] | None:
    """Plain values, numbers to six digits."""
    if values is None:
        return None
    plain = finite(list(values))
    return [float(f"{one:.6g}") if isinstance(one, float) else one for one in plain]


def _rates(
    clips: Clips, frame: pd.DataFrame, records: Mapping[str, Record]
) -> list[dict[str, Any]]:
    """WER with its interval over all data sets, of each of them, and of each condition."""
    mean = {"value": "wer_average", "low": "wer_low", "high": "wer_high"}
    found = [
        {"name": "all clips", **{key: _json(list(frame[column])) for key, column in mean.items()}}
    ]
    by_row = [_results_of(records[run_id], clips.protocol) for run_id in frame["run_id"]]
    names = list(dict.fromkeys(name for results in by_row for name in results))
    if len(names) < 2:
        return found
    for name in names:
        intervals = [one.interval if (one := results.get(name)) else None for results in by_row]
        found.append(
            {
                "name": name,
                "value": _json([one.estimate if one else None for one in intervals]),
                "low": _json([one.low if one else None for one in intervals]),
                "high": _json([one.high if one else None for one in intervals]),
            }
        )
    return found


def _results_of(record: Record, protocol: str) -> dict[str, Result]:
    return {
        rate_column(one).removesuffix(" WER").removeprefix("wer_"): one
        for one in record.results
        if (one.protocol, one.by) == (protocol, "condition")
    }


def _rivals(contest: Contest) -> dict[str, list[list[Any]]]:
    """Of every row that some budget makes the choice: those that, clip by clip, may equal it.

    The page compares rows without hypotheses itself, by their intervals.
    """
    own = contest.frame.loc[list(contest.places)]
    found = {}
    for winner in [row for _, rows in own.groupby("model") for row in _best_of(rows)]:
        rivals = contest.rivals(winner, [row for row in contest.places if row != winner])
        close = [one for one in rivals if not one.distinguishable]
        found[str(winner)] = [
            [one.row, *(round(float(value or 0), 3) for value in (one.low, one.high, one.better))]
            for one in close
        ]
    return found


def _best_of(own: pd.DataFrame) -> list[int]:
    """The rows that no other beats in WER without costing more of something."""
    ordered = own.sort_values("wer_average", kind="stable")
    costs = ordered[list(COLUMNS)].fillna(float("inf")).to_numpy()
    return [
        int(row)
        for place, row in enumerate(ordered.index)
        if not (costs[:place] <= costs[place]).all(axis=1).any()
    ]


def run_data(run: Run) -> dict[str, Any]:
    """Where a run comes from, what its layers lose and how every part of the clips fared."""
    record = run.record
    return {
        "command": command_of(record),
        "warnings": [*record.method.warnings, *record.warnings],
        "facts": _facts(record),
        "config": finite(record.config),
        "results": [
            [
                one.dataset + ("" if one.condition == ALL else f", {one.condition}"),
                str(one.utterances if one.scored is None else one.scored),
                _with_interval(one),
                digits(one.float_wer, 1),
                _with_interval(one, difference=True),
                digits(one.cer, 1),
            ]
            for one in record.results
        ],
        "layers": [
            [
                layer.name,
                layer.stack,
                layer.role,
                layer.weights,
                *_json(  # type: ignore[misc]
                    [layer.effective_bits, layer.output_error_before, layer.output_error_after]
                ),
                layer.format,
            ]
            for layer in record.method.layers
        ],
    }


def _with_interval(result: Result, *, difference: bool = False) -> str:
    one = result.difference if difference else result.interval
    if one is None:
        return digits(None if difference else result.wer, 1)
    return with_interval(one.estimate, one.low, one.high, sign=difference)


def _facts(record: Record) -> list[list[str]]:
    environment = record.environment
    commit = environment.git_commit or "not of a checkout"
    libraries = ", ".join(f"{name} {number}" for name, number in environment.libraries.items())
    facts = {
        "run id": record.run_id,
        "made": record.created,
        "package": environment.package,
        "commit": commit + (", with uncommitted changes" if environment.git_dirty else ""),
        "on": f"{environment.platform}, {environment.device}, {environment.threads} threads",
        "libraries": f"python {environment.python}, {libraries}",
        "checkpoint": f"{record.model.source}, weights {record.model.weights_sha256}",
        "seeds": ", ".join(f"{name} {seed}" for name, seed in record.seeds.items()),
        "decoding": ", ".join(f"{name} {value}" for name, value in record.decoding.items()),
        "steps": ", ".join(f"{name} {key}" for name, key in record.keys.items()),
        "seconds": ", ".join(
            f"{stage.name} {stage.seconds:.1f}{' (stored)' if stage.stored else ''}"
            for stage in record.stages
        ),
        "schema": str(record.schema_version),
    }
    for one in record.data:
        origin = ", ".join(f"{name} {value}" for name, value in one.origin.items())
        facts[f"clips {one.name}"] = ", ".join(
            filter(None, (f"{one.clips}", origin, f"audio {one.audio_digest}"))
        )
    return [[name, value] for name, value in facts.items() if value]


def heard_data(
    frame: pd.DataFrame, contest: Contest, aligned: Mapping[str, Alignments]
) -> dict[str, Any] | None:
    """The utterances of a table, and what every run heard otherwise; None without hypotheses.

    Of a run and utterance: 0, or what differs, as [place in the reference, its words from there
    on, the words heard instead]. Of an utterance: id, reference, and its place in the data. Those
    with most errors come first.
    """
    ids = [str(frame["run_id"][row]) for row in contest.places] or [
        str(run_id) for run_id in frame["run_id"] if run_id in aligned
    ][:1]
    if not ids:
        return None
    first = aligned[ids[0]]
    given = [(name, key) for name, utterances in first.items() for key in utterances]
    errors = {place: sum(aligned[one][place[0]][place[1]].errors for one in ids) for place in given}
    order = sorted(range(len(given)), key=lambda place: -errors[given[place]])
    places = [given[place] for place in order]
    several = len(first) > 1
    return {
        "total": len(places),
        "utterances": [
            [f"{name}: {key}" if several else key, first[name][key].reference, place]
            for place, (name, key) in zip(order, places, strict=True)
        ],
        "runs": {
            one: [_differences(aligned[one][name][key]) or 0 for name, key in places] for one in ids
        },
    }


def _differences(one: Aligned) -> list[list[Any]]:
    found: list[list[Any]] = []
    place = 0
    for kind, reference, *hypothesis in one.edits:
        words = 0 if kind == "insert" else len(reference.split())
        heard = hypothesis[0] if hypothesis else reference
        if kind != "equal":
            found.append([place, words, "" if kind == "delete" else heard])
        place += words
    return found


def packed_details(runs: Mapping[str, Any], heard: Mapping[str, dict[str, Any]]) -> str:
    """Details as base64 of gzip; of more utterances than fit, those with most errors."""
    packed = _packed({"runs": runs, "heard": heard})
    share = 1.0
    while len(packed) > PACKED_BYTES and share > 0.01:
        share *= 0.9 * max(0.1, PACKED_BYTES / len(packed))
        packed = _packed({"runs": runs, "heard": {k: _cut(v, share) for k, v in heard.items()}})
    return packed


def _cut(heard: dict[str, Any], share: float) -> dict[str, Any]:
    kept = max(1, int(share * heard["total"]))
    return {
        "total": heard["total"],
        "utterances": heard["utterances"][:kept],
        "runs": {one: edits[:kept] for one, edits in heard["runs"].items()},
    }


def _packed(plain: Any) -> str:
    content = json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode(
        errors="backslashreplace"
    )
    # Without a time, the same records give the same page.
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()
