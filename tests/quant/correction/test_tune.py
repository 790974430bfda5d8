"""End-to-end tuning: nearer to the float model on clips apart, with the same codes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from quant.passes import Weights, batches_of, formats_of, quantized_with, stages
from torch import Tensor
from transformers import PreTrainedModel

from edge_asr.errors import UserError
from edge_asr.models.families.base import end_tokens
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.context import ModelContext
from edge_asr.quant.correction.tune import Distillation, TunedModel
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.grid import minimum_of
from edge_asr.quant.layers import install_layers
from edge_asr.quant.model_training import NOT_ASKED, next_tokens
from edge_asr.quant.transform.hadamard import rotate_model

GROUPS = Grid(2, granularity="group", group_size=8)
SHORT: dict[str, Any] = {"name": "tune", "iterations": 30, "learning_rate": 0.02}


def tuned(
    checkpoint: Checkpoint, grid: Grid, *, activation: ActivationGrid | None = None, **changes: Any
) -> tuple[PreTrainedModel, Weights]:
    options = stages(correction=SHORT | changes)
    return quantized_with(checkpoint, options, grid, activation=activation)


def divergence(
    exact: PreTrainedModel, found: PreTrainedModel, checkpoint: Checkpoint, clips: list[int]
) -> float:
    """Nats a token over some clips of the first batch, the slow way."""
    batch = batches_of(checkpoint)[0]
    total, count = 0.0, 0
    for clip in clips:
        inputs = {name: value[clip, None] for name, value in batch.encoder_inputs.items()}
        tokens = batch.decoder_input_ids[clip, None]
        with torch.no_grad():
            wanted, given = (
                model(**inputs, decoder_input_ids=tokens).logits[0].double().softmax(-1)
                for model in (exact, found)
            )
        prompt = len(checkpoint.architecture.prompt(exact))
        for position in range(prompt - 1, int(batch.token_mask[clip].sum())):
            ratio = (wanted[position] / given[position]).log()
            total, count = total + float((wanted[position] * ratio).sum()), count + 1
    return total / count


@pytest.mark.parametrize("activation", [None, ActivationGrid(4)], ids=["weights", "activations"])
def test_what_is_stored_is_nearer_by_what_the_record_says(
    checkpoint: Checkpoint, activation: ActivationGrid | None
) -> None:
    plain, _ = quantized_with(checkpoint, stages(), GROUPS, activation=activation)
    model, weights = tuned(checkpoint, GROUPS, activation=activation)
    (learned,) = weights.result.reconstructions
    # One of the four clips is apart: the first.
    before, after = (divergence(checkpoint.model, one, checkpoint, [0]) for one in (plain, model))
    assert after < 0.9 * before
    assert learned.loss_before == pytest.approx(before, rel=1e-3)
    assert learned.loss_after == pytest.approx(after, rel=1e-3)
    assert "more than calibration" in weights.warnings[-1]


@pytest.mark.parametrize("grid", [GROUPS, Grid(2, symmetric=True, signed=True, signed_scale=True)])
def test_codes_and_zero_points_stay_as_they_were(checkpoint: Checkpoint, grid: Grid) -> None:
    _, plain = quantized_with(checkpoint, stages(), grid)
    model, weights = tuned(checkpoint, grid)
    changed = 0
    for name, layer in weights.layers.items():
        before, after = plain.layers[name].weight, layer.weight
        assert torch.equal(before.codes, after.codes)
        assert torch.equal(before.parameters.zero, after.parameters.zero)
        assert torch.equal(after.parameters.scale, after.parameters.scale.half().float())
        changed += int(not torch.equal(before.parameters.scale, after.parameters.scale))
        assert torch.equal(model.get_parameter(f"{name}.weight"), after.dequantize())
    assert changed > len(weights.layers) // 2
    vectors = [name for name, value in checkpoint.model.named_parameters() if value.ndim == 1]
    moved = [
        not torch.equal(model.get_parameter(name), checkpoint.model.get_parameter(name))
        for name in vectors
    ]
    assert sum(moved) > len(moved) // 2


def test_a_stored_minimum_stays_as_it_was(moonshine: Checkpoint) -> None:
    grid = Grid(2, granularity="group", group_size=8, zero_point="minimum", include_zero=False)
    _, plain = quantized_with(moonshine, stages(), grid)
    _, weights = tuned(moonshine, grid)
    changed = 0
    for name, layer in weights.layers.items():
        before, after = (one.weight.parameters for one in (plain.layers[name], layer))
        changed += int(not torch.equal(before.scale, after.scale))
        assert torch.equal(
            minimum_of(after.zero, after.scale, grid), minimum_of(before.zero, before.scale, grid)
        )
    assert changed > len(weights.layers) // 2


@pytest.mark.parametrize("rotated", [False, True])
def test_the_loss_is_the_divergence_of_whole_distributions(
    checkpoint: Checkpoint, rotated: bool
) -> None:
    model, formats = copy.deepcopy(checkpoint.model), formats_of(checkpoint, Grid(2))
    install_layers(model, formats)
    batches = batches_of(checkpoint)
    context = ModelContext(model, checkpoint.architecture, batches, formats)
    if rotated:  # and an explicit rotation before the head
        rotate_model(context, seed=0, untie=False, across_heads=False, dense=False)
    context.reference = copy.deepcopy(model)
    with torch.no_grad():
        for name in formats:
            model.get_submodule(name).weight.mul_(1.1)
    batch, clips = batches[1], torch.tensor([1])
    inputs = {name: value[clips] for name, value in batch.encoder_inputs.items()}
    tokens = batch.decoder_input_ids[clips]
    logits = model(**inputs, decoder_input_ids=tokens).logits
    prompt = len(checkpoint.architecture.prompt(model))
    following = next_tokens(tokens, batch.token_mask[clips], prompt, min(end_tokens(model)))
    found = Distillation(context)(1, clips, logits, following)
    wanted = context.reference(**inputs, decoder_input_ids=tokens).logits
    expected = torch.zeros(())
    for position in (following[0] != NOT_ASKED).nonzero().flatten():
        p, q = (one[0, position].softmax(-1) for one in (wanted, logits))
        expected = expected + (p * (p / q).log()).sum()
    assert float(expected.detach()) > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_steps_that_do_not_help_change_nothing(moonshine: Checkpoint) -> None:
    plain, _ = quantized_with(moonshine, stages(), Grid(4))
    model, weights = tuned(moonshine, Grid(4), iterations=1, learning_rate=1e3)
    assert "nothing was changed" in weights.warnings[-1]
    for name, value in plain.named_parameters():
        assert torch.equal(model.get_parameter(name), value)


def test_one_clip_is_too_few(moonshine: Checkpoint) -> None:
    batch = batches_of(moonshine)[0]
    batch.token_mask[1:] = False
    with pytest.raises(UserError, match=r"two clips.*calibration\.clips"):
        quantized_with(moonshine, stages(correction=SHORT), Grid(4), batches=[batch])


def test_what_was_finished_is_not_trained_again(moonshine: Checkpoint, tmp_path: Path) -> None:
    models, results = [], []
    for _ in range(2):
        model, weights = quantized_with(
            moonshine, stages(correction=SHORT), Grid(2), finished=tmp_path
        )
        models.append(model)
        results.append(weights.result)
    assert results[0] == results[1]
    assert results[0].blocks["repair"].seconds == results[1].blocks["repair"].seconds
    for name, value in models[0].named_parameters():
        assert torch.equal(models[1].get_parameter(name), value)


def test_biases_of_zeros_can_move(moonshine: Checkpoint) -> None:
    model, formats = copy.deepcopy(moonshine.model), formats_of(moonshine, Grid(4))
    install_layers(model, formats)
    context = ModelContext(model, moonshine.architecture, batches_of(moonshine), formats)
    names = [name for name, value in model.named_parameters() if value.ndim == 1]
    with torch.no_grad():
        model.get_parameter(names[0]).zero_()
        learnable = TunedModel(context)
        for change in learnable.vectors:
            change.fill_(1.0)
        moved: dict[str, Tensor] = learnable.moved_vectors()
    assert bool((moved[names[0]] > 0).all())
