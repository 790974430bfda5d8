"""What a site is said to read: behind rounded sites of its own block, beside the float model's."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from quant.passes import LEARNED, batches_of, formats_of, quantized_with, stages
from torch import Tensor
from transformers import PreTrainedModel

from edge_asr.calibration.batches import CalibrationBatch
from edge_asr.models.families.sites import Site
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.context import SiteContext
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.rounding.nearest import Nearest
from edge_asr.quant.sequential import quantize_model
from edge_asr.quant.weight import QuantizedWeight

QEP = {"name": "nearest", "compensation": "qep"}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, SiteContext]:
    """Every site that rounding to nearest is given, by its first layer."""
    contexts: dict[str, SiteContext] = {}
    plain = Nearest.round

    def round_and_tell(part: Nearest, context: SiteContext) -> dict[str, QuantizedWeight]:
        contexts[context.site.layers[0]] = context
        return plain(part, context)

    monkeypatch.setattr(Nearest, "round", round_and_tell)
    return contexts


def rows_read(model: PreTrainedModel, site: Site, batches: list[CalibrationBatch]) -> Tensor:
    """What `site` reads at rows that count, float32 [rows, columns]."""
    caught: list[Tensor] = []
    module = model.get_submodule(site.layers[0])
    rows = []
    with module.register_forward_pre_hook(lambda _, args: caught.append(args[0])):
        for batch in batches:
            with torch.no_grad():
                model(**batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids)
            mask = batch.frame_weights > 0 if site.axis == "frame" else batch.token_mask
            rows.append(caught.pop()[mask])
    return torch.cat(rows)


@pytest.mark.parametrize("observe", ["site", "block"])
def test_a_site_is_observed_behind_those_of_its_block_that_are_rounded(
    checkpoint: Checkpoint, seen: dict[str, SiteContext], observe: str
) -> None:
    options = stages(rounding={"name": "nearest", "observe": observe})
    model, _ = quantized_with(checkpoint, options, Grid(3))
    batches = batches_of(checkpoint)
    agree = []
    for block in checkpoint.architecture.blocks(model.config):
        for site in block.sites:
            read = rows_read(model, site, batches).double()
            expected = read.T @ read / len(read)
            found = seen[site.layers[0]].statistics.second_moment
            agree.append(bool(torch.allclose(found, expected, rtol=1e-3, atol=1e-4)))
    assert all(agree) == (observe == "site")


def test_the_float_models_rows_are_those_of_the_same_frames_and_tokens(
    checkpoint: Checkpoint, seen: dict[str, SiteContext]
) -> None:
    model, _ = quantized_with(checkpoint, stages(rounding=QEP), Grid(3))
    batches = batches_of(checkpoint)
    for block in checkpoint.architecture.blocks(model.config):
        for site in block.sites:
            read = rows_read(model, site, batches).double()
            floats = rows_read(checkpoint.model, site, batches).double()
            expected = 2 * (floats - read).T @ read / len(read)
            found = seen[site.layers[0]].statistics.mismatch
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"transform": {"name": "smooth"}},
        {"transform": {"name": "awq"}},
        {"transform": {"name": "hadamard"}},
        {"transform": {"name": "wush", "block_size": 16}},
        LEARNED["let"],
        LEARNED["let and lwc"],
    ],
    ids=["smooth", "awq", "hadamard", "wush", "let", "let and lwc"],
)
def test_the_float_model_is_rewritten_with_the_quantized_one(
    checkpoint: Checkpoint, seen: dict[str, SiteContext], options: dict[str, dict[str, object]]
) -> None:
    """At 8 bits both read nearly the same at every site, whatever was done to it."""
    recipe = Recipe.build(stages(**options, rounding=QEP))
    model = copy.deepcopy(checkpoint.model)
    formats = formats_of(checkpoint, Grid(8), ActivationGrid(8))
    quantize_model(model, checkpoint.architecture, batches_of(checkpoint), recipe, formats)
    for name, context in seen.items():
        size = context.statistics.hessian.norm()
        assert context.statistics.mismatch.norm() < 0.2 * size, name


def test_a_resumed_pass_compensates_alike(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Blocks that were finished before are not rewritten in the float model a second time."""
    options = stages(transform={"name": "smooth"}, rounding=QEP)
    _, whole = quantized_with(checkpoint, options, Grid(3), finished=tmp_path)
    for path in sorted(tmp_path.glob("block-*"))[4:]:  # two files a block
        path.unlink()
    _, resumed = quantized_with(checkpoint, options, Grid(3), finished=tmp_path)
    for name, layer in whole.layers.items():
        assert torch.equal(layer.weight.codes, resumed.layers[name].weight.codes), name
