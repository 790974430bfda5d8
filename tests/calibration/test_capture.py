"""What a calibration pass keeps and what it makes anew."""

from __future__ import annotations

import copy

import torch
from quant.passes import batches_of

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


def test_the_shared_memory_reads_no_row_behind_the_last_valid_one(checkpoint: Checkpoint) -> None:
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
    for batch, call, mask, outputs in zip(
        batches, captured.calls, captured.masks, captured.outputs(), strict=True
    ):
        assert mask[:, -1].any()
        assert int(mask.sum()) == int(batch.frame_mask.sum())
        assert call.hidden.shape[:2] == mask.shape == outputs.shape[:2]
        cut += batch.frame_mask.shape[1] - mask.shape[1]
        with torch.no_grad():
            states = encoder(**batch.encoder_inputs).last_hidden_state
            expected = torch.cat([layer(states) for layer in layers], -1)
        torch.testing.assert_close(outputs[mask], expected[batch.frame_mask], rtol=1e-4, atol=1e-5)
    assert cut > 0 or architecture.family == "moonshine"
