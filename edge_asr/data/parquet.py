"""Rows of Parquet shards, of which only the row groups and columns that are asked for are read."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from edge_asr.data.hub_errors import CONNECTION_ERRORS
from edge_asr.data.rows import UnreadableRow, row_of
from edge_asr.errors import UserError, first_line
from edge_asr.store.fingerprint import Digests, fingerprint

REMOTE = "hf://"
# Footers of a data set on the hub: as many at a time.
CONNECTIONS = 8
NUMBERED = re.compile(r"(.*-)(\d{5})(-of-)(\d{5})(.*)")


@dataclass(frozen=True)
class Shard:
    """One file.

    Attributes:
        file: Its path, or where it lies on the hub.
        metadata: Its footer, or None where it cannot be read.
        damage: Why not, or nothing.
    """

    file: str
    metadata: pq.FileMetaData | None
    damage: str = ""

    @property
    def name(self) -> str:
        """Folder and file, which is how people tell shards of a data set."""
        return "/".join(PurePosixPath(self.file).parts[-2:])

    @property
    def group_rows(self) -> list[int]:
        """Rows of every row group. A damaged shard counts as one row: nobody knows better."""
        if self.metadata is None:
            return [1]
        return [
            self.metadata.row_group(one).num_rows for one in range(self.metadata.num_row_groups)
        ]


class ParquetRows:
    """The rows of some shards, one shard after the other.

    Shards that are damaged or missing have one row each, which says so. The row group that was
    read last is kept, so reading in order reads every row group once.

    Args:
        files: Paths of the shards, or their places on the hub (`hf://...` at a commit), in order.

    Raises:
        UserError: when not one of them can be read, or the hub cannot be reached.
    """

    def __init__(self, files: Sequence[str]) -> None:
        # One for all threads: it remembers what the hub said of the repository.
        self._hub = (
            fsspec.filesystem("hf") if any(one.startswith(REMOTE) for one in files) else None
        )
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            self._shards = list(pool.map(self._open_shard, with_missing(files)))
        readable = [shard.metadata for shard in self._shards if shard.metadata is not None]
        if not readable:
            first = self._shards[0]
            raise UserError(
                f"none of {len(self._shards)} Parquet shards can be read, {first.name!r} the first "
                f"({first.damage}); download the data set again"
            )
        self._schema = _leaves(readable[0].schema.to_arrow_schema())
        # Where every row group begins: (shard, group) by its first row.
        self._groups = [
            (shard, group) for shard in self._shards for group in range(len(shard.group_rows))
        ]
        counts = (count for shard in self._shards for count in shard.group_rows)
        self._starts = list(accumulate(counts, initial=0))
        self._held: tuple[Any, pa.Table | UnreadableRow] = (None, UnreadableRow(""))

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def damaged(self) -> list[int]:
        return [
            start
            for start, (shard, _) in zip(self._starts, self._groups, strict=False)
            if shard.damage
        ]

    def read(
        self, rows: Sequence[int], columns: Sequence[str]
    ) -> Iterator[dict[str, Any] | UnreadableRow]:
        """See `Rows.read`. Raises the hub's errors where a connection breaks."""
        for row in rows:
            number = bisect_right(self._starts, row) - 1
            key = (number, tuple(columns))
            if self._held[0] != key:
                self._held = (None, UnreadableRow(""))  # never two row groups of audio in memory
                self._held = (key, self._read_group(number, columns))
            content = self._held[1]
            if isinstance(content, UnreadableRow):
                yield content
            else:
                yield row_of(content, row - self._starts[number], columns)

    def column(self, name: str) -> list[Any]:
        """See `Rows.column`; several row groups at a time, for the hub's sake."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            parts = pool.map(lambda one: self._read_group(one, [name]), range(len(self._groups)))
            values: list[Any] = []
            for start, end, part in zip(self._starts, self._starts[1:], parts, strict=False):
                values += [
                    part if isinstance(part, UnreadableRow) else row_of(part, row, [name])
                    for row in range(end - start)
                ]
        return [one if isinstance(one, UnreadableRow) else one[name] for one in values]

    def source(self, row: int) -> str:
        shard, first = self._shard_of(row)
        return f"{shard.name}#{row - first}"

    def digests(self, digests: Digests, rows: Sequence[int]) -> list[str]:
        """The digest of the shard and the number of the row in it."""
        found = []
        for row in rows:
            shard, first = self._shard_of(row)
            if shard.damage:
                found.append("unreadable")
            else:
                (content,) = digests.of([Path(shard.file)], "sha256")
                found.append(fingerprint([content, row - first]))
        return found

    def _open_shard(self, file: str) -> Shard:
        try:
            with self._opened(file) as stream:
                return Shard(file, pq.read_metadata(stream))
        except CONNECTION_ERRORS:
            raise
        except FileNotFoundError:
            return Shard(file, None, "missing")
        except (pa.ArrowException, OSError) as error:
            return Shard(file, None, _damage(error))

    def _opened(self, file: str) -> BinaryIO:
        if self._hub is None or not file.startswith(REMOTE):  # it may be in the cache
            return Path(file).open("rb")
        # No read-ahead: requests are for the very bytes of a footer or a row group's columns.
        return cast(BinaryIO, self._hub.open(file, "rb", cache_type="none"))

    def _shard_of(self, row: int) -> tuple[Shard, int]:
        """The shard of a row and the shard's first row."""
        number = bisect_right(self._starts, row) - 1
        shard, group = self._groups[number]
        return shard, self._starts[number - group]

    def _read_group(self, number: int, columns: Sequence[str]) -> pa.Table | UnreadableRow:
        """Columns of a row group, or why they cannot be read."""
        shard, group = self._groups[number]
        if shard.damage:
            return UnreadableRow(f"shard {shard.name}: {shard.damage}")
        try:
            with self._opened(shard.file) as stream:
                remote = shard.file.startswith(REMOTE)
                parquet = pq.ParquetFile(stream, metadata=shard.metadata, pre_buffer=remote)
                return parquet.read_row_group(group, columns=list(columns)).flatten()
        except CONNECTION_ERRORS:
            raise
        except (pa.ArrowException, OSError) as error:
            return UnreadableRow(f"shard {shard.name}, row group {group}: {_damage(error)}")


def with_missing(files: Sequence[str]) -> list[str]:
    """Shards in order, those included that the number in the others' names says there were."""
    known = {match[2]: match for match in map(NUMBERED.fullmatch, files) if match}
    if len(known) != len(files) or len({match.group(1, 3, 4, 5) for match in known.values()}) != 1:
        return list(files)
    before, _, of, count, after = next(iter(known.values())).groups()
    return [f"{before}{number:05d}{of}{count}{after}" for number in range(int(count))]


def _damage(error: Exception) -> str:
    return first_line(error).partition(". ")[0].rstrip(".")


def _leaves(schema: pa.Schema) -> pa.Schema:
    return schema.empty_table().flatten().schema
