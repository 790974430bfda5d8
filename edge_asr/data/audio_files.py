"""A corpus of audio files in a folder, whoever lists them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from edge_asr.audio import SAMPLE_RATE, AudioFile, DamagedAudio
from edge_asr.data.corpus import ClipEntry, DamagedClip, Utterance
from edge_asr.store.fingerprint import Digests, fingerprint

# A stated duration that differs from the audio by more than both is a flag.
DURATION_SECONDS, DURATION_SHARE = 0.1, 0.02


@dataclass(frozen=True)
class Part:
    """What a list of clips says of a clip's place in its file.

    Attributes:
        offset: Where the clip begins, in seconds; None where it is the whole file.
        duration: How long the clip is said to be, in seconds; of a whole file that is checked,
            of a part it is where the clip ends, and without it the clip ends with the file.
    """

    offset: float | None = None
    duration: float | None = None

    @property
    def cut(self) -> tuple[float, float | None]:
        """Offset and duration of what is decoded."""
        return (0.0, None) if self.offset is None else (self.offset, self.duration)

    def doubt(self, seconds: float) -> tuple[str, ...]:
        """A flag where `seconds` of audio are not what was said of a whole file."""
        if self.offset is not None or self.duration is None:
            return ()
        allowed = max(DURATION_SECONDS, DURATION_SHARE * self.duration)
        if abs(seconds - self.duration) <= allowed:
            return ()
        return (f"{seconds:.2f} s of audio, {self.duration:.2f} s by its duration",)


class AudioFileCorpus:
    """Clips that are audio files, or parts of them.

    Args:
        name: Short name for tables.
        folder: What the entries' sources are relative to.
        entries: A clip each; `source` is its file.
        parts: Of each entry, its place in the file; whole files by default.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        entries: Sequence[ClipEntry],
        parts: Sequence[Part] | None = None,
    ) -> None:
        self._name, self._folder, self._entries = name, folder, tuple(entries)
        self._parts = tuple(parts or [Part()] * len(self._entries))
        # Parts of a recording follow each other; it is looked through once.
        self._opened = lru_cache(maxsize=1)(AudioFile)

    @property
    def name(self) -> str:
        return self._name

    @property
    def entries(self) -> tuple[ClipEntry, ...]:
        return self._entries

    def audio_digests(self, digests: Digests, indices: Sequence[int] | None = None) -> list[str]:
        """SHA-256 of every file, and of what is cut out of it; of one that cannot be read, that
        it cannot."""
        chosen = range(len(self)) if indices is None else indices
        paths = [self._folder / self._entries[index].source for index in chosen]
        there = [path for path in paths if _is_readable(path)]
        found = dict(zip(there, digests.of(there, "sha256"), strict=True))
        return [
            _of_part(found.get(path, "unreadable"), self._parts[index])
            for index, path in zip(chosen, paths, strict=True)
        ]

    def sample_counts(self, digests: Digests) -> list[int]:
        """About how many samples every clip has at 16 kHz, by the headers of its file; 0 of one
        that cannot be read. Nothing is decoded."""
        paths = [self._folder / entry.source for entry in self._entries]
        there = [path for path in paths if _is_readable(path)]
        counted = digests.of(there, "samples", _sample_count)
        found = dict(zip(there, counted, strict=True))
        return [
            _samples_of(found.get(path, 0), part)
            for path, part in zip(paths, self._parts, strict=True)
        ]

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
        entry, part = self._entries[index], self._parts[index]
        offset, duration = part.cut
        try:
            clip = self._opened(self._folder / entry.source).decode(offset, duration)
        except DamagedAudio as damage:
            return DamagedClip(entry.id, entry.source, damage.reason)
        seconds = len(clip.samples) / SAMPLE_RATE
        flags = (*clip.flags, *part.doubt(seconds))
        return Utterance(
            entry.id, clip.samples, entry.text, seconds, entry.source, entry.metadata, flags
        )

    def __iter__(self) -> Iterator[Utterance | DamagedClip]:
        for index in range(len(self)):
            yield self[index]


def _is_readable(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:  # a name too long, a loop of links
        return False


def _of_part(digest: str, part: Part) -> str:
    return digest if part.offset is None else fingerprint([digest, *part.cut])


def _sample_count(path: Path) -> int:
    try:
        return AudioFile(path).sample_count()
    except DamagedAudio:
        return 0


def _samples_of(samples: int, part: Part) -> int:
    offset, duration = part.cut
    rest = max(samples - round(offset * SAMPLE_RATE), 0)
    return rest if duration is None else min(rest, round(duration * SAMPLE_RATE))
