"""compressed-tensors: what transformers loads is the simulated model, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from export.models import GROUPS, SIGNED, quantized
from quant.passes import batches_of
from torch import Tensor
from transformers import AutoModelForSpeechSeq2Seq, PreTrainedModel

from edge_asr.cli.compose import compose_settings
from edge_asr.errors import UserError
from edge_asr.export.write import export
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.layers import quantized_layers

TARGET = compose_settings("target=compressed_tensors").target
ANY_GROUPS = dataclasses.replace(TARGET, group_sizes=None)


def loaded(folder: Path) -> PreTrainedModel:
    """What transformers makes of the folder; weights are unpacked at the first call."""
    model: PreTrainedModel = AutoModelForSpeechSeq2Seq.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def logits_of(model: PreTrainedModel, checkpoint: Checkpoint) -> Tensor:
    batch = batches_of(checkpoint)[0]
    with torch.no_grad():
        logits: Tensor = model(
            **batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids
        ).logits
    return logits


@pytest.mark.parametrize(
    "grid",
    [
        Grid(4, **SIGNED, signed_scale=True, **GROUPS),
        Grid(3, **SIGNED, signed_scale=True),
        Grid(2, symmetric=True, **GROUPS),
        Grid(8, **SIGNED),
    ],
    ids=["W4 g8", "W3", "W2 g8 unsigned", "W8"],
)
def test_transformers_loads_the_same_weights(
    checkpoint: Checkpoint, grid: Grid, tmp_path: Path
) -> None:
    own = quantized(checkpoint, grid)
    found = loaded(export(own, ANY_GROUPS, tmp_path / "out"))
    logits = logits_of(found, checkpoint)
    parameters = dict(found.named_parameters())
    for name, value in own.model.named_parameters():
        assert torch.equal(parameters[name], value), name
    torch.testing.assert_close(logits, logits_of(own.model, checkpoint), rtol=1e-4, atol=1e-5)


def test_inputs_are_quantized_as_simulated(checkpoint: Checkpoint, tmp_path: Path) -> None:
    own = quantized(checkpoint, Grid(8, **SIGNED), ActivationGrid(8))
    found = loaded(export(own, TARGET, tmp_path / "out"))
    expected, logits, floats = (
        logits_of(model, checkpoint) for model in (own.model, found, checkpoint.model)
    )
    change = float((floats - expected).norm())
    # A rounding that falls the other way, of float32, is one step in one place.
    assert float((logits - expected).norm()) < 0.4 * change


@pytest.mark.parametrize("bits", range(2, 9))
def test_zero_points_are_read_back(moonshine: Checkpoint, bits: int, tmp_path: Path) -> None:
    own = quantized(moonshine, Grid(bits, **GROUPS))
    assert export(own, ANY_GROUPS, tmp_path / "out").is_dir()  # which compares


def test_a_group_of_columns_in_another_order_is_refused(
    moonshine: Checkpoint, tmp_path: Path
) -> None:
    grid = Grid(4, **SIGNED, **GROUPS)
    rounding = {"name": "gptq", "act_order": True, "static_groups": False, "ordered_groups": True}
    own = quantized(moonshine, grid, rounding=rounding)
    orders = [
        layer.quantized.parameters.order
        for layer in quantized_layers(own.model).values()
        if layer.quantized is not None
    ]
    assert any(order is not None for order in orders)
    with pytest.raises(UserError, match=r"ordered_groups=false"):
        export(own, ANY_GROUPS, tmp_path / "out")
    assert not list(tmp_path.iterdir())
