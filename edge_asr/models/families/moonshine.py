"""Moonshine: raw audio, rotary positions, norms without bias, a gated decoder MLP.

Jeffries et al. 2024 (arXiv:2410.15608); module names of Hugging Face transformers. In the
decoder blocks `post_attention_layernorm` is the norm of the cross-attention and
`final_layernorm` that of the MLP.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.models.moonshine.modeling_moonshine import MoonshineAttention

from edge_asr.audio import SAMPLE_RATE
from edge_asr.errors import UserError
from edge_asr.models.decoding import Decoding
from edge_asr.models.families.base import Architecture, families
from edge_asr.models.families.sites import (
    Block,
    ResidualStream,
    Site,
    StemAxis,
    cross_query_site,
    layers_with_roles,
    norms_of,
    self_attention_site,
)
from edge_asr.models.languages import ENGLISH, language_code

# Kernel and stride of the three stem convolutions.
STEM = ((127, 64), (7, 3), (3, 2))
# The shortest clip that gives one encoder frame.
MINIMUM_SAMPLES = ((STEM[2][0] - 1) * STEM[1][1] + STEM[1][0] - 1) * STEM[0][1] + STEM[0][0]
# The published ones pad heads to a multiple of 8, for the sake of GPU kernels.
LARGEST_MULTIPLE = 256
# Where the published cap fits; words of the other languages that checkpoints are published for take
# more tokens (moonshine-ai/moonshine, docs/api/options.md, `max_tokens_per_second`, 420926a, 2026).
FEW_TOKENS = (None, "en", "es")
MANY_TOKENS_PER_SECOND = 13.0


@families.register("moonshine")
class Moonshine(Architecture):
    """The map of every Moonshine size."""

    family = "moonshine"
    first_token, start_token, end_token = "<unk>", "<s>", "</s>"
    default_tokens_per_second = 6.5
    tied_logit_channels = 2
    decoder_norm = "model.decoder.norm"
    layer_fields = ("encoder_num_hidden_layers", "decoder_num_hidden_layers")
    head_fields = ("encoder_num_attention_heads", "decoder_num_attention_heads")
    room_field = "max_position_embeddings"
    activation_fields = ("encoder_hidden_act", "decoder_hidden_act")
    sizes = types.MappingProxyType(
        {
            "hidden_size": ("model.decoder.embed_tokens.weight", 1),
            "vocab_size": ("model.decoder.embed_tokens.weight", 0),
            "intermediate_size": ("model.encoder.layers.0.mlp.fc1.weight", 0),
        }
    )
    feature_extractor = "Wav2Vec2FeatureExtractor"

    def encoder_block(self, index: int) -> Block:
        root = f"model.encoder.layers.{index}"
        attention, mlp = f"{root}.self_attn", f"{root}.mlp"
        norm = f"{root}.post_attention_layernorm"
        return Block(
            root,
            "encoder",
            (
                self_attention_site(
                    attention, f"{root}.input_layernorm", "encoder", "frame", rotary=True
                ),
                Site("out", "encoder", (f"{attention}.o_proj",), f"{attention}.v_proj", "frame"),
                Site("fc1", "encoder", (f"{mlp}.fc1",), norm, "frame"),
                Site("fc2", "encoder", (f"{mlp}.fc2",), None, "frame"),
            ),
        )

    def decoder_block(self, index: int) -> Block:
        root = f"model.decoder.layers.{index}"
        own, cross, mlp = f"{root}.self_attn", f"{root}.encoder_attn", f"{root}.mlp"
        cross_norm = f"{root}.post_attention_layernorm"
        return Block(
            root,
            "decoder",
            (
                self_attention_site(
                    own, f"{root}.input_layernorm", "decoder", "token", rotary=True
                ),
                Site("out", "decoder", (f"{own}.o_proj",), f"{own}.v_proj", "token"),
                cross_query_site(cross, cross_norm),
                Site("out", "decoder", (f"{cross}.o_proj",), f"{cross}.v_proj", "token"),
                Site("fc1", "decoder", (f"{mlp}.fc1",), f"{root}.final_layernorm", "token"),
                # fc1 holds (up, gate); fc2 reads silu(gate) * up, linear in the up half only.
                Site("fc2", "decoder", (f"{mlp}.fc2",), f"{mlp}.fc1", "token", "first_half"),
            ),
        )

    def cross_layers(self, index: int) -> tuple[str, str]:
        cross = f"model.decoder.layers.{index}.encoder_attn"
        return f"{cross}.k_proj", f"{cross}.v_proj"

    def stem(self) -> tuple[StemAxis, ...]:
        return (
            StemAxis("model.encoder.conv1", "conv1"),
            StemAxis("model.encoder.conv2", "conv2"),
            StemAxis("model.encoder.conv3", "frame"),
        )

    def positions(self, config: Any, samples: int) -> dict[str, int]:
        del config
        counts, length = [], max(samples, MINIMUM_SAMPLES)
        for kernel, stride in STEM:
            length = (length - kernel) // stride + 1
            counts.append(length)
        return dict(zip(("conv1", "conv2", "frame"), counts, strict=True))

    def valid_frames(self, config: Any, samples: int) -> int:
        return self.positions(config, samples)["frame"]

    def window_samples(self, config: Any, feature_extractor: Any) -> int | None:
        del config, feature_extractor
        return None

    def model_inputs(
        self, feature_extractor: Any, clips: Sequence[np.ndarray]
    ) -> dict[str, torch.Tensor]:
        """Zero-padded waves and their mask; clips shorter than one frame are padded to one."""
        features = feature_extractor(
            [np.pad(clip, (0, max(0, MINIMUM_SAMPLES - len(clip)))) for clip in clips],
            sampling_rate=SAMPLE_RATE, return_tensors="pt", padding=True,
            return_attention_mask=True,
        )  # fmt: skip
        return {
            "input_values": features["input_values"],
            "attention_mask": features["attention_mask"],
        }

    def feature_settings(self, feature_extractor: Any) -> dict[str, Any]:
        return {
            "kind": "samples",
            "normalize": bool(feature_extractor.do_normalize),
            "minimum_samples": MINIMUM_SAMPLES,
        }

    def memory_mask(
        self, encoder_inputs: Mapping[str, torch.Tensor], frames: int
    ) -> dict[str, torch.Tensor]:
        """Every 384th sample of the input's mask, as the encoder itself passes it on."""
        stride = math.prod(stride for _, stride in STEM)
        return {"encoder_attention_mask": encoder_inputs["attention_mask"][:, ::stride][:, :frames]}

    def settle_generation(
        self, model: PreTrainedModel, tokenizer: Any, decoding: Decoding
    ) -> list[str]:
        """A checkpoint knows one language, which its prompt does not tell: the user declares it."""
        warnings = super().settle_generation(model, tokenizer, decoding)
        if decoding.task == "translate":
            raise UserError(
                "decode.task=translate: the model only transcribes; leave it out, or give a "
                "multilingual Whisper"
            )
        generation: Any = model.generation_config
        named = getattr(generation, "language", None)
        generation.language, generation.task = decoding.language or ENGLISH, "transcribe"
        if named is not None and language_code(str(named)) != generation.language:
            warnings.append(
                f"generation_config.json names the language {named!r:.60}, and "
                f"{generation.language} is what is declared; set decode.language"
            )
        return warnings

    def usual_tokens_per_second(self, language: str | None) -> float | None:
        if language in FEW_TOKENS:
            return self.default_tokens_per_second
        return MANY_TOKENS_PER_SECOND

    def prompt(self, model: PreTrainedModel) -> tuple[int, ...]:
        generation: Any = model.generation_config
        return (int(generation.decoder_start_token_id),)

    def leave_out_head_padding(self, model: PreTrainedModel) -> None:
        """Else the decoder copies all keys and values of its cross-attention at every step."""
        for module in model.modules():
            if isinstance(module, MoonshineAttention):
                module.head_dim_padding = 0

    def features(self, config: Any) -> dict[str, Any]:
        return super().features(config) | {"feature_size": 1, "do_normalize": False}

    def own_config_problem(self, config: Any) -> str | None:
        """Heads of keys and values, how far heads are padded, rotary positions."""
        for stack, heads in zip(("encoder", "decoder"), self.heads(config), strict=True):
            name = f"{stack}_num_key_value_heads"
            shared = getattr(config, name, None)
            if shared is not None and (shared < 1 or heads % shared):
                return f"{name} {shared} does not divide {heads} heads"
        multiple = config.pad_head_dim_to_multiple_of
        if multiple is not None and not 1 <= multiple <= LARGEST_MULTIPLE:
            return f"pad_head_dim_to_multiple_of {multiple} must be from 1 to {LARGEST_MULTIPLE}"
        rotary = config.rope_parameters
        if rotary["rope_type"] != "default":
            return f"rope_type {rotary['rope_type']!r} must be 'default'"
        if not 0 < rotary["rope_theta"] < math.inf:
            return f"rope_theta {rotary['rope_theta']} must be a positive number"
        turned = rotary.get("partial_rotary_factor", 1.0)
        if not 0 < turned <= 1:
            return f"partial_rotary_factor {turned} must be above 0 and at most 1"
        return None

    def padded_head_dim(self, config: Any, head_dim: int) -> int:
        """The next multiple that the config asks for: the published ones pad 36 to 40."""
        multiple = getattr(config, "pad_head_dim_to_multiple_of", None) or 1
        return math.ceil(head_dim / multiple) * int(multiple)

    def width(self, config: Any) -> int:
        return int(config.hidden_size)

    def residual_streams(self, config: Any) -> tuple[ResidualStream, ...]:
        encoder, decoder = self.encoder_blocks(config), self.decoder_blocks(config)
        return (
            ResidualStream(
                "encoder",
                layers_with_roles(encoder, ("out", "fc2")),
                (*layers_with_roles(encoder, ("qkv", "fc1")), *self.memory_block(config).layers),
                (*norms_of(encoder), self.encoder_norm),
            ),
            ResidualStream(
                "decoder",
                (self.embedding, *layers_with_roles(decoder, ("out", "fc2"))),
                (*layers_with_roles(decoder, ("qkv", "cross_q", "fc1")), self.head),
                (*norms_of(decoder), self.decoder_norm),
            ),
        )
