"""Decode an audio file to what the models hear: float32 mono at 16 kHz.

libsndfile (through soundfile) reads WAV, FLAC, MP3 and Ogg with Vorbis or Opus, and soxr
resamples, so that no FFmpeg is needed.
"""

from __future__ import annotations

import io
import stat
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000  # samples a second, of every model here
# MP3 headers state the length only roughly, so a shorter stream counts as cut off from here on.
MISSING_SECONDS_ALLOWED = 0.1


class DamagedAudio(Exception):
    """A clip that cannot be used; `reason` says why in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(audio: str | Path | bytes) -> np.ndarray:
    """Decode a file, or the bytes of one, to mono 16 kHz.

    Channels are averaged; the resampler is soxr's HQ setting.

    Args:
        audio: Path of an audio file, or its content.

    Returns:
        float32 samples, shape [samples], nominally within [-1, 1].

    Raises:
        DamagedAudio: when the file is missing, is no audio, ends early, holds no samples, or
            holds samples that are no finite numbers.
    """
    if isinstance(audio, bytes) and not audio:
        raise DamagedAudio("the file is empty")
    if not isinstance(audio, bytes):
        _check_file(Path(audio))
    samples, rate = _read(io.BytesIO(audio) if isinstance(audio, bytes) else audio)
    if not len(samples):
        raise DamagedAudio("the file holds no samples")
    if not np.isfinite(samples).all():
        raise DamagedAudio("the file holds samples that are not finite numbers")
    mono = samples.mean(axis=1)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    if not len(mono):
        raise DamagedAudio("the file holds less than one sample at 16 kHz")
    return np.ascontiguousarray(mono, dtype=np.float32)


def _check_file(path: Path) -> None:
    """Raises DamagedAudio for what is no regular file: reading a pipe or a device may never end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedAudio("the file does not exist") from error
    except OSError as error:  # a name too long, a loop of links, a folder that may not be read
        raise DamagedAudio(f"the file cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DamagedAudio("the path holds a NUL") from error
    if not stat.S_ISREG(mode):
        raise DamagedAudio("the path is that of no regular file")


def _read(source: io.BytesIO | str | Path) -> tuple[np.ndarray, int]:
    """Samples [frames, channels] as float32 and their rate."""
    try:
        with soundfile.SoundFile(source) as sound:
            rate, wanted = int(sound.samplerate), int(sound.frames)
            samples = sound.read(wanted, dtype="float32", always_2d=True)
    # Too large a frame count in a damaged header makes the allocation fail.
    except (soundfile.LibsndfileError, OSError, ValueError, MemoryError) as error:
        raise DamagedAudio(f"not readable as audio: {error}") from error
    if wanted - len(samples) > MISSING_SECONDS_ALLOWED * rate:
        raise DamagedAudio(f"cut off: {len(samples)} of {wanted} samples")
    return samples, rate
