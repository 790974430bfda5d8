"""Whether calibration clips are among the clips that are evaluated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from edge_asr.data.corpus import Corpus, DamagedClip, IndexedCorpus, Utterance
from edge_asr.store.fingerprint import Digests

# Lengths by headers and by decoding may differ by the rounding of a resampler.
SAMPLES_ALLOWED = 2


@runtime_checkable
class CountedCorpus(IndexedCorpus, Protocol):
    """A corpus that knows the lengths of its clips without decoding them."""

    def sample_counts(self, digests: Digests) -> Sequence[int]:
        """About how many samples every clip has at 16 kHz; 0 of one that cannot be read."""


def audio_digest(samples: np.ndarray) -> str:
    """SHA-256 of decoded audio, float32 [samples]: the same of a WAV and its copy as FLAC."""
    return hashlib.sha256(np.ascontiguousarray(samples, dtype="<f4").tobytes()).hexdigest()


def overlap(
    calibration: Sequence[Utterance], corpora: Sequence[Corpus], digests: Digests | None = None
) -> int:
    """How many calibration clips are among the clips of `corpora`, by their decoded audio.

    Only clips that are as long as a calibration clip are decoded, where a corpus knows lengths; a
    corpus on the hub would have to be fetched as a whole, so only who transcribes it can tell.

    Args:
        calibration: The clips that calibration uses.
        corpora: The clips that are evaluated.
        digests: Remembers the lengths of files.
    """
    if not calibration:
        return 0
    ours = [audio_digest(clip.samples) for clip in calibration]
    wanted = set(ours)
    lengths = np.array(sorted({len(clip.samples) for clip in calibration}), dtype=np.int64)
    found: set[str] = set()
    for corpus in corpora:
        if _is_elsewhere(corpus):
            continue
        for clip in _as_long(corpus, lengths, digests or Digests()):
            digest = audio_digest(clip.samples)
            if digest in wanted:
                found.add(digest)
    return sum(digest in found for digest in ours)


def _is_elsewhere(corpus: Corpus) -> bool:
    path = corpus.origin.get("path")
    return path is not None and not Path(path).exists()


def _as_long(corpus: Corpus, lengths: np.ndarray, digests: Digests) -> Iterator[Utterance]:
    """The clips of a corpus that may be as long as one of `lengths`, decoded one at a time."""
    items: Iterable[Utterance | DamagedClip] = corpus
    if isinstance(corpus, CountedCorpus):
        counts = np.asarray(corpus.sample_counts(digests), dtype=np.int64)
        following = np.searchsorted(lengths, counts - SAMPLES_ALLOWED)
        nearest = lengths[np.minimum(following, len(lengths) - 1)]
        alike = np.flatnonzero(np.abs(nearest - counts) <= SAMPLES_ALLOWED)
        items = (corpus[int(index)] for index in alike)
    yield from (item for item in items if isinstance(item, Utterance))
