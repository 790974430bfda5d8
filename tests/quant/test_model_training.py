"""Training on the whole model: which clips, which tokens."""

from __future__ import annotations

import copy

import torch
from quant.passes import batches_of

from edge_asr.models.loading import Checkpoint
from edge_asr.quant.model_training import NOT_ASKED, chosen_clips, next_tokens


def test_the_end_is_a_target_and_the_prompt_is_none() -> None:
    tokens = torch.tensor([[8, 9, 3, 4, 5], [8, 9, 6, 0, 0]])
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    expected = [[NOT_ASKED, 3, 4, 5, 7], [NOT_ASKED, 6, 7, NOT_ASKED, NOT_ASKED]]
    assert next_tokens(tokens, valid, prompt=2, end=7).tolist() == expected
    first = next_tokens(tokens, valid, prompt=1, end=7)
    assert first[:, 0].tolist() == [9, 9]


def test_clips_apart_are_a_quarter_and_never_trained_on(moonshine: Checkpoint) -> None:
    batches = batches_of(moonshine) + batches_of(moonshine, seed=1)
    batches = copy.deepcopy(batches)
    batches[1].token_mask[1] = False  # nothing was heard
    evaluated, trained = chosen_clips(batches, apart=True)
    apart = {(index, int(clip)) for index, clips in evaluated for clip in clips}
    steps = {(index, int(clip)) for index, clips in trained for clip in clips}
    assert not apart & steps
    assert len(apart) == 1
    assert apart | steps == {(i, j) for i in range(4) for j in range(2)} - {(1, 1)}
    every, steps_on_all = chosen_clips(batches, apart=False)
    assert sum(len(clips) for _, clips in every) == 7
    assert sum(len(clips) for _, clips in steps_on_all) == 8
