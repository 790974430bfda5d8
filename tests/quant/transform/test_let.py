"""OmniQuant's learnable equivalent transformation."""

from __future__ import annotations

import pytest
import torch
from options import composed
from quant.passes import GRID, contexts_with_targets, quantized_with, stages

from edge_asr.errors import UserError
from edge_asr.models.loading import Checkpoint
from edge_asr.models.tensors import Slot
from edge_asr.quant.formats import ActivationGrid, Grid, TensorFormat
from edge_asr.quant.range.minmax import MinMax
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.reconstruction import BlockLoss
from edge_asr.quant.scheme import Scheme
from edge_asr.quant.trainable import RewrittenBlock
from edge_asr.quant.transform.let import LearnedEquivalentTransformation


def test_any_learnable_rewrite_leaves_every_block_as_it_is(checkpoint: Checkpoint) -> None:
    """Random scales, shifts and query-key scales: the block's outputs must not move."""
    shifts = 0
    for context in contexts_with_targets(checkpoint):
        trainable = LearnedEquivalentTransformation(weight_only=True).trainable_transform(context)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in trainable.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.mul_(torch.exp(0.3 * noise)).add_(0.05 * noise)
        block = RewrittenBlock(context, trainable, MinMax().trainable_range(context))
        size = sum(float(target.square().sum(-1).mean()) for target in context.targets)
        assert BlockLoss(context).evaluated(block.rewritten()) < 1e-8 * size, context.block.module
        shifts += len(trainable.shift)
    assert bool(shifts) == (checkpoint.architecture.family == "whisper")


def test_a_learned_transform_refuses_static_activations() -> None:
    recipe = Recipe.build(stages(transform={"name": "let"}))
    static = ActivationGrid(8, granularity="tensor", static_range="extreme")
    slot = Slot("layer", "encoder", "fc1", "linear")
    with pytest.raises(UserError, match="granularity=token"):
        recipe.constrain(TensorFormat(Grid(4), static), slot)
    scheme = Scheme.build([], composed("scheme=a8_static").scheme.rules, {})
    with pytest.raises(UserError, match="granularity=token"):
        recipe.check(scheme)


def test_let_is_trained_for_the_quantized_inputs_too(whisper: Checkpoint) -> None:
    """With float weights in effect and coarse inputs, only smaller input ranges lower the loss."""
    recipe = stages(transform={"name": "let", "iterations": 40})
    _, result = quantized_with(whisper, recipe, Grid(8), activation=ActivationGrid(3))
    for block, done in result.blocks.items():
        for learned in done.reconstructions:
            assert learned.loss_after < learned.loss_before, (block, learned)


def test_weights_alone_are_left_to_learned_ranges_as_by_the_authors(moonshine: Checkpoint) -> None:
    lwc = {"name": "lwc", "iterations": 12}
    alone, _ = quantized_with(moonshine, stages(range=lwc), GRID)
    omniquant, _ = quantized_with(
        moonshine, stages(transform={"name": "let", "iterations": 12}, range=lwc), GRID
    )
    for name, parameter in alone.named_parameters():
        assert torch.equal(parameter, omniquant.get_parameter(name)), name
