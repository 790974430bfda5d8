"""Rooms, noises and gains: what stands between a clean synthesizer and a microphone."""

from __future__ import annotations

import numpy as np
from scipy.signal import fftconvolve

SAMPLE_RATE = 16_000
# Power falls with frequency as f^-exponent: white, pink, brown, and rising (blue) noise.
NOISE_EXPONENTS = {"white": 0.0, "pink": 1.0, "brown": 2.0, "blue": -1.0}


def coloured_noise(count: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise [count] whose power spectrum falls as f^-exponent, unit variance."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequency = np.fft.rfftfreq(count)
    frequency[0] = frequency[1] if count > 1 else 1.0
    noise = np.fft.irfft(spectrum * frequency ** (-exponent / 2), n=count)
    return (noise / max(noise.std(), 1e-9)).astype(np.float32)


def add_noise(samples: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """`samples` plus `noise` (unit variance) at the given signal-to-noise ratio in dB."""
    level = np.sqrt(np.mean(samples**2) / 10 ** (snr_db / 10))
    return (samples + level * noise[: len(samples)]).astype(np.float32)


def room_response(reverberation_s: float, rng: np.random.Generator) -> np.ndarray:
    """A synthetic room impulse response: a direct path and exponentially decaying noise.

    `reverberation_s` is RT60, the time in seconds in which the tail falls by 60 dB.
    """
    count = int(reverberation_s * SAMPLE_RATE)
    time = np.arange(count) / SAMPLE_RATE
    tail = rng.standard_normal(count) * np.exp(-6.908 * time / reverberation_s)
    tail[: int(0.002 * SAMPLE_RATE)] = 0.0
    direct_to_reverberant_db = rng.uniform(2, 12)
    tail *= np.sqrt(10 ** (-direct_to_reverberant_db / 10) / max(np.sum(tail**2), 1e-9))
    tail[0] = 1.0
    return tail.astype(np.float32)


def reverberate(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """`samples` heard through `response`, cut to the original length."""
    return fftconvolve(samples, response)[: len(samples)].astype(np.float32)


def normalise(samples: np.ndarray, peak: float) -> np.ndarray:
    """`samples` scaled so that the largest magnitude is `peak`."""
    return (samples * (peak / max(np.abs(samples).max(initial=0.0), 1e-6))).astype(np.float32)
