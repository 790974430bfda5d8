"""Scaling a site's channels: exact on real blocks, refused where it cannot be."""

from __future__ import annotations

import copy

import pytest
import torch
from quant.passes import (
    EncoderOnly,
    Inspect,
    contexts,
    largest_change,
    largest_encoder_change,
    rewrite_blocks,
    site_of,
    weights_of,
)
from torch import nn

from edge_asr.models.loading import Checkpoint
from edge_asr.quant.context import BlockContext
from edge_asr.quant.layers import ChannelScale
from edge_asr.quant.transform.fold import can_fold, fed_by_norm, scale_site


def random_scale(count: int, seed: int) -> torch.Tensor:
    return torch.exp(torch.randn(count, generator=torch.Generator().manual_seed(seed)))


def scale_everything(context: BlockContext) -> None:
    """A random scale at every site, a runtime op where it cannot fold."""
    for index, site in enumerate(context.block.sites):
        scale = random_scale(context.layer(site.layers[0]).in_features, index)
        scale_site(context, site, scale, at_runtime=not can_fold(context, site))


def test_scaling_every_site_leaves_the_logits_as_they_are(checkpoint: Checkpoint) -> None:
    model, _ = rewrite_blocks(checkpoint, Inspect(scale_everything))
    before, after = weights_of(checkpoint.model), weights_of(model)
    for block in checkpoint.architecture.blocks(model.config):
        for name in block.layers:
            assert not torch.allclose(before[f"{name}.weight"], after[f"{name}.weight"])
    assert largest_change(checkpoint, checkpoint.model, model) < 1e-4


def test_scaling_encoder_blocks_leaves_the_encoder_as_it_is(checkpoint: Checkpoint) -> None:
    model, _ = rewrite_blocks(checkpoint, EncoderOnly(Inspect(scale_everything)))
    assert largest_encoder_change(checkpoint, checkpoint.model, model) < 1e-4
    assert largest_change(checkpoint, checkpoint.model, model) < 1e-4


def test_what_can_fold(checkpoint: Checkpoint) -> None:
    """Norms and layers of the same block can; rounded values and activations cannot."""
    gated = checkpoint.architecture.family == "moonshine"
    for context in contexts(checkpoint):
        for site in context.block.sites:
            assert fed_by_norm(context, site) == (site.role not in ("out", "fc2"))
            cross = site.role == "out" and site.source not in context.block.layers
            blocked = cross or (site.role == "fc2" and not (gated and site.stack == "decoder"))
            assert can_fold(context, site) != blocked, site.layers
            if cross:
                assert "encoder_attn" in site.layers[0]


def test_a_source_that_is_rounded_already_is_refused(checkpoint: Checkpoint) -> None:
    context = next(
        w for w in contexts(checkpoint) if any(s.role == "cross_q" for s in w.block.sites)
    )
    site = [site for site in context.block.sites if site.role == "out"][1]
    before = weights_of(context.model)
    with pytest.raises(ValueError, match="cannot absorb"):
        scale_site(context, site, random_scale(context.layer(site.layers[0]).in_features, 0))
    after = weights_of(context.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_must_be_above_zero_and_finite(whisper: Checkpoint, bad: float) -> None:
    context, site = site_of(whisper, "encoder", "fc1")
    scale = torch.ones(48)
    scale[3] = bad
    with pytest.raises(ValueError, match="not above zero and finite"):
        scale_site(context, site, scale)


def test_only_the_up_half_of_a_gated_layer_takes_the_scale(moonshine: Checkpoint) -> None:
    context, site = site_of(moonshine, "decoder", "fc2")
    source = context.layer(site.source or "")
    reader = context.layer(site.layers[0])
    before = copy.deepcopy((source, reader))
    scale = random_scale(80, 1)
    scale_site(context, site, scale)
    assert torch.equal(source.weight[80:], before[0].weight[80:])
    assert torch.equal(source.bias[80:], before[0].bias[80:])
    torch.testing.assert_close(source.weight[:80] * scale[:, None], before[0].weight[:80])
    torch.testing.assert_close(source.bias[:80] * scale, before[0].bias[:80])
    torch.testing.assert_close(reader.weight / scale, before[1].weight)
    assert not reader.input_ops


def test_values_shared_by_several_heads_do_not_fold(moonshine: Checkpoint) -> None:
    context, site = site_of(moonshine, "encoder", "out")
    assert can_fold(context, site)
    context.layer(site.source or "").out_features = 20
    assert not can_fold(context, site)


def test_a_norm_without_weight_does_not_fold(whisper: Checkpoint) -> None:
    context, site = site_of(whisper, "encoder", "fc1")
    context.model.set_submodule(site.source or "", nn.LayerNorm(48, elementwise_affine=False))
    assert not can_fold(context, site)


def test_runtime_ops_are_visible_and_keep_later_scales_from_folding(whisper: Checkpoint) -> None:
    context, site = site_of(whisper, "encoder", "fc1")
    scale, layer = random_scale(48, 2), context.layer(site.layers[0])
    before = layer.weight.detach().clone()
    scale_site(context, site, scale, at_runtime=True)
    (op,) = layer.input_ops
    assert isinstance(op, ChannelScale)
    # Stored in float16, and the weight undoes what is stored.
    assert torch.equal(op.factor, (1 / scale).half().float())
    torch.testing.assert_close(layer.weight * op.factor, before)
    assert op.macs_per_row == 48
    assert not can_fold(context, site)


def test_statistics_are_taken_anew(checkpoint: Checkpoint) -> None:
    context, site = site_of(checkpoint, "encoder", "qkv")
    before = context.statistics(site).largest_magnitude
    scale = random_scale(len(before), 3)
    scale_site(context, site, scale)
    torch.testing.assert_close(context.statistics(site).largest_magnitude * scale, before)
