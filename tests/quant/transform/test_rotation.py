"""Folding of arbitrary orthogonal matrices, against the formulas in numpy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from tiny import tone
from torch import Tensor, nn
from transformers import PreTrainedModel

from edge_asr.models.families.base import Architecture
from edge_asr.models.families.sites import Site
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.layers import install_layers, runtime_ops
from edge_asr.quant.transform.rotation import (
    Rotation,
    double_precision,
    fold_norms,
    rotate_heads,
    rotate_inputs,
    rotate_outputs,
    rotate_stream,
)
from edge_asr.quant.transform.stream_modules import StreamExit

SEEDS = {"encoder": 1, "decoder": 2}


def orthogonal(size: int, seed: int) -> np.ndarray:
    return scipy.stats.ortho_group.rvs(size, random_state=seed)


def out_sites(checkpoint: Checkpoint) -> list[Site]:
    blocks = checkpoint.architecture.blocks(checkpoint.model.config)
    return [site for block in blocks for site in block.sites if site.role == "out"]


def head_matrices(checkpoint: Checkpoint, index: int) -> np.ndarray:
    heads = checkpoint.architecture.heads(checkpoint.model.config)[0]
    width = checkpoint.architecture.width(checkpoint.model.config)
    return np.stack([orthogonal(width // heads, 10 + index * heads + h) for h in range(heads)])


def rotated(checkpoint: Checkpoint, *, untie: bool = False) -> PreTrainedModel:
    """A copy with another random rotation in every stream and every head."""
    model, architecture = copy.deepcopy(checkpoint.model), checkpoint.architecture
    blocks = architecture.blocks(model.config)
    install_layers(model, (name for block in blocks for name in block.layers))
    width = architecture.width(model.config)
    with double_precision(model):
        fold_norms(model, architecture, untie=untie)
        for stack in ("encoder", "decoder"):
            matrix = torch.from_numpy(orthogonal(width, SEEDS[stack]))
            rotate_stream(model, architecture, stack, Rotation(matrix))
        for index, site in enumerate(out_sites(checkpoint)):
            rotate_heads(model, site, torch.from_numpy(head_matrices(checkpoint, index)))
    return model


def array(model: nn.Module, name: str) -> np.ndarray:
    return model.get_parameter(name).detach().double().numpy()


def logits(checkpoint: Checkpoint, model: PreTrainedModel) -> Tensor:
    """Logits of a padded batch."""
    clips = [tone(1.6), tone(0.5, 330.0)]
    inputs = checkpoint.architecture.model_inputs(checkpoint.feature_extractor, clips)
    tokens = torch.tensor([[1, 5, 6, 9, 3], [1, 8, 4, 2, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        output: Tensor = model(
            **inputs, decoder_input_ids=tokens, decoder_attention_mask=mask
        ).logits
    return output


@pytest.mark.parametrize("untie", [False, True])
def test_arbitrary_rotations_leave_the_logits_as_they_are(
    checkpoint: Checkpoint, untie: bool
) -> None:
    before = logits(checkpoint, checkpoint.model)
    after = logits(checkpoint, rotated(checkpoint, untie=untie))
    assert float(before.std()) > 0.1
    assert float((before - after).abs().max()) < 1e-4


def test_the_encoder_states_are_rotated_and_nothing_else(checkpoint: Checkpoint) -> None:
    architecture, model = checkpoint.architecture, rotated(checkpoint)
    clips = [tone(1.6), tone(0.5, 330.0)]
    inputs = architecture.model_inputs(checkpoint.feature_extractor, clips)
    with torch.no_grad():
        before, after = (
            which.get_submodule(architecture.encoder_module)(**inputs).last_hidden_state
            for which in (checkpoint.model, model)
        )
    norm = checkpoint.model.get_submodule(architecture.encoder_norm)
    matrix = orthogonal(architecture.width(model.config), SEEDS["encoder"]).astype(np.float32)
    expected = after.numpy() @ matrix.T * norm.weight.detach().numpy()
    if norm.bias is not None:
        expected += norm.bias.detach().numpy()
    assert float((before - after).abs().max()) > 0.1
    np.testing.assert_allclose(before.numpy(), expected, atol=1e-4)


def test_every_reader_is_its_weight_times_scale_times_rotation(checkpoint: Checkpoint) -> None:
    """W diag(γ) Q and b + W β; keys, which have no bias, lose W β. Values also turn per head."""
    plain, model = checkpoint.model, rotated(checkpoint)
    values = {str(site.source): index for index, site in enumerate(out_sites(checkpoint))}
    streams = checkpoint.architecture.residual_streams(plain.config)
    scales = {norm: stream.stack for stream in streams for norm in stream.norms}
    seen = set()
    for block in checkpoint.architecture.blocks(plain.config):
        for site in (site for site in block.sites if site.source in scales):
            norm = plain.get_submodule(str(site.source))
            for name in site.layers:
                seen.add(name)
                weight = array(plain, f"{name}.weight")
                matrix = orthogonal(weight.shape[1], SEEDS[scales[str(site.source)]])
                expected = weight @ np.diag(array(norm, "weight")) @ matrix
                turn = np.eye(len(weight))
                if name in values:
                    turn = scipy.linalg.block_diag(*head_matrices(checkpoint, values[name]))
                np.testing.assert_allclose(
                    array(model, f"{name}.weight"), turn.T @ expected, atol=1e-5
                )
                before, after = plain.get_submodule(name).bias, model.get_submodule(name).bias
                assert (before is None) == (after is None)
                if after is not None:
                    shift = weight @ array(norm, "bias") if norm.bias is not None else 0.0
                    bias = turn.T @ (array(plain, f"{name}.bias") + shift)
                    np.testing.assert_allclose(array(model, f"{name}.bias"), bias, atol=1e-5)
    readers = {name for stream in streams for name in stream.readers}
    assert seen == readers - {checkpoint.architecture.head}


def test_every_writer_is_centred_and_rotated(checkpoint: Checkpoint) -> None:
    """Qᵀ (I - 1 1ᵀ / d) W; the output layers of attention also undo the turn of the heads."""
    plain, model = checkpoint.model, rotated(checkpoint)
    attention = {site.layers[0]: index for index, site in enumerate(out_sites(checkpoint))}
    for stream in checkpoint.architecture.residual_streams(plain.config):
        for name in stream.writers:
            if isinstance(plain.get_submodule(name), nn.Embedding):
                before, after = array(plain, f"{name}.weight"), array(model, f"{name}.weight")
                assert np.array_equal(before, after)  # added before the entry
                continue
            weight = array(plain, f"{name}.weight")
            width = len(weight)
            matrix = orthogonal(width, SEEDS[stream.stack])
            into = matrix.T @ (np.eye(width) - np.ones((width, width)) / width)
            expected = into @ weight
            if name in attention:
                turn = scipy.linalg.block_diag(*head_matrices(checkpoint, attention[name]))
                expected = expected @ turn
            np.testing.assert_allclose(array(model, f"{name}.weight"), expected, atol=1e-5)
            if plain.get_submodule(name).bias is not None:
                bias = into @ array(plain, f"{name}.bias")
                np.testing.assert_allclose(array(model, f"{name}.bias"), bias, atol=1e-5)


def test_an_untied_head_and_all_tables_are_folded(checkpoint: Checkpoint) -> None:
    architecture, plain = checkpoint.architecture, checkpoint.model
    model = rotated(checkpoint, untie=True)
    matrix = orthogonal(architecture.width(plain.config), SEEDS["decoder"])
    _, decoder = architecture.residual_streams(plain.config)
    tables = [
        name for name in decoder.writers if isinstance(plain.get_submodule(name), nn.Embedding)
    ]
    assert architecture.embedding in tables
    for name in tables:
        table = array(plain, f"{name}.weight")
        expected = (table - table.mean(1, keepdims=True)) @ matrix
        np.testing.assert_allclose(array(model, f"{name}.weight"), expected, atol=1e-5)
    norm = plain.get_submodule(architecture.decoder_norm)
    table = array(plain, f"{architecture.embedding}.weight")
    expected = table @ np.diag(array(norm, "weight")) @ matrix
    np.testing.assert_allclose(array(model, f"{architecture.head}.weight"), expected, atol=1e-5)
    if norm.bias is not None:
        expected = table @ array(norm, "bias")
        np.testing.assert_allclose(array(model, f"{architecture.head}.bias"), expected, atol=1e-5)
    assert model.config.tie_word_embeddings is False
    assert [name for name in runtime_ops(model) if "decoder" in name] == []


def test_a_tied_head_stays_tied_and_untouched(checkpoint: Checkpoint) -> None:
    architecture, model = checkpoint.architecture, rotated(checkpoint)
    head, embedding = (
        model.get_submodule(name) for name in (architecture.head, architecture.embedding)
    )
    assert head.weight is embedding.weight
    assert torch.equal(head.weight, checkpoint.model.get_submodule(architecture.head).weight)
    exit = model.get_submodule(architecture.decoder_norm)
    assert isinstance(exit, StreamExit)
    ops = runtime_ops(model)
    width = architecture.width(model.config)
    # In and out of a dense rotation; centring comes on top on the way in.
    assert sorted(part.macs_per_row for part in ops.values()) == [
        width**2, width**2 + width, width**2 + width,
    ]  # fmt: skip
    assert all(part.stored_bits == 16 * width**2 for part in ops.values())


def norms_with_parameters(model: nn.Module, architecture: Architecture) -> set[str]:
    streams = architecture.residual_streams(model.config)
    return {
        name
        for stream in streams
        for name in stream.norms
        if next(model.get_submodule(name).parameters(), None) is not None
    }


def test_no_norm_in_a_rotated_stream_keeps_parameters(checkpoint: Checkpoint) -> None:
    architecture = checkpoint.architecture
    # The last norm of a tied model stands behind the way out of the stream.
    assert norms_with_parameters(rotated(checkpoint), architecture) == {architecture.decoder_norm}
    assert norms_with_parameters(rotated(checkpoint, untie=True), architecture) == set()
    for stream in architecture.residual_streams(checkpoint.model.config):
        model = rotated(checkpoint, untie=True)
        for name in stream.norms:
            norm, before = model.get_submodule(name), checkpoint.model.get_submodule(name)
            assert isinstance(norm, nn.RMSNorm)
            assert norm.eps == before.eps


def test_new_parameters_are_announced(checkpoint: Checkpoint) -> None:
    model = copy.deepcopy(checkpoint.model)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert fold_norms(model, checkpoint.architecture) == []
    assert sum(parameter.numel() for parameter in model.parameters()) <= count
    model = copy.deepcopy(checkpoint.model)
    warnings = fold_norms(model, checkpoint.architecture, untie=True)
    head = model.get_submodule(checkpoint.architecture.head)
    assert f"{head.weight.numel()} more parameters" in warnings[0]
    assert len(warnings) == (1 if head.bias is None else 2)


def test_a_query_without_bias_gets_one(whisper: Checkpoint) -> None:
    """Only keys may lose the norm's bias."""
    model = copy.deepcopy(whisper.model)
    query = "model.decoder.layers.1.encoder_attn.q_proj"
    model.get_submodule(query).bias = None
    before = logits(whisper, model)
    assert fold_norms(model, whisper.architecture) == [
        f"{query} has a bias now: 48 more parameters to store"
    ]
    assert float((before - logits(whisper, model)).abs().max()) < 1e-4


def test_copies_are_independent(checkpoint: Checkpoint) -> None:
    model = rotated(checkpoint)
    before = logits(checkpoint, model)
    other = copy.deepcopy(model)
    assert torch.equal(logits(checkpoint, other), before)
    for op in runtime_ops(other).values():
        for buffer in op.buffers():
            buffer.zero_()
    assert not torch.equal(logits(checkpoint, other), before)
    assert torch.equal(logits(checkpoint, model), before)


def test_folding_and_rotating_twice_are_refused(checkpoint: Checkpoint) -> None:
    model, architecture = copy.deepcopy(checkpoint.model), checkpoint.architecture
    rotation = Rotation(torch.eye(architecture.width(model.config), dtype=torch.float64))
    with pytest.raises(ValueError, match="fold the norms of the encoder"):
        rotate_stream(model, architecture, "encoder", rotation)
    fold_norms(model, architecture)
    with pytest.raises(TypeError, match="no LayerNorm"):
        fold_norms(model, architecture)
    rotate_stream(model, architecture, "encoder", rotation)
    with pytest.raises(ValueError, match="rotated already"):
        rotate_stream(model, architecture, "encoder", rotation)


def test_double_precision_comes_and_goes(checkpoint: Checkpoint) -> None:
    model = copy.deepcopy(checkpoint.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with double_precision(model):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


def test_kernels_are_block_diagonal_products_and_differentiable() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 10, dtype=torch.float64, generator=generator, requires_grad=True)
    each = torch.randn(2, 5, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    full = torch.block_diag(*each)
    torch.testing.assert_close(rotate_inputs(weight, each), weight @ full)
    torch.testing.assert_close(rotate_outputs(weight.T, each), full.T @ weight.T)
    same = torch.block_diag(each[0], each[0])
    torch.testing.assert_close(rotate_inputs(weight, each[0]), weight @ same)
    rotate_outputs(weight.T, each).square().sum().backward()
    assert weight.grad is not None
    assert each.grad is not None
