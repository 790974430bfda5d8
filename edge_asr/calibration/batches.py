"""Calibration batches: encoder inputs, teacher-forced decoder tokens, and what is padding."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edge_asr.data.corpus import Corpus, DamagedClip, IndexedCorpus, Utterance
from edge_asr.errors import UserError
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.greedy import clip_to_window, end_tokens, greedy, token_limit

# Where a token begins a word: sentencepiece's and byte-level BPE's mark.
WORD_MARKS = ("\N{LOWER ONE EIGHTH BLOCK}", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}")


@dataclass(frozen=True, eq=False)
class CalibrationBatch:
    """One batch of calibration clips, on the CPU.

    Attributes:
        encoder_inputs: The encoder's keyword inputs.
        frame_mask: bool [batch, frames], true where an encoder frame holds audio. `frames` is
            the length of the encoder's output for this batch.
        decoder_input_ids: int64 [batch, tokens], prompt and transcript.
        token_mask: bool [batch, tokens], true for tokens that are no padding. Padding follows
            the tokens, so causal attention keeps it from them.
    """

    encoder_inputs: dict[str, torch.Tensor]
    frame_mask: torch.Tensor
    decoder_input_ids: torch.Tensor
    token_mask: torch.Tensor

    def __post_init__(self) -> None:
        if self.decoder_input_ids.shape != self.token_mask.shape:
            raise ValueError("decoder_input_ids and token_mask must have the same shape")
        if not self.frame_mask.any(dim=1).all() or not self.token_mask.any(dim=1).all():
            raise ValueError("every clip of a batch needs a valid frame and a valid token")

    def __len__(self) -> int:
        return len(self.frame_mask)


def calibration_batches(
    checkpoint: Checkpoint,
    corpus: Corpus,
    clips: int,
    batch_size: int,
    seed: int,
    on_warning: Callable[[str], None] = warnings.warn,
) -> list[CalibrationBatch]:
    """Draw clips without replacement and batch them by length, longest first.

    A clip longer than the model's window is cut to it. The decoder is teacher-forced on the
    clip's reference, or on the float model's own greedy hypothesis where there is none. The same
    arguments give the same batches.

    Args:
        checkpoint: The float model; call this before it is quantized.
        corpus: Where the clips come from. One that cannot be indexed is decoded as a whole.
        clips: How many clips to draw; fewer are taken when the corpus is smaller.
        batch_size: Clips in a batch; the last may be smaller.
        seed: Seed of the draw.
        on_warning: Called with one sentence for every clip left out or cut.

    Raises:
        UserError: for counts below 1, or when no clip is usable.
    """
    for field, value in (("clips", clips), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"calibration.{field}={value} must be at least 1")
    chosen = _usable(corpus, clips, seed, on_warning)
    if not chosen:
        raise UserError(
            f"calibration corpus {corpus.name!r} has no usable clip among {len(corpus)}; "
            "choose another corpus or repair its audio"
        )
    if len(chosen) < clips:
        on_warning(f"calibration corpus {corpus.name!r} gave {len(chosen)} clips, not {clips}")
    chosen.sort(key=lambda utterance: -len(utterance.samples))
    return [
        _batch(checkpoint, chosen[start : start + batch_size], on_warning)
        for start in range(0, len(chosen), batch_size)
    ]


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


def _usable(
    corpus: Corpus, clips: int, seed: int, on_warning: Callable[[str], None]
) -> list[Utterance]:
    chosen: list[Utterance] = []
    for item in _shuffled(corpus, seed):
        if isinstance(item, DamagedClip):
            on_warning(f"calibration clip {item.source!r} left out: {item.reason}")
            continue
        chosen.append(item)
        if len(chosen) == clips:
            break
    return chosen


def _shuffled(corpus: Corpus, seed: int) -> Iterator[Utterance | DamagedClip]:
    order = np.random.default_rng(seed).permutation(len(corpus))
    items: Any = corpus if isinstance(corpus, IndexedCorpus) else list(corpus)
    for index in order:
        yield items[int(index)]


def _batch(
    checkpoint: Checkpoint, utterances: Sequence[Utterance], on_warning: Callable[[str], None]
) -> CalibrationBatch:
    architecture, config = checkpoint.architecture, checkpoint.model.config
    waves = [clip_to_window(checkpoint, utterance.samples) for utterance in utterances]
    for utterance, wave in zip(utterances, waves, strict=True):
        if len(wave) < len(utterance.samples):
            on_warning(f"calibration clip {utterance.source!r} cut to the model's window")
    frames = architecture.positions(config, max(len(wave) for wave in waves))["frame"]
    valid = torch.tensor([architecture.valid_frames(config, len(wave)) for wave in waves])
    tokens = _decoder_tokens(checkpoint, utterances, waves)
    padding = min(end_tokens(checkpoint.model))
    lengths = torch.tensor([len(row) for row in tokens])
    ids = torch.full((len(tokens), int(lengths.max())), padding)
    for index, row in enumerate(tokens):
        ids[index, : len(row)] = torch.tensor(row)
    return CalibrationBatch(
        encoder_inputs=architecture.model_inputs(checkpoint.feature_extractor, waves),
        frame_mask=torch.arange(frames)[None] < valid[:, None],
        decoder_input_ids=ids,
        token_mask=torch.arange(ids.shape[1])[None] < lengths[:, None],
    )


def _decoder_tokens(
    checkpoint: Checkpoint, utterances: Sequence[Utterance], waves: Sequence[np.ndarray]
) -> list[list[int]]:
    """Prompt and transcript of every clip, no longer than the decoder has positions."""
    prompt = list(checkpoint.architecture.prompt(checkpoint.model))
    room = checkpoint.architecture.decoder_room(checkpoint.model.config)
    bodies = [
        text_tokens(checkpoint.tokenizer, utterance.text) if utterance.text.strip() else None
        for utterance in utterances
    ]
    silent = [index for index, body in enumerate(bodies) if body is None]
    if silent:
        unheard = [waves[index] for index in silent]
        limits = [token_limit(checkpoint, len(wave)) for wave in unheard]
        for index, own in zip(silent, greedy(checkpoint, unheard, limits), strict=True):
            bodies[index] = list(own.tokens)
    return [(prompt + (body or []))[:room] for body in bodies]
