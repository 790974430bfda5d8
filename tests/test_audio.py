"""Decoding: formats, channels, rates and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from edge_asr.audio import DamagedAudio, decode

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "opus": ("OGG", "OPUS"),
    "ogg": ("OGG", "VORBIS"),
}


def chirp(rate: int, seconds: float = 1.0) -> np.ndarray:
    time = np.arange(round(rate * seconds)) / rate
    return 0.4 * np.sin(2 * np.pi * (200 * time + 600 * time**2)) * np.hanning(len(time))


def write(folder: Path, samples: np.ndarray, rate: int, extension: str = "wav") -> Path:
    path = folder / f"clip.{extension}"
    container, subtype = FORMATS[extension]
    soundfile.write(path, samples, rate, format=container, subtype=subtype)
    return path


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_lossless_formats_are_exact_at_16_khz(tmp_path: Path, extension: str) -> None:
    samples = chirp(16_000)
    decoded = decode(write(tmp_path, samples, 16_000, extension)).samples
    assert decoded.dtype == np.float32
    assert decoded.shape == samples.shape
    assert np.abs(decoded - samples).max() <= 1 / 32_768


@pytest.mark.parametrize("extension", ["mp3", "opus", "ogg"])
def test_lossy_formats_keep_the_signal_in_place(tmp_path: Path, extension: str) -> None:
    samples = chirp(16_000)
    decoded = decode(write(tmp_path, samples, 16_000, extension)).samples
    assert len(decoded) == pytest.approx(len(samples), abs=1600)
    length = min(len(decoded), len(samples))
    assert np.corrcoef(decoded[:length], samples[:length])[0, 1] > 0.99


@pytest.mark.parametrize(("rate", "up", "down"), [(8_000, 2, 1), (44_100, 160, 441)])
def test_resampling_agrees_with_scipy(tmp_path: Path, rate: int, up: int, down: int) -> None:
    samples = chirp(rate)
    decoded = decode(write(tmp_path, samples, rate)).samples
    expected = resample_poly(samples, up, down)
    assert len(decoded) == len(expected) == 16_000
    assert np.abs(decoded - expected).max() < 2e-3


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = chirp(16_000), -0.25 * chirp(16_000)
    decoded = decode(write(tmp_path, np.stack([left, right], axis=1), 16_000)).samples
    assert np.abs(decoded - (left + right) / 2).max() <= 1 / 32_768


def test_bytes_and_path_agree(tmp_path: Path) -> None:
    path = write(tmp_path, chirp(22_050), 22_050, "flac")
    np.testing.assert_array_equal(decode(path.read_bytes()).samples, decode(str(path)).samples)


def test_one_sample_is_a_clip(tmp_path: Path) -> None:
    assert decode(write(tmp_path, np.full(1, 0.5), 16_000)).samples.shape == (1,)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty"), (b"<html>404</html>" * 50, "not readable as audio")]
)
def test_bytes_that_are_no_audio(content: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedAudio, match=reason):
        decode(content)
    path = tmp_path / "clip.flac"
    path.write_bytes(content)
    with pytest.raises(DamagedAudio):
        decode(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DamagedAudio, match="does not exist"):
        decode(tmp_path / "nowhere.wav")
    with pytest.raises(DamagedAudio, match="no regular file"):
        decode(tmp_path)


def test_no_samples(tmp_path: Path) -> None:
    with pytest.raises(DamagedAudio, match="no samples"):
        decode(write(tmp_path, np.zeros(0), 16_000))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    samples = chirp(16_000)
    samples[100] = value
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    with pytest.raises(DamagedAudio, match="not finite"):
        decode(path)


@pytest.mark.parametrize("extension", ["flac", "mp3"])
def test_half_a_file_is_damaged(tmp_path: Path, extension: str) -> None:
    content = write(tmp_path, chirp(16_000, 4.0), 16_000, extension).read_bytes()
    with pytest.raises(DamagedAudio) as damage:
        decode(content[: len(content) // 2])
    assert damage.value.reason == str(damage.value) != ""
