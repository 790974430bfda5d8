"""Greedy decoding of a batch of clips, the same for every family."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from edge_asr.errors import UserError
from edge_asr.models.families.base import end_tokens as end_tokens
from edge_asr.models.loading import Checkpoint

INNER_WARNINGS = ("Passing `generation_config` together", "Both `max_new_tokens` (=")


@dataclass(frozen=True)
class Generated:
    """What the decoder wrote for one clip.

    Attributes:
        tokens: Token ids after the prompt, the end token excluded.
        steps: Tokens generated, the end token included.
        hit_limit: The limit came before an end token did.
    """

    tokens: tuple[int, ...]
    steps: int
    hit_limit: bool


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
) -> list[Generated]:
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
    with torch.inference_mode(), _own_limits(model), _without_inner_warnings():
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
                f"{checkpoint.reference!r}: the decoder was started on tokens "
                f"{row[: len(prompt)]} and not on the prompt {prompt}; "
                "restore the generation_config.json published with the checkpoint"
            )
    ends = end_tokens(model)
    return [_cut(row[len(prompt) :], limit, ends) for row, limit in zip(rows, limits, strict=True)]


def _cut(tokens: list[int], limit: int, ends: frozenset[int]) -> Generated:
    kept = tokens[:limit]
    end = next((index for index, token in enumerate(kept) if token in ends), None)
    if end is None:
        return Generated(tuple(kept), len(kept), hit_limit=True)
    return Generated(tuple(kept[:end]), end + 1, hit_limit=False)


def _placed(value: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    return value.to(model.device, model.dtype if value.is_floating_point() else None)


@contextmanager
def _own_limits(model: PreTrainedModel) -> Iterator[None]:
    """Take over two settings of the checkpoint that the call states itself.

    Its `max_length` would compete with the clips' limits, and its `forced_decoder_ids`, long
    deprecated, repeat the prompt, which is asserted instead.
    """
    published: Any = model.generation_config
    own = copy.deepcopy(published)
    own.max_length = None
    own.forced_decoder_ids = None
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
