"""A corpus from a JSON-lines manifest, one clip a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_asr.audio import SAMPLE_RATE, DamagedAudio, decode
from edge_asr.data.corpus import ClipEntry, DamagedClip, Utterance
from edge_asr.errors import UserError
from edge_asr.store.fingerprint import Digests

AUDIO_KEYS = ("audio", "audio_filepath")
# The leaderboard's order of precedence.
TEXT_KEYS = ("text", "sentence", "normalized_text", "transcript", "transcription")


@dataclass(frozen=True)
class ManifestRow:
    """One line of a manifest: the clip's path as written, its transcript, and the other fields.

    `text` is None where the line has no transcript, which an empty one is not.
    """

    line: int
    id: str
    audio: str
    text: str | None
    metadata: Mapping[str, str]


class ManifestCorpus:
    """The clips that a JSON-lines manifest lists.

    Every line is an object with the audio file's path, relative to the manifest, under `audio`
    or `audio_filepath`; its transcript under the first present of `text`, `sentence`,
    `normalized_text`, `transcript` and `transcription`; optionally `id` (else the path); and any
    other fields, kept as strings.

    Args:
        path: The manifest.
        name: Name for tables; the file's stem by default.
        limit: Keep only this many clips from the start, after `where`.
        where: Keep only rows whose fields equal these.
        require_text: Reject a kept row without a transcript. Calibration can do without.

    Raises:
        UserError: for a missing or empty manifest, a line that is no JSON object, lacks a field
            or repeats an id, a `where` that matches nothing, or a limit below 1.
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
        self._path = Path(path).expanduser()
        self._name = name or self._path.stem
        if limit is not None and limit < 1:
            raise UserError(f"limit={limit} must be at least 1, or null for all clips")
        self._rows = _matching(_read_rows(self._path), where or {}, self._path)[:limit]
        untold = next((row for row in self._rows if row.text is None), None)
        if require_text and untold:
            raise UserError(
                f"{_place(self._path, untold.line)} has no transcript; give it under one of "
                f"{', '.join(TEXT_KEYS)} (only calibration can do without)"
            )

    @property
    def name(self) -> str:
        return self._name

    @property
    def path(self) -> Path:
        """The manifest's file."""
        return self._path

    @property
    def rows(self) -> tuple[ManifestRow, ...]:
        """The rows kept, none of them decoded."""
        return tuple(self._rows)

    @property
    def entries(self) -> tuple[ClipEntry, ...]:
        return tuple(
            ClipEntry(row.id, row.audio, row.text or "", row.metadata) for row in self._rows
        )

    def audio_digests(self, digests: Digests, indices: Sequence[int] | None = None) -> list[str]:
        """SHA-256 of every file; of one that cannot be read, that it cannot."""
        rows = self._rows if indices is None else [self._rows[index] for index in indices]
        paths = [self._path.parent / row.audio for row in rows]
        there = [path for path in paths if _is_readable(path)]
        found = dict(zip(there, digests.of(there, "sha256"), strict=True))
        return [found.get(path, "unreadable") for path in paths]

    @property
    def conditions(self) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(
                row.metadata["condition"] for row in self._rows if "condition" in row.metadata
            )
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Utterance | DamagedClip:
        """Decode clip number `index`."""
        row = self._rows[index]
        try:
            samples = decode(self._path.parent / row.audio)
        except DamagedAudio as damage:
            return DamagedClip(row.id, row.audio, damage.reason)
        seconds = len(samples) / SAMPLE_RATE
        return Utterance(row.id, samples, row.text or "", seconds, row.audio, row.metadata)

    def __iter__(self) -> Iterator[Utterance | DamagedClip]:
        for index in range(len(self)):
            yield self[index]


def _is_readable(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:  # a name too long, a loop of links
        return False


def _read_rows(path: Path) -> list[ManifestRow]:
    try:
        with path.open(encoding="utf-8") as file:
            lines = list(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"manifest {str(path)!r} cannot be read ({error}); give the path of a JSON-lines file "
            'such as {"audio": "clip.wav", "text": "..."}'
        ) from error
    rows: list[ManifestRow] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _parse(line, path, number)
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


def _place(path: Path, line: int) -> str:
    return f"manifest {str(path)!r}, line {line}"


def _parse(line: str, path: Path, number: int) -> ManifestRow:
    place = _place(path, number)
    try:
        fields: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place} is no JSON ({error}); write one JSON object a line") from error
    if not isinstance(fields, dict):
        raise UserError(f"{place} is no JSON object; write one object a line")
    audio_key = next((key for key in AUDIO_KEYS if isinstance(fields.get(key), str)), None)
    if audio_key is None:
        raise UserError(f"{place} names no audio file; give its path under {AUDIO_KEYS[0]!r}")
    text_key = next((key for key in TEXT_KEYS if isinstance(fields.get(key), str)), None)
    known = {"id", audio_key, text_key}
    return ManifestRow(
        line=number,
        id=str(fields.get("id", fields[audio_key])),
        audio=fields[audio_key],
        text=fields[text_key] if text_key else None,
        metadata={
            key: str(value)
            for key, value in fields.items()
            if key not in known and value is not None
        },
    )


def _matching(rows: list[ManifestRow], where: Mapping[str, str], path: Path) -> list[ManifestRow]:
    for key, value in where.items():
        found = dict.fromkeys(row.metadata[key] for row in rows if key in row.metadata)
        rows = [row for row in rows if row.metadata.get(key) == str(value)]
        if not rows:
            raise UserError(
                f"where {key}={value!r} matches no row of manifest {str(path)!r}; "
                f"values of {key!r} there: {', '.join(map(repr, list(found)[:10])) or 'none'}"
            )
    return rows
