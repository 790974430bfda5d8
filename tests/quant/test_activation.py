"""Activation grids against scalar arithmetic written out from the papers' formulas."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant.passes import Weights, formats_of, quantized_with, stages
from tiny import ListCorpus, tone
from torch import nn

from edge_asr.calibration.batches import CalibrationBatch, calibration_batches
from edge_asr.calibration.capture import CalibrationPass
from edge_asr.calibration.statistics import InputStatistics
from edge_asr.errors import UserError
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.activation import InputQuantizer, quantize_inputs
from edge_asr.quant.context import BlockContext
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.layers import QuantizedLinear


def by_hand(
    value: float, low: float, high: float, bits: int, symmetric: bool, half: bool = False
) -> float:
    """`value` at its grid point, in Python's double precision."""

    def stored(scale: float) -> float:
        return float(np.float16(scale)) if half else scale

    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = stored(max(-low, high) / top) or 1.0
        return scale * min(max(round(value / scale), -top - 1), top)
    steps = 2**bits - 1
    scale = stored((high - low) / steps) or 1.0
    zero = min(max(round(-low / scale), 0), steps)
    return scale * (min(max(round(value / scale) + zero, 0), steps) - zero)


def inputs(seed: int, *shape: int) -> torch.Tensor:
    """Random activations, each channel with a size and a centre of its own."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator)
    sizes = torch.exp(torch.randn(shape[-1], generator=generator))
    return values * sizes + torch.randn(shape[-1], generator=generator)


def statistics_of(clips: torch.Tensor, mask: torch.Tensor | None = None) -> InputStatistics:
    statistics = InputStatistics(clips.shape[-1])
    if mask is None:
        mask = torch.ones(clips.shape[:2], dtype=torch.bool)
    # In two batches, as calibration has several.
    statistics.update(clips[:2], mask[:2])
    statistics.update(clips[2:], mask[2:])
    return statistics


def assert_on_grid(found: torch.Tensor, expected: list[list[float]], step: float) -> None:
    """Equal, but for values so near a tie that float32 may break it the other way."""
    difference = (found.reshape(len(expected), -1).double() - torch.tensor(expected).double()).abs()
    assert float(difference.max()) <= 1.001 * step
    assert float((difference > 1e-4 * step).double().mean()) < 0.01


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_token_has_its_own_range(bits: int, symmetric: bool) -> None:
    states = inputs(0, 3, 5, 48)
    found = InputQuantizer(ActivationGrid(bits, symmetric))(states)
    assert found.shape == states.shape
    rows = states.reshape(-1, 48).tolist()
    expected = [[by_hand(x, min(row), max(row), bits, symmetric) for x in row] for row in rows]
    span = 2 * float(states.abs().max()) / (2**bits - 2)
    assert_on_grid(found, expected, span)
    # One token at a time gives the same: no token sees another, padding included.
    alone = torch.cat(
        [InputQuantizer(ActivationGrid(bits, symmetric))(row[None]) for row in states.flatten(0, 1)]
    )
    assert torch.equal(alone.reshape(states.shape), found)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_group_of_a_token_has_its_own_range(symmetric: bool) -> None:
    states = inputs(0, 3, 5, 48)
    grid = ActivationGrid(4, symmetric, "group", group_size=20)
    found = InputQuantizer(grid)(states)
    runs = [run for row in states.reshape(-1, 48) for run in row.split(20)]
    whole = InputQuantizer(ActivationGrid(4, symmetric))
    expected = torch.cat([whole(run[None])[0] for run in runs]).reshape(states.shape)
    assert torch.equal(found, expected)


def test_groups_of_32_are_what_ggml_makes_of_them() -> None:
    states = inputs(0, 40, 96)
    found = InputQuantizer(ActivationGrid(8, True, "group", group_size=32, half_scales=True))(
        states
    )
    kind = gguf.GGMLQuantizationType.Q8_0
    packed = gguf.quants.quantize(states.numpy(), kind)
    expected = torch.from_numpy(gguf.quants.dequantize(packed, kind))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_tensor_has_the_range_of_one_call(symmetric: bool) -> None:
    states = inputs(0, 3, 5, 48)
    quantizer = InputQuantizer(ActivationGrid(8, symmetric, "tensor"))
    low, high = float(states.min()), float(states.max())
    expected = [[by_hand(x, low, high, 8, symmetric) for x in states.flatten().tolist()]]
    assert_on_grid(quantizer(states), expected, 2 * float(states.abs().max()) / 254)
    assert quantizer.stored_bits == 0
    assert not torch.equal(quantizer(states[:1]), quantizer(states)[:1])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("variant", ["extreme", "mean"])
def test_a_static_range_is_that_of_valid_calibration_rows(variant: str, symmetric: bool) -> None:
    clips = inputs(1, 5, 7, 40)
    clips[3] *= 6
    lengths = [7, 2, 4, 5, 0]
    mask = torch.arange(7)[None] < torch.tensor(lengths)[:, None]
    clips = torch.where(mask[..., None], clips, torch.full_like(clips, 1e4))
    grid = ActivationGrid(4, symmetric, "tensor", variant)  # type: ignore[arg-type]
    quantizer = InputQuantizer.fitted(grid, statistics_of(clips, mask))
    lows = [float(clip[:n].min()) for clip, n in zip(clips, lengths, strict=True) if n]
    highs = [float(clip[:n].max()) for clip, n in zip(clips, lengths, strict=True) if n]
    low, high = (
        (min(lows), max(highs))
        if variant == "extreme"
        else (sum(lows) / len(lows), sum(highs) / len(highs))
    )
    states = inputs(2, 6, 40)
    expected = [
        [by_hand(x, low, high, 4, symmetric, half=True) for x in row] for row in states.tolist()
    ]
    assert_on_grid(quantizer(states), expected, (high - low) / 7)
    assert quantizer.stored_bits == 16 + (0 if symmetric else 4)
    assert InputQuantizer(ActivationGrid(4, symmetric)).stored_bits == 0
    # Static: a loud neighbour changes nothing.
    both = torch.cat([states, 100 * states])
    assert torch.equal(quantizer(both)[:6], quantizer(states))


finite = st.floats(-1e3, 1e3, width=32)


@settings(deadline=None)
@given(
    st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(2, 8),
    st.booleans(),
)
def test_no_value_moves_by_more_than_half_a_step(
    rows: list[list[float]], bits: int, symmetric: bool
) -> None:
    states = torch.tensor(rows)
    found = InputQuantizer(ActivationGrid(bits, symmetric))(states)
    low, high = states.amin(1).clamp(max=0), states.amax(1).clamp(min=0)
    step = (high - low) / (2**bits - 1)
    if symmetric:
        step = torch.maximum(-low, high) / (2 ** (bits - 1) - 1)
    bound = 0.5 * step[:, None] + 1e-6 * states.abs().amax() + 2**-24
    assert bool(((found - states).abs() <= bound).all())
    assert torch.equal(found[states == 0], torch.zeros(int((states == 0).sum())))


def test_eight_bits_lose_little_and_fewer_lose_more() -> None:
    states = inputs(3, 50, 70)
    errors = [
        float((InputQuantizer(ActivationGrid(bits))(states) - states).norm() / states.norm())
        for bits in (8, 6, 4, 3, 2)
    ]
    assert errors[0] < 0.01
    assert errors == sorted(errors)


def test_clipping_shrinks_the_range() -> None:
    states = torch.tensor([[-4.0, 0.3, 1.0, 8.0]])
    found = InputQuantizer(ActivationGrid(8, True, clip_ratio=0.5))(states)
    expected = [[by_hand(x, -2.0, 4.0, 8, True) for x in states[0].tolist()]]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert float(found[0, 3]) == 4.0


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_gradient_passes_straight_through(bits: int, symmetric: bool) -> None:
    states = inputs(4, 6, 48).requires_grad_()
    factors = torch.randn(6, 48, generator=torch.Generator().manual_seed(5))
    (InputQuantizer(ActivationGrid(bits, symmetric))(states) * factors).sum().backward()
    assert torch.equal(states.grad, factors)


def test_what_the_range_cuts_off_has_no_gradient() -> None:
    calibration = torch.linspace(-1, 1, 40).reshape(4, 1, 10)
    grid = ActivationGrid(4, True, "tensor", "extreme")
    quantizer = InputQuantizer.fitted(grid, statistics_of(calibration))
    states = torch.tensor([[-3.0, -1.0, 0.0, 0.4, 1.0, 3.0]], requires_grad=True)
    quantizer(states).sum().backward()
    assert states.grad.tolist() == [[0, 1, 1, 1, 1, 0]]


@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_float_columns_stay_and_leave_the_range(granularity: str) -> None:
    calibration, states = inputs(6, 4, 9, 48), inputs(7, 10, 48)
    outliers = torch.zeros(48, dtype=torch.bool)
    outliers[[3, 40]] = True
    calibration[..., outliers] *= 1000
    states[:, outliers] *= 1000
    static = "mean" if granularity == "tensor" else None
    grid = ActivationGrid(4, False, granularity, static)  # type: ignore[arg-type]
    statistics = statistics_of(calibration)
    quantizer = InputQuantizer.fitted(grid, statistics)
    before = quantizer(states)
    quantizer.keep_float(outliers, statistics)
    found = quantizer(states)
    assert torch.equal(found[:, outliers], states[:, outliers])
    others = InputQuantizer.fitted(grid, statistics_of(calibration[..., ~outliers]))
    assert torch.equal(found[:, ~outliers], others(states[:, ~outliers]))
    rest = states[:, ~outliers]
    assert (found[:, ~outliers] - rest).norm() < 0.5 * (before[:, ~outliers] - rest).norm()
    leaf = states.clone().requires_grad_()
    quantizer(leaf).sum().backward()
    assert bool((leaf.grad[:, outliers] == 1).all())


def test_all_columns_may_be_float() -> None:
    states = inputs(8, 4, 40)
    quantizer = InputQuantizer(ActivationGrid(2))
    quantizer.keep_float(torch.ones(40, dtype=torch.bool), InputStatistics(40))
    assert torch.equal(quantizer(states), states)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_token_of_zeros_stays_one(symmetric: bool) -> None:
    found = InputQuantizer(ActivationGrid(4, symmetric))(torch.zeros(2, 3, 40))
    assert torch.equal(found, torch.zeros(2, 3, 40))


def test_half_precision_comes_back_as_such() -> None:
    states = inputs(9, 4, 40).half()
    found = InputQuantizer(ActivationGrid(8))(states)
    assert found.dtype == torch.float16
    assert (found - states).abs().max() < 0.1


def test_layers_of_a_site_read_the_quantized_input() -> None:
    layers = [QuantizedLinear.from_linear(nn.Linear(40, width)) for width in (8, 24)]
    calibration = inputs(10, 4, 9, 40)
    quantize_inputs(
        layers, ActivationGrid(4, False, "tensor", "extreme"), statistics_of(calibration)
    )
    states = inputs(11, 3, 40)
    settings = layers[0].quantize_input.settings
    seen = InputQuantizer.fitted(settings, statistics_of(calibration))(states)
    for layer in layers:
        expected = nn.functional.linear(seen, layer.weight, layer.bias)
        torch.testing.assert_close(layer(states), expected)
        torch.testing.assert_close(copy.deepcopy(layer)(states), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 1}, "act_bits=1: allowed are 2 to 8"),
        ({"bits": 9}, "act_bits=9"),
        ({"bits": 8, "granularity": "group"}, "act_group_size=None.*give a group size"),
        ({"bits": 8, "group_size": 32}, "act_group_size=32.*null otherwise"),
        ({"bits": 8, "static_range": "mean"}, "act_range=mean.*act_range=null"),
        ({"bits": 8, "clip_ratio": 0.0}, "act_clip_ratio=0.0: must be above 0"),
        ({"bits": 8, "clip_ratio": 1.1}, "act_clip_ratio=1.1"),
        ({"bits": 8, "clip_ratio": math.nan}, "act_clip_ratio=nan"),
    ],
)
def test_a_bad_setting_is_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ActivationGrid(**fields)  # type: ignore[arg-type]


def test_a_static_range_needs_rows() -> None:
    grid = ActivationGrid(8, False, "tensor", "extreme")
    with pytest.raises(UserError, match="no calibration rows"):
        InputQuantizer.fitted(grid, InputStatistics(40))


def batches_of(checkpoint: Checkpoint) -> list[CalibrationBatch]:
    clips = [(tone(seconds), "one two") for seconds in (1.5, 0.6, 1.1, 0.9)]
    return calibration_batches(checkpoint, ListCorpus(clips), 4, 2, seed=0)


def rounded(
    checkpoint: Checkpoint,
    batches: list[CalibrationBatch],
    activation: ActivationGrid | None,
    rounding: Mapping[str, Any] = MappingProxyType({"name": "nearest"}),
    bits: int = 8,
    **outliers: Any,
) -> tuple[Any, Weights]:
    recipe = stages(rounding=dict(rounding), outliers=outliers or {"name": "none"})
    return quantized_with(checkpoint, recipe, Grid(bits), batches=batches, activation=activation)


STATIC = ActivationGrid(8, False, "tensor", "extreme")


@pytest.mark.parametrize("activation", [ActivationGrid(8), STATIC], ids=["token", "static"])
def test_all_layers_of_blocks_and_no_others_read_quantized_inputs(
    checkpoint: Checkpoint, activation: ActivationGrid
) -> None:
    batches = batches_of(checkpoint)
    model, result = rounded(checkpoint, batches, activation)
    quantized = {
        name.removesuffix(".quantize_input")
        for name, module in model.named_modules()
        if isinstance(module, InputQuantizer)
    }
    assert quantized == set(result.layers)
    inputs = {**batches[0].encoder_inputs, "decoder_input_ids": batches[0].decoder_input_ids}
    with torch.no_grad():
        plain = rounded(checkpoint, batches, None)[0](**inputs).logits
        logits = model(**inputs).logits
    assert 0 < float((logits - plain).norm() / plain.norm()) < 0.1


def test_a_block_sees_the_quantized_prefix_and_its_own_float_inputs(
    checkpoint: Checkpoint,
) -> None:
    """Statistics behind one block's quantizers, but before those of the block itself."""
    batches = batches_of(checkpoint)
    model, result = rounded(checkpoint, batches, ActivationGrid(3, True), bits=4)
    last = checkpoint.architecture.encoder_blocks(model.config)[-1]
    # The float block after the quantized prefix.
    for name in last.layers:
        layer = model.get_submodule(name)
        layer.quantize_input = nn.Identity()
        layer.weight.data.copy_(checkpoint.model.get_submodule(name).weight)
    for site in last.sites:
        name = site.layers[0]
        layer = model.get_submodule(name)
        seen: list[torch.Tensor] = []

        def note(_: object, args: Any, seen: list[torch.Tensor] = seen) -> None:
            seen.append(args[0])

        with torch.no_grad(), layer.register_forward_pre_hook(note):
            for batch in batches:
                model.get_submodule(checkpoint.architecture.encoder_module)(**batch.encoder_inputs)
        rows = torch.cat(
            [one[batch.frame_weights > 0] for one, batch in zip(seen, batches, strict=True)]
        )
        change = rows @ (layer.weight - result.layers[name].weight.dequantize()).T
        expected = float(
            change.square().sum(1).mean() / (rows @ layer.weight.T).var(0, correction=0).sum()
        )
        assert result.layers[name].output_error == pytest.approx(expected, rel=1e-3), name


def test_observing_again_bypasses_the_quantizers(whisper: Checkpoint) -> None:
    """A static range fitted after the quantizers are in place is that of the float inputs."""
    batches = batches_of(whisper)
    model, _ = rounded(whisper, batches, ActivationGrid(2))
    captured = next(CalibrationPass(model, whisper.architecture, batches).captured_blocks())
    context = BlockContext(
        model, whisper.architecture, captured.block, captured.module,
        list(captured.calls), captured.row_weights, formats_of(whisper, Grid(4)),
    )  # fmt: skip
    with_quantizers = {site: context.statistics(site) for site in captured.block.sites}
    for layer in map(context.layer, captured.block.layers):
        layer.quantize_input = nn.Identity()
    context.inputs_changed()
    for site, statistics in with_quantizers.items():
        assert torch.equal(statistics.second_moment, context.statistics(site).second_moment)


def test_a_learned_rounding_trains_through_the_quantizers(whisper: Checkpoint) -> None:
    losses = []
    for activation in (None, ActivationGrid(2)):
        rounding = {"name": "signround", "iterations": 4}
        _, result = rounded(whisper, batches_of(whisper), activation, rounding, bits=4)
        first = result.blocks[whisper.architecture.encoder_block(0).module]
        losses.append(first.reconstructions[0].loss_before)
    assert losses[1] > 2 * losses[0] > 0


def test_gptq_rounds_alike_in_the_first_block(whisper: Checkpoint) -> None:
    """Its Hessians are those of float inputs; only later blocks see other ones."""
    batches = batches_of(whisper)
    rounding = {"name": "gptq"}
    plain, quantized = (
        rounded(whisper, batches, activation, rounding, bits=4)[1].layers
        for activation in (None, ActivationGrid(4))
    )
    first = whisper.architecture.encoder_block(0).layers
    same = [torch.equal(plain[name].weight.codes, quantized[name].weight.codes) for name in plain]
    assert [name for name, equal in zip(plain, same, strict=True) if equal][: len(first)] == [
        name for name in plain if name in first
    ]
    assert not all(same)


def test_outlier_columns_are_read_in_floating_point(whisper: Checkpoint) -> None:
    grid = ActivationGrid(4, False, "tensor", "mean")
    model, result = rounded(whisper, batches_of(whisper), grid, bits=4, name="columns")
    marked = 0
    for name, layer in result.layers.items():
        columns, entry = layer.weight.float_columns, model.get_submodule(name).quantize_input
        if columns is None:
            assert entry.float_columns is None
            continue
        marked += int(columns.sum())
        assert torch.equal(entry.float_columns, columns)
    assert marked


def test_training_reads_outlier_columns_in_floating_point(whisper: Checkpoint) -> None:
    rounding = {"name": "signround", "iterations": 1}
    losses = []
    for fraction in (0.0, 1.0):
        _, result = rounded(
            whisper, batches_of(whisper), ActivationGrid(4), rounding,
            bits=4, name="columns", fraction=fraction, fc2_bits=None,
        )  # fmt: skip
        first, *_ = result.blocks.values()
        losses.append(first.reconstructions[0].loss_before)
    # All that is left is that kept weights are stored in 16 bits.
    assert losses[1] < 1e-3 * losses[0]
