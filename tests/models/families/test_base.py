"""The two maps against real module trees."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import tone
from torch import nn
from transformers import (
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from edge_asr.errors import UserError
from edge_asr.models.families.moonshine import MINIMUM_SAMPLES, Moonshine
from edge_asr.models.families.whisper import Whisper
from edge_asr.models.loading import Checkpoint, architecture_of


def test_every_block_linear_belongs_to_exactly_one_site(checkpoint: Checkpoint) -> None:
    architecture, model = checkpoint.architecture, checkpoint.model
    architecture.verify(model, model.config)
    mapped = [name for block in architecture.blocks(model.config) for name in block.layers]
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != architecture.head
    ]
    assert sorted(mapped) == sorted(linears)


def test_an_unmapped_linear_is_named(checkpoint: Checkpoint) -> None:
    model = copy.deepcopy(checkpoint.model)
    block = model.get_submodule(checkpoint.architecture.encoder_block(1).module)
    block.add_module("adapter", nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"layers\.1\.adapter.*no site"):
        checkpoint.architecture.verify(model, model.config)


def test_a_map_of_another_family_is_refused(whisper: Checkpoint, moonshine: Checkpoint) -> None:
    with pytest.raises(UserError, match="does not have"):
        whisper.architecture.verify(moonshine.model, whisper.model.config)


def test_layers_of_a_site_read_the_same_tensor(checkpoint: Checkpoint) -> None:
    """Run the model and compare what every layer of a site was given."""
    architecture, model = checkpoint.architecture, checkpoint.model
    seen: dict[str, torch.Tensor] = {}
    blocks = list(architecture.blocks(model.config))
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0])
        )
        for block in blocks
        for name in block.layers
    ]
    inputs = architecture.model_inputs(checkpoint.feature_extractor, [tone(1.0)])
    model(**inputs, decoder_input_ids=torch.tensor([[1, 5, 6]]))
    for hook in hooks:
        hook.remove()
    frames = architecture.positions(model.config, 16_000)["frame"]
    for block in blocks:
        for site in block.sites:
            first = seen[site.layers[0]]
            assert all(torch.equal(first, seen[name]) for name in site.layers)
            assert first.shape[1] == (frames if site.axis == "frame" else 3)


def test_norm_sources_feed_their_sites(checkpoint: Checkpoint) -> None:
    """Scaling a source norm's output scales what the site reads, and nothing before it."""
    architecture, model = checkpoint.architecture, checkpoint.model
    outputs: dict[str, torch.Tensor] = {}
    inputs: dict[str, torch.Tensor] = {}
    sites = [
        site
        for block in architecture.blocks(model.config)
        for site in block.sites
        if site.role in ("qkv", "cross_q", "cross_kv", "fc1")
    ]
    hooks = []
    for site in sites:
        assert site.source is not None
        hooks += [
            model.get_submodule(site.source).register_forward_hook(
                lambda _, __, out, name=site.source: outputs.__setitem__(name, out)
            ),
            model.get_submodule(site.layers[0]).register_forward_pre_hook(
                lambda _, args, name=site.layers[0]: inputs.__setitem__(name, args[0])
            ),
        ]
    batch = architecture.model_inputs(checkpoint.feature_extractor, [tone(0.8)])
    model(**batch, decoder_input_ids=torch.tensor([[1, 5]]))
    for hook in hooks:
        hook.remove()
    for site in sites:
        assert torch.equal(outputs[site.source or ""], inputs[site.layers[0]]), site


@pytest.mark.parametrize("samples", [1, 100, MINIMUM_SAMPLES, 16_000, 31_999])
def test_positions_are_those_the_stem_computes(checkpoint: Checkpoint, samples: int) -> None:
    architecture, model = checkpoint.architecture, checkpoint.model
    lengths: dict[str, int] = {}
    hooks = [
        model.get_submodule(part.layer).register_forward_hook(
            lambda _, __, out, axis=part.axis: lengths.__setitem__(axis, out.shape[-1])
        )
        for part in architecture.stem()
    ]
    inputs = architecture.model_inputs(checkpoint.feature_extractor, [tone(2.0)[:samples]])
    model(**inputs, decoder_input_ids=torch.tensor([[1]]))
    for hook in hooks:
        hook.remove()
    assert lengths == architecture.positions(model.config, samples)
    assert 1 <= architecture.valid_frames(model.config, samples) <= lengths["frame"]


def test_residual_streams_touch_every_writer_and_reader_once(checkpoint: Checkpoint) -> None:
    config = checkpoint.model.config
    encoder, decoder = checkpoint.architecture.residual_streams(config)
    for stream in (encoder, decoder):
        for names in (stream.writers, stream.readers, stream.norms):
            assert len(set(names)) == len(names)
            for name in names:
                checkpoint.model.get_submodule(name)
    memory = checkpoint.architecture.memory_block(config)
    assert set(memory.layers) <= set(encoder.readers)
    assert not set(memory.layers) & set(decoder.readers)


def test_published_shapes_of_both_families() -> None:
    """Blocks and layers of whisper-tiny.en and moonshine-tiny, whose real configs these are."""
    config = WhisperConfig(
        d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536,
    )  # fmt: skip
    with torch.device("meta"):
        whisper = WhisperForConditionalGeneration(config)
        moonshine = MoonshineForConditionalGeneration(MoonshineConfig())
    Whisper().verify(whisper, config)
    Moonshine().verify(moonshine, moonshine.config)
    assert len(list(Whisper().blocks(config))) == 4 + 1 + 4
    assert len(list(Moonshine().blocks(moonshine.config))) == 6 + 1 + 6


def test_moonshine_token_limit_is_per_clip() -> None:
    config = MoonshineConfig()
    assert Moonshine().token_limit(config, 1, 16_000, 6.5) == int(6.5 + 2)
    assert Moonshine().token_limit(config, 1, 160_000, 6.5) == 67
    assert Moonshine().token_limit(config, 1, 10**9, 6.5) == 511
    assert Moonshine().token_limit(config, 1, 16_000, None) == 511


def test_an_unsupported_family_is_named() -> None:
    with pytest.raises(UserError, match=r"wav2vec2.*moonshine, whisper"):
        architecture_of("wav2vec2")
