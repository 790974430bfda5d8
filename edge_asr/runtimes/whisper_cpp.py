"""whisper.cpp: greedy decoding through the exported file, clip by clip and token by token."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from edge_asr.export.base import GGML_TARGETS, require_packages
from edge_asr.export.formats.ggml import FAMILIES, MODEL, read_whole
from edge_asr.models.decoding import IN_FLOAT32, StackDtypes
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.base import runtimes
from edge_asr.runtimes.file_runtime import FileRuntime, exported_folder, refuse_other_types
from edge_asr.runtimes.greedy_search import FoundTokens, greedy_tokens


@runtimes.register("whisper_cpp")
class WhisperCpp(FileRuntime):
    """A Whisper as the file that its target exports it to, a float one in float16.

    Features, prompt, suppressed tokens and limits are those of the other runtimes. Its own are
    keys and values in float16, a GELU by tanh from a table of float16, and inputs of float16
    weights in float16.

    Args:
        checkpoint: The model; which of its targets holds it, its formats tell.
        dtypes: float32, for it takes no others.
        exported: Where it was exported to; None: it is exported first.
    """

    targets: ClassVar[tuple[str, ...] | None] = GGML_TARGETS
    families: ClassVar[tuple[str, ...] | None] = FAMILIES

    @classmethod
    def check(cls, dtypes: StackDtypes, device: str) -> None:
        require_packages("runtime=whisper_cpp", ("_pywhispercpp", "gguf"), "whisper_cpp")
        refuse_other_types("whisper_cpp", "its own types", dtypes, device)

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtypes: StackDtypes = IN_FLOAT32,
        exported: Path | None = None,
    ) -> None:
        self.check(dtypes, checkpoint.model.device.type)
        from edge_asr.export.write import write_ggml
        from edge_asr.runtimes.whisper_library import WhisperLibrary

        super().__init__(checkpoint)
        with exported_folder(checkpoint, exported, write_ggml) as folder:
            # whisper.cpp takes a file that ends too early for whole.
            read_whole(folder / MODEL)
            self._model = WhisperLibrary(folder / MODEL, torch.get_num_threads())

    def encode(self, features: np.ndarray) -> None:
        self._model.encode(features[0])

    def search(self, memory: None, limit: int) -> FoundTokens:
        del memory  # the library keeps it
        return greedy_tokens(self._model.step, self._tokens, limit)
