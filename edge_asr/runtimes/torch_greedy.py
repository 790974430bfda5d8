"""The torch runtime: greedy decoding of a batch of clips, the same for every family."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from edge_asr.errors import UserError
from edge_asr.models.families.base import end_tokens
from edge_asr.models.families.generation import KEPT
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.base import Runtime, Transcript, runtimes

INNER_WARNINGS = ("Passing `generation_config` together", "Both `max_new_tokens` (=")


@runtimes.register("torch")
class TorchRuntime(Runtime):
    """A float or simulated quantized model in PyTorch, on any device."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def window(self, samples: np.ndarray) -> np.ndarray:
        return clip_to_window(self.checkpoint, samples)

    def token_limit(self, samples: int, max_new_tokens: int | None = None) -> int:
        return token_limit(self.checkpoint, samples, max_new_tokens)

    def transcribe(self, clips: Sequence[np.ndarray], limits: Sequence[int]) -> list[Transcript]:
        """Raises UserError when the library starts the decoder on other tokens than the prompt."""
        return greedy(self.checkpoint, clips, limits)


def clip_to_window(checkpoint: Checkpoint, samples: np.ndarray) -> np.ndarray:
    """The part of a clip, shape [samples], that the model can hear at once."""
    window = checkpoint.architecture.window_samples(
        checkpoint.model.config, checkpoint.feature_extractor
    )
    return samples if window is None else samples[:window]


def token_limit(checkpoint: Checkpoint, samples: int, max_new_tokens: int | None = None) -> int:
    """Most tokens that a clip of `samples` samples may generate, the end token included."""
    limit = checkpoint.architecture.token_limit(
        checkpoint.model.config,
        len(checkpoint.architecture.prompt(checkpoint.model)),
        samples,
        checkpoint.tokens_per_second,
    )
    return limit if max_new_tokens is None else min(limit, max_new_tokens)


def greedy(
    checkpoint: Checkpoint, clips: Sequence[np.ndarray], limits: Sequence[int]
) -> list[Transcript]:
    """Decode clips greedily in one batch.

    The batch runs to its largest limit; every clip is then cut to its own.

    Args:
        checkpoint: The model, which may sit on any device.
        clips: float32 mono 16 kHz, each of shape [samples], none longer than the window.
        limits: Most tokens each clip may generate.

    Raises:
        UserError: when the library starts the decoder on other tokens than the family's prompt.
    """
    model: Any = checkpoint.model
    prompt = list(checkpoint.architecture.prompt(model))
    inputs = checkpoint.architecture.model_inputs(checkpoint.feature_extractor, clips)
    if "attention_mask" not in inputs:
        # A family that always hears its whole window; without a mask the library guesses, aloud.
        features = next(iter(inputs.values()))
        inputs["attention_mask"] = torch.ones(len(features), features.shape[-1], dtype=torch.long)
    with torch.inference_mode(), _own_settings(model), _without_inner_warnings():
        sequences = model.generate(
            **{name: _placed(value, model) for name, value in inputs.items()},
            **checkpoint.architecture.generation_options(model),
            do_sample=False,
            num_beams=1,
            max_new_tokens=max(limits),
        )
    rows: list[list[int]] = sequences.tolist()
    for row in rows:
        if row[: len(prompt)] != prompt:
            raise UserError(
                f"{checkpoint.files.reference!r}: the decoder was started on tokens "
                f"{row[: len(prompt)]} and not on the prompt {prompt}; "
                "restore the generation_config.json published with the checkpoint"
            )
    ends = end_tokens(model)
    cut = [_cut(row[len(prompt) :], limit, ends) for row, limit in zip(rows, limits, strict=True)]
    texts = checkpoint.tokenizer.batch_decode(
        [tokens for tokens, _ in cut], skip_special_tokens=True
    )
    return [
        Transcript(text.strip(), tuple(tokens), len(tokens) + ended, not ended)
        for (tokens, ended), text in zip(cut, texts, strict=True)
    ]


def _cut(tokens: list[int], limit: int, ends: frozenset[int]) -> tuple[list[int], bool]:
    """The tokens before the end token, and whether it came within the limit."""
    kept = tokens[:limit]
    end = next((index for index, token in enumerate(kept) if token in ends), None)
    return (kept, False) if end is None else (kept[:end], True)


def _placed(value: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    return value.to(model.device, model.dtype if value.is_floating_point() else None)


@contextmanager
def _own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Decode by the few settings of the checkpoint that greedy decoding needs.

    Its `max_length` would compete with the clips' limits, its `forced_decoder_ids`, long
    deprecated, repeat the prompt, which is asserted instead, and penalties and the like would not
    be greedy.
    """
    published: Any = model.generation_config
    own = GenerationConfig()
    for name in KEPT:
        if hasattr(published, name):
            setattr(own, name, copy.deepcopy(getattr(published, name)))
    model.generation_config = own
    try:
        yield
    finally:
        model.generation_config = published


@contextmanager
def _without_inner_warnings() -> Iterator[None]:
    """Drop two warnings that transformers' Whisper raises, every time, about its own inner call.

    It passes a filled-in generation config together with arguments, and no argument of the
    outer call can change that.
    """
    logger = logging.getLogger("transformers.generation.utils")

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(INNER_WARNINGS)

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
