"""ONNX Runtime: greedy decoding through the exported file, clip by clip and token by token."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from edge_asr.errors import UserError
from edge_asr.export.base import ONNX_TARGETS, require_packages
from edge_asr.export.onnx_exporter import CACHES, DECODER, ENCODER, FEATURES, TOKEN
from edge_asr.models.decoding import IN_FLOAT32, StackDtypes
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.base import DecodedBatch, Runtime, Transcript, runtimes
from edge_asr.runtimes.greedy_search import greedy_tokens, search_tokens
from edge_asr.runtimes.torch_greedy import clip_to_window, token_limit, transcripts_of
from edge_asr.store.phases import PhaseSeconds


@runtimes.register("onnxruntime")
class OnnxRuntime(Runtime):
    """A model as the file that its target exports it to, on the processor.

    Args:
        checkpoint: The model; which of its targets holds it, its formats tell.
        dtypes: float32, for it knows no others.
        exported: Where it was exported to; None: it is exported first.
    """

    simulates: ClassVar[bool] = False
    targets: ClassVar[tuple[str, ...] | None] = ONNX_TARGETS

    @classmethod
    def check(cls, dtypes: StackDtypes, device: str) -> None:
        require_packages("runtime=onnxruntime", ("onnxruntime", "onnx", "onnxscript"), "onnx")
        if dtypes != IN_FLOAT32 or device != "cpu":
            raise UserError(
                "runtime=onnxruntime: computes in float32 on the processor; leave out device=, "
                "encoder.dtype= and decoder.dtype="
            )

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtypes: StackDtypes = IN_FLOAT32,
        exported: Path | None = None,
    ) -> None:
        self.check(dtypes, checkpoint.model.device.type)
        from edge_asr.export.write import write_onnx

        self.checkpoint = checkpoint
        self._tokens = search_tokens(checkpoint.model, checkpoint.architecture)
        with tempfile.TemporaryDirectory() as made:
            folder = exported or Path(made)
            if exported is None:
                write_onnx(checkpoint, folder)
            self._encoder, self._decoder = (session(folder / name) for name in (ENCODER, DECODER))

    def window(self, samples: np.ndarray) -> np.ndarray:
        return clip_to_window(self.checkpoint, samples)

    def token_limit(self, samples: int, max_new_tokens: int | None = None) -> int:
        return token_limit(self.checkpoint, samples, max_new_tokens)

    def prepare(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The features of every clip."""
        architecture, extractor = self.checkpoint.architecture, self.checkpoint.feature_extractor
        features = (architecture.model_inputs(extractor, [clip]) for clip in clips)
        return [next(iter(one.values())).numpy() for one in features]

    def decode(self, prepared: Sequence[np.ndarray], limits: Sequence[int]) -> DecodedBatch:
        found, encoder, decoder = [], 0.0, 0.0
        for features, limit in zip(prepared, limits, strict=True):
            began = time.perf_counter()
            memory = self._encoder.run(None, {FEATURES: features})
            encoded = time.perf_counter()
            step = DecoderSession(self._decoder, memory).step
            found.append(greedy_tokens(step, self._tokens, limit))
            encoder, decoder = encoder + encoded - began, decoder + time.perf_counter() - encoded
        began = time.perf_counter()
        texts: tuple[Transcript, ...] = transcripts_of(self.checkpoint.tokenizer, found)
        seconds = PhaseSeconds(encoder=encoder, decoder=decoder, text=time.perf_counter() - began)
        return DecodedBatch(texts, seconds)


def session(path: Path) -> Any:
    """A session of the file at `path`, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class DecoderSession:
    """The decoder's graph over one clip.

    Args:
        session: A session of it.
        memory: Keys and values of the encoder's graph.
    """

    def __init__(self, session: Any, memory: Sequence[np.ndarray]) -> None:
        layers, _, heads, _, head_dim = memory[0].shape
        self._session, self._memory = session, memory
        self._cache = [np.zeros((layers, 1, heads, 0, head_dim), np.float32)] * 2

    def step(self, token: int) -> np.ndarray:
        """Logits [vocabulary] of what follows `token` and those before it."""
        given = dict(zip(CACHES, (*self._cache, *self._memory), strict=True))
        rows, *self._cache = self._session.run(
            None, {TOKEN: np.array([[token]], np.int64), **given}
        )
        logits: np.ndarray = rows[0]
        return logits
