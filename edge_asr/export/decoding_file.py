"""What a program needs beside the graphs to transcribe: features, tokens, limits, vocabulary.

`examples/transcribe_onnx.py` is such a program, of ONNX Runtime and numpy alone.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from edge_asr.audio import SAMPLE_RATE
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.greedy_search import search_tokens
from edge_asr.store.files import write_bytes_atomically, write_text_atomically

DECODING, TOKENIZER = "decoding.json", "tokenizer.json"


def write_decoding(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `decoding.json`, a file of every array that it names, and `tokenizer.json`."""
    settings = decoding_settings(checkpoint)
    for name, value in settings["features"].items():
        if isinstance(value, np.ndarray):
            content = io.BytesIO()
            np.save(content, value)
            settings["features"][name] = f"{name}.npy"
            write_bytes_atomically(folder / f"{name}.npy", content.getvalue())
    write_text_atomically(folder / DECODING, json.dumps(settings, indent=2) + "\n")
    # As it was loaded: an older checkpoint has its vocabulary in other files.
    write_text_atomically(folder / TOKENIZER, checkpoint.tokenizer.backend_tokenizer.to_str())


def decoding_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `decoding.json` says.

    A text has at most `room` tokens, the one that ends it included, and where `tokens_per_second`
    is a number at most int(seconds x tokens_per_second + 2). Features are those of
    `Architecture.feature_settings`.
    """
    architecture, config = checkpoint.architecture, checkpoint.model.config
    tokens = search_tokens(checkpoint.model, architecture)
    vocabulary = int(config.vocab_size)

    def known(numbers: Any) -> list[int]:  # others mean nothing
        return sorted({int(one) for one in numbers if 0 <= one < vocabulary})

    return {
        "prompt": [int(one) for one in tokens.prompt],
        "ends": known(tokens.ends),
        "suppressed": known(tokens.suppressed),
        "suppressed_first": known(tokens.suppressed_first),
        "room": architecture.token_limit(config, len(tokens.prompt), 0, None),
        "tokens_per_second": checkpoint.tokens_per_second,
        "sample_rate": SAMPLE_RATE,
        "features": architecture.feature_settings(checkpoint.feature_extractor),
    }
