"""The rows of a data set, read by number and by column, whatever file format holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from edge_asr.store.fingerprint import Digests, fingerprint


@dataclass(frozen=True)
class UnreadableRow:
    """A row that cannot be read, and why."""

    reason: str


class Rows(Protocol):
    """Rows in their order. Columns are leaves: a field of a struct is called `audio.bytes`."""

    @property
    def schema(self) -> pa.Schema:
        """The columns, structs taken apart."""

    def __len__(self) -> int: ...

    @property
    def damaged(self) -> list[int]:
        """Rows that stand for a whole file which cannot be read."""

    def read(
        self, rows: Sequence[int], columns: Sequence[str]
    ) -> Iterator[dict[str, Any] | UnreadableRow]:
        """Those columns of those rows, in the order asked for; ascending is fastest."""

    def column(self, name: str) -> list[Any]:
        """A whole column; an `UnreadableRow` where a row cannot be read."""

    def source(self, row: int) -> str:
        """Where a row lies, for people."""

    def digests(self, digests: Digests, rows: Sequence[int]) -> list[str]:
        """What tells the content of every row from any other's."""


class ArrowRows:
    """Rows of an Arrow table that lies mapped into memory. Columns that hold nothing are left out.

    Args:
        table: The table.
        name: Of the data set's part, for people.
        files: The files that hold it, if it holds audio.
    """

    def __init__(self, table: pa.Table, name: str, files: Sequence[Path] = ()) -> None:
        leaves = table.flatten()
        full = [one for one in leaves.column_names if leaves[one].null_count < leaves.num_rows]
        self._table = leaves.select(full) if leaves.num_rows else leaves
        self._name, self._files = name, list(files)

    @property
    def schema(self) -> pa.Schema:
        return self._table.schema

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def damaged(self) -> list[int]:
        return []

    def read(
        self, rows: Sequence[int], columns: Sequence[str]
    ) -> Iterator[dict[str, Any] | UnreadableRow]:
        for row in rows:
            yield row_of(self._table, row, columns)

    def column(self, name: str) -> list[Any]:
        return list(self._table.column(name).to_pylist())

    def source(self, row: int) -> str:
        return f"{self._name}/{row}"

    def digests(self, digests: Digests, rows: Sequence[int]) -> list[str]:
        content = digests.of(self._files, "sha256")
        return [fingerprint([content, row]) for row in rows]


def row_of(table: pa.Table, row: int, columns: Sequence[str]) -> dict[str, Any] | UnreadableRow:
    """Fields of one row of a table as plain values."""
    try:
        return {name: table.column(name)[row].as_py() for name in columns}
    except KeyError:
        missing = next(name for name in columns if name not in table.column_names)
        return UnreadableRow(f"there is no column {missing!r} in this shard")
    except UnicodeDecodeError as error:
        return UnreadableRow(f"a text is not UTF-8 ({error.reason} at byte {error.start})")
