"""faster-whisper, what many deploy Whisper with: its own int8, to be compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from edge_asr.export.base import require_packages
from edge_asr.models.files import CheckpointFiles, quiet
from edge_asr.models.loading import load_processor
from edge_asr.runtimes.ctranslate2_runtime import longest
from edge_asr.runtimes.file_runtime import FileRuntime
from edge_asr.runtimes.greedy_search import FoundTokens, known_tokens

NAME = "faster_whisper"
FAMILIES = ("whisper",)  # all that it knows
TOKENIZER = "tokenizer.json"


def require_faster_whisper() -> None:
    """Raises UserError where it is not installed."""
    require_packages(f"--against={NAME}", FasterWhisper.packages, FasterWhisper.extra)


def convert(files: CheckpointFiles, folder: Path) -> None:
    """Write a float checkpoint as CTranslate2 quantizes it, int8, to `folder`, which appears only
    once it is whole."""
    from ctranslate2.converters import TransformersConverter

    made = folder.with_name(f".{folder.name}")
    _, tokenizer = load_processor(files.reference, files.folder)
    with quiet():
        converter = TransformersConverter(str(files.folder))
        converter.convert(str(made), quantization="int8", force=True)
    # Older checkpoints lack the file, which faster-whisper would look for in the network.
    (made / TOKENIZER).write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    made.rename(folder)


class FasterWhisper(FileRuntime):
    """Encoder and greedy decoder of faster-whisper, on the features and prompts of all others."""

    name: ClassVar[str] = NAME
    types: ClassVar[str] = "int8"
    packages: ClassVar[tuple[str, ...]] = (NAME, "ctranslate2")
    extra: ClassVar[str] = NAME

    def load(self, folder: Path) -> None:
        from faster_whisper import WhisperModel

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
            suppress_tokens=known_tokens(tokens.suppressed, self.vocabulary),
        )
        written = list(result.sequences_ids[0])[:limit]
        return FoundTokens(written, ended=len(written) < limit)
