"""SmoothQuant's scales against the paper's formula, and that they change no output."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from options import composed
from quant.passes import (
    EncoderOnly,
    Inspect,
    contexts,
    formats_of,
    largest_change,
    largest_encoder_change,
    rewrite_blocks,
    rows_of,
    site_of,
    weights_of,
    without_rows,
)

from edge_asr.models.loading import Checkpoint
from edge_asr.quant.context import BlockContext, ModelContext
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.stages import transforms
from edge_asr.quant.transform.smooth import Smooth, smooth_scale

SMOOTHED = ("qkv", "cross_q", "cross_kv", "fc1")


def reference_scale(inputs: np.ndarray, weights: list[np.ndarray], alpha: float) -> np.ndarray:
    """Eq. 4, s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), one channel after another."""
    scales = []
    for channel in range(inputs.shape[1]):
        largest_input = max(abs(float(row[channel])) for row in inputs)
        largest_weight = max(abs(float(row[channel])) for weight in weights for row in weight)
        largest_weight = max(largest_weight, 1e-5)
        scales.append(max(largest_input**alpha / largest_weight ** (1 - alpha), 1e-5))
    return np.array(scales)


@pytest.mark.parametrize("alpha", [0.5, 0.85])
def test_smoothing_leaves_the_logits_as_they_are(checkpoint: Checkpoint, alpha: float) -> None:
    model, result = rewrite_blocks(checkpoint, Smooth(alpha))
    before, after = weights_of(checkpoint.model), weights_of(model)
    for block in checkpoint.architecture.blocks(model.config):
        for site in block.sites:
            if site.role in SMOOTHED:
                for name in (*site.layers, site.source):
                    key = f"{name}.weight"
                    assert not torch.allclose(before[key], after[key])
    assert largest_change(checkpoint, checkpoint.model, model) < 1e-4
    (warning,) = result.warnings
    assert "act_bits=8" in warning


@pytest.mark.parametrize("activation", [None, ActivationGrid(8)])
def test_smoothing_for_float_activations_is_warned_of(
    moonshine: Checkpoint, activation: ActivationGrid | None
) -> None:
    formats = formats_of(moonshine, Grid(4), activation)
    context = ModelContext(moonshine.model, moonshine.architecture, (), formats)
    Smooth().rewrite_model(context)
    assert len(context.warnings) == (activation is None)


def test_smoothing_encoder_blocks_leaves_the_encoder_as_it_is(checkpoint: Checkpoint) -> None:
    model, _ = rewrite_blocks(checkpoint, EncoderOnly(Smooth()))
    assert largest_encoder_change(checkpoint, checkpoint.model, model) < 1e-4


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_scales_are_those_of_the_paper(checkpoint: Checkpoint, alpha: float) -> None:
    """Read off what became of every smoothed site's weights and norm."""
    seen = []

    def compare(context: BlockContext) -> None:
        sites = [site for site in context.block.sites if site.role in SMOOTHED]
        expected = []
        for site in sites:
            inputs = torch.cat(rows_of(context, context.layer(site.layers[0]))).numpy()
            weights = [context.layer(name).weight.detach().numpy() for name in site.layers]
            expected.append(reference_scale(inputs, weights, alpha))
        before = copy.deepcopy(context.model)
        Smooth(alpha).rewrite_block(context)
        for site, scale in zip(sites, expected, strict=True):
            for name in site.layers:
                old, new = before.get_submodule(name).weight, context.layer(name).weight
                np.testing.assert_allclose(new.detach(), old.detach() * scale, rtol=1e-4)
            norm = context.model.get_submodule(site.source)
            for part in ("weight", "bias"):
                old = getattr(before.get_submodule(site.source), part)
                if old is not None:
                    now = getattr(norm, part).detach()
                    np.testing.assert_allclose(now, old.detach() / scale, rtol=1e-4)
            seen.append(site.role)

    rewrite_blocks(checkpoint, Inspect(compare))
    assert set(seen) == set(SMOOTHED)


def test_out_and_fc2_stay_as_they_are(checkpoint: Checkpoint) -> None:
    model, _ = rewrite_blocks(checkpoint, Smooth())
    for block in checkpoint.architecture.blocks(model.config):
        for site in block.sites:
            if site.role in ("out", "fc2"):
                (name,) = site.layers
                old = checkpoint.model.get_submodule(name).weight
                assert torch.equal(model.get_submodule(name).weight, old)
                assert not model.get_submodule(name).input_ops


def test_all_cross_keys_and_values_share_one_scale(checkpoint: Checkpoint) -> None:
    model, _ = rewrite_blocks(checkpoint, Smooth())
    (site,) = checkpoint.architecture.memory_block(model.config).sites
    assert len(site.layers) == 4
    ratios = torch.cat(
        [
            model.get_submodule(name).weight / checkpoint.model.get_submodule(name).weight
            for name in site.layers
        ]
    )
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-3, atol=1e-5)
    assert float(ratios[0].std()) > 0.01


def test_padding_is_not_learned_from(checkpoint: Checkpoint) -> None:
    """Whatever the padded rows of the first block hold, its first norm gets the same scale."""
    ratios = []
    for exponent in (1, 21):
        context, site = site_of(checkpoint, "encoder", "qkv")
        assert any(not weights.all() for weights in context.row_weights)
        norm = context.model.get_submodule(site.source or "")
        before = norm.weight.detach().clone()
        for call, weights in zip(context.calls, context.row_weights, strict=True):
            call.hidden[weights == 0] = torch.linspace(-1, 1, len(before)) ** exponent
        context.inputs_changed()
        Smooth().rewrite_block(context)
        ratios.append(before / norm.weight)
    torch.testing.assert_close(ratios[0], ratios[1])


def test_dead_channels_and_zero_columns_stay_finite() -> None:
    inputs, weight = torch.tensor([0.0, 2.0, 3.0]), torch.tensor([[1.0, 0.0, -4.0]])
    expected = reference_scale(inputs.numpy()[None], [weight.numpy()], 0.5)
    np.testing.assert_allclose(smooth_scale(inputs, [weight], 0.5), expected, rtol=1e-6)
    assert expected[0] == 1e-5


def test_without_rows_a_site_is_left_alone_with_a_warning(checkpoint: Checkpoint) -> None:
    for context in contexts(checkpoint):
        masked = without_rows(context)
        before = weights_of(masked.model)
        Smooth().rewrite_block(masked)
        after = weights_of(masked.model)
        assert all(torch.equal(before[name], after[name]) for name in before)
        smoothed = sum(site.role in SMOOTHED for site in context.block.sites)
        assert len(masked.warnings) == smoothed
        assert all("no calibration rows" in warning for warning in masked.warnings)


def test_inputs_that_are_not_finite_leave_a_site_alone_with_a_warning(whisper: Checkpoint) -> None:
    context, site = site_of(whisper, "encoder", "qkv")
    context.calls[0].hidden.fill_(float("nan"))
    context.inputs_changed()
    before = context.layer(site.layers[0]).weight.detach().clone()
    Smooth().rewrite_block(context)
    assert torch.equal(context.layer(site.layers[0]).weight, before)
    assert "not finite" in context.warnings[0]


def test_the_recipe_and_its_defaults() -> None:
    stages = composed("method=smoothquant").method.stages
    assert transforms.build(stages["transform"]) == Smooth()
    assert (stages["range"]["name"], stages["rounding"]["name"]) == ("minmax", "nearest")
