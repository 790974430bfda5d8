"""A corpus of the rows of a published data set: on the hub, or in a folder of the same layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from edge_asr.audio import SAMPLE_RATE, DamagedAudio, decode
from edge_asr.data.corpus import ClipEntry, DamagedClip, Utterance
from edge_asr.data.hub_columns import Names, choose_columns, clip_ids, metadata_of, transcript
from edge_asr.data.hub_errors import explained
from edge_asr.data.hub_files import Place, open_rows
from edge_asr.data.rows import UnreadableRow
from edge_asr.data.selection import chosen_rows
from edge_asr.errors import UserError, first_line
from edge_asr.store.fingerprint import Digests, fingerprint

# Columns of a data set of chunks (leaderboard's repository, normalizer/data_utils.py, 2026-08-18).
PARENT = "parent_id"


@dataclass(frozen=True)
class Recordings:
    """Where rows are chunks of recordings whose transcripts are elsewhere.

    Attributes:
        place: The data set of whole recordings: an `id` and a transcript each.
        audio_folder: Where in the chunks' repository their audio lies.
    """

    place: Place
    audio_folder: str


class HubCorpus:
    """The clips of one split of a published data set.

    Which rows a limit leaves depends on the number of rows alone, so that every copy of a data set
    gives the same ones; one that stands for a damaged file always stays, so that somebody is told.
    Ids are those of a column of ids, else the names of the audio files, where these are unique in
    the whole split, and else the rows' numbers. Audio is read when a clip is asked for.

    Args:
        place: Where it was published.
        name: Name for tables; that of the data set by default.
        limit: Keep only this many clips, drawn by row number; of a data set of chunks, as many
            whole recordings as come to no more, and at least one.
        names: The columns to read, where they are not called as usual.
        require_text: Flag rows without a transcript. Calibration can do without.
        recordings: Where rows are chunks: what they are chunks of. The text of every chunk is the
            transcript of its whole recording, as `metadata["parent_id"]` names it.

    Raises:
        UserError: for a data set, configuration, split or column that is not there or may not be
            read, or a limit below 1.
    """

    def __init__(
        self,
        place: Place,
        *,
        name: str | None = None,
        limit: int | None = None,
        names: Names | None = None,
        require_text: bool = True,
        recordings: Recordings | None = None,
    ) -> None:
        self._found, self._rows = open_rows(place, sampled=limit is not None)
        self._recordings, self._require_text = recordings, require_text
        self._references = ""  # where those of recordings are
        place, names = self._found.place, names or Names()
        title = f"data set {place.path!r} ({place.config or 'default'}, {place.split})"
        self._columns = choose_columns(
            title, self._rows.schema, names, require_text and recordings is None
        )
        with explained(place.path, place.revision):
            ids = clip_ids(title, self._rows, self._columns, place.split, names.id)
            self._chosen = self._choose(limit)
            self._entries, self._damage, self._paths = self._read_entries(title, ids)
        sample = f"-{limit}clips" if len(self._chosen) < len(self._rows) else ""
        self._name = (name or _name_of(place)) + sample

    @property
    def name(self) -> str:
        return self._name

    @property
    def origin(self) -> dict[str, str]:
        place = self._found.place
        known = {
            "path": place.path,
            "config": place.config,
            "split": place.split,
            "revision": place.revision,
            "references": self._references,
        }
        return {key: value for key, value in known.items() if value}

    @property
    def conditions(self) -> tuple[str, ...]:
        named = (entry.metadata.get("condition") for entry in self._entries)
        return tuple(dict.fromkeys(one for one in named if one is not None))

    @property
    def entries(self) -> tuple[ClipEntry, ...]:
        return self._entries

    def audio_digests(self, digests: Digests, indices: Sequence[int] | None = None) -> list[str]:
        """Of every clip its commit, configuration, split and row; in a folder, the digest of the
        file that holds it and its place there."""
        wanted = list(range(len(self)) if indices is None else indices)
        rows = [self._chosen[one] for one in wanted]
        place = self._found.place
        if self._found.published:
            origin = [place.path, place.revision, place.config, place.split]
            return [fingerprint([*origin, row]) for row in rows]
        files = [self._file_of(self._paths[one]) for one in wanted]
        there = [path for path in files if path is not None]
        of_files = dict(zip(there, digests.of(there, "sha256"), strict=True))
        if self._columns.audio_bytes is None:
            return [of_files[path] if path else "unreadable" for path in files]
        of_rows = self._rows.digests(digests, rows)
        return [
            fingerprint([row, of_files[path]]) if path else row
            for row, path in zip(of_rows, files, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Utterance | DamagedClip:
        """Read and decode clip number `index`. Raises UserError where a connection breaks."""
        entry, reason = self._entries[index], self._damage.get(index)
        if reason is None:
            audio = self._read_audio(self._chosen[index])
            if isinstance(audio, UnreadableRow):
                return DamagedClip(entry.id, entry.source, audio.reason)
            try:
                heard = decode(audio)
            except DamagedAudio as damage:
                return DamagedClip(entry.id, entry.source, damage.reason)
            return Utterance(
                entry.id,
                heard.samples,
                entry.text,
                len(heard.samples) / SAMPLE_RATE,
                entry.source,
                entry.metadata,
                heard.flags,
            )
        return DamagedClip(entry.id, entry.source, reason)

    def __iter__(self) -> Iterator[Utterance | DamagedClip]:
        for index in range(len(self)):
            yield self[index]

    def _read_audio(self, row: int) -> bytes | Path | UnreadableRow:
        """What is to be decoded."""
        place, columns = self._found.place, self._columns
        with explained(place.path, place.revision):
            (fields,) = self._rows.read([row], columns.audio)
            if isinstance(fields, UnreadableRow):
                return fields
            content = fields[columns.audio_bytes] if columns.audio_bytes else None
            path = fields[columns.audio_path] if columns.audio_path else None
            if isinstance(content, bytes):
                return content
            if not isinstance(path, str) or not path:
                return UnreadableRow("the row has no audio")
            try:
                return self._found.file(str(PurePosixPath(self._audio_folder, path)))
            except FileNotFoundError as error:
                return UnreadableRow(f"the row has no audio, and {first_line(error)}")

    def _file_of(self, path: str | None) -> Path | None:
        """The file of a row's audio, if it is one of the data set's folder."""
        file = Path(self._found.root, self._audio_folder, path) if path else None
        return file if file is not None and file.is_file() else None

    @property
    def _audio_folder(self) -> str:
        return self._recordings.audio_folder if self._recordings else ""

    def _choose(self, limit: int | None) -> list[int]:
        """The rows that are kept."""
        if self._recordings is None or limit is None:
            kept = chosen_rows(len(self._rows), limit)
            return sorted({*kept, *self._rows.damaged})
        rows_of: dict[Any, list[int]] = {}
        for row, parent in enumerate(self._rows.column(PARENT)):
            rows_of.setdefault(parent, []).append(row)
        kept = []
        for number in np.random.default_rng(0).permutation(len(rows_of)):
            part = list(rows_of.values())[number]
            if not kept or len(kept) + len(part) <= limit:
                kept += part
        return sorted({*kept, *self._rows.damaged})

    def _read_entries(
        self, title: str, ids: Sequence[str]
    ) -> tuple[tuple[ClipEntry, ...], dict[int, str], list[str | None]]:
        """What is said of every clip that is kept; why it is damaged, by its number, if it is
        known by now; and the path of its audio."""
        columns = self._columns
        texts: dict[str, str] = {}
        if self._recordings is not None:
            whole = HubCorpus(self._recordings.place)
            texts = {entry.id: entry.text for entry in whole.entries}
            self._references = "@".join(
                whole.origin[key] for key in ("path", "revision") if key in whole.origin
            )
        entries: list[ClipEntry] = []
        damage: dict[int, str] = {}
        paths: list[str | None] = []
        for row, fields in zip(
            self._chosen, self._rows.read(self._chosen, columns.entry), strict=True
        ):
            known = {} if isinstance(fields, UnreadableRow) else fields
            metadata = metadata_of(title, known, columns.metadata) if known else {}
            text = known.get(columns.text) if columns.text else None
            if self._recordings is not None and known:
                text = _whole_text(title, texts, metadata)
            if isinstance(fields, UnreadableRow):
                damage[len(entries)] = fields.reason
            elif text is None and self._require_text:
                damage[len(entries)] = "the row has no transcript"
            paths.append(known.get(columns.audio_path) if columns.audio_path else None)
            entries.append(
                ClipEntry(ids[row], self._rows.source(row), transcript(text or ""), metadata)
            )
        return tuple(entries), damage, paths


def _whole_text(title: str, texts: Mapping[str, str], metadata: Mapping[str, str]) -> str:
    parent = metadata.get(PARENT, "")
    if parent not in texts:
        raise UserError(
            f"{title}: no recording {parent!r} among those that have transcripts; take revisions "
            "of the two data sets that belong together"
        )
    return texts[parent]


def _name_of(place: Place) -> str:
    """The repository's name with the configuration and split."""
    parts = [Path(place.path).expanduser().resolve().name, place.config, place.split]
    return "-".join(part for part in parts if part and part != "default")
