"""The block-reconstruction loop and the learned parts on it, on small random models."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from quant.passes import LEARNED, batches_of, contexts_with_targets, quantized_with, stages

from edge_asr.calibration.batches import CalibrationBatch
from edge_asr.calibration.capture import KeptOutputs
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.activation import quantize_inputs
from edge_asr.quant.context import BlockContext
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.reconstruction import (
    BlockLoss,
    Learnable,
    Schedule,
    _clip_order,
    reconstruct,
)


@pytest.mark.parametrize("name", sorted(LEARNED))
def test_every_block_loss_falls_and_is_what_the_stored_model_has(
    checkpoint: Checkpoint, name: str
) -> None:
    """The reported loss must be that of the finished model against the float one."""
    batches = batches_of(checkpoint)
    model, result = quantized_with(checkpoint, stages(**LEARNED[name]), Grid(2))
    for block, done in result.blocks.items():
        (learned,) = done.reconstructions
        assert learned.loss_after < learned.loss_before, (block, learned)
    last = checkpoint.architecture.decoder_blocks(model.config)[-1].module
    expected = _block_distance(checkpoint.model, model, batches, last)
    (learned,) = result.blocks[last].reconstructions
    assert learned.loss_after == pytest.approx(expected, rel=1e-3)


def _block_distance(
    plain: torch.nn.Module, model: torch.nn.Module, batches: list[CalibrationBatch], block: str
) -> float:
    """Mean squared distance of a block's outputs over valid tokens, from whole forward passes."""
    total, rows = 0.0, 0
    for batch in batches:
        outputs = []
        for one in (plain, model):
            seen: list[torch.Tensor] = []
            hook = one.get_submodule(block).register_forward_hook(
                lambda _, __, output, seen=seen: seen.append(
                    output[0] if isinstance(output, tuple) else output
                )
            )
            with hook, torch.no_grad():
                one(**batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids)
            outputs.append(seen[0][batch.token_mask])
        total += float((outputs[0] - outputs[1]).square().sum())
        rows += len(outputs[0])
    return total / rows


def test_the_same_seed_gives_the_same_codes(moonshine: Checkpoint) -> None:
    recipe = stages(rounding={"name": "signround", "iterations": 10})
    first, second = (quantized_with(moonshine, recipe, Grid(3))[1] for _ in range(2))
    for name, layer in first.layers.items():
        assert torch.equal(layer.weight.codes, second.layers[name].weight.codes)


def test_a_step_on_some_clips_is_the_loss_of_those_clips_alone(checkpoint: Checkpoint) -> None:
    """By hand from whole-batch outputs: squared distance over the valid rows of the clips."""
    chosen = torch.tensor([1])
    for context in contexts_with_targets(checkpoint):
        context.targets = KeptOutputs(one + 0.1 * torch.randn_like(one) for one in context.targets)
        loss = BlockLoss(context)
        for index, (call, weights, target) in enumerate(
            zip(context.calls, context.row_weights, context.targets, strict=True)
        ):
            with torch.no_grad():
                change = (call.run(context.module) - target)[1][weights[1] > 0]
            expected = float(change.square().sum(1).mean()) if len(change) else 0.0
            assert float(loss.of_step({}, index, chosen)) == pytest.approx(expected, rel=1e-4)
            summed = float(loss.of_step({}, index, chosen, 10.0))
            assert summed == pytest.approx(expected * len(change) / 10, rel=1e-4)


def test_every_clip_comes_once_in_a_round() -> None:
    row_weights = [torch.ones(5, 3), torch.ones(2, 3)]
    row_weights[0][2] = 0
    order = _clip_order(row_weights, Schedule(1, clips=3, seed=4))
    steps = [next(order) for _ in range(3)]
    seen = sorted(
        (index, clip)
        for index, clips in steps
        for clip in (range(len(row_weights[index])) if clips is None else clips.tolist())
    )
    assert seen == [(0, 0), (0, 1), (0, 3), (0, 4), (1, 0), (1, 1)]
    assert max(3 if clips is None else len(clips) for _, clips in steps) <= 3
    again = _clip_order(row_weights, Schedule(1, clips=3, seed=4))
    assert str([next(again) for _ in range(3)]) == str(steps)


@pytest.mark.parametrize(
    ("stage", "name", "evaluations"),
    [
        ("transform", "let", 10),
        ("range", "lwc", 10),
        ("rounding", "adaround", 10),
        ("rounding", "signround", 10),
        ("rounding", "tesseraq", 10),
    ],
)
def test_parts_hand_their_settings_to_the_schedule(stage: str, name: str, evaluations: int) -> None:
    settings = {"iterations": 30, "clips": "batch", "patience": 3, "seed": 5, "aug_loss": True}
    part = getattr(Recipe.build(stages(**{stage: {"name": name, **settings}})), stage)
    assert part.training == Schedule(30, None, evaluations, patience=3, seed=5, aug_loss=True)


PAPER_LENGTHS = {
    ("transform", "let"): (2560, 1),
    ("range", "lwc"): (2560, 1),
    ("rounding", "adaround"): (10_000, 4),
    ("rounding", "signround"): (200, 8),
    ("rounding", "tesseraq"): (2500, 2),
}


@pytest.mark.parametrize(("stage", "name"), PAPER_LENGTHS)
def test_a_schedule_has_a_name_and_each_setting_may_differ(stage: str, name: str) -> None:
    def training(**settings: Any) -> Schedule:
        part = getattr(Recipe.build(stages(**{stage: {"name": name, **settings}})), stage)
        made = part.training
        assert isinstance(made, Schedule)
        assert dataclasses.asdict(part)["iterations"] == made.iterations  # so the key has it
        return made

    paper, short = training(schedule="paper"), training()
    assert (paper.iterations, paper.clips) == PAPER_LENGTHS[stage, name]
    assert (short.iterations, short.clips) <= (min(paper.iterations, 500), 1)
    changed = training(schedule="paper", iterations=40)
    assert (changed.iterations, changed.clips) == (40, paper.clips)


def test_an_evaluation_looks_at_a_few_clips_of_all_batches(checkpoint: Checkpoint) -> None:
    """By hand over every other of the clips that have rows."""
    for context in contexts_with_targets(checkpoint):
        context.targets = KeptOutputs(one + 0.1 * torch.randn_like(one) for one in context.targets)
        clips = [
            (index, clip)
            for index, weights in enumerate(context.row_weights)
            for clip in range(len(weights))
            if weights[clip].any()
        ]
        chosen = clips[::2]
        distance = rows = 0.0
        for index, clip in chosen:
            weights = context.row_weights[index][clip]
            with torch.no_grad():
                output = context.calls[index].run(context.module)[clip]
            change = (output - context.targets[index][clip]).square().sum(1)
            distance += float((change * weights)[weights > 0].sum())
            rows += float(weights.sum())
        loss = BlockLoss(context, most=len(chosen))
        assert loss.evaluated({}) == pytest.approx(distance / rows, rel=1e-4)


def test_the_second_loss_is_the_distance_to_the_float_block_on_the_same_inputs(
    checkpoint: Checkpoint,
) -> None:
    """By hand, where the targets are another thing and 4-bit input quantizers act."""
    for context in contexts_with_targets(checkpoint):
        context.targets = KeptOutputs(one + 0.1 * torch.randn_like(one) for one in context.targets)
        with torch.no_grad():
            own = [call.run(context.module) for call in context.calls]
        for site in context.block.sites:
            statistics = context.statistics(site)
            quantize_inputs(context.layers(site).values(), ActivationGrid(4), statistics)
        name = f"{context.block.layers[-1]}.weight"
        weight = context.model.get_parameter(name)
        changed = (1.1 * weight).detach().requires_grad_()
        loss, extra = BlockLoss(context), []
        for index in range(len(context.calls)):
            plain, both = (
                loss.of_step({name: changed}, index, aug_loss=asked) for asked in (False, True)
            )
            extra.append((both - plain, *torch.autograd.grad(both - plain, changed)))
        weight.data.copy_(changed.detach())
        weight.requires_grad_()
        for call, weights, target, (value, slope) in zip(
            context.calls, context.row_weights, own, extra, strict=True
        ):
            expected = (call.run(context.module) - target)[weights > 0].square().sum(1).mean()
            torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5)
            (expected_slope,) = torch.autograd.grad(expected, weight)
            assert bool(expected_slope.any())
            torch.testing.assert_close(slope, expected_slope, rtol=1e-3, atol=1e-4)


def test_training_takes_the_second_loss_only_where_it_is_asked_for(moonshine: Checkpoint) -> None:
    """In the first block both losses are the same; behind it the prefix's error parts them."""
    rounding = {"name": "signround", "iterations": 10}
    plain, both = (
        quantized_with(moonshine, stages(rounding=rounding | {"aug_loss": asked}), Grid(2))[1]
        for asked in (False, True)
    )
    same = [
        torch.equal(layer.weight.codes, both.layers[name].weight.codes)
        for name, layer in plain.layers.items()
    ]
    assert not all(same)


class Worsening(Learnable):
    """Leads away from its start at every step."""

    def __init__(self, path: str, weight: torch.Tensor) -> None:
        super().__init__()
        self._path, self._weight = path, weight
        self.shift = torch.nn.Parameter(torch.zeros(()))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {self._path: self._weight + self.shift}

    def optimizers(self, iterations: int) -> list[torch.optim.Optimizer]:
        del iterations
        return [torch.optim.SGD([self.shift], lr=0.0)]

    def after_step(self, step: int, iterations: int) -> None:
        del iterations
        self.shift.fill_(0.1 * step)


def test_the_best_iterate_is_kept_and_patience_ends_training(moonshine: Checkpoint) -> None:
    context = first_block(moonshine)
    name = context.block.layers[0]
    learnable = Worsening(f"{name}.weight", context.layer(name).weight.detach().clone())
    result = reconstruct(context, learnable, Schedule(100, evaluations=50, patience=3))
    assert float(learnable.shift.detach()) == 0
    assert result.loss_after == result.loss_before
    assert result.iterations == 6
    assert context.reconstructions == [result]
    (warning,) = context.warnings
    assert f"{context.block.module}: 6 steps of training did not lower its loss" in warning


def test_evaluations_are_told(moonshine: Checkpoint) -> None:
    context = first_block(moonshine)
    name = context.block.layers[0]
    told: list[tuple[int, int]] = []
    context.on_evaluation = lambda step, steps, _: told.append((step, steps))
    learnable = Worsening(f"{name}.weight", context.layer(name).weight.detach().clone())
    reconstruct(context, learnable, Schedule(10, evaluations=4))
    assert told == [(3, 10), (5, 10), (8, 10), (10, 10)]


def first_block(checkpoint: Checkpoint) -> BlockContext:
    """The first block of a model, with targets a hundredth away from its outputs."""
    context = next(contexts_with_targets(checkpoint))
    context.targets = KeptOutputs(target + 0.01 for target in context.targets)
    return context


def test_block_loss_ignores_padding(moonshine: Checkpoint) -> None:
    context = first_block(moonshine)
    assert any(not weights.all() for weights in context.row_weights)
    width = context.targets[0].shape[-1]
    assert BlockLoss(context).evaluated({}) == pytest.approx(width * 0.01**2, rel=1e-3)
    for target, weights in zip(context.targets, context.row_weights, strict=True):
        target[weights == 0] = 1e6
    assert BlockLoss(context).evaluated({}) == pytest.approx(width * 0.01**2, rel=1e-3)
