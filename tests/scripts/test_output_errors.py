"""Output errors against plain forward passes of the model."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from output_errors import (
    REFITTED,
    check_same_layers,
    error_on_own_inputs,
    errors_on_float_inputs,
    every_frame,
    layer_weights,
    quantized,
    relative_change,
)
from quant.passes import batches_of, formats_of, stages
from torch import Tensor, nn

from edge_asr.calibration.batches import CalibrationBatch
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.formats import Grid
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.weight import round_nearest


def rows_of_layers(
    checkpoint: Checkpoint, batches: Sequence[CalibrationBatch]
) -> dict[str, Tensor]:
    """Every layer's valid input rows in plain forward passes of the float model."""
    model: Any = checkpoint.model
    rows: dict[str, list[Tensor]] = defaultdict(list)

    def note(name: str, batch: CalibrationBatch) -> Callable[..., None]:
        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            frames = args[0].shape[1] == batch.frame_weights.shape[1]
            rows[name].append(args[0][batch.frame_weights > 0 if frames else batch.token_mask])

        return see

    for batch in batches:
        with ExitStack() as hooks, torch.no_grad():
            for key in layer_weights(checkpoint):
                name = key.removesuffix(".weight")
                layer = model.get_submodule(name)
                hooks.enter_context(layer.register_forward_pre_hook(note(name, batch)))
            model(**batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids)
    return {name: torch.cat(parts).double() for name, parts in rows.items()}


def with_weights(checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> Checkpoint:
    """A copy of the checkpoint with other weights of its layers."""
    model: Any = copy.deepcopy(checkpoint.model)
    model.load_state_dict(weights, strict=False)
    return replace(checkpoint, model=model)


def noisy_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: weight + 0.01 * torch.randn(weight.shape, generator=generator)
        for key, weight in layer_weights(checkpoint).items()
    }


def summed_error(
    rows: Mapping[str, Tensor], exact: Mapping[str, Tensor], changed: Mapping[str, Tensor]
) -> float:
    """Output error of all layers, one after the other, on their input rows."""
    total = 0.0
    for name, inputs in rows.items():
        key = f"{name}.weight"
        outputs = inputs @ exact[key].double().T
        changes = inputs @ (changed[key] - exact[key]).double().T
        variance = (outputs - outputs.mean(0)).square().sum(1).mean()
        total += float(changes.square().sum(1).mean() / variance)
    return total


def nearest(checkpoint: Checkpoint, grid: Grid) -> dict[str, Tensor]:
    return {
        key: round_nearest(weight, minmax_parameters(weight, grid), grid).dequantize()
        for key, weight in layer_weights(checkpoint).items()
    }


def test_errors_are_those_of_the_float_models_valid_rows(checkpoint: Checkpoint) -> None:
    batches, grid = batches_of(checkpoint), Grid(4)
    exact, noisy = layer_weights(checkpoint), noisy_weights(checkpoint)
    rows = rows_of_layers(checkpoint, batches)
    found, _ = errors_on_float_inputs(
        checkpoint,
        batches,
        {"exact": exact, "noisy": noisy},
        Recipe.build(stages()),
        formats_of(checkpoint, grid),
    )
    assert found == {
        "exact": 0,
        "noisy": pytest.approx(summed_error(rows, exact, noisy), rel=1e-3),
        REFITTED: pytest.approx(summed_error(rows, exact, nearest(checkpoint, grid)), rel=1e-3),
    }


def test_errors_are_those_of_the_changed_models_valid_rows(checkpoint: Checkpoint) -> None:
    batches = batches_of(checkpoint)
    exact, noisy = layer_weights(checkpoint), noisy_weights(checkpoint)
    rows = rows_of_layers(with_weights(checkpoint, noisy), batches)
    total, states = error_on_own_inputs(checkpoint, batches, noisy)
    assert total == pytest.approx(summed_error(rows, exact, noisy), rel=1e-3)
    untouched, float_states = error_on_own_inputs(checkpoint, batches, exact)
    assert untouched == 0
    expected = [last_states(with_weights(checkpoint, one), batches) for one in (noisy, exact)]
    torch.testing.assert_close(states, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(float_states, expected[1], rtol=1e-4, atol=1e-4)


def last_states(checkpoint: Checkpoint, batches: Sequence[CalibrationBatch]) -> Tensor:
    """The last decoder block's outputs at valid tokens in plain forward passes."""
    model: Any = checkpoint.model
    *_, last = checkpoint.architecture.decoder_blocks(model.config)
    outputs: list[Tensor] = []

    def see(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    with model.get_submodule(last.module).register_forward_hook(see), torch.no_grad():
        for batch in batches:
            model(**batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids)
    pairs = zip(outputs, batches, strict=True)
    return torch.cat([states[batch.token_mask] for states, batch in pairs])


def test_states_change_in_units_of_their_variance() -> None:
    exact = torch.randn(2000, 16, generator=torch.Generator().manual_seed(1)) * 3 + 100
    shuffled = exact[torch.randperm(2000, generator=torch.Generator().manual_seed(2))]
    assert relative_change(exact, exact) == 0
    assert relative_change(shuffled, exact) == pytest.approx(2, rel=0.1)


def test_both_sides_quantize_the_same_layers(checkpoint: Checkpoint) -> None:
    weights = layer_weights(checkpoint)
    missing = dict(list(weights.items())[1:])
    with pytest.raises(ValueError, match=f"one side only: {next(iter(weights))}"):
        check_same_layers(weights, [weights, missing])


def test_padding_counts_where_every_frame_does(checkpoint: Checkpoint) -> None:
    batches, recipe = batches_of(checkpoint), Recipe.build(stages(rounding={"name": "gptq"}))
    before = copy.deepcopy(layer_weights(checkpoint))
    formats = formats_of(checkpoint, Grid(3))
    valid = quantized(checkpoint, batches, recipe, formats)
    every = quantized(checkpoint, every_frame(batches), recipe, formats)
    assert any(not one.frame_weights.all() for one in batches)
    assert all(not torch.equal(valid[key], before[key]) for key in before)
    assert any(not torch.equal(valid[key], every[key]) for key in before)
    assert all(
        torch.equal(weight, before[key]) for key, weight in layer_weights(checkpoint).items()
    )
