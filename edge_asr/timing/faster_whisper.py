"""faster-whisper, what many deploy Whisper with: its own int8, to be compared with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_asr.export.base import require_packages
from edge_asr.models.files import quiet
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.ctranslate2_runtime import longest
from edge_asr.runtimes.file_runtime import FileRuntime
from edge_asr.runtimes.greedy_search import FoundTokens

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


class FasterWhisper(FileRuntime):
    """Encoder and greedy decoder of faster-whisper, on the features and prompts of all others."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        from faster_whisper import WhisperModel

        super().__init__(checkpoint)
        self._whisper: Any = WhisperModel(
            str(folder), device="cpu", compute_type="int8", cpu_threads=torch.get_num_threads()
        )

    def encode(self, features: np.ndarray) -> Any:
        return self._whisper.encode(features)

    def search(self, memory: Any, limit: int) -> FoundTokens:
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
