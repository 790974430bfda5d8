"""Whether a configuration and a feature extractor fit the weights they lie beside.

Every problem is half a sentence that names the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.activations import ACT2FN

from edge_asr.models.families.base import Architecture

EXTRACTOR_NUMBERS = ("sampling_rate", "feature_size", "hop_length", "chunk_length", "n_fft")
LARGEST_NUMBER = 10**6
SMALLEST_ROOM = 8  # decoder positions: the longest prompt, a word and the end


def config_problem(
    architecture: Architecture, config: Any, shapes: Mapping[str, Sequence[int]]
) -> str | None:
    """Why `config` makes no model with tensors of these shapes, if it makes none.

    It looks before a model is made, which may be far too large for any machine.
    """
    sizes = dict.fromkeys(
        (
            *architecture.sizes, *architecture.layer_fields, *architecture.head_fields,
            architecture.room_field,
        )
    )  # fmt: skip
    for name in sizes:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            return f"{name} {value!r:.60} is no positive whole number"
    if problem := _size_problem(architecture, config, shapes):
        return problem
    width = architecture.width(config)
    for name in architecture.head_fields:
        if width % getattr(config, name):
            return f"{name} {getattr(config, name)} does not divide the width {width}"
    if architecture.decoder_room(config) < SMALLEST_ROOM:
        return f"{architecture.room_field} {architecture.decoder_room(config)} leaves no room"
    for name in architecture.activation_fields:
        if getattr(config, name) not in ACT2FN:
            return f"{name} {getattr(config, name)!r:.60} is unknown"
    for name in ("is_encoder_decoder", "return_dict"):
        if not getattr(config, name, True):
            return f"{name} must be true"
    for name, value in vars(config).items():
        if name.endswith("dropout") and not 0 <= value <= 1:
            return f"{name} {value} is no probability"
    padding, vocabulary = config.pad_token_id, config.vocab_size
    if padding is not None and not -1 <= padding < vocabulary:
        return f"pad_token_id {padding} is no token of {vocabulary}"
    return architecture.own_config_problem(config)


def _size_problem(
    architecture: Architecture, config: Any, shapes: Mapping[str, Sequence[int]]
) -> str | None:
    values = sum(math.prod(shape) for shape in shapes.values())
    # Some checkpoints hold the model without its head, and its names without the prefix.
    whole = {
        name if name.startswith("model.") else f"model.{name}": shape
        for name, shape in shapes.items()
    }
    for field, (tensor, axis) in architecture.sizes.items():
        value, shape = getattr(config, field), whole.get(tensor, ())
        if len(shape) > axis and shape[axis] != value:
            return f"{field} {value}, but {tensor} has {shape[axis]}"
        if value > values:
            return f"{field} {value}, but the weights hold only {values} values"
    modules = (architecture.encoder_module, architecture.decoder_module)
    for field, module in zip(architecture.layer_fields, modules, strict=True):
        root, value = f"{module}.layers.", getattr(config, field)
        held = {name[len(root) :].partition(".")[0] for name in whole if name.startswith(root)}
        if len(held) != value:
            return f"{field} {value}, but the weights hold {len(held)} of {module}.layers"
    return None


def extractor_problem(plain: Mapping[str, Any]) -> str | None:
    """A number in the extractor's file with which the library makes none, if there is one."""
    for name in EXTRACTOR_NUMBERS:
        value = plain.get(name, 1)
        if type(value) not in (int, float) or not 0 < value <= LARGEST_NUMBER:
            return f"{name} {value!r:.60} is no number that a feature extractor can have"
    return None


def feature_problem(architecture: Architecture, config: Any, feature_extractor: Any) -> str | None:
    """Why `feature_extractor` cannot feed the model, if it cannot."""
    kind = type(feature_extractor).__name__
    if kind != architecture.feature_extractor:
        return f"the feature extractor is a {kind}, not a {architecture.feature_extractor}"
    for name, value in architecture.features(config).items():
        found = getattr(feature_extractor, name, value)
        # 16000.0 is no number of samples.
        if found != value or isinstance(value, int) != isinstance(found, int):
            return f"the feature extractor has {name} {found!r:.60}, the model needs {value!r}"
    return None
