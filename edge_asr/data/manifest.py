"""A corpus from a JSON-lines manifest, one clip a line, or a CSV table of the same fields."""

from __future__ import annotations

import csv
import json
import math
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_asr.data.audio_files import AudioFileCorpus, Part
from edge_asr.data.corpus import ClipEntry
from edge_asr.data.selection import chosen_rows
from edge_asr.errors import UserError
from edge_asr.settings import nearest
from edge_asr.store.record import ALL

AUDIO_KEYS = ("audio", "audio_filepath", "file_name")
# The leaderboard's order of precedence.
TEXT_KEYS = ("text", "sentence", "normalized_text", "transcript", "transcription")
# Byte-order mark, zero-width space, word joiner, soft hyphen: nobody says or sees them, and a word
# with one in it would count as wrong.
INVISIBLE = dict.fromkeys((0xFEFF, 0x200B, 0x2060, 0xAD))
LONGEST_SECONDS = 1e9  # more than any recording lasts
WANTED = 'give the path of a JSON-lines file such as {"audio": "clip.wav", "text": "..."}'


@dataclass(frozen=True)
class ManifestRow:
    """One line of a manifest: the clip's path as written, its place in the file, its transcript,
    and the other fields.

    `text` is without invisible characters, and None where the line has no transcript, which an
    empty one is not.
    """

    line: int
    id: str
    audio: str
    text: str | None
    metadata: Mapping[str, str]
    part: Part


class ManifestCorpus(AudioFileCorpus):
    """The clips that a JSON-lines manifest lists, or a CSV table (`.csv`).

    Every line is an object with the audio file's path, relative to the manifest, under `audio`,
    `audio_filepath` or `file_name`; its transcript under the first present of `text`, `sentence`,
    `normalized_text`, `transcript` and `transcription`; optionally `id` (else the path); and any
    other fields, kept as strings. In the form of NeMo, a row with an `offset` is that part of its
    file, `duration` seconds long, and without an `id` its path, offset and duration where other
    rows share the file. The `duration` of a whole file is compared with its audio.

    Args:
        path: The manifest.
        name: Name for tables; the file's stem by default.
        limit: Keep only this many clips, after `where`; see `chosen_rows`.
        where: Keep only rows whose fields equal these.
        require_text: Reject a kept row without a transcript. Calibration can do without.

    Raises:
        UserError: for a manifest that is missing, empty or no regular file, a line that is no
            JSON object, lacks a field, holds one of another type or repeats an id, a `where` that
            matches nothing, or a limit below 1.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        limit: int | None = None,
        where: Mapping[str, str] | None = None,
        require_text: bool = True,
    ) -> None:
        self._path = manifest_file(path)
        if limit is not None and limit < 1:
            raise UserError(f"limit={limit} must be at least 1, or null for all clips")
        rows = _matching(_read_rows(self._path), where or {}, self._path)
        self._rows = [rows[number] for number in chosen_rows(len(rows), limit)]
        untold = next((row for row in self._rows if row.text is None), None)
        if require_text and untold:
            raise UserError(
                f"{_place(self._path, untold.line)} has no transcript; give it under one of "
                f"{', '.join(TEXT_KEYS)} (only calibration can do without)"
            )
        super().__init__(
            name or self._path.stem,
            self._path.parent,
            [ClipEntry(row.id, row.audio, row.text or "", row.metadata) for row in self._rows],
            [row.part for row in self._rows],
        )

    @property
    def path(self) -> Path:
        """The manifest's file."""
        return self._path

    @property
    def rows(self) -> tuple[ManifestRow, ...]:
        """The rows kept, none of them decoded."""
        return tuple(self._rows)


def manifest_file(path: str | Path) -> Path:
    """The manifest at `path`. Raises UserError for what cannot be opened or may never end."""
    try:
        file = Path(path).expanduser()
        regular = stat.S_ISREG(file.stat().st_mode)
    # ValueError: a NUL; RuntimeError: the home folder of nobody.
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    if not regular:
        raise UserError(f"manifest {str(path)!r} is no regular file; {WANTED}")
    return file


def _unreadable(path: str | Path, error: Exception) -> UserError:
    reason = error.strerror if isinstance(error, OSError) else error
    return UserError(f"manifest {str(path)!r} cannot be read ({reason}); {WANTED}")


def _read_rows(path: Path) -> list[ManifestRow]:
    rows: list[ManifestRow] = []
    line_of: dict[str, int] = {}
    lines = list(_csv_fields(path) if path.suffix.lower() == ".csv" else _json_fields(path))
    times = Counter(_audio(fields)[1] for _, fields in lines)
    for number, fields in lines:
        row = _row(fields, path, number, times)
        if row.id in line_of:
            raise UserError(
                f"{_place(path, number)}: id {row.id!r} was used in line "
                f"{line_of[row.id]}; give every clip an id of its own"
            )
        line_of[row.id] = number
        rows.append(row)
    if not rows:
        raise UserError(f"manifest {str(path)!r} has no rows; write one JSON object a line")
    return rows


def _lines(path: Path) -> list[str]:
    try:
        # Where several files were joined, every one may have begun with a byte-order mark.
        with path.open(encoding="utf-8") as file:
            lines = [line.removeprefix("\ufeff") for line in file]
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"manifest {str(path)!r} is not UTF-8 ({error.reason} at byte {error.start}); "
            "save it as UTF-8"
        ) from error
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise UserError(f"{_place(path, number)} holds a NUL, as UTF-16 does; save it as UTF-8")
    return lines


def _place(path: Path, line: int) -> str:
    return f"manifest {str(path)!r}, line {line}"


def _json_fields(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The fields of every line that is not empty, and its number."""
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        place = _place(path, number)
        try:
            fields: Any = json.loads(line, object_pairs_hook=_distinct)
        except RecursionError as error:
            raise UserError(
                f"{place} is nested too deeply; write one JSON object a line"
            ) from error
        except ValueError as error:  # also a number of thousands of digits
            reason = str(error).partition(";")[0]
            raise UserError(
                f"{place} is no JSON ({reason}); write one JSON object a line"
            ) from error
        if not isinstance(fields, dict):
            raise UserError(f"{place} is no JSON object; write one object a line")
        yield number, fields


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of a field given twice, JSON would silently keep the last."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!a} is given twice")
    return fields


def _csv_fields(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same of a table whose first line names the fields."""
    table = csv.reader(_lines(path), strict=True)
    try:
        names = next(table, [])
        for cells in table:
            if len(cells) not in (0, len(names)):
                raise csv.Error(f"{len(cells)} cells under {len(names)} names")
            if cells:
                yield table.line_num, _distinct(list(zip(names, cells, strict=True)))
    except (csv.Error, ValueError) as error:
        raise UserError(
            f"{_place(path, table.line_num)} is no row of a CSV table ({error}); name the fields "
            "in the first line and write one clip a line"
        ) from error


def _row(fields: dict[str, Any], path: Path, number: int, times: Mapping[str, int]) -> ManifestRow:
    """A line's row; `times` is how often each audio file is named."""
    place = _place(path, number)
    audio_key, audio = _audio(fields)
    if not audio:
        raise UserError(f"{place} names no audio file; give its path under {AUDIO_KEYS[0]!r}")
    text_key = next((key for key in TEXT_KEYS if fields.get(key) is not None), None)
    if text_key and not isinstance(fields[text_key], str):
        raise UserError(f"{place}: {text_key} is {_shown(fields[text_key])}; give a text in quotes")
    own = fields.get("id")
    if isinstance(own, bool | list | dict):
        raise UserError(f"{place}: id is {_shown(own)}; give a text or a number")
    if fields.get("condition") == ALL:
        raise UserError(
            f"{place}: condition {ALL!r} is that of all clips; call this part something else"
        )
    part = Part(*(_seconds(fields, key, place) for key in ("offset", "duration")))
    row = ManifestRow(
        line=number,
        id=_default_id(audio, part, times[audio]) if own is None else str(own),
        audio=audio,
        text=fields[text_key].translate(INVISIBLE) if text_key else None,
        metadata={
            key: str(value)
            for key, value in fields.items()
            if key not in {"id", audio_key, text_key} and value is not None
        },
        part=part,
    )
    for key, value in (("id", row.id), *fields.items()):
        if not _is_unicode(f"{key}{value}"):
            raise UserError(
                f"{place}: {key!a} holds half of a surrogate pair, which no file can; write "
                "the whole character"
            )
    return row


def _audio(fields: Mapping[str, Any]) -> tuple[str | None, str]:
    """The field that names a line's audio file, and its path: a text, or in the form of `datasets`
    that of an object that holds no data."""
    for key in AUDIO_KEYS:
        value = fields.get(key)
        if isinstance(value, dict) and value.get("bytes") is None:
            value = value.get("path")
        if isinstance(value, str):
            return key, value
    return None, ""


def _default_id(audio: str, part: Part, times: int) -> str:
    if times == 1 or part.offset is None:
        return audio
    return f"{audio}@{part.offset}" + ("" if part.duration is None else f"+{part.duration}")


def _seconds(fields: Mapping[str, Any], key: str, place: str) -> float | None:
    """A field that is a time, or None without it."""
    value = fields.get(key)
    if value is None or value == "":
        return None
    try:
        # A table's cells are texts.
        seconds = float("nan" if isinstance(value, bool | list | dict) else value)
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < LONGEST_SECONDS:
        raise UserError(f"{place}: {key} is {_shown(value)}; give seconds, a number from 0 on")
    return seconds


def _shown(value: Any) -> str:
    return f"{json.dumps(value):.60}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _matching(rows: list[ManifestRow], where: Mapping[str, str], path: Path) -> list[ManifestRow]:
    for key, value in where.items():
        found = dict.fromkeys(row.metadata[key] for row in rows if key in row.metadata)
        if not found:
            fields = {name for row in rows for name in row.metadata}
            raise UserError(
                f"where {key}={value!r}: no row of manifest {str(path)!r} has a field {key}; "
                f"{nearest(key, fields)}"
            )
        rows = [row for row in rows if row.metadata.get(key) == str(value)]
        if not rows:
            raise UserError(
                f"where {key}={value!r} matches no row of manifest {str(path)!r}; "
                f"values of {key!r} there: {', '.join(map(repr, list(found)[:10])) or 'none'}"
            )
    return rows
