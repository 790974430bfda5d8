"""CTranslate2: its own greedy search through the exported model, clip by clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from edge_asr.errors import UserError, first_line
from edge_asr.export.base import RUNTIME_TARGETS
from edge_asr.export.ctranslate2_file import begin_suppressed, quantized_in
from edge_asr.export.formats.ctranslate2 import FAMILY
from edge_asr.runtimes.base import runtimes
from edge_asr.runtimes.file_runtime import FileRuntime
from edge_asr.runtimes.greedy_search import NEAR_TIE, FoundTokens, known_tokens


@runtimes.register("ctranslate2")
class CTranslate2Runtime(FileRuntime):
    """CTranslate2's model; its search is asked for what the other runtimes find."""

    name: ClassVar[str] = "ctranslate2"
    types: ClassVar[str] = "float32 and int8"
    packages: ClassVar[tuple[str, ...]] = ("ctranslate2",)
    extra: ClassVar[str] = "ctranslate2"
    targets: ClassVar[tuple[str, ...] | None] = RUNTIME_TARGETS[name]
    families: ClassVar[tuple[str, ...] | None] = (FAMILY,)

    def load(self, folder: Path) -> None:
        self._refuse_search(folder)
        self._model = loaded(folder)

    def _refuse_search(self, folder: Path) -> None:
        """Raises UserError where CTranslate2 would search in another way."""
        tokens = self._tokens
        if len(set(tokens.ends)) > 1:
            raise UserError(
                f"runtime=ctranslate2: generation_config.json has eos_token_id={[*tokens.ends]}; "
                "CTranslate2 knows one end token: leave one there, or use runtime=torch"
            )
        # Else it takes the prompt for shorter than it is, and applies its rules of timestamps.
        beyond = [one for one in tokens.prompt if not tokens.prompt[0] <= one <= tokens.prompt[-1]]
        if beyond:
            raise UserError(
                f"runtime=ctranslate2: token {beyond[0]} of the decoder's prompt is not between "
                f"its first and last one, {tokens.prompt[0]} and {tokens.prompt[-1]}, where "
                "CTranslate2 looks for it; use runtime=torch"
            )
        if begin_suppressed(folder) != known_tokens(tokens.suppressed_first, self.vocabulary):
            raise UserError(
                f"{folder}: was exported with other begin_suppress_tokens or another "
                "decode.suppression; export the model again"
            )

    def encode(self, features: np.ndarray) -> Any:
        from ctranslate2 import StorageView

        return self._model.encode(StorageView.from_array(features))

    def search(self, memory: Any, limit: int) -> Any:
        tokens = self._tokens
        (result,) = self._model.generate(
            memory, [list(tokens.prompt)], beam_size=1,
            max_length=longest(limit, len(tokens.prompt)),
            suppress_blank=bool(tokens.suppressed_first),  # those in config.json
            suppress_tokens=known_tokens(tokens.suppressed, self.vocabulary),
            return_logits_vocab=True,
        )  # fmt: skip
        return result

    def found(self, result: Any, limit: int) -> FoundTokens:
        return found_tokens(result, limit)


def longest(limit: int, prompt: int) -> int:
    """The `max_length` with which at most `limit` tokens are written after `prompt` ones.

    It writes at most half of it, and at most what the prompt but for its last token leaves of it
    (src/models/whisper.cc, `WhisperReplica::generate`).
    """
    return limit + max(limit, prompt - 1)


def loaded(folder: Path) -> Any:
    """The model in `folder`, with as many threads as torch has. Raises UserError if it is none."""
    import ctranslate2

    quantized = quantized_in(folder)
    try:
        return ctranslate2.models.Whisper(
            str(folder),
            compute_type="int8_float32" if quantized else "float32",
            intra_threads=torch.get_num_threads(),
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{folder}: CTranslate2 cannot load it: {first_line(error)}") from error


def found_tokens(result: Any, limit: int) -> FoundTokens:
    """What CTranslate2 found for one clip, the end token excluded."""
    (tokens,) = result.sequences_ids
    (steps,) = result.logits
    near = 0
    for step in steps:
        second, best = np.partition(np.asarray(step), -2)[-2:]
        near += bool(best - second < NEAR_TIE)
    return FoundTokens(list(tokens), len(tokens) < limit, near)
