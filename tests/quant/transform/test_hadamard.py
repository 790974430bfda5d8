"""QuaRot on small models: exact before rounding, visible at runtime, quantizable after."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from quant.passes import batches_of, largest_change, quantized_with, rewrite_blocks, stages
from tiny import tone
from torch import nn
from transformers import PreTrainedModel, WhisperConfig, WhisperForConditionalGeneration

from edge_asr.errors import UserError
from edge_asr.models.families.base import Architecture
from edge_asr.models.families.whisper import Whisper
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.context import ModelContext
from edge_asr.quant.formats import Grid, TensorFormat
from edge_asr.quant.layers import install_layers, runtime_ops
from edge_asr.quant.stages import transforms
from edge_asr.quant.transform.hadamard import Hadamard
from edge_asr.quant.transform.hadamard_matrices import FastHadamard, hadamard_matrix
from edge_asr.quant.transform.stream_modules import StreamEntry
from edge_asr.runtimes.torch_greedy import greedy

SETTINGS = [
    Hadamard(),
    Hadamard(untie=True),
    Hadamard(across_heads=False, seed=5),
]


def rewritten(
    model: PreTrainedModel, architecture: Architecture, part: Hadamard
) -> tuple[PreTrainedModel, list[str]]:
    """A rewritten copy and its warnings."""
    model = copy.deepcopy(model)
    names = [name for block in architecture.blocks(model.config) for name in block.layers]
    install_layers(model, names)
    context = ModelContext(model, architecture, [], dict.fromkeys(names, TensorFormat(Grid(8))))
    part.rewrite_model(context)
    return model, context.warnings


def recipe(rounding: str) -> dict[str, dict[str, Any]]:
    return stages(transform={"name": "hadamard"}, rounding={"name": rounding})


@pytest.mark.parametrize("part", SETTINGS, ids=str)
def test_the_logits_stay_as_they_are(checkpoint: Checkpoint, part: Hadamard) -> None:
    model, _ = rewritten(checkpoint.model, checkpoint.architecture, part)
    assert 0 < largest_change(checkpoint, checkpoint.model, model) < 1e-4


def test_the_logits_stay_exactly_in_double_precision(checkpoint: Checkpoint) -> None:
    plain = copy.deepcopy(checkpoint.model).double()
    model, _ = rewritten(plain, checkpoint.architecture, Hadamard())
    batch = batches_of(checkpoint)[0]
    inputs = {name: value.double() for name, value in batch.encoder_inputs.items()}
    with torch.no_grad():
        before, after = (
            which(**inputs, decoder_input_ids=batch.decoder_input_ids).logits
            for which in (plain, model)
        )
    assert before.dtype == after.dtype == torch.float64
    assert float((before - after).abs().max()) < 1e-10


@pytest.mark.parametrize("part", SETTINGS[:2], ids=str)
def test_cached_greedy_decoding_writes_the_same_tokens(
    checkpoint: Checkpoint, part: Hadamard
) -> None:
    model, _ = rewritten(checkpoint.model, checkpoint.architecture, part)
    clips, limits = [tone(1.7), tone(0.6, 330.0), tone(1.1, 150.0)], [12, 12, 9]
    before = greedy(checkpoint, clips, limits)
    assert any(len(clip.tokens) > 3 for clip in before)
    assert greedy(replace(checkpoint, model=model), clips, limits) == before
    assert greedy(replace(checkpoint, model=copy.deepcopy(model)), clips, limits) == before


def test_the_pass_enters_the_stream_once(checkpoint: Checkpoint) -> None:
    """What the pass catches before the first block passes centring and rotation once."""
    seen: dict[str, torch.Tensor] = {}
    model, _ = rewrite_blocks(checkpoint, Hadamard())
    assert largest_change(checkpoint, checkpoint.model, model) < 1e-4
    batches = batches_of(checkpoint)
    quantized, result = quantized_with(checkpoint, recipe("nearest"), Grid(8), batches=batches)
    for stack in ("encoder", "decoder"):
        first = getattr(checkpoint.architecture, f"{stack}_block")(0)
        name = first.sites[0].layers[0]
        rows = []
        layer = quantized.get_submodule(name)
        hook = layer.register_forward_pre_hook(lambda _, args: seen.update(inputs=args[0]))
        with hook, torch.no_grad():
            for batch in batches:
                quantized(**batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids)
                mask = batch.frame_weights > 0 if stack == "encoder" else batch.token_mask
                rows.append(seen["inputs"][mask])
        plain = model.get_submodule(name).weight
        change = torch.cat(rows) @ (plain - layer.weight).T
        expected = float(
            change.square().sum(1).mean() / (torch.cat(rows) @ plain.T).var(0, correction=0).sum()
        )
        assert result.layers[name].output_error == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_the_rewritten_model_is_quantized(checkpoint: Checkpoint, rounding: str) -> None:
    batches = batches_of(checkpoint)
    model, result = quantized_with(checkpoint, recipe(rounding), Grid(8), batches=batches)
    memory = checkpoint.architecture.memory_block(model.config).layers
    assert set(memory) <= set(result.layers)
    for name, layer in result.layers.items():
        assert torch.equal(model.get_submodule(name).weight, layer.weight.dequantize())
    inputs = {**batches[0].encoder_inputs, "decoder_input_ids": batches[0].decoder_input_ids}
    with torch.no_grad():
        before, after = checkpoint.model(**inputs).logits, model(**inputs).logits
    assert 0 < float((after - before).norm() / before.norm()) < 0.05


def test_fc2_is_its_weight_times_a_hadamard(checkpoint: Checkpoint) -> None:
    """Qᵀ C W H, seen through the products of its columns, from which Q cancels."""
    model, _ = rewritten(checkpoint.model, checkpoint.architecture, Hadamard())
    for block in checkpoint.architecture.encoder_blocks(model.config):
        name = next(site.layers[0] for site in block.sites if site.role == "fc2")
        weight = checkpoint.model.get_submodule(name).weight.detach().double().numpy()
        hidden = weight.shape[1]
        base = {96: 12, 80: 20}[hidden]
        matrix = np.kron(hadamard_matrix(base).numpy(), scipy.linalg.hadamard(hidden // base))
        found = model.get_submodule(name).weight.detach().double().numpy()
        centred = (weight - weight.mean(0)) @ matrix / hidden**0.5
        np.testing.assert_allclose(found.T @ found, centred.T @ centred, atol=1e-4)


def test_rotation_hides_a_loud_channel(checkpoint: Checkpoint) -> None:
    """What the method is for: peaks of activations and weights shrink against their size."""
    plain = copy.deepcopy(checkpoint.model)
    architecture = checkpoint.architecture
    with torch.no_grad():
        for stream in architecture.residual_streams(plain.config):
            for name in stream.norms:
                plain.get_submodule(name).weight[3] *= 30
    model, _ = rewritten(plain, architecture, Hadamard())
    name = architecture.decoder_block(1).sites[0].layers[0]
    peaks = []
    for which in (plain, model):
        weight_input: list[torch.Tensor] = []
        hook = which.get_submodule(name).register_forward_pre_hook(
            lambda _, args, into=weight_input: into.append(args[0])
        )
        batch = batches_of(checkpoint)[0]
        with hook, torch.no_grad():
            which(**batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids)
        rows = weight_input[0]
        peaks.append(float((rows.abs().amax(-1) / rows.square().mean(-1).sqrt()).mean()))
    assert peaks[1] < 0.7 * peaks[0]


def test_runtime_ops_are_visible_and_listed_once(checkpoint: Checkpoint) -> None:
    architecture = checkpoint.architecture
    model, _ = rewritten(checkpoint.model, architecture, Hadamard())
    sites = [site for block in architecture.blocks(model.config) for site in block.sites]
    expected = {f"{site.layers[0]}.input_ops.0" for site in sites if site.role in ("out", "fc2")}
    expected |= {
        f"{architecture.encoder_block(0).module}.stream_entry",
        f"{architecture.decoder_block(0).module}.stream_entry",
        f"{architecture.decoder_norm}.rotation",
    }
    assert set(runtime_ops(model)) == expected
    untied, _ = rewritten(checkpoint.model, architecture, Hadamard(untie=True, across_heads=False))
    assert set(runtime_ops(untied)) == {
        f"{architecture.encoder_block(0).module}.stream_entry",
        *(f"{site.layers[0]}.input_ops.0" for site in sites if site.role == "fc2"),
    }


def test_costs_at_the_shape_of_whisper_tiny() -> None:
    config = WhisperConfig(
        vocab_size=60, d_model=384, encoder_layers=1, decoder_layers=1, pad_token_id=1,
        encoder_attention_heads=6, decoder_attention_heads=6, encoder_ffn_dim=1536,
        decoder_ffn_dim=1536, max_source_positions=50, bos_token_id=1, eos_token_id=1,
        decoder_start_token_id=1,
    )  # fmt: skip
    model, warnings = rewritten(WhisperForConditionalGeneration(config), Whisper(), Hadamard())
    costs = {name: op.macs_per_row for name, op in runtime_ops(model).items()}
    stream = 384 * (12 + 5 + 1)  # 384 = 12 x 2^5
    assert costs == {
        "model.encoder.layers.0.stream_entry": 384 + stream,
        "model.encoder.layers.0.self_attn.out_proj.input_ops.0": 384 * (1 + 1),
        "model.encoder.layers.0.fc2.input_ops.0": 1536 * (12 + 7 + 1),
        "model.decoder.layers.0.stream_entry": 384 + stream,
        "model.decoder.layers.0.self_attn.out_proj.input_ops.0": 384 * (1 + 1),
        "model.decoder.layers.0.encoder_attn.out_proj.input_ops.0": 384 * (1 + 1),
        "model.decoder.layers.0.fc2.input_ops.0": 1536 * (12 + 7 + 1),
        "model.decoder.layer_norm.rotation": stream,
    }
    assert warnings == [
        "hadamard: no matrix of order 6 is known; 6 heads are mixed online in runs of 2"
    ]


def test_widths_without_a_hadamard_fall_back_and_say_so() -> None:
    """Width 30 in 3 heads of 10, MLP 35 and 70: a dense rotation, runs of 2, and none at all."""
    config = WhisperConfig(
        vocab_size=60, d_model=30, encoder_layers=1, decoder_layers=1, pad_token_id=1,
        encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=70,
        decoder_ffn_dim=35, max_source_positions=50, bos_token_id=1, eos_token_id=1,
        decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    plain = WhisperForConditionalGeneration(config).eval()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    model, warnings = rewritten(plain, Whisper(), Hadamard())
    inputs = {
        "input_features": torch.randn(2, 80, 100),
        "decoder_input_ids": torch.tensor([[1, 5, 6], [1, 9, 2]]),
    }
    with torch.no_grad():
        before, after = plain(**inputs).logits, model(**inputs).logits
    assert float((before - after).abs().max()) < 1e-4
    assert len(warnings) == len(set(warnings)) == 5
    for text in (
        "order 30 is known; residual streams of that width are rotated by a random",
        "order 10 is known; heads of that width are rotated by a random",
        "3 heads are not mixed",
        "70 channels are mixed online in runs of 2",
        "35 channels are not mixed",
    ):
        assert any(text in warning for warning in warnings), text
    ops = runtime_ops(model)
    assert not any("decoder.layers.0.fc2" in name or "out_proj" in name for name in ops)
    entry = ops["model.encoder.layers.0.stream_entry"]
    assert isinstance(entry, StreamEntry)
    assert entry.macs_per_row == 30 * 30 + 30
    assert isinstance(ops["model.encoder.layers.0.fc2.input_ops.0"], FastHadamard)


def test_the_seed_decides_the_signs(checkpoint: Checkpoint) -> None:
    name = checkpoint.architecture.encoder_block(0).sites[0].layers[0]
    first, again, other = (
        rewritten(checkpoint.model, checkpoint.architecture, Hadamard(seed=seed))[0]
        .get_submodule(name)
        .weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_settings_are_checked() -> None:
    assert transforms.build({"name": "hadamard", "untie": True}) == Hadamard(untie=True)
    with pytest.raises(UserError, match="untie"):
        transforms.build({"name": "hadamard", "untie": 3})
