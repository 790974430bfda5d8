"""SpinQuant on small models: trained rotations change nothing but how well the model rounds."""

from __future__ import annotations

import copy

import pytest
import torch
from quant.passes import batches_of, formats_of, largest_change

from edge_asr.models.loading import Checkpoint
from edge_asr.quant import model_training
from edge_asr.quant.context import ModelContext
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.layers import QuantizedLinear, install_layers
from edge_asr.quant.model_training import add_gradients
from edge_asr.quant.transform.hadamard import rotate_model
from edge_asr.quant.transform.spin import RotatedModel, Spin, Spins, summed_cross_entropy


def model_context(checkpoint: Checkpoint, activation: ActivationGrid | None = None) -> ModelContext:
    """A copy of the model, ready for a rewrite."""
    model, architecture = copy.deepcopy(checkpoint.model), checkpoint.architecture
    formats = formats_of(checkpoint, Grid(3), activation)
    install_layers(model, formats)
    return ModelContext(model, architecture, batches_of(checkpoint), formats)


@pytest.mark.parametrize("activation", [None, ActivationGrid(3)], ids=["weights", "activations"])
def test_training_lowers_the_loss_and_leaves_the_float_model_as_it_is(
    checkpoint: Checkpoint, activation: ActivationGrid | None
) -> None:
    context = model_context(checkpoint, activation)
    Spin(iterations=8).rewrite_model(context)
    (learned,) = context.reconstructions
    assert learned.loss_after < learned.loss_before
    assert 0 < largest_change(checkpoint, checkpoint.model, context.model) < 1e-4
    assert not any(
        len(list(layer.quantize_input.parameters())) or layer.quantize_input.__class__.__name__
        != "Identity"
        for layer in context.model.modules()
        if isinstance(layer, QuantizedLinear)
    )  # fmt: skip


def test_an_untied_model_spins_too(whisper: Checkpoint) -> None:
    context = model_context(whisper)
    Spin(iterations=3, untie=True).rewrite_model(context)
    assert 0 < largest_change(whisper, whisper.model, context.model) < 1e-4


def test_the_heads_rotation_starts_with_signs_of_its_own(checkpoint: Checkpoint) -> None:
    architecture, grams = checkpoint.architecture, []
    for seed in range(2):
        context = model_context(checkpoint)
        rotate_model(context, seed=seed, untie=False, across_heads=False, dense=True)
        assert largest_change(checkpoint, checkpoint.model, context.model) < 1e-4
        config = context.model.config
        head_dim = architecture.width(config) // architecture.heads(config)[0]
        (name,) = [
            site.layers[0] for site in architecture.encoder_block(0).sites if site.role == "out"
        ]
        first_head = context.model.get_submodule(name).weight[:, :head_dim]
        # The stream's rotation, on the other side, leaves these products as they are.
        grams.append(first_head.T @ first_head)
    assert not torch.allclose(*grams, rtol=1e-2)


@pytest.mark.parametrize("activation", [None, ActivationGrid(3)], ids=["weights", "activations"])
def test_gradients_are_the_same_however_many_clips_pass_at_once(
    checkpoint: Checkpoint, activation: ActivationGrid | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = model_context(checkpoint, activation)
    rotate_model(context, seed=0, untie=False, across_heads=False, dense=True)
    gradients = []
    for frames in (1, 10**6):
        monkeypatch.setattr(model_training, "FRAMES_AT_ONCE", frames)
        spins = Spins(context)
        rotated = RotatedModel(context, spins)
        add_gradients(context, rotated, summed_cross_entropy, 1, torch.arange(2))
        assert all(matrix.grad is not None for matrix in spins.parameters())
        gradients.append([matrix.grad for matrix in spins.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_trained_rotations_differ_from_where_they_start(moonshine: Checkpoint) -> None:
    """With a loss to lower, the weights are those of other rotations than Hadamard's."""
    spun, started = model_context(moonshine), model_context(moonshine)
    Spin(iterations=8).rewrite_model(spun)
    rotate_model(started, seed=0, untie=False, across_heads=False, dense=True)
    name = moonshine.architecture.encoder_block(0).layers[0]
    before, after = (one.model.get_submodule(name).weight for one in (started, spun))
    assert not torch.allclose(before, after, atol=1e-3)
