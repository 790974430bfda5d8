"""Calibration batches: encoder inputs, teacher-forced decoder tokens, and what padding counts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edge_asr.calibration import packing
from edge_asr.calibration.texts import clean_text, is_too_long
from edge_asr.data.corpus import Corpus, DamagedClip, IndexedCorpus, Utterance
from edge_asr.errors import UserError
from edge_asr.models.families.base import end_tokens
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.base import Runtime
from edge_asr.runtimes.torch_greedy import TorchRuntime, clip_to_window

# Where a token begins a word: sentencepiece's and byte-level BPE's mark.
WORD_MARKS = ("\N{LOWER ONE EIGHTH BLOCK}", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}")

# Padded frames of which one is looked at, since neighbours there nearly repeat each other.
PADDING_STRIDE = 8


@dataclass(frozen=True, eq=False)
class CalibrationBatch:
    """One batch of calibration clips, on the CPU.

    Attributes:
        encoder_inputs: The encoder's keyword inputs.
        frame_weights: What every encoder frame counts, float32 [batch, frames]: see
            `frame_weights`. `frames` is the length of the encoder's output for this batch.
        decoder_input_ids: int64 [batch, tokens], prompt and transcript.
        token_mask: bool [batch, tokens], true for tokens that are no padding. Padding follows
            the tokens, so causal attention keeps it from them.
    """

    encoder_inputs: dict[str, torch.Tensor]
    frame_weights: torch.Tensor
    decoder_input_ids: torch.Tensor
    token_mask: torch.Tensor

    def __post_init__(self) -> None:
        if self.decoder_input_ids.shape != self.token_mask.shape:
            raise ValueError("decoder_input_ids and token_mask must have the same shape")
        if not self.frame_weights.any(dim=1).all() or not self.token_mask.any(dim=1).all():
            raise ValueError("every clip of a batch needs a frame and a token that count")

    def __len__(self) -> int:
        return len(self.frame_weights)


@dataclass(frozen=True)
class DrawnClip:
    """A clip that calibration uses: its number in the corpus and its utterance."""

    index: int
    utterance: Utterance


def draw_clips(
    corpus: Corpus, clips: int, seed: int, on_warning: Callable[[str], None] = warnings.warn
) -> list[DrawnClip]:
    """Draw clips without replacement, longest first. The same arguments give the same clips.

    Args:
        corpus: Where the clips come from. One that cannot be indexed is decoded as a whole.
        clips: How many clips to draw; fewer are taken when the corpus is smaller.
        seed: Seed of the draw.
        on_warning: Called with one sentence for every clip left out.

    Raises:
        UserError: for a count below 1, or when no clip is usable.
    """
    if clips < 1:
        raise UserError(f"calibration.clips={clips} must be at least 1")
    drawn: list[DrawnClip] = []
    for index, item in _shuffled(corpus, seed):
        if isinstance(item, DamagedClip):
            on_warning(f"calibration clip {item.source!r} left out: {item.reason}")
            continue
        drawn.append(DrawnClip(index, item))
        if len(drawn) == clips:
            break
    if not drawn:
        raise UserError(
            f"calibration corpus {corpus.name!r} has no usable clip among {len(corpus)}; "
            "choose another corpus or repair its audio"
        )
    if len(drawn) < clips:
        on_warning(f"calibration corpus {corpus.name!r} gave {len(drawn)} clips, not {clips}")
    return sorted(drawn, key=lambda clip: -len(clip.utterance.samples))


def decoder_tokens(
    checkpoint: Checkpoint,
    runtime: Runtime,
    drawn: Sequence[DrawnClip],
    batch_size: int,
    on_warning: Callable[[str], None] = warnings.warn,
) -> list[list[int]]:
    """What the decoder is teacher-forced on, clip by clip: prompt and transcript, no longer than
    the decoder has positions.

    That is the clip's reference without tags and markers, or the float model's own greedy
    hypothesis where nothing is left of it, where nobody can have said so much in the clip's time,
    or where the clip is longer than the model's window, which hears only a part of that text.
    """
    prompt = list(checkpoint.architecture.prompt(checkpoint.model))
    room = checkpoint.architecture.decoder_room(checkpoint.model.config)
    tokens: list[list[int]] = []
    for start in range(0, len(drawn), batch_size):
        batch = [clip.utterance for clip in drawn[start : start + batch_size]]
        tokens += [prompt + body for body in _texts_tokens(checkpoint, runtime, batch)]
    cut = [clip.utterance.source for clip in drawn if _is_cut(runtime, clip.utterance)]
    if cut:
        on_warning(
            f"{len(cut)} calibration clips, {cut[0]!r} the first, cut to the model's window; what "
            "the model hears there stands for their texts"
        )
    wordy = [clip.utterance.source for clip in drawn if _is_wordy(clip.utterance)]
    if wordy:
        on_warning(
            f"texts of {len(wordy)} calibration clips, {wordy[0]!r} the first, left out: nobody "
            "can say so much in their time; what the model hears there stands for them"
        )
    sources = [clip.utterance.source for clip in drawn]
    long = [one for one, row in zip(sources, tokens, strict=True) if len(row) > room]
    if long:
        on_warning(
            f"texts of {len(long)} calibration clips, {long[0]!r} the first, cut to the decoder's "
            f"{room} tokens"
        )
    return [row[:room] for row in tokens]


def batches_of(
    checkpoint: Checkpoint,
    drawn: Sequence[DrawnClip],
    tokens: Sequence[Sequence[int]],
    batch_size: int,
    *,
    padding_weight: float,
    pack: bool,
) -> list[CalibrationBatch]:
    """The calibration batches of some clips and their decoder tokens.

    Args:
        checkpoint: The model.
        drawn: The clips.
        tokens: What the decoder is forced on, clip by clip: prompt and transcript.
        batch_size: Clips a batch, or windows of packed ones.
        padding_weight: Of a padded frame where the model hears it; see `frame_weights`.
        pack: Join clips where it does; see `packing`.

    Raises UserError for a batch size below 1.
    """
    if batch_size < 1:
        raise UserError(f"calibration.batch_size={batch_size} must be at least 1")
    waves = [clip_to_window(checkpoint, clip.utterance.samples) for clip in drawn]
    if pack and checkpoint.architecture.hears_padding:
        waves, tokens = _packed(checkpoint, waves, tokens)
    weight = padding_weight if checkpoint.architecture.hears_padding else 0.0
    return [
        _batch(
            checkpoint,
            waves[start : start + batch_size],
            tokens[start : start + batch_size],
            weight,
        )
        for start in range(0, len(waves), batch_size)
    ]


def calibration_batches(
    checkpoint: Checkpoint,
    corpus: Corpus,
    clips: int,
    batch_size: int,
    seed: int,
    on_warning: Callable[[str], None] = warnings.warn,
    *,
    padding_weight: float = 0.0,
    pack: bool = False,
) -> list[CalibrationBatch]:
    """Draw clips and batch them by length, longest first; see `draw_clips`, `decoder_tokens` and
    `batches_of`."""
    drawn = draw_clips(corpus, clips, seed, on_warning)
    tokens = decoder_tokens(
        checkpoint, TorchRuntime(checkpoint), drawn, max(batch_size, 1), on_warning
    )
    return batches_of(
        checkpoint, drawn, tokens, batch_size, padding_weight=padding_weight, pack=pack
    )


def frame_weights(
    valid: torch.Tensor, frames: int, padding_weight: float, stride: int = PADDING_STRIDE
) -> torch.Tensor:
    """What every encoder frame of a batch counts, float32 [batch, frames].

    A frame that holds audio counts 1. Of `stride` neighbouring frames the last stands for all of
    them that are padding, each of which counts `padding_weight`. The neighbours are the same in all
    clips, so that few positions of a batch are looked at beyond its longest clip.

    Args:
        valid: Frames of every clip that hold audio, int [batch].
        frames: How many there are.
        padding_weight: Zero leaves padding out.
        stride: At 1, every padded frame counts by itself.
    """
    position = torch.arange(frames)
    padded = (position >= valid[:, None]).float()
    last = torch.clamp(position // stride * stride + stride - 1, max=frames - 1)
    gathered = torch.zeros_like(padded).index_add_(1, last, padded)
    return (1 - padded) + gathered * padding_weight


def text_tokens(tokenizer: Any, text: str) -> list[int]:
    """The tokens a model writes for `text`, without prompt and end token.

    Transcripts begin with a word-initial token. Whisper's byte-level BPE makes one only when the
    text starts with a space; Moonshine's published tokenizer prepends the space itself and would
    spend a token on a second one. Which of the two this is, the first token of the bare text
    tells.

    A text in capitals only (LibriSpeech) is lower-cased: neither family ever writes so, and
    spelling it out in rare tokens would calibrate the decoder on what it never sees.
    """
    text = text.strip()
    if text.isupper():
        text = text.lower()
    bare: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not bare or tokenizer.convert_ids_to_tokens(bare[0]).startswith(WORD_MARKS):
        return bare
    spaced: list[int] = tokenizer(" " + text, add_special_tokens=False)["input_ids"]
    return spaced


def _shuffled(corpus: Corpus, seed: int) -> Iterator[tuple[int, Utterance | DamagedClip]]:
    order = np.random.default_rng(seed).permutation(len(corpus))
    items: Any = corpus if isinstance(corpus, IndexedCorpus) else list(corpus)
    for index in order:
        yield int(index), items[int(index)]


def _packed(
    checkpoint: Checkpoint, waves: Sequence[np.ndarray], tokens: Sequence[Sequence[int]]
) -> tuple[list[np.ndarray], list[Sequence[int]]]:
    """Windows of joined clips, longest first, and the prompt and joined transcripts of each."""
    architecture, config = checkpoint.architecture, checkpoint.model.config
    prompt = list(architecture.prompt(checkpoint.model))
    bodies = [list(row[len(prompt) :]) for row in tokens]
    window = architecture.window_samples(config, checkpoint.feature_extractor)
    assert window is not None, "a model that hears padding has a window"
    lengths = [len(wave) for wave in waves]
    room = architecture.decoder_room(config) - len(prompt)
    windows = packing.pack(lengths, [len(body) for body in bodies], window, room)
    windows.sort(key=lambda clips: -packing.joined_length([lengths[clip] for clip in clips]))
    # A transcript begins with a word-initial token: one behind the other is as joined by spaces.
    return (
        [packing.joined([waves[clip] for clip in clips]) for clips in windows],
        [prompt + [token for clip in clips for token in bodies[clip]] for clips in windows],
    )


def _batch(
    checkpoint: Checkpoint,
    waves: Sequence[np.ndarray],
    tokens: Sequence[Sequence[int]],
    padding_weight: float,
) -> CalibrationBatch:
    architecture, config = checkpoint.architecture, checkpoint.model.config
    frames = architecture.positions(config, max(len(wave) for wave in waves))["frame"]
    valid = torch.tensor([architecture.valid_frames(config, len(wave)) for wave in waves])
    padding = min(end_tokens(checkpoint.model))
    lengths = torch.tensor([len(row) for row in tokens])
    ids = torch.full((len(tokens), int(lengths.max())), padding)
    for index, row in enumerate(tokens):
        ids[index, : len(row)] = torch.tensor(row)
    return CalibrationBatch(
        encoder_inputs=architecture.model_inputs(checkpoint.feature_extractor, waves),
        frame_weights=frame_weights(valid, frames, padding_weight),
        decoder_input_ids=ids,
        token_mask=torch.arange(ids.shape[1])[None] < lengths[:, None],
    )


def _is_cut(runtime: Runtime, utterance: Utterance) -> bool:
    return len(runtime.window(utterance.samples)) < len(utterance.samples)


def _is_wordy(utterance: Utterance) -> bool:
    return is_too_long(clean_text(utterance.text), utterance.seconds)


def _texts_tokens(
    checkpoint: Checkpoint, runtime: Runtime, utterances: Sequence[Utterance]
) -> list[list[int]]:
    """Tokens of every clip's text, or of what the model hears in it."""
    texts = [clean_text(one.text) for one in utterances]
    heard = [
        not text or _is_wordy(one) or _is_cut(runtime, one)
        for one, text in zip(utterances, texts, strict=True)
    ]
    waves = [runtime.window(one.samples) for one, own in zip(utterances, heard, strict=True) if own]
    limits = [runtime.token_limit(len(wave)) for wave in waves]
    hypotheses = iter(runtime.transcribe(waves, limits) if waves else ())
    return [
        list(next(hypotheses).tokens) if own else text_tokens(checkpoint.tokenizer, text)
        for text, own in zip(texts, heard, strict=True)
    ]
