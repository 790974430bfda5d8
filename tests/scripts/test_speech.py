"""How the embedded corpus and models are made: text, voices, noise, and the training passes."""

from __future__ import annotations

from collections import Counter

import make_speech_corpus as corpus
import numpy as np
import pytest
import torch
from scipy.signal import welch
from train_micro import Schedule

from speech import acoustics
from speech.augment import augment_waveforms, mask_frames
from speech.micro import CharacterHead, MoonshineMicro, WhisperMicro
from speech.text import DIGITS, KINDS, LETTERS, TextSource, read_words
from speech.voices import ESPEAK_TEST_VARIANTS, ESPEAK_TRAINING_VARIANTS

TEXTS = ["the purple table walked", "b seven x zero nine", "turn off every valley"] * 50


def test_the_vocabulary_is_large_and_holds_no_name_of_a_symbol() -> None:
    words = [word for section in read_words().values() for word in section]
    assert len(words) >= 1_000
    assert not set(words) & {*LETTERS, *DIGITS}
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)


def test_text_is_reproducible_and_its_kinds_come_in_comparable_shares() -> None:
    source = TextSource()
    draws = [source.draw(np.random.default_rng(index)) for index in range(900)]
    assert draws == [source.draw(np.random.default_rng(index)) for index in range(900)]
    shares = Counter(kind for kind, _ in draws)
    assert set(shares) == set(KINDS)
    assert min(shares.values()) > 240
    assert len({text for _, text in draws}) > 890


def test_test_sentences_and_voices_never_occur_in_training() -> None:
    tests = corpus.test_draws(seed=2026)
    sentences = frozenset(draw.text for draw in tests)
    training = corpus.training_draws(2026, 0, sentences)
    assert not sentences & {draw.text for draw in training}
    assert not {draw.speaker.name for draw in tests} & {draw.speaker.name for draw in training}
    assert not set(ESPEAK_TEST_VARIANTS) & set(ESPEAK_TRAINING_VARIANTS)
    per_voice = Counter(draw.speaker.name for draw in tests)
    assert max(per_voice.values()) - min(per_voice.values()) <= 1


@pytest.mark.parametrize("colour", sorted(acoustics.NOISE_EXPONENTS))
def test_noise_has_its_colour(colour: str) -> None:
    exponent = acoustics.NOISE_EXPONENTS[colour]
    noise = acoustics.coloured_noise(1 << 17, exponent, np.random.default_rng(0))
    frequency, power = welch(noise, nperseg=2048)
    middle = slice(20, 900)
    slope = np.polyfit(np.log(frequency[middle]), np.log(power[middle]), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.1)


def test_noise_is_added_at_the_asked_ratio() -> None:
    rng = np.random.default_rng(1)
    clean = np.sin(np.arange(32_000) / 7).astype(np.float32)
    noise = acoustics.coloured_noise(len(clean), 0.0, rng)
    added = acoustics.add_noise(clean, noise, 10.0) - clean
    assert 10 * np.log10(np.mean(clean**2) / np.mean(added**2)) == pytest.approx(10.0, abs=0.1)


def test_augmentation_keeps_padding_silent_and_every_clip_audible() -> None:
    generator = torch.Generator().manual_seed(3)
    waves = torch.randn(6, 20_000, generator=generator)
    lengths = torch.tensor([20_000, 18_000, 15_000, 12_000, 9_000, 5_000])
    waves *= torch.arange(20_000)[None] < lengths[:, None]
    out, out_lengths = augment_waveforms(waves, lengths, generator)
    assert torch.isfinite(out).all()
    assert (out_lengths <= out.shape[1]).all()
    for row, length in zip(out, out_lengths, strict=True):
        assert row[:length].abs().max() > 0.04
        assert not row[length:].any()


def test_masked_frames_are_zero_and_few() -> None:
    frames = torch.ones(8, 100, 4)
    masked = mask_frames(frames, torch.full((8,), 80), 2, 6, torch.Generator().manual_seed(0))
    zeros = (masked[:, :, 0] == 0).sum(1)
    assert int(zeros.sum()) > 0
    assert int(zeros.max()) <= 12


def test_whisper_training_pass_equals_the_librarys() -> None:
    """Features and encoder on the full window, decoder logits on given states."""
    torch.manual_seed(0)
    micro = WhisperMicro(TEXTS)
    micro.model.eval()
    waves = 0.1 * torch.randn(2, 40_000)
    lengths = torch.tensor([40_000, 40_000])
    inputs, frames = micro.prepare(waves, lengths, full_window=True)
    expected = micro.features(list(waves.numpy()), sampling_rate=16_000, return_tensors="pt")
    torch.testing.assert_close(inputs, expected.input_features, atol=2e-4, rtol=0)
    assert frames.tolist() == [125, 125]
    tokens = torch.tensor([[*micro.start_tokens, *micro.token_ids("b seven")]] * 2)
    with torch.no_grad():
        states = micro.encode(inputs, frames, None)
        ours = micro.decode(states, frames, tokens)
        theirs = micro.model(input_features=inputs, decoder_input_ids=tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_moonshine_training_pass_equals_the_librarys() -> None:
    torch.manual_seed(0)
    micro = MoonshineMicro(TEXTS)
    micro.model.eval()
    waves = 0.1 * torch.randn(2, 30_000)
    lengths = torch.tensor([30_000, 30_000])
    inputs, frames = micro.prepare(waves, lengths, full_window=False)
    tokens = torch.tensor([[*micro.start_tokens, *micro.token_ids("b seven")]] * 2)
    with torch.no_grad():
        ours = micro.decode(micro.encode(inputs, frames, None), frames, tokens)
        theirs = micro.model(input_values=inputs, decoder_input_ids=tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_character_head_learns_a_sentence() -> None:
    torch.manual_seed(0)
    head = CharacterHead(8)
    states = torch.randn(1, 40, 8)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        loss = head.loss(states, torch.tensor([40]), ["b seven"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_the_learning_rate_rises_then_falls() -> None:
    schedule = Schedule(steps=1_000, warmup_steps=100)
    rates = [schedule.rate(step) for step in range(1_000)]
    assert max(rates) == pytest.approx(schedule.learning_rate)
    assert rates.index(max(rates)) in (99, 100)
    assert rates[-1] == pytest.approx(0.01 * schedule.learning_rate, rel=0.05)
