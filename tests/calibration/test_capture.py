"""What a calibration pass keeps and what it makes anew."""

from __future__ import annotations

import copy

import torch
from quant.passes import batches_of, contexts_with_targets

from edge_asr.calibration.capture import CalibrationPass
from edge_asr.models.loading import Checkpoint


def test_the_shared_memory_makes_its_outputs_at_every_look(checkpoint: Checkpoint) -> None:
    model = copy.deepcopy(checkpoint.model)
    memory = checkpoint.architecture.memory_block(model.config)
    captured_blocks = CalibrationPass(
        model, checkpoint.architecture, batches_of(checkpoint)
    ).captured_blocks()
    (captured,) = (
        captured for captured in captured_blocks if captured.block.module == memory.module
    )
    outputs = captured.outputs()
    assert len(outputs) == len(captured.calls)
    first = outputs[0]
    with torch.no_grad():
        model.get_submodule(memory.layers[0]).weight.mul_(2)
    width = model.get_submodule(memory.layers[0]).out_features
    again = captured.outputs()[0]
    assert not torch.allclose(again[..., :width], first[..., :width])
    torch.testing.assert_close(again[..., width:], first[..., width:])


def test_the_shared_memory_reads_rows_that_count(checkpoint: Checkpoint) -> None:
    batches = batches_of(checkpoint)
    model, architecture = checkpoint.model, checkpoint.architecture
    memory = architecture.memory_block(model.config)
    captured_blocks = CalibrationPass(model, architecture, batches).captured_blocks()
    (captured,) = (
        captured for captured in captured_blocks if captured.block.module == memory.module
    )
    encoder = model.get_submodule(architecture.encoder_module)
    layers = [model.get_submodule(name) for name in memory.layers]
    cut = 0
    for batch, call, weights, outputs in zip(
        batches, captured.calls, captured.row_weights, captured.outputs(), strict=True
    ):
        assert weights[:, -1].any()
        assert float(weights.sum()) == float(batch.frame_weights.sum())
        assert call.hidden.shape[:2] == weights.shape == outputs.shape[:2]
        cut += batch.frame_weights.shape[1] - weights.shape[1]
        with torch.no_grad():
            states = encoder(**batch.encoder_inputs).last_hidden_state
            expected = torch.cat([layer(states) for layer in layers], -1)
        counted = expected[batch.frame_weights > 0]
        torch.testing.assert_close(outputs[weights > 0], counted, rtol=1e-4, atol=1e-5)
    assert cut > 0 or architecture.family == "moonshine"


@torch.no_grad()
def test_blocks_run_in_bfloat16(checkpoint: Checkpoint) -> None:
    """Their errors are those of values of 8 significant bits."""
    batches, architecture = batches_of(checkpoint), checkpoint.architecture
    exact, narrow = (
        CalibrationPass(
            copy.deepcopy(checkpoint.model), architecture, batches, dtype
        ).captured_blocks()
        for dtype in (torch.float32, torch.bfloat16)
    )
    for one, other in zip(exact, narrow, strict=True):
        for expected, found in zip(one.outputs(), other.outputs(), strict=True):
            error = (found.float() - expected).norm() / expected.norm()
            assert 1e-5 < error < 0.05


@torch.no_grad()
def test_statistics_of_bfloat16_are_summed_in_float32(checkpoint: Checkpoint) -> None:
    seen: list[torch.Tensor] = []
    for context in contexts_with_targets(checkpoint, torch.bfloat16):
        site = context.block.sites[-1]
        entry = context.layer(site.layers[0])
        with entry.register_forward_pre_hook(lambda _, args: seen.append(args[0].float())):
            for call in context.calls:
                call.run(context.module)
        rows = torch.cat([row.flatten(0, 1) for row in seen]).double()
        weights = torch.cat([one.flatten() for one in context.row_weights]).double()
        expected = rows.T @ (rows * weights[:, None]) / weights.sum()
        found = context.statistics(site).second_moment
        assert (found - expected).norm() / expected.norm() < 1e-3
        seen.clear()
