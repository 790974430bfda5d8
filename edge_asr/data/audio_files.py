"""A corpus of audio files in a folder, whoever lists them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_asr.audio import SAMPLE_RATE, DamagedAudio, decode
from edge_asr.data.corpus import ClipEntry, DamagedClip, Utterance
from edge_asr.store.fingerprint import Digests


class AudioFileCorpus:
    """Clips that are audio files.

    Args:
        name: Short name for tables.
        folder: What the entries' sources are relative to.
        entries: A clip each; `source` is its file.
    """

    def __init__(self, name: str, folder: Path, entries: Sequence[ClipEntry]) -> None:
        self._name, self._folder, self._entries = name, folder, tuple(entries)

    @property
    def name(self) -> str:
        return self._name

    @property
    def entries(self) -> tuple[ClipEntry, ...]:
        return self._entries

    def audio_digests(self, digests: Digests, indices: Sequence[int] | None = None) -> list[str]:
        """SHA-256 of every file; of one that cannot be read, that it cannot."""
        chosen = range(len(self)) if indices is None else indices
        paths = [self._folder / self._entries[index].source for index in chosen]
        there = [path for path in paths if _is_readable(path)]
        found = dict(zip(there, digests.of(there, "sha256"), strict=True))
        return [found.get(path, "unreadable") for path in paths]

    @property
    def origin(self) -> dict[str, str]:
        return {}

    @property
    def conditions(self) -> tuple[str, ...]:
        named = (entry.metadata.get("condition") for entry in self._entries)
        return tuple(dict.fromkeys(one for one in named if one is not None))

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Utterance | DamagedClip:
        """Decode clip number `index`."""
        entry = self._entries[index]
        try:
            samples = decode(self._folder / entry.source)
        except DamagedAudio as damage:
            return DamagedClip(entry.id, entry.source, damage.reason)
        seconds = len(samples) / SAMPLE_RATE
        return Utterance(entry.id, samples, entry.text, seconds, entry.source, entry.metadata)

    def __iter__(self) -> Iterator[Utterance | DamagedClip]:
        for index in range(len(self)):
            yield self[index]


def _is_readable(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:  # a name too long, a loop of links
        return False
