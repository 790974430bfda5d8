"""The recipes quik and spqr: their settings, and through the pass on tiny models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from options import composed
from quant.passes import quantized_by_options

from edge_asr.models.families.sites import layers_with_roles
from edge_asr.models.loading import Checkpoint
from edge_asr.models.tensors import Slot
from edge_asr.quant.formats import Grid, TensorFormat
from edge_asr.quant.outliers.columns import Columns
from edge_asr.quant.outliers.unstructured import Unstructured
from edge_asr.quant.range.double_quantization import MinMaxDoubleQuantization
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.rounding.gptq import Gptq
from edge_asr.quant.scheme import Scheme


def test_the_recipes_are_the_papers() -> None:
    spqr = Recipe.build(composed("method=spqr").method.stages)
    assert spqr.outliers == Unstructured(relative_threshold=0.2, fraction=0.01)
    assert spqr.range == MinMaxDoubleQuantization(scale_bits=3, zero_bits=3, group_size=16)
    assert spqr.rounding == Gptq(
        damping=1.0, act_order=True, static_groups=False, ordered_groups=True
    )
    quik = Recipe.build(composed("method=quik").method.stages)
    assert quik.outliers == Columns(fraction=1 / 16, fc2_bits=8)
    assert quik.rounding == Gptq()


def formats(*overrides: str) -> dict[Slot, list[TensorFormat]]:
    """What the command line's `overrides` ask for, by stack and role."""
    settings = composed(*overrides)
    method, scheme = settings.method, settings.scheme
    return Scheme.build(method.rules, scheme.rules, settings.shorthands).role_formats()


def grids(*overrides: str) -> set[Grid | None]:
    """All grids of weights among them."""
    return {one.weights for each in formats(*overrides).values() for one in each}


def test_the_recipes_group_size_is_a_default() -> None:
    grouped = Grid(4, granularity="group", group_size=16)
    assert grids("method=spqr") == {grouped}
    assert grids("method=spqr", "group_size=32") == {replace(grouped, group_size=32)}
    assert grids("method=spqr", "group_size=null") == {Grid(4)}
    assert grids("method=gptq") == {Grid(4)}
    # What the key of quantizing is made of.
    assert formats("method=spqr") == formats("method=spqr", "group_size=16")


def test_a_stage_of_spqr_can_be_replaced() -> None:
    changed = Recipe.build(composed("method=spqr", "method/rounding=nearest").method.stages)
    assert type(changed.rounding).__name__ == "Nearest"


def test_spqr_runs_through_the_pass(checkpoint: Checkpoint) -> None:
    bits = 3
    model, result = quantized_by_options(checkpoint, "method=spqr", f"bits={bits}")
    assert result.layers
    kept = []
    for name, layer in result.layers.items():
        weight = layer.weight
        assert bits < weight.effective_bits < 16
        assert weight.float_columns is None
        assert torch.equal(model.get_submodule(name).weight, weight.dequantize())
        kept.append(0 if weight.outliers is None else float(weight.outliers.mask.float().mean()))
    assert 0 < max(kept) <= 0.01
    assert result.output_error < result.nearest_error


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_quik_runs_through_the_pass(checkpoint: Checkpoint, rounding: str) -> None:
    model, result = quantized_by_options(
        checkpoint, "method=quik", "bits=3", f"method/rounding={rounding}"
    )
    wide = set(
        layers_with_roles(list(checkpoint.architecture.blocks(checkpoint.model.config)), ["fc2"])
    )
    for name, layer in result.layers.items():
        weight = layer.weight
        bits = 8 if name in wide else 3
        assert weight.grid.bits == bits
        assert bits < weight.effective_bits < 16
        assert weight.float_columns is not None
        assert int(weight.float_columns.sum()) == -(-weight.codes.shape[1] // 16)
        assert torch.equal(model.get_submodule(name).weight, weight.dequantize())
    assert result.output_error < result.nearest_error


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("spqr", "method.outliers.relative_threshold=1e6"),
        ("spqr", "method.outliers.fraction=0"),
        ("quik", "method.outliers.fraction=0"),
    ],
)
def test_without_outliers_the_recipes_are_those_of_none(
    whisper: Checkpoint, name: str, setting: str
) -> None:
    # The wider second layer of the MLP is a choice of its own.
    narrow = ["method.outliers.fc2_bits=null"] if name == "quik" else []
    _, switched_off = quantized_by_options(whisper, f"method={name}", "bits=3", setting, *narrow)
    _, none = quantized_by_options(whisper, f"method={name}", "bits=3", "method/outliers=none")
    for layer, other in none.layers.items():
        assert torch.equal(switched_off.layers[layer].weight.codes, other.weight.codes)
        assert switched_off.layers[layer].weight.stored_bits == other.weight.stored_bits
