"""Greedy search against the library's `generate` and against plain forward passes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from export.models import quantized
from hypothesis import given, settings
from hypothesis import strategies as st
from library import generated
from shared import shared
from tiny import tiny_whisper, tone

from edge_asr.audio import SAMPLE_RATE
from edge_asr.models.decoding import Decoding
from edge_asr.models.families.base import end_tokens
from edge_asr.models.files import EMBEDDED, embedded_folder
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.runtimes.base import Transcript
from edge_asr.runtimes.torch_greedy import TorchRuntime, greedy, token_limit

CLIPS = [
    tone(seconds, 150 + 130 * index) for index, seconds in enumerate((1.9, 1.1, 0.7, 0.4, 0.1))
]
LIMITS = [14, 3, 12, 1, 9]


def ending(checkpoint: Checkpoint, ends: Sequence[int], **changes: object) -> Checkpoint:
    """The checkpoint with other end tokens, so that its texts end at different steps."""
    model = copy(checkpoint.model)
    model.generation_config = deepcopy(checkpoint.model.generation_config)
    # Whisper's `generate` strips padding, which therefore must not be an end as well.
    changes = {"eos_token_id": list(ends), "pad_token_id": 0, **changes}
    for name, value in changes.items():
        setattr(model.generation_config, name, value)
    return replace(checkpoint, model=model)


def tokens_of(transcripts: Sequence[Transcript]) -> list[tuple[int, ...]]:
    return [one.tokens for one in transcripts]


def test_tokens_are_the_librarys(checkpoint: Checkpoint) -> None:
    assert tokens_of(greedy(checkpoint, CLIPS, LIMITS)) == generated(checkpoint, CLIPS, LIMITS)


def test_a_quantized_head_reads_as_in_the_library(checkpoint: Checkpoint) -> None:
    inputs = ActivationGrid(2)
    own, floats = (
        quantized(checkpoint, Grid(8), inputs, others={"embedding": None, "head": read})
        for read in (inputs, None)
    )
    found = tokens_of(greedy(own, CLIPS, LIMITS))
    assert found == generated(own, CLIPS, LIMITS)
    assert found != tokens_of(greedy(floats, CLIPS, LIMITS))


def test_clips_that_end_early_leave_the_others_as_they_are(checkpoint: Checkpoint) -> None:
    limits = [20] * len(CLIPS)
    free = tokens_of(greedy(checkpoint, CLIPS, limits))
    written = sorted({token for row in free for token in row})

    def lengths(ends: tuple[int, ...]) -> set[int]:
        return {min((row.index(end) for end in ends if end in row), default=20) for row in free}

    ends = max(combinations(written, 2), key=lambda pair: len(lengths(pair)))
    other = ending(checkpoint, ends, begin_suppress_tokens=None)
    found = greedy(other, CLIPS, limits)
    assert tokens_of(found) == generated(other, CLIPS, limits)
    assert len({one.steps for one in found}) > 2
    assert 0 not in written


def test_suppressed_tokens_are_the_librarys(checkpoint: Checkpoint) -> None:
    """Also numbers that are no tokens."""
    limits = [8] * len(CLIPS)
    free = tokens_of(greedy(checkpoint, CLIPS, limits))
    vocabulary = int(checkpoint.model.config.vocab_size)
    always, first = [free[0][2], -1, vocabulary], [free[1][0], vocabulary + 5]
    other = ending(
        checkpoint,
        sorted(end_tokens(checkpoint.model)),
        suppress_tokens=always,
        begin_suppress_tokens=first,
    )
    found = tokens_of(greedy(other, CLIPS, limits))
    assert found == generated(other, CLIPS, limits)
    assert found != free
    assert always[0] not in {token for row in found for token in row}


@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_a_multilingual_prompt_is_the_librarys(tmp_path: Path, task: str) -> None:
    folder = tiny_whisper(tmp_path, multilingual=True)
    decoding = Decoding(language="de", task=task)  # type: ignore[arg-type]
    loaded = load_checkpoint(str(folder), decoding=decoding)
    assert tokens_of(greedy(loaded, CLIPS, LIMITS)) == generated(loaded, CLIPS, LIMITS)


@settings(deadline=None, max_examples=25)
@given(limits=st.lists(st.integers(1, 10), min_size=5, max_size=5))
def test_every_order_of_leaving_gives_the_same_texts(
    whisper: Checkpoint, limits: list[int]
) -> None:
    """Whisper's clips do not see each other, so that each has the text that it has alone."""
    found = tokens_of(greedy(whisper, CLIPS, limits))
    for clip, limit, tokens in zip(CLIPS, limits, found, strict=True):
        assert tokens == heard_alone(whisper, clip.tobytes())[:limit]


@cache
def heard_alone(checkpoint: Checkpoint, clip: bytes) -> tuple[int, ...]:
    return generated(checkpoint, [np.frombuffer(clip, np.float32)], [10])[0]


def test_near_ties_are_counted(checkpoint: Checkpoint) -> None:
    """A second token with the same embedding and head is as likely as the first, always."""
    limits = [12] * len(CLIPS)
    plain = greedy(checkpoint, CLIPS, limits)
    token, written = plain[0].tokens[1], {token for one in plain for token in one.tokens}
    twin = next(one for one in range(100, 200) if one not in written)
    model = deepcopy(checkpoint.model)
    head = model.get_submodule(checkpoint.architecture.head)
    assert isinstance(head, torch.nn.Linear)
    head.weight[twin] = head.weight[token] - 1e-7
    found = greedy(replace(checkpoint, model=model), CLIPS, limits)
    for before, after in zip(plain, found, strict=True):
        ties = sum(one in (token, twin) for one in after.tokens)
        assert after.near_ties == before.near_ties + ties
    assert sum(one.near_ties for one in found) > sum(one.near_ties for one in plain)


def test_the_model_itself_is_left_as_it_is(checkpoint: Checkpoint) -> None:
    before = {id(value) for value in checkpoint.model.state_dict(keep_vars=True).values()}
    paddings = [getattr(one, "head_dim_padding", None) for one in checkpoint.model.modules()]
    runtime = TorchRuntime(checkpoint)
    runtime.transcribe(CLIPS, LIMITS)
    after = {id(value) for value in checkpoint.model.state_dict(keep_vars=True).values()}
    assert after == before
    assert paddings == [
        getattr(one, "head_dim_padding", None) for one in checkpoint.model.modules()
    ]


@pytest.mark.parametrize("name", EMBEDDED)
def test_texts_of_embedded_clips_are_the_librarys(name: str) -> None:
    checkpoint = load_checkpoint(name)
    paths = sorted((embedded_folder(name).parent / "test").glob("*.opus"))[::40]
    same_texts(checkpoint, [soundfile.read(path, dtype="float32")[0] for path in paths])


@pytest.mark.parametrize("name", ["whisper-tiny.en", "moonshine-tiny"])
def test_texts_of_published_models_are_the_librarys(name: str) -> None:
    checkpoint = load_checkpoint(str(shared("checkpoints", name)))
    root = shared("speech")
    rows = [json.loads(line) for line in (root / "manifest.jsonl").open(encoding="utf-8")]
    short = [row for row in rows if row["sampling_rate"] == SAMPLE_RATE and row["duration"] < 4]
    read = (soundfile.read(root / row["audio"], dtype="float32")[0] for row in short[:2])
    same_texts(checkpoint, list(read))


def same_texts(checkpoint: Checkpoint, clips: list[np.ndarray]) -> None:
    limits = [token_limit(checkpoint, len(clip)) for clip in clips]
    found = greedy(checkpoint, clips, limits)
    for one, library in zip(found, generated(checkpoint, clips, limits), strict=True):
        assert one.tokens == library or one.near_ties
