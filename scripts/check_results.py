"""Check that published results keep their promises; one line for each that is broken.

    python scripts/check_results.py [RESULTS]

Every record reads, has results and comes from a clean commit. What learned lowered the loss of
every block, or says that it did not. No method has more output error than rounding to nearest on
the same grid, but for the known exceptions, which results/README.md explains. Every leaderboard
holds the rows that the records give, in the columns that it has. Exits with 1 where one of these
does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from edge_asr.cli.main import USAGE_ERROR
from edge_asr.errors import UserError
from edge_asr.report.read import newest_versions
from edge_asr.report.tables import table_csv, table_path, tables
from edge_asr.store.record import FLOAT_METHOD, Record, find_records, read_record

NEAREST = "rtn"
KNOWN = "known"


def setting(record: Record) -> str:
    """All but the method that decides how coarse a run is, and the version that made it."""
    method = record.method
    grid = method.bits, method.group_size, method.symmetric, method.activation
    return json.dumps([record.model.name, record.environment.package, method.scheme, *grid])


def is_known(record: Record) -> bool:
    """Whether more output error than that of rounding to nearest is known of such runs."""
    method = record.method
    # Records of schema 1 have their parts in the configuration alone.
    parts = method.parts or record.config.get("method", {})
    names = {stage: part.get("name") for stage, part in parts.items() if isinstance(part, dict)}
    # SmoothQuant moves range from the activations into the weights.
    if names.get("transform") == "smooth":
        return True
    # Scales of 3 bits are coarser than weights of 8.
    if method.bits >= 8 and str(names.get("range")).endswith("double_quant"):
        return True
    # What makes up for earlier layers is to err on its own inputs.
    if parts.get("rounding", {}).get("compensation", "none") != "none":
        return True
    # Training lowers the error of a block, not that of its layers; the two part where rounding the
    # weights is a small part of it: at 8 bits, with 4-bit activations, and for OmniQuant at 4 bits
    # in groups of 32.
    activation_bits = method.activation["bits"] if method.activation else None
    fine = method.bits >= 8 or (
        names.get("range") == "lwc" and (method.bits, method.group_size) == (4, 32)
    )
    learned = any(block.loss_after is not None for block in method.blocks)
    return learned and (fine or (activation_bits is not None and activation_bits <= 4))


def of_record(record: Record) -> Iterator[str]:
    """What a record breaks on its own."""
    if not record.results:
        yield "has no results"
    if not record.environment.git_commit or record.environment.git_dirty:
        yield "was not made by a clean commit"
    for block in record.method.blocks:
        before, after = block.loss_before, block.loss_after
        # A start that was searched for may be the best there is, which the record then warns of.
        warned = any(text.startswith(f"{block.name}: ") for text in record.method.warnings)
        if before is not None and (
            after is None or after > before or (after == before and not warned)
        ):
            yield f"{block.name}: learning took the loss from {before} to {after}"


def beside_nearest(record: Record, nearest: Sequence[Record]) -> Iterator[str]:
    """What is wrong with its output error beside that of rounding to nearest, or KNOWN."""
    if record.method.name in (FLOAT_METHOD, NEAREST):
        return
    if len(nearest) > 1:
        yield f"{len(nearest)} runs of {NEAREST} are like it, not one"
        return
    own = record.method.output_error
    if own is None and record.keys and "calibrate" not in record.keys:
        return  # without clips there is nothing to measure on; old records have no keys
    other = nearest[0].method.output_error if nearest else None
    if other is None and record.method.output_error_ratio is not None:
        # A run of rounding to nearest looks at no clips; one that does measures both.
        assert own is not None
        other = own / record.method.output_error_ratio
    if own is None or other is None:
        yield f"its output error or that of {NEAREST} was not measured"
    elif own > other:
        yield KNOWN if is_known(record) else f"output error {own:.4g}, {NEAREST} has {other:.4g}"


def of_leaderboards(results: Path, records: Sequence[Record]) -> Iterator[str]:
    """Lines of leaderboards that are not what the records give."""
    frames = tables(newest_versions(records))
    paths = {table_path(results, clips, ".csv"): frame for clips, frame in frames.items()}
    for path in sorted({*paths, *results.glob("leaderboard_*.csv")}):
        if path not in paths or not path.is_file():
            yield f"{path}: {'is missing' if path in paths else 'is of no record'}"
            continue
        found = path.read_text(encoding="utf-8").splitlines()
        # Earlier versions of the report had fewer columns.
        columns = pd.read_csv(path, nrows=0).columns
        wanted = table_csv(paths[path].reindex(columns=columns)).splitlines()
        if len(found) != len(wanted):
            yield f"{path}: has {len(found) - 1} rows; the records give {len(wanted) - 1}"
        for number, (one, other) in enumerate(zip(found, wanted, strict=False), start=1):
            if one != other:
                yield f"{path}: line {number} is not what the records give"


def check(results: Path) -> tuple[int, int, list[str]]:
    """The number of records, that of known exceptions, and a line for every broken promise."""
    records: dict[Path, Record] = {}
    nearest: dict[str, list[Record]] = defaultdict(list)
    broken: list[str] = []
    known = 0
    paths = find_records(results)
    if not paths:
        raise UserError(f"{results}: holds no record.json; give the folder of the results")
    for path in paths:
        try:
            records[path] = read_record(path)
        except UserError as error:
            broken.append(str(error))
            continue
        if records[path].method.name == NEAREST:
            nearest[setting(records[path])].append(records[path])
    for path, record in records.items():
        problems = [*of_record(record), *beside_nearest(record, nearest[setting(record)])]
        known += problems.count(KNOWN)
        broken += [f"{path}: {problem}" for problem in problems if problem != KNOWN]
    return len(paths), known, [*broken, *of_leaderboards(results, [*records.values()])]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is broken, and how much was looked at."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    results = parser.parse_args(arguments).results
    # A folder with a leaderboard is one set of clips.
    folders = sorted({path.parent for path in results.rglob("leaderboard_*.csv")}) or [results]
    failed = False
    for folder in folders:
        try:
            count, known, broken = check(folder)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return USAGE_ERROR
        for line in broken:
            print(line)
        print(f"{folder}: {count} records, {known} known exceptions, {len(broken)} broken promises")
        failed = failed or bool(broken)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
