"""Padding that the model hears, by its weight: against sums over every frame written out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quant.passes import GRID, batches_of, formats_of
from torch import Tensor

from edge_asr.calibration import capture
from edge_asr.calibration.batches import CalibrationBatch, frame_weights
from edge_asr.calibration.capture import CalibrationPass, KeptOutputs
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.context import BlockContext
from edge_asr.quant.layers import install_layers
from edge_asr.quant.reconstruction import BlockLoss
from edge_asr.quant.transform.awq import attention_losses, rounded_under

WEIGHT = 0.25


@pytest.fixture(autouse=True, params=[1, capture.ROWS_AT_ONCE])
def rows_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips one by one, and all of a batch together."""
    monkeypatch.setattr(capture, "ROWS_AT_ONCE", request.param)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(0, 25),
    st.sampled_from([0.0, 0.125, 1.0]),
    st.integers(1, 9),
)
def test_padded_frames_count_by_their_number(
    lengths: list[int], more: int, weight: float, stride: int
) -> None:
    frames = max(lengths) + more
    made = frame_weights(torch.tensor(lengths), frames, weight, stride)
    for length, row in zip(lengths, made, strict=True):
        assert row[:length].eq(1).all()
        assert float(row.sum()) == pytest.approx(length + weight * (frames - length))
        if stride == 1:
            assert row[length:].eq(weight).all()
    looked_at = int(made.any(0)[max(lengths) :].sum())
    assert looked_at <= -(-more // stride) + 1
    assert weight or not looked_at


def padded_batches(checkpoint: Checkpoint, stride: int) -> list[CalibrationBatch]:
    """The usual batches, padding counting `WEIGHT` where the model hears it."""
    weight = WEIGHT if checkpoint.architecture.hears_padding else 0.0
    return [
        replace(
            batch,
            frame_weights=frame_weights(
                batch.frame_weights.sum(1), batch.frame_weights.shape[1], weight, stride
            ),
        )
        for batch in batches_of(checkpoint)
    ]


def padded_contexts(checkpoint: Checkpoint, stride: int) -> Iterator[BlockContext]:
    """Every block of a copy of the model, its own outputs with noise as targets."""
    model, architecture = copy.deepcopy(checkpoint.model), checkpoint.architecture
    install_layers(model, formats_of(checkpoint, GRID))
    passing = CalibrationPass(model, architecture, padded_batches(checkpoint, stride))
    for captured in passing.captured_blocks():
        yield BlockContext(
            model, architecture, captured.block, captured.module,
            list(captured.calls), captured.row_weights, formats_of(checkpoint, GRID),
            KeptOutputs(one + 0.1 * torch.randn_like(one) for one in captured.outputs()),
        )  # fmt: skip


@torch.no_grad()
def every_row(context: BlockContext, name: str) -> tuple[Tensor, Tensor]:
    """What layer `name` reads when the whole block runs, and what these rows count."""
    seen: list[Tensor] = []
    hook = context.layer(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with hook:
        for call in context.calls:
            call.run(context.module)
    rows = torch.cat([one.flatten(0, 1) for one in seen]).double()
    return rows, torch.cat([one.flatten() for one in context.row_weights]).double()


@pytest.mark.parametrize("stride", [1, 8])
def test_statistics_are_weighted_sums_over_every_row(checkpoint: Checkpoint, stride: int) -> None:
    for context in padded_contexts(checkpoint, stride):
        for site in context.block.sites:
            rows, weights = every_row(context, site.layers[0])
            found = context.statistics(site)
            total = weights.sum()
            expected = {
                "rows": total,
                "mean": weights @ rows / total,
                "mean_magnitude": weights @ rows.abs() / total,
                "second_moment": rows.T @ (rows * weights[:, None]) / total,
                "minimum": rows[weights > 0].amin(0).float(),
                "maximum": rows[weights > 0].amax(0).float(),
            }
            for name, value in expected.items():
                got = torch.as_tensor(getattr(found, name), dtype=value.dtype)
                torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
def test_block_losses_are_weighted_sums_over_every_row(whisper: Checkpoint) -> None:
    shortest = torch.tensor([1])
    for context in padded_contexts(whisper, 8):
        sums, counts = [], []
        for call, target, weights in zip(
            context.calls, context.targets, context.row_weights, strict=True
        ):
            distance = (call.run(context.module) - target).square().sum(2)
            sums.append((distance * weights).sum(1))
            counts.append(weights.sum(1))
        loss = BlockLoss(context)
        whole = float(torch.cat(sums).sum() / torch.cat(counts).sum())
        assert loss.evaluated({}) == pytest.approx(whole, rel=1e-4)
        for index, (total, count) in enumerate(zip(sums, counts, strict=True)):
            expected = float(total[1] / count[1])
            assert float(loss.of_step({}, index, shortest)) == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_attention_losses_are_weighted_sums_over_every_row(whisper: Checkpoint) -> None:
    context = next(padded_contexts(whisper, 8))
    site = context.block.sites[0]
    assert site.reader is not None
    attention = context.model.get_submodule(site.reader)

    def outputs() -> list[Tensor]:
        made: list[Tensor] = []
        with attention.register_forward_hook(lambda _, __, output: made.append(output[0])):
            for call in context.calls:
                call.run(context.module)
        return made

    scale = torch.linspace(0.5, 2, context.layer(site.layers[0]).in_features)
    changed = {
        name: rounded_under(layer.weight, scale, GRID)
        for name, layer in context.layers(site).items()
    }
    found = attention_losses(context, site, site.reader, [changed])
    before = outputs()
    for name, weight in changed.items():
        context.layer(name).weight.copy_(weight)
    expected = sum(
        float(((one - other).square().sum(2) * weights).sum())
        for one, other, weights in zip(before, outputs(), context.row_weights, strict=True)
    )
    assert found == pytest.approx([expected], rel=1e-4)


def test_only_what_is_heard_can_have_a_weight(checkpoint: Checkpoint) -> None:
    (plain, *_), (weighted, *_) = batches_of(checkpoint), batches_of(checkpoint, padding_weight=1.0)
    heard = checkpoint.architecture.hears_padding
    assert torch.equal(plain.frame_weights, weighted.frame_weights) != heard
    assert torch.equal(plain.token_mask, weighted.token_mask)
    if heard:
        assert float(weighted.frame_weights.sum()) == weighted.frame_weights.numel()
