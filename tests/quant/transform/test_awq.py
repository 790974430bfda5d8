"""AWQ's scales against a brute force with its own quantizer and its own runs of the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from options import composed
from quant.passes import (
    EncoderOnly,
    contexts,
    largest_change,
    largest_encoder_change,
    rewrite_blocks,
    rows_of,
    site_of,
    uneven,
    weights_of,
    without_rows,
)
from torch import Tensor, nn

from edge_asr.errors import UserError
from edge_asr.models.families.sites import Site
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.context import BlockContext
from edge_asr.quant.formats import Grid, TensorFormat
from edge_asr.quant.stages import transforms
from edge_asr.quant.transform.awq import (
    Awq,
    attention_losses,
    candidate_scales,
    relative_weight,
    rounded_under,
)

GROUP = 16
GRID = Grid(3, granularity="group", group_size=GROUP, half_scales=False)


def round_weight(weight: np.ndarray, bits: int = 3, group_size: int = GROUP) -> np.ndarray:
    """Asymmetric min-max rounding with zero in range, one group after another."""
    result = np.empty_like(weight)
    for start in range(0, weight.shape[1], group_size):
        group = weight[:, start : start + group_size]
        low, high = np.minimum(group.min(1), 0)[:, None], np.maximum(group.max(1), 0)[:, None]
        scale = (high - low) / (2**bits - 1)
        zero = np.clip(np.round(-low / scale), 0, 2**bits - 1)
        codes = np.clip(np.round(group / scale) + zero, 0, 2**bits - 1)
        result[:, start : start + group_size] = scale * (codes - zero)
    return result


def reference_scales(rows: np.ndarray, weights: list[np.ndarray], duo: bool) -> list[np.ndarray]:
    """Section 3.2 and the released rule, one channel after another."""
    count = rows.shape[1]
    mean = [np.mean([abs(row[channel]) for row in rows]) for channel in range(count)]
    relative = []
    for channel in range(count):
        first = channel // GROUP * GROUP
        values = [
            abs(row[channel]) / max(abs(row[first : first + GROUP]))
            for weight in weights
            for row in weight
        ]
        relative.append(np.mean(values))
    scales = []
    for step in range(20):
        ratio = step / 20
        scale = [
            x**ratio / (w ** (1 - ratio) if duo else 1) for x, w in zip(mean, relative, strict=True)
        ]
        scale = np.maximum(scale, 1e-4)
        scales.append(scale / np.sqrt(scale.max() * scale.min()))
    return scales


def site_rows(context: BlockContext, site: Site) -> np.ndarray:
    return torch.cat(rows_of(context, context.layer(site.layers[0]))).double().numpy()


def site_weights(context: BlockContext, site: Site) -> list[np.ndarray]:
    return [context.layer(name).weight.detach().double().numpy() for name in site.layers]


@torch.no_grad()
def attention_outputs(context: BlockContext, attention: nn.Module) -> list[Tensor]:
    """What the attention returns for the inputs of the float block, valid rows of each batch."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    keep = attention.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    with keep:
        for call in context.calls:
            context.module(*call.args, **call.kwargs)
    return [
        attention(*args, **kwargs)[0][weights > 0]
        for (args, kwargs), weights in zip(calls, context.row_weights, strict=True)
    ]


def brute_force(
    context: BlockContext, site: Site, scales: list[np.ndarray], *, attention: bool
) -> np.ndarray:
    """Loss of every scale and batch [20, batches], with the rounded weights put in the layers."""
    reader = context.model.get_submodule(site.reader) if attention else None
    weights = site_weights(context, site)
    layers = [context.layer(name) for name in site.layers]
    if reader is not None:
        targets = attention_outputs(context, reader)
    else:
        rows = [batch.double() for batch in rows_of(context, layers[0])]
    losses = []
    for scale in scales:
        rounded = [torch.from_numpy(round_weight(w * scale) / scale) for w in weights]
        if reader is None:
            changes = [
                torch.cat(
                    [
                        batch @ (torch.from_numpy(w) - r).T
                        for w, r in zip(weights, rounded, strict=True)
                    ]
                )
                for batch in rows
            ]
        else:
            originals = [layer.weight.data for layer in layers]
            for layer, weight in zip(layers, rounded, strict=True):
                layer.weight.data = weight.float()
            # The inputs of the attention do not depend on its own weights.
            found = attention_outputs(context, reader)
            for layer, original in zip(layers, originals, strict=True):
                layer.weight.data = original
            changes = [one - other for one, other in zip(found, targets, strict=True)]
        losses.append([float(change.double().square().sum()) for change in changes])
    return np.array(losses)


SITES = [("encoder", "qkv"), ("decoder", "qkv"), ("decoder", "cross_q")]
LINEAR_SITES = [("encoder", "out"), ("encoder", "fc1"), ("encoder", "fc2"), ("decoder", "fc2"),
                ("decoder", "cross_kv")]  # fmt: skip


@pytest.mark.parametrize(
    ("stack", "role", "duo"),
    [
        *((*site, False) for site in (*SITES, *LINEAR_SITES)),
        ("encoder", "qkv", True),
        ("decoder", "cross_kv", True),
    ],
)
def test_the_chosen_scale_is_that_of_a_brute_force(
    checkpoint: Checkpoint, stack: str, role: str, duo: bool
) -> None:
    context, site = site_of(checkpoint, stack, role, uneven(checkpoint.model))
    context.formats = dict.fromkeys(context.formats, TensorFormat(GRID))
    scales = reference_scales(site_rows(context, site), site_weights(context, site), duo)
    losses = brute_force(context, site, scales, attention=(stack, role) in SITES).sum(1)
    best = int(losses.argmin())
    before = weights_of(context.model)
    chosen = Awq(duo_scaling=duo).search(context, site)
    assert chosen is not None
    np.testing.assert_allclose(chosen.numpy(), scales[best], rtol=1e-4)
    after = weights_of(context.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert duo or losses[best] < 0.95 * losses[0], "the scales must matter to the comparison"


@pytest.mark.parametrize(("stack", "role"), SITES)
def test_losses_are_sums_over_the_valid_rows_of_all_batches(
    checkpoint: Checkpoint, stack: str, role: str
) -> None:
    context, site = site_of(checkpoint, stack, role, uneven(checkpoint.model))
    scales = reference_scales(site_rows(context, site), site_weights(context, site), False)[::5]
    expected = brute_force(context, site, scales, attention=True)
    assert expected.shape[1] == 2
    assert any(not weights.all() for weights in context.row_weights)
    candidates = [
        {
            name: rounded_under(context.layer(name).weight.detach(), torch.from_numpy(scale), GRID)
            for name in site.layers
        }
        for scale in scales
    ]
    assert site.reader is not None
    found = attention_losses(context, site, site.reader, candidates)
    np.testing.assert_allclose(found, expected.sum(1), rtol=1e-3)
    batches = [
        attention_losses(
            replace(context, calls=[call], row_weights=[weights]), site, site.reader, candidates
        )
        for call, weights in zip(context.calls, context.row_weights, strict=True)
    ]
    np.testing.assert_allclose(found, np.sum(batches, axis=0), rtol=1e-5)


def test_keys_and_values_are_computed_once_for_all_candidates(checkpoint: Checkpoint) -> None:
    context, site = site_of(checkpoint, "decoder", "cross_q")
    assert site.reader is not None
    keys = context.layer(f"{site.reader}.k_proj")
    counts = []
    for n_grid in (2, 20):
        calls: list[None] = []
        with keys.register_forward_pre_hook(lambda *_, calls=calls: calls.append(None)):
            Awq(n_grid=n_grid).search(context, site)
        counts.append(len(calls))
        assert context.layer(f"{site.reader}.k_proj") is keys
    assert counts[0] == counts[1] == 2 * len(context.calls)


def test_layers_are_put_back_when_a_run_fails(checkpoint: Checkpoint) -> None:
    context, site = site_of(checkpoint, "decoder", "cross_q")
    modules, before = dict(context.model.named_modules()), weights_of(context.model)
    wrong = {name: torch.zeros(3, 3) for name in site.layers}
    with pytest.raises(RuntimeError):
        attention_losses(context, site, site.reader or "", [wrong])
    assert dict(context.model.named_modules()) == modules
    after = weights_of(context.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("options", [{}, {"duo_scaling": True}, {"scale_activation": False}])
def test_awq_leaves_the_logits_as_they_are(
    checkpoint: Checkpoint, options: dict[str, bool]
) -> None:
    model, result = rewrite_blocks(checkpoint, Awq(**options))
    before, after = weights_of(checkpoint.model), weights_of(model)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > 20
    assert largest_change(checkpoint, checkpoint.model, model) < 1e-4
    assert not result.warnings


def test_awq_on_encoder_blocks_leaves_the_encoder_as_it_is(checkpoint: Checkpoint) -> None:
    model, _ = rewrite_blocks(checkpoint, EncoderOnly(Awq()))
    assert largest_encoder_change(checkpoint, checkpoint.model, model) < 1e-4


def test_activations_are_scaled_at_runtime_only_where_asked_and_needed(
    checkpoint: Checkpoint,
) -> None:
    model = uneven(checkpoint.model)
    blocks = list(checkpoint.architecture.blocks(model.config))
    unfolded = {s.layers[0] for b in blocks for s in b.sites if s.role == "fc2" and not s.source}
    for asked, expected in ((True, unfolded), (False, set())):
        rewritten, _ = rewrite_blocks(
            checkpoint, Awq(n_grid=4, scale_activation=asked), model=model
        )
        scaled = {
            name
            for block in blocks
            for name in block.layers
            if len(rewritten.get_submodule(name).input_ops)
        }
        assert scaled <= expected
        assert bool(scaled) == bool(expected)
        for name in scaled:
            (op,) = rewritten.get_submodule(name).input_ops
            assert op.macs_per_row == rewritten.get_submodule(name).in_features
        for name in unfolded - scaled:
            old = model.get_submodule(name).weight
            assert torch.equal(rewritten.get_submodule(name).weight, old)


def test_the_output_projection_of_a_cross_attention_stays_as_it_is(
    checkpoint: Checkpoint,
) -> None:
    """Its values are rounded in the memory block, before its own block is rewritten."""
    model, _ = rewrite_blocks(checkpoint, Awq(), model=uneven(checkpoint.model))
    original = uneven(checkpoint.model)
    for block in checkpoint.architecture.decoder_blocks(model.config):
        (site,) = (s for s in block.sites if s.role == "out" and s.source not in block.layers)
        before = original.get_submodule(site.layers[0]).weight
        assert torch.equal(model.get_submodule(site.layers[0]).weight, before)


def test_all_cross_keys_and_values_share_one_scale(checkpoint: Checkpoint) -> None:
    original = uneven(checkpoint.model)
    model, _ = rewrite_blocks(checkpoint, Awq(), model=original)
    (site,) = checkpoint.architecture.memory_block(model.config).sites
    ratios = torch.cat(
        [
            model.get_submodule(name).weight / original.get_submodule(name).weight
            for name in site.layers
        ]
    )
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-3, atol=1e-5)
    assert float(ratios[0].std()) > 0.01


@pytest.mark.parametrize("rows", [1, 3])
def test_a_handful_of_rows_is_enough(checkpoint: Checkpoint, rows: int) -> None:
    for context in contexts(checkpoint):
        few = [torch.zeros_like(weights) for weights in context.row_weights]
        few[0][0, :rows] = 1
        masked = replace(context, row_weights=few, warnings=[], _statistics={})
        assert masked.statistics(masked.block.sites[0]).rows == rows
        Awq(n_grid=4).rewrite_block(masked)
        assert not masked.warnings


def test_without_rows_a_site_is_left_alone_with_a_warning(checkpoint: Checkpoint) -> None:
    for context in contexts(checkpoint):
        masked = without_rows(context)
        before = weights_of(masked.model)
        Awq().rewrite_block(masked)
        after = weights_of(masked.model)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert masked.warnings
        assert all("no calibration rows" in warning for warning in masked.warnings)


def test_inputs_that_are_not_finite_leave_a_site_alone_with_a_warning(whisper: Checkpoint) -> None:
    context, site = site_of(whisper, "encoder", "qkv")
    context.calls[0].hidden.fill_(float("nan"))
    context.inputs_changed()
    before = context.layer(site.layers[0]).weight.detach().clone()
    Awq(n_grid=3).rewrite_block(context)
    assert torch.equal(context.layer(site.layers[0]).weight, before)
    assert "finite output" in context.warnings[0]


def test_candidates_without_any_input_are_all_ones() -> None:
    for scale in candidate_scales(torch.zeros(5, dtype=torch.float64), 4):
        assert torch.equal(scale, torch.ones(5))


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_relative_weights_follow_the_grid(granularity: Any) -> None:
    weights = [torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])]
    found = relative_weight(weights, 2 * [Grid(4, granularity=granularity)])
    assert found.tolist() == [(0.5 + 1 + 0) / 3, 1 / 3, 0]
    assert torch.isfinite(torch.stack(candidate_scales(torch.ones(3).double(), 5, found))).all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"n_grid": 2.5}, "method.transform.n_grid=2.5"),
        ({"duo_scaling": "often"}, "duo_scaling=often: must be true or false"),
        ({"duo_scalin": True}, "did you mean duo_scaling"),
    ],
)
def test_impossible_settings_are_refused_by_name(options: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        transforms.build({"name": "awq", **options})


def test_the_recipe_and_its_defaults() -> None:
    stages = composed("method=awq").method.stages
    assert transforms.build(stages["transform"]) == Awq()
    assert (stages["range"]["name"], stages["rounding"]["name"]) == ("awq_clip", "nearest")
