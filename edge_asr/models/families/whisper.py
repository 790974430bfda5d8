"""Whisper: pre-norm blocks with biases (none on keys), GELU MLP, log-mel stem of 30 seconds.

Radford et al. 2022 (arXiv:2212.04356); module names of Hugging Face transformers.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from edge_asr.audio import SAMPLE_RATE
from edge_asr.errors import UserError
from edge_asr.models.decoding import Decoding
from edge_asr.models.families.base import Architecture, families
from edge_asr.models.families.generation import as_warning, check_token
from edge_asr.models.families.sites import (
    Block,
    ResidualStream,
    Site,
    StemAxis,
    counted_rows,
    cross_query_site,
    layers_with_roles,
    norms_of,
    self_attention_site,
)
from edge_asr.models.languages import ENGLISH, LANGUAGES, language_code

HOP_SAMPLES = 160
TRANSFORM_SAMPLES = 400
FRAME_SAMPLES = 2 * HOP_SAMPLES  # the second convolution halves the mel frames
TASKS = ("transcribe", "translate")
# Models with at least so many tokens know several languages (openai/whisper, whisper/model.py,
# `is_multilingual`, v20250625).
MULTILINGUAL_TOKENS = 51_865


class CountedFrames(WhisperEncoderLayer):
    """An encoder block for the frames of a batch that count.

    Every frame of the window, silence too, remains a key and a value; those that do not count ask
    no query, and so need neither attention nor an MLP. What comes out is the same in float32 and
    evaluation: dropout and float16's clamp are left out.
    """

    def __init__(self, block: nn.Module) -> None:
        # Not a copy: parameters and hooks are the block's own, and so what was put in front of it
        # runs here as well.
        vars(self).update(vars(block))

    def forward(  # type: ignore[override]  # `weights` cannot be left out
        self, states: Tensor, attention_mask: None = None, *, weights: Tensor, **options: Any
    ) -> Tensor:
        """States [batch, frames that count, width] behind the block.

        Args:
            states: In front of it [batch, frames, width].
            attention_mask: None: Whisper's encoder attends to its whole window.
            weights: Of every frame, [batch, frames].
            options: For the attention.
        """
        rows = counted_rows(weights)
        whole = self.self_attn_layer_norm(states)
        attended, _ = self.self_attn(
            whole[:, rows], key_value_states=whole, attention_mask=attention_mask, **options
        )
        states = states[:, rows] + attended
        inner = self.activation_fn(self.fc1(self.final_layer_norm(states)))
        return states + self.fc2(inner)


@families.register("whisper")
class Whisper(Architecture):
    """The map of every Whisper size, English-only or multilingual."""

    family = "whisper"
    first_token, start_token, end_token = "!", "<|startoftranscript|>", "<|endoftext|>"
    token_fields = ("decoder_start_token_id", "no_timestamps_token_id")
    layer_fields = ("encoder_layers", "decoder_layers")
    head_fields = ("encoder_attention_heads", "decoder_attention_heads")
    room_field = "max_target_positions"
    hears_padding = True
    activation_fields = ("activation_function",)
    sizes = types.MappingProxyType(
        {
            "d_model": ("model.decoder.embed_tokens.weight", 1),
            "vocab_size": ("model.decoder.embed_tokens.weight", 0),
            "num_mel_bins": ("model.encoder.conv1.weight", 1),
            "max_source_positions": ("model.encoder.embed_positions.weight", 0),
            "max_target_positions": ("model.decoder.embed_positions.weight", 0),
            "encoder_ffn_dim": ("model.encoder.layers.0.fc1.weight", 0),
            "decoder_ffn_dim": ("model.decoder.layers.0.fc1.weight", 0),
        }
    )
    feature_extractor = "WhisperFeatureExtractor"

    def encoder_block(self, index: int) -> Block:
        root = f"model.encoder.layers.{index}"
        attention = f"{root}.self_attn"
        return Block(
            root,
            "encoder",
            (
                self_attention_site(attention, f"{root}.self_attn_layer_norm", "encoder", "frame"),
                Site("out", "encoder", (f"{attention}.out_proj",), f"{attention}.v_proj", "frame"),
                Site("fc1", "encoder", (f"{root}.fc1",), f"{root}.final_layer_norm", "frame"),
                Site("fc2", "encoder", (f"{root}.fc2",), None, "frame"),
            ),
        )

    def decoder_block(self, index: int) -> Block:
        root = f"model.decoder.layers.{index}"
        own, cross = f"{root}.self_attn", f"{root}.encoder_attn"
        return Block(
            root,
            "decoder",
            (
                self_attention_site(own, f"{root}.self_attn_layer_norm", "decoder", "token"),
                Site("out", "decoder", (f"{own}.out_proj",), f"{own}.v_proj", "token"),
                cross_query_site(cross, f"{root}.encoder_attn_layer_norm"),
                Site("out", "decoder", (f"{cross}.out_proj",), f"{cross}.v_proj", "token"),
                Site("fc1", "decoder", (f"{root}.fc1",), f"{root}.final_layer_norm", "token"),
                Site("fc2", "decoder", (f"{root}.fc2",), None, "token"),
            ),
        )  # fmt: skip

    def cross_layers(self, index: int) -> tuple[str, str]:
        cross = f"model.decoder.layers.{index}.encoder_attn"
        return f"{cross}.k_proj", f"{cross}.v_proj"

    def stem(self) -> tuple[StemAxis, ...]:
        return (
            StemAxis("model.encoder.conv1", "mel"),
            StemAxis("model.encoder.conv2", "frame"),
        )

    def positions(self, config: Any, samples: int) -> dict[str, int]:
        """Whisper always computes its whole window, whatever the clip's length."""
        del samples
        frames = int(config.max_source_positions)
        return {"mel": 2 * frames, "frame": frames}

    def valid_frames(self, config: Any, samples: int) -> int:
        return max(1, min(-(-samples // FRAME_SAMPLES), int(config.max_source_positions)))

    def window_samples(self, config: Any, feature_extractor: Any) -> int | None:
        del config
        return int(feature_extractor.n_samples)

    def model_inputs(
        self, feature_extractor: Any, clips: Sequence[np.ndarray]
    ) -> dict[str, torch.Tensor]:
        features = feature_extractor(
            list(clips), sampling_rate=SAMPLE_RATE, return_tensors="pt", padding="max_length"
        )
        return {"input_features": features["input_features"]}

    def feature_settings(self, feature_extractor: Any) -> dict[str, Any]:
        """`mel_filters` is float32 [n_fft / 2 + 1, n_mels], the samples' power to that of bands."""
        return {
            "kind": "log_mel",
            "n_fft": int(feature_extractor.n_fft),
            "hop_length": int(feature_extractor.hop_length),
            "n_mels": int(feature_extractor.feature_size),
            "window_samples": int(feature_extractor.n_samples),
            "mel_filters": np.asarray(feature_extractor.mel_filters, np.float32),
        }

    def on_counted_rows(self, block: Block, module: nn.Module) -> nn.Module | None:
        """Clips are padded to 30 seconds, so most of an encoder block's work is on silence."""
        del block
        if isinstance(module, WhisperEncoderLayer):
            return CountedFrames(module)
        return None

    def settle_generation(
        self, model: PreTrainedModel, tokenizer: Any, decoding: Decoding
    ) -> list[str]:
        """Also takes the ids of languages and tasks from the tokenizer, where an older checkpoint
        does not tell them, and settles on one language and task."""
        generation: Any = model.generation_config
        if getattr(generation, "no_timestamps_token_id", None) is None:
            raise UserError(
                "generation_config.json has no no_timestamps_token_id, so the decoder prompt is "
                "unknown; restore the file that was published with the checkpoint "
                '(one saved with "_from_model_config": true loses the field)'
            )
        warnings = super().settle_generation(model, tokenizer, decoding)
        forced = _forced(model)
        # The prompt has them already, or they are not done; the library would start on them.
        generation.forced_decoder_ids = model.config.forced_decoder_ids = None
        silent = [generation.no_timestamps_token_id]
        if not _is_multilingual(model):
            warnings += _without_languages(generation, decoding)
            return warnings + _beside_prompt(forced, [silent])
        _name_languages(generation, tokenizer.get_vocab())
        generation.language = _language(generation, forced, decoding)
        generation.task = _task(generation, forced, decoding)
        known = [generation.lang_to_id.values(), generation.task_to_id.values(), silent]
        warnings += _beside_prompt(forced, known)
        vocabulary = int(model.config.vocab_size)
        check_token("lang_to_id", generation.lang_to_id[generation.language], vocabulary)
        check_token("task_to_id", generation.task_to_id[generation.task], vocabulary)
        return warnings

    def known_tokens(self, model: PreTrainedModel) -> list[tuple[int, str]]:
        """The whole prompt among them."""
        generation: Any = model.generation_config
        texts = [self.start_token, "<|notimestamps|>"]
        if getattr(generation, "is_multilingual", False):
            texts[1:1] = [generation.language, f"<|{generation.task}|>"]
        return super().known_tokens(model) + list(zip(self.prompt(model), texts, strict=True))

    def features(self, config: Any) -> dict[str, Any]:
        """Mel bins, window, hop and transform of the published models, too."""
        frames = 2 * int(config.max_source_positions)
        return super().features(config) | {
            "feature_size": int(config.num_mel_bins),
            "hop_length": HOP_SAMPLES,
            "n_fft": TRANSFORM_SAMPLES,
            "nb_max_frames": frames,
            "n_samples": frames * HOP_SAMPLES,
        }

    def prompt(self, model: PreTrainedModel) -> tuple[int, ...]:
        """`<|startoftranscript|>`, language and task for multilingual models, no timestamps."""
        generation: Any = model.generation_config
        tokens = [int(generation.decoder_start_token_id)]
        if getattr(generation, "is_multilingual", False):
            language, task = generation.language, generation.task
            tokens += [generation.lang_to_id[language], generation.task_to_id[task]]
        return (*tokens, int(generation.no_timestamps_token_id))

    def width(self, config: Any) -> int:
        return int(config.d_model)

    def residual_streams(self, config: Any) -> tuple[ResidualStream, ...]:
        encoder, decoder = self.encoder_blocks(config), self.decoder_blocks(config)
        memory = self.memory_block(config)
        return (
            ResidualStream(
                "encoder",
                ("model.encoder.embed_positions", *layers_with_roles(encoder, ("out", "fc2"))),
                (*layers_with_roles(encoder, ("qkv", "fc1")), *memory.layers),
                (*norms_of(encoder), self.encoder_norm),
            ),
            ResidualStream(
                "decoder",
                (self.embedding, "model.decoder.embed_positions",
                 *layers_with_roles(decoder, ("out", "fc2"))),
                (*layers_with_roles(decoder, ("qkv", "cross_q", "fc1")), self.head),
                (*norms_of(decoder), self.decoder_norm),
            ),
        )  # fmt: skip


def _is_multilingual(model: PreTrainedModel) -> bool:
    """Whether the prompt names language and task; where the file does not tell, the number of
    tokens does."""
    generation: Any = model.generation_config
    several = getattr(generation, "is_multilingual", None)
    if several not in (True, False, None):
        raise UserError(
            f"generation_config.json: is_multilingual {several!r:.60} must be true or false; "
            "restore the published file"
        )
    if several is None:
        generation.is_multilingual = int(model.config.vocab_size) >= MULTILINGUAL_TOKENS
    return bool(generation.is_multilingual)


def _without_languages(generation: Any, decoding: Decoding) -> list[str]:
    """Take out what only multilingual models have, on which the library's decoding fails; a
    sentence where that named another language or task than such a model has.

    Raises UserError where the user wants another.
    """
    if decoding.language not in (None, ENGLISH):
        raise UserError(
            f"decode.language={decoding.language}: the model knows English only; leave it out, or "
            "give a multilingual checkpoint"
        )
    if decoding.task == "translate":
        raise UserError(
            "decode.task=translate: the model knows English only and transcribes it; leave it out, "
            "or give a multilingual checkpoint"
        )
    warnings = []
    for name, own in (("language", ENGLISH), ("task", TASKS[0])):
        value = getattr(generation, name, None)
        if value is not None and own not in (value, language_code(str(value))):
            warnings.append(
                f"generation_config.json asks for {name}={value}; the model is no multilingual one "
                "and decodes without"
            )
    for name in ("language", "task", "lang_to_id", "task_to_id"):
        if hasattr(generation, name):
            delattr(generation, name)
    return warnings


def _name_languages(generation: Any, vocabulary: Mapping[str, int]) -> None:
    """The ids of languages and tasks, from the tokenizer where the file has none."""
    if not getattr(generation, "lang_to_id", None):
        tokens = (f"<|{code}|>" for code in LANGUAGES)
        generation.lang_to_id = {one: vocabulary[one] for one in tokens if one in vocabulary}
    if not getattr(generation, "task_to_id", None):
        generation.task_to_id = {
            task: vocabulary[f"<|{task}|>"] for task in TASKS if f"<|{task}|>" in vocabulary
        }


def _forced(model: PreTrainedModel) -> dict[int, Any]:
    """By decoder position, the tokens that an older checkpoint forces, in either file."""
    for place in (model.generation_config, model.config):
        pairs = getattr(place, "forced_decoder_ids", None)
        if pairs is not None:
            sound = (pair for pair in pairs if isinstance(pair, list) and len(pair) == 2)
            return {position: token for position, token in sound if isinstance(position, int)}
    return {}


def _beside_prompt(forced: Mapping[int, Any], known: Sequence[Collection[Any]]) -> list[str]:
    """A sentence for forced tokens that are none of the `known` ones of the prompt's place 1, 2
    and so on."""
    beside = {
        place: token
        for place, token in forced.items()
        if token is not None and (not 0 < place <= len(known) or token not in known[place - 1])
    }
    return as_warning({"forced_decoder_ids": list(beside.items())} if beside else {})


def _name_of(token: object, known: Mapping[str, int]) -> str | None:
    return next((name for name, own in known.items() if own == token), None)


def _language(generation: Any, forced: Mapping[int, Any], decoding: Decoding) -> str:
    """The token of the language to transcribe: the one the user wants, else the one the checkpoint
    names (as `<|de|>`, `de` or `german`), else the one it forces, else English, else the only one
    it knows.

    Raises UserError for a language that it has no token for.
    """
    known: Mapping[str, int] = generation.lang_to_id
    listed = ", ".join(sorted(one.strip("<|>") for one in known)) or "none"
    if decoding.language is not None:
        token = f"<|{decoding.language}|>"
        if token not in known:
            raise UserError(
                f"decode.language={decoding.language}: the model has no token for it; "
                f"choose one it knows: {listed}"
            )
        return token
    named = getattr(generation, "language", None)
    if named is not None and not isinstance(named, str):
        raise UserError(
            f"generation_config.json: language {named!r:.60} is no name of one; "
            "restore the published file"
        )
    if named:
        word = named.lower()
        # Its own tokens first: a model may have learned a language that Whisper does not know.
        own = (word, f"<|{word}|>", f"<|{language_code(word)}|>")
        named_token = next((one for one in own if one in known), None)
        if named_token is None:
            raise UserError(
                f"generation_config.json names the language {named!r}, for which the model has no "
                f"token; choose one it knows with decode.language: {listed}"
            )
        return named_token
    english, found = f"<|{ENGLISH}|>", _name_of(forced.get(1), known)
    if found is None and english not in known and len(known) != 1:
        raise UserError(
            "generation_config.json names no language and the model has no <|en|>; "
            f"choose one it knows with decode.language: {listed}"
        )
    return found or (english if english in known else next(iter(known)))


def _task(generation: Any, forced: Mapping[int, Any], decoding: Decoding) -> str:
    known: Mapping[str, int] = generation.task_to_id
    own = getattr(generation, "task", None) or _name_of(forced.get(2), known) or TASKS[0]
    named = decoding.task or own
    if named not in known:
        where = "generation_config.json: " if decoding.task is None else "decode."
        raise UserError(
            f"{where}task={named}: the model has no token for it; choose one it knows with "
            f"decode.task: {', '.join(sorted(known)) or 'none'}"
        )
    return str(named)
