"""A folder of audio files with a table beside them, as `datasets` calls it: an audiofolder.

The table is read here because `datasets` would decode every file to build its own, and stop at the
first that is missing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from edge_asr.errors import UserError

FILE_NAME = "file_name"


def audio_folder_table(
    title: str, names: Iterable[str], fetch: Callable[[str], Path | bytes]
) -> pa.Table:
    """One table of all clips, `file_name` their paths from the top folder.

    Args:
        title: What the data set is called in messages.
        names: Its files; of several tables in a folder the first of `TABLES` counts.
        fetch: Gives a file, or its content.

    Raises:
        UserError: where there is no table, or one that names no files.
    """
    known = set(names)
    folders = dict.fromkeys(PurePosixPath(name).parent for name in sorted(known))
    found = []
    for folder in folders:
        name = next((one for one in TABLES if str(folder / one) in known), None)
        if name is None:
            continue
        content = fetch(str(folder / name))
        table = TABLES[name](content if isinstance(content, bytes) else content.read_bytes())
        if FILE_NAME not in table.column_names:
            raise UserError(
                f"data set {title!r}: {folder / name} has no column {FILE_NAME!r}; name the audio "
                "files there"
            )
        files = [one and str(folder / one) for one in table[FILE_NAME].to_pylist()]
        index = table.column_names.index(FILE_NAME)
        found.append(table.set_column(index, FILE_NAME, pa.array(files, pa.string())))
    if not found:
        raise UserError(
            f"data set {title!r} has audio files and no {next(iter(TABLES))} beside them that "
            f"gives {FILE_NAME} and text"
        )
    return pa.concat_tables(found, promote_options="permissive")


def _read_csv(content: bytes) -> pa.Table:
    """All columns as texts: a transcript of digits is one."""
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    names = list(rows[0]) if rows else []
    return pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in names})


def _read_json_lines(content: bytes) -> pa.Table:
    return pyarrow.json.read_json(io.BytesIO(content.removeprefix(b"\xef\xbb\xbf")))


def _read_parquet(content: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(content))


# Names of the tables, which `datasets` prescribes.
TABLES: dict[str, Callable[[bytes], pa.Table]] = {
    "metadata.csv": _read_csv,
    "metadata.jsonl": _read_json_lines,
    "metadata.parquet": _read_parquet,
}
