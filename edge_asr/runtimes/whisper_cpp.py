"""whisper.cpp: greedy decoding through the exported file, clip by clip and token by token."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from edge_asr.export.base import RUNTIME_TARGETS
from edge_asr.export.formats.ggml import FAMILIES, MODEL
from edge_asr.runtimes.base import runtimes
from edge_asr.runtimes.file_runtime import FileRuntime
from edge_asr.runtimes.greedy_search import FoundTokens, greedy_tokens


@runtimes.register("whisper_cpp")
class WhisperCpp(FileRuntime):
    """A Whisper in whisper.cpp's own library, a float one in float16.

    Features, prompt, suppressed tokens and limits are those of the other runtimes. Its own are
    keys and values in float16, a GELU by tanh from a table of float16, and inputs of float16
    weights in float16.
    """

    name: ClassVar[str] = "whisper_cpp"
    types: ClassVar[str] = "its own types"
    packages: ClassVar[tuple[str, ...]] = ("_pywhispercpp",)
    extra: ClassVar[str] = "whisper_cpp"
    targets: ClassVar[tuple[str, ...] | None] = RUNTIME_TARGETS[name]
    families: ClassVar[tuple[str, ...] | None] = FAMILIES

    def load(self, folder: Path) -> None:
        from edge_asr.runtimes.whisper_library import WhisperLibrary

        self._model = WhisperLibrary(folder / MODEL, torch.get_num_threads())

    def encode(self, features: np.ndarray) -> None:
        self._model.encode(features[0])

    def search(self, memory: None, limit: int) -> FoundTokens:
        del memory  # the library keeps it
        return greedy_tokens(self._model.step, self._tokens, limit)
