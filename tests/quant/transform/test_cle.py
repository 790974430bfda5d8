"""Cross-layer equalization: equal ranges in every pair, and the same outputs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quant.passes import (
    EncoderOnly,
    contexts,
    largest_change,
    largest_encoder_change,
    rewrite_blocks,
    site_of,
    uneven,
    weights_of,
    without_rows,
)

from edge_asr.models.loading import Checkpoint
from edge_asr.quant.stages import transforms
from edge_asr.quant.transform.cle import CrossLayerEqualization, equalizing_scale

ranges = st.lists(st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)), min_size=1, max_size=20)


@given(ranges)
def test_the_scale_equalizes_both_ranges(pairs: list[tuple[float, float]]) -> None:
    """Section 4.1: r1 / s = r2 s = sqrt(r1 r2) for every channel."""
    first, second = torch.tensor(pairs, dtype=torch.float64).T
    scale = equalizing_scale(first, second).numpy()
    expected = [np.sqrt(one * other) / other for one, other in pairs]
    np.testing.assert_allclose(scale, expected, rtol=1e-12)
    np.testing.assert_allclose(first.numpy() / scale, second.numpy() * scale, rtol=1e-9)


def test_a_channel_without_range_is_left_alone() -> None:
    scale = equalizing_scale(torch.tensor([0.0, 2.0, 0.0]), torch.tensor([3.0, 0.0, 0.0]))
    assert torch.equal(scale, torch.ones(3))


def linear_pairs(checkpoint: Checkpoint) -> list[tuple[str, str, slice]]:
    """Source, reader and source rows of every linear pair, from the layers' names."""
    names = [name for name, _ in checkpoint.model.named_modules()]
    pairs = []
    for name in names:
        if name.endswith(".v_proj"):
            root = name.removesuffix("v_proj")
            (reader,) = (other for other in names if other in (f"{root}o_proj", f"{root}out_proj"))
            pairs.append((name, reader, slice(None)))
        if name.endswith("decoder.layers.0.mlp.fc1") or name.endswith("decoder.layers.1.mlp.fc1"):
            reader = name.removesuffix("fc1") + "fc2"
            width = checkpoint.model.get_submodule(reader).in_features
            pairs.append((name, reader, slice(0, width)))
    return pairs


def test_every_linear_pair_is_equalized_and_nothing_else(checkpoint: Checkpoint) -> None:
    original = uneven(checkpoint.model)
    model, result = rewrite_blocks(checkpoint, CrossLayerEqualization(), model=original)
    pairs = linear_pairs(checkpoint)
    # Two self-attentions in each stack, two cross-attentions, and Moonshine's two gated MLPs.
    assert len(pairs) == (8 if checkpoint.architecture.family == "moonshine" else 6)
    touched = set()
    for source, reader, rows in pairs:
        out = model.get_submodule(source).weight[rows].abs().amax(1)
        into = model.get_submodule(reader).weight.abs().amax(0)
        torch.testing.assert_close(out, into, rtol=1e-4, atol=0)
        touched |= {f"{source}.weight", f"{source}.bias", f"{reader}.weight"}
    before, after = weights_of(original), weights_of(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == touched & set(before)
    for source, _, rows in pairs:
        if rows.stop:
            for part in ("weight", "bias"):
                key = f"{source}.{part}"
                assert torch.equal(before[key][rows.stop :], after[key][rows.stop :])
    assert not result.warnings


def test_equalization_leaves_the_logits_as_they_are(checkpoint: Checkpoint) -> None:
    model, _ = rewrite_blocks(checkpoint, CrossLayerEqualization())
    assert largest_change(checkpoint, checkpoint.model, model) < 1e-4


def test_equalizing_encoder_blocks_leaves_the_encoder_as_it_is(checkpoint: Checkpoint) -> None:
    model, _ = rewrite_blocks(checkpoint, EncoderOnly(CrossLayerEqualization()))
    assert largest_encoder_change(checkpoint, checkpoint.model, model) < 1e-4


def test_rounded_values_of_the_cross_attention_are_not_touched(checkpoint: Checkpoint) -> None:
    """In a decoder block's context only the block's own layers may change."""
    for context in contexts(checkpoint):
        before = weights_of(context.model)
        CrossLayerEqualization().rewrite_block(context)
        after = weights_of(context.model)
        for name in before:
            if not torch.equal(before[name], after[name]):
                layer = name.rpartition(".")[0]
                own = layer in context.block.layers
                waiting = context.block.module == context.architecture.encoder_norm
                assert own or (waiting and layer.endswith(("out_proj", "o_proj"))), name


def test_equalization_needs_no_calibration(checkpoint: Checkpoint) -> None:
    context, site = site_of(checkpoint, "encoder", "out")
    masked = without_rows(context)
    CrossLayerEqualization().rewrite_block(masked)
    source = masked.layer(site.source or "").weight.abs().amax(1)
    torch.testing.assert_close(source, masked.layer(site.layers[0]).weight.abs().amax(0))
    assert not masked.warnings


def test_weights_that_are_not_finite_are_left_alone_with_a_warning(whisper: Checkpoint) -> None:
    context, site = site_of(whisper, "encoder", "out")
    layer = context.layer(site.layers[0])
    with torch.no_grad():
        layer.weight[0, 0] = float("inf")
    before = copy.deepcopy(layer.weight)
    CrossLayerEqualization().rewrite_block(context)
    assert torch.equal(layer.weight, before)
    assert "not finite" in context.warnings[0]


def test_the_part_is_registered_without_settings() -> None:
    assert transforms.build({"name": "cle"}) == CrossLayerEqualization()
    with pytest.raises(Exception, match="no settings"):
        transforms.build({"name": "cle", "alpha": 0.5})
