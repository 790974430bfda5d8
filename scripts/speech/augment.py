"""Waveform and feature augmentation of whole batches, drawn anew at every step.

One forward and one inverse FFT a batch carry equalization, reverberation and coloured noise
together; resampling shifts pitch and tempo. SpecAugment: Park et al. 2019 (arXiv:1904.08779).
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

SAMPLE_RATE = 16_000


def augment_waveforms(
    waves: torch.Tensor, lengths: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Resample, equalize, reverberate and add noise to `waves` [batch, samples].

    Four clips in ten stay clean of noise. Returns the new waves and their lengths.
    """
    waves, lengths = _resample(waves, lengths, generator)
    batch, samples = waves.shape
    size = 1 << (samples + SAMPLE_RATE // 4 - 1).bit_length()
    size = min(size, -(-(samples + SAMPLE_RATE // 4) // 8192) * 8192)
    spectrum = torch.fft.rfft(waves, n=size)
    spectrum = spectrum * _equalizer(batch, size, generator)
    spectrum = _reverberate(spectrum, size, generator)
    clean = torch.fft.irfft(spectrum, n=size)[:, :samples]
    inside = torch.arange(samples)[None] < lengths[:, None]
    clean = clean * inside
    noisy = clean + _noise(clean, lengths, size, generator) * inside
    gain = _uniform(batch, 0.05, 0.9, generator) / noisy.abs().amax(1).clamp(min=1e-4)
    return noisy * gain[:, None], lengths


def mask_frames(
    frames: torch.Tensor, lengths: torch.Tensor, spans: int, width: int, generator: torch.Generator
) -> torch.Tensor:
    """Zero `spans` random time spans of up to `width` frames; `frames` [batch, time, channels]."""
    return frames * _span_mask(frames.shape[1], lengths, spans, width, generator)[:, :, None]


def mask_spectrogram(
    features: torch.Tensor, lengths: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """SpecAugment on log-mel `features` [batch, mels, time]: two time and two mel masks."""
    time = _span_mask(features.shape[2], lengths, 2, 12, generator)
    bins = torch.full_like(lengths, features.shape[1])
    mels = _span_mask(features.shape[1], bins, 2, 8, generator)
    keep = mels[:, :, None] * time[:, None, :]
    floor = features.amin((1, 2), keepdim=True)
    return features * keep + floor * (1 - keep)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _resample(
    waves: torch.Tensor, lengths: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    factor = float(_uniform(1, 0.92, 1.08, generator))
    if torch.rand(1, generator=generator) < 0.4:
        return waves, lengths
    count = int(waves.shape[1] * factor)
    stretched = functional.interpolate(waves[:, None], size=count, mode="linear")[:, 0]
    return stretched, (lengths * factor).long().clamp(max=count)


def _curve(batch: int, bins: int, knots: int, generator: torch.Generator) -> torch.Tensor:
    """Smooth random curves [batch, bins] with standard normal knots."""
    points = torch.randn(batch, 1, knots, generator=generator)
    return functional.interpolate(points, size=bins, mode="linear", align_corners=True)[:, 0]


def _equalizer(batch: int, size: int, generator: torch.Generator) -> torch.Tensor:
    decibels = 3.0 * _curve(batch, size // 2 + 1, 10, generator)
    active = (torch.rand(batch, 1, generator=generator) < 0.5).float()
    return torch.pow(10.0, active * decibels / 20)


def _reverberate(spectrum: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Convolve a fifth of the clips with synthetic rooms of RT60 0.1 to 0.4 s."""
    chosen = torch.nonzero(torch.rand(len(spectrum), generator=generator) < 0.2)[:, 0]
    if not len(chosen):
        return spectrum
    time = torch.arange(SAMPLE_RATE // 4) / SAMPLE_RATE
    decay = torch.exp(-6.908 * time / _uniform(len(chosen), 0.1, 0.4, generator)[:, None])
    tail = torch.randn(decay.shape, generator=generator) * decay
    tail[:, :32] = 0
    ratio = torch.pow(10.0, -_uniform(len(chosen), 2, 12, generator) / 20)
    tail = tail * (ratio / tail.norm(dim=1))[:, None]
    tail[:, 0] = 1
    spectrum = spectrum.clone()
    spectrum[chosen] = spectrum[chosen] * torch.fft.rfft(tail, n=size)
    return spectrum


def _noise(
    waves: torch.Tensor, lengths: torch.Tensor, size: int, generator: torch.Generator
) -> torch.Tensor:
    """Noise of random colour at 5 to 30 dB for six clips in ten, [batch, samples]."""
    batch, samples = waves.shape
    bins = size // 2 + 1
    exponent = _uniform(batch, -1.2, 2.2, generator)[:, None]
    frequency = torch.arange(bins).clamp(min=8).float()
    shape = torch.pow(frequency, -exponent / 2)
    shape = shape * torch.pow(10.0, 3.0 * _curve(batch, bins, 8, generator) / 20)
    phase = torch.rand(batch, bins, generator=generator) * (2 * math.pi)
    noise = torch.fft.irfft(torch.polar(shape, phase), n=size)[:, :samples]
    power = waves.square().sum(1) / lengths
    snr_db = _uniform(batch, 5, 30, generator)
    level = torch.sqrt(power / 10 ** (snr_db / 10)) / noise.std(1).clamp(min=1e-9)
    level = level * (torch.rand(batch, generator=generator) < 0.6)
    return noise * level[:, None]


def _span_mask(
    size: int, lengths: torch.Tensor, spans: int, width: int, generator: torch.Generator
) -> torch.Tensor:
    """[batch, size] of ones with `spans` random runs of zeros, each inside the valid length."""
    positions = torch.arange(size)[None]
    keep = torch.ones(len(lengths), size)
    for _ in range(spans):
        span = (torch.rand(len(lengths), generator=generator) * (width + 1)).long()
        start = (
            torch.rand(len(lengths), generator=generator) * (lengths - span).clamp(min=1)
        ).long()
        keep = keep * ~((positions >= start[:, None]) & (positions < (start + span)[:, None]))
    return keep
