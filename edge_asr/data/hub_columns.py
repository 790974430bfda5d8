"""Which columns of a published data set hold audio, transcripts, ids and the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from edge_asr.data.manifest import AUDIO_KEYS, INVISIBLE, TEXT_KEYS
from edge_asr.data.rows import Rows, UnreadableRow
from edge_asr.errors import UserError
from edge_asr.settings import nearest
from edge_asr.store.record import ALL

ID_COLUMNS = ("id", "audio_id", "segment_id", "utterance_id", "utt_id", "uttid", "file_id")
SPEAKER_COLUMNS = ("speaker_id", "client_id")


@dataclass(frozen=True)
class Names:
    """The columns as a user names them; None for the usual ones."""

    text: str | None = None
    audio: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Columns:
    """The columns to read, structs taken apart.

    Attributes:
        text: Of transcripts, or None.
        audio_bytes, audio_path: Of the audio's content and of its file's name; one may be None.
        metadata: Of whatever else is a text or a number.
    """

    text: str | None
    audio_bytes: str | None
    audio_path: str | None
    metadata: tuple[str, ...]

    @property
    def audio(self) -> tuple[str, ...]:
        return tuple(one for one in (self.audio_bytes, self.audio_path) if one)

    @property
    def entry(self) -> tuple[str, ...]:
        """All but the audio's content."""
        return tuple(one for one in (self.text, self.audio_path) if one) + self.metadata


def choose_columns(title: str, schema: pa.Schema, names: Names, require_text: bool) -> Columns:
    """The columns of a data set.

    Args:
        title: What the data set is called in messages.
        schema: Its columns, structs taken apart.
        names: Those that the user names.
        require_text: Whether it is useless without transcripts.

    Raises:
        UserError: for a column that is not there or of another type, or no usual one.
    """
    kinds = {field.name: field.type for field in schema}
    text = _text(title, kinds, names.text, require_text)
    content, path = _audio(title, kinds, names.audio)
    rest = tuple(
        name
        for name, kind in kinds.items()
        if name not in (text, content, path) and _is_scalar(kind)
    )
    return Columns(text, content, path, rest)


def _text(
    title: str, kinds: Mapping[str, pa.DataType], named: str | None, required: bool
) -> str | None:
    found = named or next((name for name in TEXT_KEYS if name in kinds), None)
    if found is None and required:
        raise UserError(
            f"{title} has no column of transcripts ({', '.join(TEXT_KEYS)}); name it with "
            f"text_column, one of {_shown(kinds)}"
        )
    if found is not None and found not in kinds:
        raise UserError(f"{title} has no column {found!r}; {nearest(found, _columns(kinds))}")
    if found is not None and not _is_text(kinds[found]):
        raise UserError(
            f"{title}: column {found!r} holds {kinds[found]}, no transcripts; name another with "
            f"text_column, one of {_shown(kinds)}"
        )
    return found


def _audio(
    title: str, kinds: Mapping[str, pa.DataType], named: str | None
) -> tuple[str | None, str | None]:
    """The leaves of the audio's content and path."""
    structs = [name.removesuffix(".bytes") for name in kinds if name.endswith(".bytes")]
    usual = [name for name in AUDIO_KEYS if _leaves_of(name, kinds) != (None, None)]
    candidates = [named] if named else [*usual, *structs]
    if not candidates or _leaves_of(candidates[0], kinds) == (None, None):
        what = f"no column {named!r} of audio" if named else "no column of audio"
        raise UserError(f"{title} has {what}; name it with audio_column, one of {_shown(kinds)}")
    return _leaves_of(candidates[0], kinds)


def _leaves_of(name: str, kinds: Mapping[str, pa.DataType]) -> tuple[str | None, str | None]:
    if name in kinds:
        if _is_text(kinds[name]):
            return None, name
        return (name, None) if _is_bytes(kinds[name]) else (None, None)
    content, path = f"{name}.bytes", f"{name}.path"
    return content if content in kinds else None, path if path in kinds else None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_scalar(kind: pa.DataType) -> bool:
    return _is_text(kind) or bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )


def _columns(kinds: Mapping[str, pa.DataType]) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in kinds))


def _shown(kinds: Mapping[str, pa.DataType]) -> str:
    return ", ".join(sorted(_columns(kinds)))


def clip_ids(title: str, rows: Rows, columns: Columns, split: str, named: str | None) -> list[str]:
    """An id of every row of the split, unique and the same whichever rows are chosen.

    They are the values of a column of ids, else the names of the audio files, if no two rows have
    the same; else the rows' numbers, as have rows that cannot be read.

    Raises:
        UserError: for a column that the user names and that is not there or not unique.
    """
    if named is not None and named not in rows.schema.names:
        raise UserError(f"{title} has no column {named!r}; {nearest(named, rows.schema.names)}")
    usual = [name for name in ID_COLUMNS if name in rows.schema.names]
    paths = [columns.audio_path] if columns.audio_path else []
    numbers = [f"{split}/{row}" for row in range(len(rows))]
    for name in [named] if named else [*usual, *paths]:
        values = rows.column(name)
        told = [one for one in values if not isinstance(one, UnreadableRow)]
        if name in paths:
            told = [PurePosixPath(one).name if isinstance(one, str) else None for one in told]
        if None not in told and "" not in told and len(set(map(str, told))) == len(told):
            known = iter(told)
            return [
                number if isinstance(one, UnreadableRow) else str(next(known))
                for number, one in zip(numbers, values, strict=True)
            ]
    if named is not None:
        raise UserError(
            f"{title}: column {named!r} gives several rows the same id, or none; name another with "
            "id_column, or leave it out"
        )
    return numbers


def transcript(value: Any) -> str:
    """A transcript without characters that nobody says."""
    return str(value).translate(INVISIBLE)


def metadata_of(title: str, fields: Mapping[str, Any], columns: Sequence[str]) -> dict[str, str]:
    """The other fields of a row as texts; `speaker` is filled from what speakers are called.

    Raises UserError for a condition that is called as the one of all clips.
    """
    found = {name: str(fields[name]) for name in columns if fields[name] is not None}
    speakers = [found[name] for name in SPEAKER_COLUMNS if name in found]
    if speakers:
        found.setdefault("speaker", speakers[0])
    if found.get("condition") == ALL:
        raise UserError(
            f"{title}: condition {ALL!r} is that of all clips; call this part something else"
        )
    return found
