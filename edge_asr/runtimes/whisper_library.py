"""whisper.cpp itself: the functions of its whisper.h that one step of decoding needs.

pywhispercpp is installed for its library; of its own Python functions the one that returns logits
gives the first alone, so that the library is called without them.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_asr.errors import UserError

ERROR = 4  # ggml_log_level
LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
# The library keeps it.
SILENT = LogCallback(lambda *_: None)


class ContextParameters(ctypes.Structure):
    """`whisper_context_params` of whisper.h."""

    _fields_ = (
        ("use_gpu", ctypes.c_bool),
        ("flash_attn", ctypes.c_bool),
        ("gpu_device", ctypes.c_int),
        ("dtw_token_timestamps", ctypes.c_bool),
        ("dtw_aheads_preset", ctypes.c_int),
        ("dtw_n_top", ctypes.c_int),
        ("dtw_aheads_count", ctypes.c_size_t),
        ("dtw_aheads", ctypes.c_void_p),
        ("dtw_mem_size", ctypes.c_size_t),
    )


class WhisperLibrary:
    """A model that whisper.cpp has loaded, and one clip of it.

    Attention is computed without its `flash_attn`, with which frames also attend to the zeros that
    fill their number up to a multiple of 256: its logits are ten times as far off.

    Args:
        path: The model's file.
        threads: How many compute.

    Raises:
        UserError: whisper.cpp cannot load the file, or its interface is not the known one.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._library = _library()
        self._threads = threads
        self._context = ctypes.c_void_p(self._load(path))
        weakref.finalize(self, self._library.whisper_free, self._context)
        self._vocabulary = int(self._library.whisper_n_vocab(self._context))
        self._past = 0

    def encode(self, features: np.ndarray) -> None:
        """Hear a clip: log-mel features float32 [mels, frames]."""
        values = np.ascontiguousarray(features, np.float32)
        mels, frames = values.shape
        pointer = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._call("whisper_set_mel", pointer, frames, mels)
        self._call("whisper_encode", 0, self._threads)
        self._past = 0

    def step(self, token: int) -> np.ndarray:
        """Logits float32 [vocabulary] of what follows `token` and those before it."""
        self._call(
            "whisper_decode", ctypes.byref(ctypes.c_int(token)), 1, self._past, self._threads
        )
        self._past += 1
        logits = self._library.whisper_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (self._vocabulary,)).copy()

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._library, name)(self._context, *arguments):
            raise RuntimeError(f"{name} of whisper.cpp failed")

    def _load(self, path: Path) -> int:
        errors: list[str] = []

        def log(level: int, text: bytes, data: object) -> None:
            del data
            if level == ERROR:
                errors.append(text.decode(errors="replace").strip())

        callback = LogCallback(log)
        parameters = self._library.whisper_context_default_params()
        parameters.use_gpu = parameters.flash_attn = False
        self._library.whisper_log_set(callback, None)
        try:
            found = self._library.whisper_init_from_file_with_params(bytes(path), parameters)
        finally:
            self._library.whisper_log_set(SILENT, None)
        if not found:
            raise UserError(
                f"{path}: whisper.cpp cannot load it ({'; '.join(errors[:1])}); export it again"
            )
        return int(found)


def _library() -> Any:
    """The library, its functions typed. Raises UserError where its interface is another."""
    import _pywhispercpp

    # A search of a library's names goes on in those it is linked to.
    library = ctypes.CDLL(_pywhispercpp.__file__)
    results: dict[str, Any] = {
        "whisper_context_default_params": ContextParameters,
        "whisper_init_from_file_with_params": ctypes.c_void_p,
        "whisper_get_logits": ctypes.POINTER(ctypes.c_float),
        "whisper_free": None,
        "whisper_log_set": None,
    }
    for name, result in results.items():
        function: Callable[..., Any] = getattr(library, name)
        function.restype = result  # type: ignore[attr-defined]
    # Passed by value: its fields have to lie where the library has them.
    library.whisper_init_from_file_with_params.argtypes = [ctypes.c_char_p, ContextParameters]
    known = _pywhispercpp.whisper_context_default_params().dtw_mem_size
    if library.whisper_context_default_params().dtw_mem_size != known:
        raise UserError(
            "runtime=whisper_cpp: the installed pywhispercpp has a whisper.cpp whose interface is "
            "not the known one; pip install 'pywhispercpp==1.5.1'"
        )
    return library
