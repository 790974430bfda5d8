"""faster-whisper, what many deploy Whisper with: its own int8, to be compared with."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_asr.export.base import require_packages
from edge_asr.models.files import quiet
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.base import DecodedBatch, Runtime
from edge_asr.runtimes.ctranslate2_runtime import longest
from edge_asr.runtimes.greedy_search import FoundTokens, search_tokens
from edge_asr.runtimes.torch_greedy import clip_to_window, token_limit, transcripts_of
from edge_asr.store.phases import PhaseSeconds

NAME = "faster_whisper"
FAMILIES = ("whisper",)  # all that it knows
TOKENIZER = "tokenizer.json"


def require_faster_whisper() -> None:
    """Raises UserError where it is not installed."""
    require_packages(f"--against={NAME}", (NAME, "ctranslate2"), NAME)


def convert(checkpoint: Path, folder: Path) -> None:
    """Write the float checkpoint in `checkpoint` as CTranslate2 quantizes it, int8, to `folder`."""
    from ctranslate2.converters import TransformersConverter

    with quiet():
        TransformersConverter(str(checkpoint)).convert(str(folder), quantization="int8")
    shutil.copyfile(checkpoint / TOKENIZER, folder / TOKENIZER)


class FasterWhisper(Runtime):
    """Encoder and greedy decoder of faster-whisper, on the features and prompts of all others."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        from faster_whisper import WhisperModel

        self.checkpoint = checkpoint
        self._tokens = search_tokens(checkpoint.model, checkpoint.architecture)
        self._whisper: Any = WhisperModel(
            str(folder), device="cpu", compute_type="int8", cpu_threads=torch.get_num_threads()
        )

    def window(self, samples: np.ndarray) -> np.ndarray:
        return clip_to_window(self.checkpoint, samples)

    def token_limit(self, samples: int, max_new_tokens: int | None = None) -> int:
        return token_limit(self.checkpoint, samples, max_new_tokens)

    def prepare(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        architecture, extractor = self.checkpoint.architecture, self.checkpoint.feature_extractor
        features = (architecture.model_inputs(extractor, [clip]) for clip in clips)
        return [next(iter(one.values())).numpy() for one in features]

    def decode(self, prepared: Sequence[np.ndarray], limits: Sequence[int]) -> DecodedBatch:
        found, seconds = [], PhaseSeconds()
        for features, limit in zip(prepared, limits, strict=True):
            began = time.perf_counter()
            memory = self._whisper.encode(features)
            encoded = time.perf_counter()
            found.append(self._greedy(memory, limit))
            decoded = time.perf_counter()
            seconds += PhaseSeconds(encoder=encoded - began, decoder=decoded - encoded)
        began = time.perf_counter()
        texts = transcripts_of(self.checkpoint.tokenizer, found)
        return DecodedBatch(texts, replace(seconds, text=time.perf_counter() - began))

    def _greedy(self, memory: Any, limit: int) -> FoundTokens:
        tokens = self._tokens
        (result,) = self._whisper.model.generate(
            memory,
            [list(tokens.prompt)],
            beam_size=1,
            max_length=longest(limit, len(tokens.prompt)),
            suppress_blank=bool(tokens.suppressed_first),
            suppress_tokens=[token for token in tokens.suppressed if token >= 0],
        )
        written = list(result.sequences_ids[0])[:limit]
        return FoundTokens(written, ended=len(written) < limit)
