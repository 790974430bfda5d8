"""The library's own decoding, to hold ours against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from edge_asr.models.families.base import end_tokens
from edge_asr.models.loading import Checkpoint


def generated(
    checkpoint: Checkpoint, clips: Sequence[np.ndarray], limits: Sequence[int]
) -> list[tuple[int, ...]]:
    """Tokens that `generate` finds greedily for clips in one batch, each cut to its own limit, the
    end token and the prompt, which it must have started from, excluded."""
    model: Any = checkpoint.model
    generation = model.generation_config
    options: dict[str, Any] = {}
    if checkpoint.architecture.family == "whisper":
        options = {"return_timestamps": False, "force_unique_generate_call": True}
        if generation.is_multilingual:
            options |= {"language": generation.language, "task": generation.task}
    inputs = checkpoint.architecture.model_inputs(checkpoint.feature_extractor, clips)
    with torch.inference_mode():
        rows = model.generate(
            **inputs, **options, do_sample=False, num_beams=1, max_new_tokens=max(limits)
        ).tolist()
    prompt = list(checkpoint.architecture.prompt(model))
    ends, found = end_tokens(model), []
    for row, limit in zip(rows, limits, strict=True):
        assert row[: len(prompt)] == prompt
        tokens = row[len(prompt) :][:limit]
        end = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
        found.append(tuple(tokens[:end]))
    return found
