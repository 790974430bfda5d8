"""Decode an audio file to what the models hear: float32 mono at 16 kHz.

libsndfile (through soundfile) reads it and soxr resamples, so that no FFmpeg is needed. What
libsndfile would read wrongly and say nothing about (a header that lies about the length, joined
files, channels that cancel each other) is put right, or told by a flag, or refused.
"""

from __future__ import annotations

import errno
import math
import mmap
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from edge_asr.audio.split import split
from edge_asr.audio.stream import Content, DamagedAudio, Stream

SAMPLE_RATE = 16_000  # samples a second, of every model here
# Lengths in manifests are rounded, so a clip counts as cut off from here on.
MISSING_SECONDS_ALLOWED = 0.1
SAMPLING_RATES = range(2_000, 1_000_001)  # what a header may say
MOST_VALUES = 1 << 28  # samples of all channels: 1 GiB, 4.6 hours of mono at 16 kHz
BLOCK_VALUES = 1 << 20
# Channels whose mean has less than this share of their energy, times their number, cancel: it is
# 1 for channels that have nothing in common.
CANCELLED = 0.02
# Samples beyond the first are no overshoot, beyond the second integers kept as floats.
LOUD, INTEGER = 2.0, 64.0
INTEGER_BITS = (15, 23, 31)  # of 16, 24 and 32 bit integers without their sign


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded clip.

    Attributes:
        samples: float32 mono at 16 kHz, shape [samples], nominally within [-1, 1].
        flags: What is doubtful about it, a few words each; empty for most clips.
    """

    samples: np.ndarray
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Cut:
    """A part of a recording, in seconds; all of it by default."""

    offset: float = 0.0
    duration: float | None = None

    def __post_init__(self) -> None:
        duration = 0.0 if self.duration is None else self.duration
        if not (0 <= self.offset < math.inf and 0 <= duration < math.inf):
            raise ValueError(f"{self}: offset and duration must be finite, and not below 0")

    @property
    def is_whole(self) -> bool:
        return not self.offset and self.duration is None

    def frames(self, rate: int) -> tuple[int, int | None]:
        """The first sample at `rate`, and the one behind the last."""
        first = round(self.offset * rate)
        return first, None if self.duration is None else first + round(self.duration * rate)

    def check(self, length: int, rate: int) -> None:
        """Raises DamagedAudio where a recording of `length` samples does not hold it."""
        first, last = self.frames(rate)
        if not self.is_whole and first >= length:
            raise DamagedAudio(f"the cut begins at {self.offset:g} s, behind the end")
        if last is not None and last - length > MISSING_SECONDS_ALLOWED * rate:
            raise DamagedAudio(
                f"the cut ends at {last / rate:g} s, the file at {length / rate:g} s"
            )


class AudioFile:
    """A file, or the bytes of one, to be decoded once or in parts.

    The content decides about the format, not the name.

    Args:
        audio: Path of an audio file, or its content.

    Raises:
        DamagedAudio: when the file is missing or no audio.
    """

    def __init__(self, audio: str | Path | bytes) -> None:
        self._streams, self._flags = split(_content(audio))

    def decode(self, offset: float = 0.0, duration: float | None = None) -> Decoded:
        """Decode the file, or a part of it; arguments and errors as of the function `decode`."""
        cut = _Cut(offset, duration)
        if len(self._streams) == 1:
            samples, told = _decode(self._streams[0], cut)
            return _finished(samples, (*self._flags, *told))
        parts, flags = [], self._flags
        for stream in self._streams:
            part, told = _decode(stream, _Cut())
            parts.append(part)
            flags += told
        joined = np.concatenate(parts)
        cut.check(len(joined), SAMPLE_RATE)
        first, last = cut.frames(SAMPLE_RATE)
        return _finished(joined[first:last], flags)

    def sample_count(self) -> int:
        """About as many samples as `decode` gives, by the headers; nothing is decoded."""
        seconds = 0.0
        for stream in self._streams:
            with _opened(stream) as sound:
                seconds += sound.frames / sound.samplerate
        return round(seconds * SAMPLE_RATE)


def decode(
    audio: str | Path | bytes, *, offset: float = 0.0, duration: float | None = None
) -> Decoded:
    """Decode a file, or the bytes of one, or a part of it, to mono 16 kHz.

    Channels are averaged, but for those that cancel each other; the resampler is soxr's HQ
    setting. Of joined files all are heard.

    Args:
        audio: Path of an audio file, or its content, which decides about the format.
        offset: Where the part begins, in seconds.
        duration: Its length in seconds; None for all that follows.

    Raises:
        DamagedAudio: when the file is missing, is no audio, ends early, holds no samples, does not
            hold the part, or holds samples that are no finite numbers.
        ValueError: for a time that is negative or no finite number.
    """
    return AudioFile(audio).decode(offset, duration)


def _content(audio: str | Path | bytes) -> Content:
    """The bytes of a file, read only where they are looked at.

    Raises DamagedAudio for what is no regular file: reading a pipe or a device may never end.
    """
    if isinstance(audio, bytes):
        content: Content = audio
    else:
        path = Path(audio)
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise DamagedAudio("the path is that of no regular file")
            with path.open("rb") as file:
                is_empty = not file.read(1)
                content = b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DamagedAudio("the file does not exist") from error
        except OSError as error:  # a loop of links, what may not be read
            if error.errno == errno.ENAMETOOLONG:
                raise DamagedAudio("the path is too long; is it the audio itself?") from error
            raise DamagedAudio(f"the file cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise DamagedAudio("the path holds a NUL") from error
    if not content:
        raise DamagedAudio("the file is empty")
    return content


def _opened(stream: Stream) -> soundfile.SoundFile:
    try:
        sound = soundfile.SoundFile(stream.file())
    except (soundfile.LibsndfileError, OSError, ValueError, MemoryError) as error:
        raise _unreadable(error) from error
    if sound.samplerate not in SAMPLING_RATES:
        sound.close()
        raise DamagedAudio(f"not readable as audio: a sampling rate of {sound.samplerate} Hz")
    return sound


def _unreadable(error: Exception) -> DamagedAudio:
    # libsndfile begins with the file's name, which is of no use here.
    return DamagedAudio(f"not readable as audio: {getattr(error, 'error_string', error)}")


def _decode(stream: Stream, cut: _Cut) -> tuple[np.ndarray, tuple[str, ...]]:
    """A part of one stream, mono at 16 kHz, and its flags."""
    with _opened(stream) as sound:
        rate = int(sound.samplerate)
        samples = _read(sound, cut)
    flags = [*stream.flags, *_shortage(stream, len(samples) / rate, cut)]
    if not np.isfinite(samples).all():
        raise DamagedAudio("the file holds samples that are not finite numbers")
    if len(samples) and (peak := float(np.abs(samples).max())) > 2.0 ** INTEGER_BITS[-1]:
        raise DamagedAudio(f"the file holds samples as large as {peak:.3g}")
    mono, cancelled = _mono(samples)
    if cancelled:
        flags.append(cancelled)
    if len(mono) and rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
        if not len(mono):
            raise DamagedAudio("the file holds less than one sample at 16 kHz")
    return mono, tuple(flags)


def _read(sound: soundfile.SoundFile, cut: _Cut) -> np.ndarray:
    """The samples of a part, float32 [frames, channels], in blocks: a header may promise more than
    there is memory."""
    rate, block_frames = sound.samplerate, max(BLOCK_VALUES // sound.channels, 1)
    first, last = cut.frames(rate)
    end = sound.frames if last is None else min(last, sound.frames)
    # Behind a seek, the first MP3 frames lack what they need of those before them.
    exact = sound.seekable() and sound.format != "MP3"
    position = begin = min(first, end) if exact else 0
    blocks = [np.zeros((0, sound.channels), np.float32)]
    try:
        if begin:
            sound.seek(begin)
        while position < end:
            block = sound.read(min(end - position, block_frames), dtype="float32", always_2d=True)
            blocks.append(block)
            position += len(block)
            if not len(block):
                break
            if (position - begin) * sound.channels > MOST_VALUES:
                raise DamagedAudio("the clip is too long; cut it")
    except (soundfile.LibsndfileError, OSError, ValueError, MemoryError) as error:
        raise _unreadable(error) from error
    missing = end - position
    if missing > MISSING_SECONDS_ALLOWED * rate:
        raise DamagedAudio(f"cut off: {position} of {end} samples")
    cut.check(sound.frames - missing, rate)
    return np.concatenate(blocks)[max(first - begin, 0) :]


def _shortage(stream: Stream, seconds: float, cut: _Cut) -> tuple[str, ...]:
    """What to tell of a stream that holds less than it promises.

    Raises DamagedAudio where that is more than a trifle, unless a part of it is asked for, which is
    known to be there.
    """
    missing = stream.declared - stream.present
    if missing <= 0:
        return ()
    told = f"cut off: {stream.present} of {stream.declared} {stream.unit}"
    if cut.is_whole and missing / max(stream.present, 1) * seconds > MISSING_SECONDS_ALLOWED:
        raise DamagedAudio(told)
    return (told,)


def _mono(samples: np.ndarray) -> tuple[np.ndarray, str | None]:
    """The mean of the channels; where they cancel each other the loudest one, and a flag."""
    mono: np.ndarray = samples.mean(axis=1)
    channels = samples.shape[1]
    if channels == 1 or not len(mono):
        return mono, None
    energies = np.square(samples, dtype=np.float64).mean(axis=0)
    if np.square(mono, dtype=np.float64).mean() >= CANCELLED / channels * energies.mean():
        return mono, None
    loudest = int(energies.argmax())
    return samples[:, loudest], f"channels cancel, channel {loudest + 1} of {channels} used"


def _finished(samples: np.ndarray, flags: tuple[str, ...]) -> Decoded:
    """The samples at a scale of one, and what there is to say about them."""
    if not len(samples):
        raise DamagedAudio("the file holds no samples")
    peak = float(np.abs(samples).max())
    if peak > INTEGER:
        # Resampling may exceed the range a little.
        bits = next((bits for bits in INTEGER_BITS if peak <= 1.1 * 2.0**bits), INTEGER_BITS[-1])
        scale = 2.0**bits
        samples = samples / np.float32(scale)
        flags += (f"float samples at integer scale, divided by {scale:.0f}",)
    elif peak > LOUD:
        flags += (f"samples as large as {peak:.3g}, beyond [-1, 1]",)
    elif samples.min() == samples.max():
        flags += ("silent",)
    return Decoded(np.ascontiguousarray(samples, dtype=np.float32), flags)
