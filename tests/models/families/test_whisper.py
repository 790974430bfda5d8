"""Whisper's encoder blocks, cut to the frames that hold audio."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from quant.passes import contexts_with_targets
from torch import Tensor, nn

from edge_asr.models.loading import Checkpoint
from edge_asr.quant.context import BlockContext


@pytest.fixture(scope="module")
def encoder_contexts(whisper: Checkpoint) -> list[BlockContext]:
    return [
        context for context in contexts_with_targets(whisper) if context.block.stack == "encoder"
    ]


def cut(context: BlockContext) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What the cut block gives of every batch, what the whole one gives, and the valid rows."""
    block, calls = context.on_counted_rows
    with torch.no_grad():
        for call, whole, mask in zip(calls, context.targets, context.row_weights, strict=True):
            yield call.run(block), whole, mask


def test_leading_frames_are_those_of_the_whole_block(encoder_contexts: list[BlockContext]) -> None:
    for context in encoder_contexts:
        for leading, whole, mask in cut(context):
            count = int(mask.sum(1).max())
            assert 0 < count < whole.shape[1]
            assert leading.shape[1] == count
            torch.testing.assert_close(leading, whole[:, :count], rtol=1e-4, atol=1e-5)


def test_what_was_put_in_front_of_the_block_runs_too(encoder_contexts: list[BlockContext]) -> None:
    context = encoder_contexts[0]
    with context.module.register_forward_pre_hook(lambda _, args: (args[0].flip(-1), *args[1:])):
        changed = [
            (leading, call.run(context.module))
            for (leading, _, _), call in zip(cut(context), context.calls, strict=True)
        ]
    for (leading, whole), (plain, _, _) in zip(changed, cut(context), strict=True):
        torch.testing.assert_close(leading, whole[:, : leading.shape[1]], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(leading, plain)


def test_only_keys_and_values_read_silence(encoder_contexts: list[BlockContext]) -> None:
    context = encoder_contexts[0]
    rows: dict[str, int] = {}

    def count(name: str) -> Any:
        def see(_: nn.Module, args: tuple[Tensor]) -> None:
            rows[name] = args[0].shape[1]

        return see

    hooks = [
        context.layer(name).register_forward_pre_hook(count(name.rsplit(".", 1)[1]))
        for name in context.block.layers
    ]
    block, calls = context.on_counted_rows
    with torch.no_grad():
        calls[0].run(block)
    for hook in hooks:
        hook.remove()
    whole, heard = context.row_weights[0].shape[1], int(context.row_weights[0].sum(1).max())
    assert rows == {
        "q_proj": heard, "k_proj": whole, "v_proj": whole, "out_proj": heard, "fc1": heard,
        "fc2": heard,
    }  # fmt: skip


def test_clips_chosen_from_a_batch_are_cut_to_their_own_length(
    encoder_contexts: list[BlockContext],
) -> None:
    context = encoder_contexts[0]
    block, calls = context.on_counted_rows
    lengths = context.row_weights[0].sum(1)
    shortest = lengths.argmin()[None]
    with torch.no_grad():
        leading = calls[0].select(shortest).run(block)
    assert leading.shape[:2] == (1, int(lengths.min()))
    torch.testing.assert_close(
        leading, context.targets.of(0, shortest)[:, : leading.shape[1]], rtol=1e-4, atol=1e-5
    )
