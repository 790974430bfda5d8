"""ONNX Runtime: greedy decoding through the exported file, clip by clip and token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from edge_asr.errors import UserError, first_line
from edge_asr.export.base import RUNTIME_TARGETS
from edge_asr.export.onnx_exporter import CACHES, DECODER, ENCODER, FEATURES, TOKEN
from edge_asr.runtimes.base import runtimes
from edge_asr.runtimes.file_runtime import FileRuntime
from edge_asr.runtimes.greedy_search import FoundTokens, greedy_tokens


@runtimes.register("onnxruntime")
class OnnxRuntime(FileRuntime):
    """The graphs of encoder and decoder, in float32 but for their integers."""

    # 2: graphs that pad no heads.
    version = 2
    name: ClassVar[str] = "onnxruntime"
    types: ClassVar[str] = "float32"
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    extra: ClassVar[str] = "onnx"
    targets: ClassVar[tuple[str, ...] | None] = RUNTIME_TARGETS[name]

    def load(self, folder: Path) -> None:
        self._encoder, self._decoder = (session(folder / name) for name in (ENCODER, DECODER))

    def encode(self, features: np.ndarray) -> Any:
        return self._encoder.run(None, {FEATURES: features})

    def search(self, memory: Any, limit: int) -> FoundTokens:
        return greedy_tokens(DecoderSession(self._decoder, memory).step, self._tokens, limit)


def session(path: Path) -> Any:
    """A session of the file at `path`, with as many threads as torch has.

    Raises UserError where it cannot be loaded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no base of their own
        raise UserError(
            f"{path}: ONNX Runtime cannot load it: {first_line(error)}; export the model again"
        ) from error


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
