"""What an exported folder says beside its graphs."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from edge_asr.audio import SAMPLE_RATE
from edge_asr.export.decoding_file import DECODING, write_decoding
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.torch_greedy import token_limit


def written(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    write_decoding(checkpoint, folder)
    plain: dict[str, Any] = json.loads((folder / DECODING).read_text())
    return plain


def test_a_limit_follows_from_room_and_rate(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plain = written(checkpoint, tmp_path)
    assert plain["prompt"] == list(checkpoint.architecture.prompt(checkpoint.model))
    for samples in (0, 1000, 20 * SAMPLE_RATE):
        limit, rate = plain["room"], plain["tokens_per_second"]
        if rate is not None:
            limit = min(limit, int(samples * rate / plain["sample_rate"] + 2))
        assert limit == token_limit(checkpoint, samples)


def test_suppressed_tokens_are_those_that_the_model_has(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = copy.copy(checkpoint.model)
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.suppress_tokens = [-1, 7, 3, 10**6]
    model.generation_config.begin_suppress_tokens = [5]
    plain = written(dataclasses.replace(checkpoint, model=model), tmp_path)
    assert plain["suppressed"] == [3, 7]
    assert plain["suppressed_first"] == [5]


def test_arrays_are_files(whisper: Checkpoint, tmp_path: Path) -> None:
    features = written(whisper, tmp_path)["features"]
    filters = np.load(tmp_path / features["mel_filters"])
    assert filters.dtype == np.float32
    assert filters.shape == (features["n_fft"] // 2 + 1, features["n_mels"])
