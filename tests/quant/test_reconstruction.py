"""The block-reconstruction loop and the learned parts on it, on small random models."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_walker import quantized_with, stages
from tiny import ListCorpus, tone

from edge_asr.data.calibration import CalibrationBatch, calibration_batches
from edge_asr.errors import UserError
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.activation import ActivationGrid
from edge_asr.quant.grid import Grid, GridParameters
from edge_asr.quant.layers import install_layers
from edge_asr.quant.passage import Passage
from edge_asr.quant.range.minmax import MinMax, minmax_parameters
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.reconstruction import (
    BlockLoss,
    Learnable,
    Schedule,
    _clip_order,
    reconstruct,
)
from edge_asr.quant.rounding.adaround import exponent_at
from edge_asr.quant.rounding.nearest import round_nearest
from edge_asr.quant.rounding.rectified import (
    SoftCodes,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
)
from edge_asr.quant.rounding.signround import SignedOffsets, SignSGD
from edge_asr.quant.rounding.tesseraq import HardeningCodes, TesseraQ
from edge_asr.quant.soft import LayerStart, RewrittenBlock
from edge_asr.quant.transform.let import LearnedEquivalentTransformation
from edge_asr.quant.walker import quantize_model
from edge_asr.quant.work import BlockWork, KeptOutputs

LEARNED: dict[str, dict[str, dict[str, Any]]] = {
    "adaround": {"rounding": {"name": "adaround", "iterations": 60}},
    "signround": {"rounding": {"name": "signround", "iterations": 60}},
    "tesseraq": {"rounding": {"name": "tesseraq", "iterations": 100, "learning_rate": 1e-2}},
    "let": {"transform": {"name": "let", "iterations": 60}},
    "let and lwc": {
        "transform": {"name": "let", "iterations": 60},
        "range": {"name": "lwc", "iterations": 60},
    },
    "lwc": {"range": {"name": "lwc", "iterations": 60, "learning_rate": 5e-2}},
}


@pytest.fixture(scope="module")
def batches_of() -> Any:
    def build(checkpoint: Checkpoint) -> list[CalibrationBatch]:
        clips = [(tone(seconds), "one two") for seconds in (1.5, 0.6, 1.1, 0.9)]
        return calibration_batches(checkpoint, ListCorpus(clips), 4, 2, seed=0)

    return build


@pytest.mark.parametrize("name", sorted(LEARNED))
def test_every_block_loss_falls_and_is_what_the_stored_model_has(
    checkpoint: Checkpoint, batches_of: Any, name: str
) -> None:
    """The reported loss must be that of the finished model against the float one."""
    batches = batches_of(checkpoint)
    model, result = quantized_with(checkpoint, batches, stages(**LEARNED[name]), Grid(2))
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


@pytest.mark.parametrize("name", ["adaround", "signround", "tesseraq"])
def test_learned_codes_are_neighbours_of_the_float_weight(
    moonshine: Checkpoint, batches_of: Any, name: str
) -> None:
    """A learned rounding moves a weight by less than a step (signround: of its shrunk grid)."""
    batches = batches_of(moonshine)
    _, result = quantized_with(moonshine, batches, stages(**LEARNED[name]), Grid(4))
    moved = 0
    for layer_name, layer in result.layers.items():
        weight = moonshine.model.get_submodule(layer_name).weight
        scale, zero = layer.weight.parameters.expand(weight.shape[1])
        inside = (layer.weight.codes > 0) & (layer.weight.codes < 15)
        distance = ((weight / scale + zero - layer.weight.codes)[inside]).abs()
        assert float(distance.max()) < (1.01 if name != "tesseraq" else 1.2)
        moved += int((distance > 0.51).sum())
    assert moved > 0


def test_the_same_seed_gives_the_same_codes(moonshine: Checkpoint, batches_of: Any) -> None:
    batches = batches_of(moonshine)
    recipe = stages(rounding={"name": "signround", "iterations": 10})
    first, second = (quantized_with(moonshine, batches, recipe, Grid(3))[1] for _ in range(2))
    for name, layer in first.layers.items():
        assert torch.equal(layer.weight.codes, second.layers[name].weight.codes)


def test_any_learnable_rewrite_leaves_every_block_as_it_is(
    checkpoint: Checkpoint, batches_of: Any
) -> None:
    """Random scales, shifts and query-key scales: the block's outputs must not move."""
    shifts = 0
    for work in block_works(checkpoint, batches_of(checkpoint)):
        soft = LearnedEquivalentTransformation().soft_transform(work)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in soft.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.mul_(torch.exp(0.3 * noise)).add_(0.05 * noise)
        block = RewrittenBlock(work, soft, MinMax().soft_range(work))
        size = sum(float(target.square().sum(-1).mean()) for target in work.targets)
        assert BlockLoss(work).over_all(block.rewritten()) < 1e-8 * size, work.block.module
        shifts += len(soft.shift)
    assert bool(shifts) == (checkpoint.architecture.family == "whisper")


def test_a_step_on_some_clips_is_the_loss_of_those_clips_alone(
    checkpoint: Checkpoint, batches_of: Any
) -> None:
    """By hand from whole-batch outputs: squared distance over the valid rows of the clips."""
    chosen = torch.tensor([1])
    for work in block_works(checkpoint, batches_of(checkpoint)):
        work.targets = KeptOutputs(one + 0.1 * torch.randn_like(one) for one in work.targets)
        loss = BlockLoss(work)
        for index, (call, mask, target) in enumerate(
            zip(work.calls, work.masks, work.targets, strict=True)
        ):
            with torch.no_grad():
                change = (call.run(work.module) - target)[1][mask[1]]
            expected = float(change.square().sum(1).mean()) if len(change) else 0.0
            assert float(loss.of_step({}, index, chosen)) == pytest.approx(expected, rel=1e-4)
            summed = float(loss.of_step({}, index, chosen, 10.0))
            assert summed == pytest.approx(expected * len(change) / 10, rel=1e-4)


def test_every_clip_comes_once_in_a_round() -> None:
    masks = [torch.ones(5, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)]
    masks[0][2] = False
    order = _clip_order(masks, Schedule(1, clips=3, seed=4))
    steps = [next(order) for _ in range(3)]
    seen = sorted(
        (index, clip)
        for index, clips in steps
        for clip in (range(len(masks[index])) if clips is None else clips.tolist())
    )
    assert seen == [(0, 0), (0, 1), (0, 3), (0, 4), (1, 0), (1, 1)]
    assert max(3 if clips is None else len(clips) for _, clips in steps) <= 3
    again = _clip_order(masks, Schedule(1, clips=3, seed=4))
    assert str([next(again) for _ in range(3)]) == str(steps)


@pytest.mark.parametrize("stage", ["transform", "range", "rounding"])
def test_impossible_schedules_are_refused_by_the_option_that_made_them(stage: str) -> None:
    name = {"transform": "let", "range": "lwc", "rounding": "signround"}[stage]
    for setting, value in (("iterations", 0), ("clips", 0), ("patience", 0), ("seed", -1)):
        with pytest.raises(UserError, match=rf"^method\.{stage}\.{setting}={value}"):
            Recipe.build(stages(**{stage: {"name": name, setting: value}}))


@pytest.mark.parametrize(
    ("stage", "name", "evaluations"),
    [
        ("transform", "let", 10),
        ("range", "lwc", 10),
        ("rounding", "adaround", 10),
        ("rounding", "signround", 20),
        ("rounding", "tesseraq", 10),
    ],
)
def test_parts_hand_their_settings_to_the_schedule(stage: str, name: str, evaluations: int) -> None:
    settings = {"iterations": 30, "clips": None, "patience": 3, "seed": 5}
    part = getattr(Recipe.build(stages(**{stage: {"name": name, **settings}})), stage)
    assert part.schedule == Schedule(30, None, evaluations=evaluations, patience=3, seed=5)
    assert part.schedule.field == f"method.{stage}"


def test_the_shared_memory_makes_its_outputs_at_every_look(
    checkpoint: Checkpoint, batches_of: Any
) -> None:
    model = copy.deepcopy(checkpoint.model)
    memory = checkpoint.architecture.memory_block(model.config)
    stations = Passage(model, checkpoint.architecture, batches_of(checkpoint)).stations()
    (station,) = (station for station in stations if station.block.module == memory.module)
    outputs = station.outputs()
    assert len(outputs) == len(station.calls)
    first = outputs[0]
    with torch.no_grad():
        model.get_submodule(memory.layers[0]).weight.mul_(2)
    width = model.get_submodule(memory.layers[0]).out_features
    again = station.outputs()[0]
    assert not torch.allclose(again[..., :width], first[..., :width])
    torch.testing.assert_close(again[..., width:], first[..., width:])


def block_works(checkpoint: Checkpoint, batches: list[CalibrationBatch]) -> Iterator[BlockWork]:
    """Every block of a copy of the model, with its own outputs as targets."""
    model = copy.deepcopy(checkpoint.model)
    blocks = checkpoint.architecture.blocks(model.config)
    install_layers(model, [name for block in blocks for name in block.layers])
    for station in Passage(model, checkpoint.architecture, batches).stations():
        yield BlockWork(
            model, checkpoint.architecture, station.block, station.module,
            station.calls, station.masks, Grid(4), station.outputs(),
        )  # fmt: skip


def test_rectified_sigmoid_and_its_inverse() -> None:
    values = torch.linspace(0, 1, 101)
    torch.testing.assert_close(rectified_sigmoid(inverse_rectified_sigmoid(values)), values)
    assert float(rectified_sigmoid(torch.tensor(6.0))) == 1
    assert float(rectified_sigmoid(torch.tensor(-6.0))) == 0


def test_soft_codes_start_at_the_float_weight() -> None:
    weight = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    grid = Grid(4)
    codes = SoftCodes({"layer": LayerStart(weight, minmax_parameters(weight, grid), grid)})
    inside = (weight != weight.amin(1, keepdim=True)) & (weight != weight.amax(1, keepdim=True))
    torch.testing.assert_close(codes.soft("layer")[inside], weight[inside], atol=1e-5, rtol=0)
    step = codes.parameters_of("layer").scale
    assert bool(((codes.quantized("layer").dequantize() - weight).abs() <= 0.51 * step).all())


@pytest.mark.parametrize("grid", [Grid(4), Grid(8), Grid(4, symmetric=True, signed=True)])
def test_weights_that_lie_on_the_grid_are_trained_too(grid: Grid) -> None:
    """As whole checkpoints of half precision nearly do, zeros above all."""
    codes = torch.arange(grid.lowest, grid.highest, dtype=torch.float32).repeat(2, 1)
    scale = torch.full((2, 1), 0.5)
    zero = torch.full((2, 1), 0.0 if grid.symmetric else 7.0)
    start = LayerStart(scale * (codes - zero), GridParameters(scale, zero, codes.shape[1]), grid)
    soft = SoftCodes({"layer": start})
    torch.testing.assert_close(soft.soft("layer"), start.weight, atol=1e-4, rtol=0)
    soft.soft("layer").sum().backward()
    gradient = soft.logits["0"].grad
    assert gradient is not None
    assert bool((gradient > 0).all())


def test_decided_codes_stay_and_the_undecided_move() -> None:
    """TesseraQ: nothing but hardening changes a fixed logit, whatever the gradients are."""
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    start = LayerStart(weight, minmax_parameters(weight, Grid(3)), Grid(3))
    part = TesseraQ(iterations=20, soft_shares=(0.5, 0.25))
    codes = part.soft_rounding({"one": start})
    assert isinstance(codes, HardeningCodes)
    (optimizer,) = codes.optimizers(20)
    target = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    for step in range(1, 21):
        before, fixed = codes.logits["0"].detach().clone(), codes.get_buffer("fixed_0").clone()
        assert int((~fixed).sum()) == (48 if step <= 10 else 24)
        optimizer.zero_grad()
        (codes.soft("one") - target).square().sum().backward()
        optimizer.step()
        assert torch.equal(codes.logits["0"][fixed], before[fixed])
        assert not torch.equal(codes.logits["0"][~fixed], before[~fixed])
        codes.after_step(step, 20)
    assert bool(codes.get_buffer("fixed_0").all())
    assert torch.equal(codes.soft("one"), codes.quantized("one").dequantize())


@pytest.mark.parametrize("grid", [Grid(3), Grid(2, symmetric=True), Grid(3, symmetric=True,
                                                                     signed=True)])  # fmt: skip
def test_signround_starts_at_rounding_to_nearest(grid: Grid) -> None:
    weight = torch.randn(6, 30, generator=torch.Generator().manual_seed(0))
    parameters = minmax_parameters(weight, grid)
    soft = SignedOffsets({"layer": LayerStart(weight, parameters, grid)}, None)
    expected = round_nearest(weight, parameters, grid).dequantize()
    torch.testing.assert_close(soft.quantized("layer").dequantize(), expected)


def test_a_learned_transform_refuses_static_activations() -> None:
    recipe = Recipe.build(stages(transform={"name": "let"}))
    static = ActivationGrid(8, granularity="tensor", static_range="extreme")
    with pytest.raises(UserError, match="granularity=token"):
        recipe.check_grids(Grid(4), static)


def test_let_is_trained_for_the_quantized_inputs_too(whisper: Checkpoint, batches_of: Any) -> None:
    """With float weights in effect and coarse inputs, only smaller input ranges lower the loss."""
    model = copy.deepcopy(whisper.model)
    recipe = Recipe.build(stages(transform={"name": "let", "iterations": 40}))
    result = quantize_model(
        model, whisper.architecture, batches_of(whisper), recipe, Grid(8),
        activation=ActivationGrid(3),
    )  # fmt: skip
    for block, done in result.blocks.items():
        for learned in done.reconstructions:
            assert learned.loss_after < learned.loss_before, (block, learned)


def test_exponent_waits_then_falls_from_20_to_2() -> None:
    assert exponent_at(0.0) == exponent_at(0.2) == 20
    assert exponent_at(0.6) == pytest.approx(11)
    assert exponent_at(1.0) == pytest.approx(2)


def test_sign_sgd_steps_fall_linearly() -> None:
    value = torch.nn.Parameter(torch.zeros(2))
    optimizer = SignSGD([value], 1.0, iterations=4)
    path = []
    for _ in range(4):
        value.grad = torch.tensor([3.0, -0.1])
        optimizer.step()
        path.append(value.tolist())
    np.testing.assert_allclose(path, [[-1, 1], [-1.75, 1.75], [-2.25, 2.25], [-2.5, 2.5]])


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


def test_the_best_iterate_is_kept_and_patience_ends_training(
    moonshine: Checkpoint, batches_of: Any, first_block: Any
) -> None:
    work = first_block(moonshine, batches_of(moonshine))
    name = work.block.layers[0]
    learnable = Worsening(f"{name}.weight", work.layer(name).weight.detach().clone())
    result = reconstruct(work, learnable, Schedule(100, evaluations=50, patience=3))
    assert float(learnable.shift.detach()) == 0
    assert result.loss_after == result.loss_before
    assert result.iterations == 6
    assert work.reconstructions == [result]
    (warning,) = work.warnings
    assert f"{work.block.module}: 6 steps of training did not lower its loss" in warning


def test_evaluations_are_told(moonshine: Checkpoint, batches_of: Any, first_block: Any) -> None:
    work = first_block(moonshine, batches_of(moonshine))
    name = work.block.layers[0]
    told: list[tuple[int, int]] = []
    work.on_evaluation = lambda step, steps, _: told.append((step, steps))
    learnable = Worsening(f"{name}.weight", work.layer(name).weight.detach().clone())
    reconstruct(work, learnable, Schedule(10, evaluations=4))
    assert told == [(3, 10), (5, 10), (8, 10), (10, 10)]


@pytest.fixture
def first_block() -> Any:
    """Makes the first block of a model, with targets a hundredth away from its outputs."""

    def build(checkpoint: Checkpoint, batches: list[CalibrationBatch]) -> BlockWork:
        work = next(block_works(checkpoint, batches))
        work.targets = KeptOutputs(target + 0.01 for target in work.targets)
        return work

    return build


def test_block_loss_ignores_padding(
    moonshine: Checkpoint, batches_of: Any, first_block: Any
) -> None:
    work = first_block(moonshine, batches_of(moonshine))
    assert any(not mask.all() for mask in work.masks)
    width = work.targets[0].shape[-1]
    assert BlockLoss(work).over_all({}) == pytest.approx(width * 0.01**2, rel=1e-3)
    for target, mask in zip(work.targets, work.masks, strict=True):
        target[~mask] = 1e6
    assert BlockLoss(work).over_all({}) == pytest.approx(width * 0.01**2, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"range": {"name": "lwc"}, "rounding": {"name": "gptq", "static_groups": False,
                                                    "act_order": False}},
            "static_groups=false",
        ),
        ({"transform": {"name": "let"}, "range": {"name": "mse"}}, "must follow it"),
        (
            {"transform": {"name": "let", "iterations": 5}, "range": {"name": "lwc"}},
            "same iterations",
        ),
        ({"outliers": {"name": "columns"}, "transform": {"name": "let"}}, "trained without them"),
        ({"correction": {"name": "bias"}, "rounding": {"name": "signround"}}, "undo it"),
        ({"transform": {"name": "cle"}, "range": {"name": "lwc"}}, "no float outputs"),
        (
            {"range": {"name": "mse_second_level"}, "rounding": {"name": "tesseraq"}},
            "trains the scales",
        ),
        ({"rounding": {"name": "tesseraq", "soft_shares": [0.5, -0.1]}}, "soft_shares"),
        ({"rounding": {"name": "adaround", "seed": 2**70}}, "seed"),
        ({"rounding": {"name": "adaround", "iterations": 0}}, "iterations=0"),
        ({"rounding": {"name": "signround", "learning_rate": -1.0}}, "learning_rate=-1"),
        ({"rounding": {"name": "tesseraq", "iterations": 5}}, "iterations=5"),
        ({"rounding": {"name": "tesseraq", "soft_shares": [0.1, 0.5]}}, "soft_shares"),
    ],
)  # fmt: skip
def test_senseless_recipes_are_refused_when_built(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Recipe.build(stages(**changes))
