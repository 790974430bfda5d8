"""Records from below a folder, each on its own: one that is no good costs a line, no report."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from edge_asr.errors import UserError
from edge_asr.store.record import ALL, Record, Result, find_records, read_record

SHOWN = 20  # lines on what was passed over


@dataclass(frozen=True)
class Run:
    """A record and the folder that its hypotheses lie in."""

    folder: Path
    record: Record


@dataclass(frozen=True)
class Found:
    """What lies below a folder.

    Attributes:
        runs: With results, by path; no run is there twice.
        refused: Files that are no sound record, and why.
        idle: Records without results.
        copies: Records of runs that another record is of.
        older: Records of runs that another version of the package has made again since.
    """

    runs: tuple[Run, ...]
    refused: tuple[tuple[Path, str], ...] = ()
    idle: int = 0
    copies: int = 0
    older: int = 0

    def lines(self) -> Iterator[str]:
        """What is in no table, a line for every reason."""
        reasons: dict[str, list[Path]] = {}
        for path, reason in self.refused:
            reasons.setdefault(reason, []).append(path)
        for number, (reason, paths) in enumerate(reasons.items()):
            if number == SHOWN:
                yield f"and {len(reasons) - SHOWN} more are passed over for reasons of their own"
                break
            others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            yield f"passed over: {paths[0]}{others}: {reason}"
        if self.idle:
            yield f"{self.idle} record(s) without results are in no table"
        if self.copies:
            yield f"{self.copies} record(s) are in no table: other records are of the same runs"
        if self.older:
            yield (
                f"{self.older} record(s) are in no table: another version of the package has made "
                "the same runs since"
            )


def read_runs(results: Path) -> Found:
    """Everything that a report can be made of.

    Raises:
        UserError: The folder does not exist, or no record in it has results.
    """
    runs: list[Run] = []
    refused: list[tuple[Path, str]] = []
    for path in find_records(results):
        try:
            if not path.is_file():  # a pipe would be waited for
                raise UserError(f"{path}: is no file; remove it")
            record = read_record(path)
            if fault := fault_of(record, path.parent.name):
                raise UserError(f"{path}: {fault}; make the run again with rerun=true")
        except UserError as error:
            refused.append((path, str(error).removeprefix(f"{path}: ")))
        else:
            runs.append(Run(path.parent, record))
    with_results = [run for run in runs if run.record.results]
    if not with_results:
        raise UserError(
            f"results: {results} holds no record.json with results"
            + (f", but {len(refused)} that are none of ours or damaged" if refused else "")
            + "; finish a run there first"
        )
    single = _without_copies(with_results)
    newest = {id(one) for one in newest_versions([run.record for run in single])}
    kept = tuple(run for run in single if id(run.record) in newest)
    return Found(
        kept,
        tuple(refused),
        idle=len(runs) - len(with_results),
        copies=len(with_results) - len(single),
        older=len(single) - len(kept),
    )


def fault_of(record: Record, folder: str) -> str | None:
    """What no run can have written, though every field is of its type."""
    named = re.search(r"-([0-9a-f]{12})$", folder)
    if named and named[1] != record.run_id:
        return f"run_id: {record.run_id} is not that of its folder"
    seen = set()
    for result in record.results:
        place = result.protocol, result.by, result.dataset, result.condition
        if place in seen:
            return f"results: {' '.join(place)} is there twice"
        seen.add(place)
        if fault := _fault_of(result):
            return f"results: {result.dataset}: {fault}"
    for average in record.averages:
        rates = [
            result.wer
            for result in record.results
            if (result.protocol, result.condition) == (average.protocol, ALL)
            if result.wer is not None
        ]
        if rates and not math.isclose(average.interval.estimate, sum(rates) / len(rates)):
            return f"averages: {average.interval.estimate:g} is not the mean of {rates}"
    return None


def _fault_of(result: Result) -> str | None:
    errors = result.substitutions + result.deletions + result.insertions
    rates = {"wer": result.wer}
    if result.interval is not None:
        rates["interval"] = result.interval.estimate
    for name, rate in rates.items():
        if rate is None:
            continue
        if rate < 0:
            return f"{name}={rate:g} is below 0"
        if result.reference_words and not math.isclose(
            rate, 100 * errors / result.reference_words, rel_tol=1e-6, abs_tol=1e-6
        ):
            return f"{name}={rate:g} is not {errors} errors in {result.reference_words} words"
    if result.condition == ALL and min(result.utterances, result.seconds) < 0:
        return "a count is below 0"
    return None


def _without_copies(runs: Sequence[Run]) -> list[Run]:
    """`runs`, of each only the newest record, and of a copied folder only the first.

    A copy is of the same second, settings and results, whatever id it was given.
    """
    single: dict[str, Run] = {}
    seen = set()
    for run in runs:
        record = run.record
        config = json.dumps(record.config, sort_keys=True)
        what = record.model.weights_sha256, record.method.name, config
        content = record.created, *what, record.results
        if content in seen:
            continue
        seen.add(content)
        other = single.setdefault(record.run_id, run)
        if datetime.fromisoformat(record.created) > datetime.fromisoformat(other.record.created):
            single[record.run_id] = run
    return list(single.values())


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
