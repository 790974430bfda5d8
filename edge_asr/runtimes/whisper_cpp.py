"""whisper.cpp: greedy decoding through the exported file, clip by clip and token by token."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from edge_asr.errors import UserError
from edge_asr.export.base import GGML_TARGETS, require_packages
from edge_asr.export.formats.ggml import FAMILIES, MODEL, read_whole
from edge_asr.models.decoding import IN_FLOAT32, StackDtypes
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.base import DecodedBatch, Runtime, runtimes
from edge_asr.runtimes.greedy_search import greedy_tokens, search_tokens
from edge_asr.runtimes.torch_greedy import clip_to_window, token_limit, transcripts_of
from edge_asr.store.phases import PhaseSeconds


@runtimes.register("whisper_cpp")
class WhisperCpp(Runtime):
    """A Whisper as the file that its target exports it to, a float one in float16.

    Features, prompt, suppressed tokens and limits are those of the other runtimes. Its own are
    keys and values in float16, a GELU by tanh from a table of float16, and inputs of float16
    weights in float16.

    Args:
        checkpoint: The model; which of its targets holds it, its formats tell.
        dtypes: float32, for it takes no others.
        exported: Where it was exported to; None: it is exported first.
    """

    simulates: ClassVar[bool] = False
    targets: ClassVar[tuple[str, ...] | None] = GGML_TARGETS
    families: ClassVar[tuple[str, ...] | None] = FAMILIES

    @classmethod
    def check(cls, dtypes: StackDtypes, device: str) -> None:
        require_packages("runtime=whisper_cpp", ("_pywhispercpp", "gguf"), "whisper_cpp")
        if dtypes != IN_FLOAT32 or device != "cpu":
            raise UserError(
                "runtime=whisper_cpp: computes in its own types on the processor; leave out "
                "device=, encoder.dtype= and decoder.dtype="
            )

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtypes: StackDtypes = IN_FLOAT32,
        exported: Path | None = None,
    ) -> None:
        self.check(dtypes, checkpoint.model.device.type)
        from edge_asr.export.write import write_ggml
        from edge_asr.runtimes.whisper_library import WhisperLibrary

        self.checkpoint = checkpoint
        self._tokens = search_tokens(checkpoint.model, checkpoint.architecture)
        with tempfile.TemporaryDirectory() as made:
            folder = exported or Path(made)
            if exported is None:
                write_ggml(checkpoint, folder)
            # whisper.cpp takes a file that ends too early for whole.
            read_whole(folder / MODEL)
            self._model = WhisperLibrary(folder / MODEL, torch.get_num_threads())

    def window(self, samples: np.ndarray) -> np.ndarray:
        return clip_to_window(self.checkpoint, samples)

    def token_limit(self, samples: int, max_new_tokens: int | None = None) -> int:
        return token_limit(self.checkpoint, samples, max_new_tokens)

    def prepare(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The features of every clip."""
        architecture, extractor = self.checkpoint.architecture, self.checkpoint.feature_extractor
        features = (architecture.model_inputs(extractor, [clip]) for clip in clips)
        return [next(iter(one.values()))[0].numpy() for one in features]

    def decode(self, prepared: Sequence[np.ndarray], limits: Sequence[int]) -> DecodedBatch:
        found, encoder, decoder = [], 0.0, 0.0
        for features, limit in zip(prepared, limits, strict=True):
            began = time.perf_counter()
            self._model.encode(features)
            encoded = time.perf_counter()
            found.append(greedy_tokens(self._model.step, self._tokens, limit))
            encoder, decoder = encoder + encoded - began, decoder + time.perf_counter() - encoded
        began = time.perf_counter()
        texts = transcripts_of(self.checkpoint.tokenizer, found)
        seconds = PhaseSeconds(encoder=encoder, decoder=decoder, text=time.perf_counter() - began)
        return DecodedBatch(texts, seconds)
