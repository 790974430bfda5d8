"""What a generation_config.json asks for: tokens that are used, and all that is not done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from transformers import GenerationConfig

from edge_asr.errors import UserError

# What greedy decoding goes by in a checkpoint's generation config, and what only other ways of
# decoding look at.
KEPT = (
    "decoder_start_token_id",
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "no_timestamps_token_id",
    "is_multilingual",
    "lang_to_id",
    "task_to_id",
    "language",
    "task",
    "prev_sot_token_id",
    "max_initial_timestamp_index",
    "alignment_heads",
)
# What changes no text, but only what else comes with it and how fast.
NO_TEXT = (
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
    "use_cache",
    "compile_config",
    "disable_compile",
    "transformers_version",
    "_from_model_config",
)
# Fields that Whisper's `generate` reads beside the library's own (transformers 5,
# models/whisper/generation_whisper.py).
OF_WHISPER = (
    "return_timestamps",
    "return_token_timestamps",
    "condition_on_prev_tokens",
    "prompt_condition_type",
    "prompt_ids",
    "logprob_threshold",
    "no_speech_threshold",
    "compression_ratio_threshold",
)
# Values with which a setting does nothing, where that is not None: the library's defaults
# (transformers 5, GenerationConfig) and Whisper's.
NEUTRAL: Mapping[str, Any] = MappingProxyType(
    {
        "do_sample": False,
        "num_beams": 1,
        "num_beam_groups": 1,
        "num_return_sequences": 1,
        "diversity_penalty": 0.0,
        "length_penalty": 1.0,
        "early_stopping": False,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "typical_p": 1.0,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
        "repetition_penalty": 1.0,
        "encoder_repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0,
        "min_length": 0,
        "renormalize_logits": False,
        "remove_invalid_values": False,
        "token_healing": False,
        "low_memory": False,
        "is_assistant": False,
        "num_assistant_tokens": 20,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.4,
        "assistant_lookbehind": 10,
        "target_lookbehind": 10,
        "return_timestamps": False,
        "return_token_timestamps": False,
        "condition_on_prev_tokens": False,
        "prompt_condition_type": "first-segment",
    }
)
# A limit on all texts is told where it cuts those of a few seconds of speech; every clip has one of
# its own, which the record tells.
SHORT_TEXT = 40
SHOWN = 60  # characters of a value


def not_done(generation: Any) -> dict[str, Any]:
    """Settings that could change a text and are not followed, by name: decoding is greedy, one
    text a clip, within a limit of its own."""
    asked = {}
    for name in (*vars(GenerationConfig()), *OF_WHISPER):
        value = getattr(generation, name, None)
        if name in (*KEPT, *NO_TEXT) or value is None or value == NEUTRAL.get(name):
            continue
        limits = name in ("max_length", "max_new_tokens")
        if limits and not (isinstance(value, int) and 0 < value < SHORT_TEXT):
            continue
        asked[name] = value
    return asked


def as_warning(asked: Mapping[str, Any]) -> list[str]:
    """One sentence for settings that are not followed, none where there are none."""
    if not asked:
        return []
    listed = ", ".join(f"{name}={value!s:.{SHOWN}}" for name, value in asked.items())
    return [f"generation_config.json asks for {listed}; decoding is greedy without"]


def check_token(name: str, token: object, vocabulary: int) -> None:
    """Raises UserError where `token`, the field `name`, is none of the model's."""
    if type(token) is not int or not 0 <= token < vocabulary:
        raise UserError(
            f"generation_config.json: {name} {token!r:.60} is no token of the model, which has "
            f"{vocabulary}; restore the published file"
        )


def token_problem(plain: Mapping[str, Any]) -> str | None:
    """A token that is no number in the file itself, on which the library fails: half a sentence."""
    for name, value in plain.items():
        # Several tokens may end a text; all others are one.
        several = isinstance(value, list) and name == "eos_token_id"
        tokens = value if several else [value]
        if name.endswith("_token_id") and any(type(one) not in (int, type(None)) for one in tokens):
            return f"{name} {value!r:.60} is no token"
    return None


def check_tokens(generation: Any, fields: Sequence[str], vocabulary: int) -> None:
    """Raises UserError for a token that the model does not have, in `fields` or any other."""
    ends = generation.eos_token_id
    ends = ends if isinstance(ends, list) and ends else [ends]
    named = [("eos_token_id", one) for one in ends]
    named += [(name, getattr(generation, name)) for name in fields]
    for name in ("bos_token_id", "pad_token_id"):
        if getattr(generation, name, None) is not None:
            named.append((name, getattr(generation, name)))
    for name, token in named:
        check_token(name, token, vocabulary)
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        tokens = getattr(generation, name, None)
        if tokens is None:
            continue
        # Numbers beyond the vocabulary suppress nothing, and -1 stands for none.
        if not isinstance(tokens, list) or any(type(token) is not int for token in tokens):
            raise UserError(
                f"generation_config.json: {name} {tokens!r:.60} is no list of tokens; "
                "restore the published file"
            )
        if name == "suppress_tokens" and set(ends) <= set(tokens):
            raise UserError(
                f"generation_config.json: {name} holds every token that ends a text; "
                "restore the published file"
            )
