"""The folder of CTranslate2's Whisper, which faster-whisper reads too.

A matrix is int8 with a `weight_scale`, float32 for each output channel, by which its codes are
*divided*; queries, keys and values are one matrix (ctranslate2 4.8: specs/model_spec.py,
converters/transformers.py). What is stored is a run's own codes and the reciprocals of its scales.

A fifth of float16's values are no float32's reciprocal, so that what CTranslate2 multiplies may
differ from the simulation in the last place of float32. The scale itself is not lost: a reciprocal
tells which float16 it is of, and that, with the codes, is read back and compared bit for bit.

A file with codes is computed in int8, and loading it so quantizes every float variable whose name
ends in "weight" as well (src/models/model.cc: `set_compute_type`). Layers that are to stay float
are therefore stored under another name with an alias "weight", for aliases are made afterwards.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edge_asr.errors import UserError
from edge_asr.export.base import Exporter, exporters, narrowest
from edge_asr.export.ctranslate2_file import LAYERS, MODEL, damaged, quantized_in, read_variables
from edge_asr.models.families.base import Architecture
from edge_asr.models.families.sites import Block
from edge_asr.models.files import PROCESSING_FILES
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.greedy_search import known_tokens

FAMILY = "whisper"  # the only one of ours that version 4.8 knows
ACTIVATION = "gelu"
FIRST, FLOAT = "linear_0", "weight_float"
# What the sites of a block are called there, in their order; linear_0 reads the norm beside it.
ENCODER_SITES = (
    "self_attention/linear_0", "self_attention/linear_1", "ffn/linear_0", "ffn/linear_1",
)  # fmt: skip
DECODER_SITES = (
    "self_attention/linear_0", "self_attention/linear_1",
    "attention/linear_0", "attention/linear_2", "ffn/linear_0", "ffn/linear_1",
)  # fmt: skip
CROSS_MEMORY = "attention/linear_1"
EMBEDDING, HEAD = "decoder/embeddings", "decoder/projection"


@exporters.register("ctranslate2_int8")
class CTranslate2(Exporter):
    """Writes `model.bin`, `config.json`, `vocabulary.json` and the files of the processor."""

    packages: ClassVar[tuple[str, ...]] = ("ctranslate2",)
    extra: ClassVar[str] = "ctranslate2"

    def write(self, checkpoint: Checkpoint, folder: Path) -> None:
        refuse_structure(checkpoint)
        spec, quantized = filled_spec(checkpoint)
        describe(spec.config, checkpoint.model, quantized)
        spec.save(str(folder))
        for name in PROCESSING_FILES:
            path = checkpoint.files.folder / name
            if path.is_file():
                shutil.copyfile(path, folder / name)

    def read_back(self, folder: Path) -> Mapping[str, Tensor]:
        variables = read_variables(folder / MODEL)
        found: dict[str, Tensor] = {}
        for scope, names in quantized_in(folder).items():
            matrix, scales = f"{scope}/weight", f"{scope}/weight_scale"
            if not {matrix, scales} <= variables.keys():
                raise damaged(folder / MODEL)
            codes = variables[matrix].float()
            scale = (1 / variables[scales]).half().float()
            values = codes * scale.reshape(-1, *[1] * (codes.ndim - 1))
            found |= zip(names, values.chunk(len(names)), strict=True)
        return found


def refuse_structure(checkpoint: Checkpoint) -> None:
    """Raises UserError where CTranslate2 has no such model."""
    architecture, config = checkpoint.architecture, checkpoint.model.config
    if architecture.family != FAMILY:
        raise UserError(
            f"model={checkpoint.name}: CTranslate2 has no {architecture.family}, only {FAMILY}; "
            "choose another target= and runtime="
        )
    for field in architecture.activation_fields:
        if getattr(config, field) != ACTIVATION:
            raise UserError(
                f"model={checkpoint.name}: {field}={getattr(config, field)} in config.json; "
                f"CTranslate2 computes {ACTIVATION} alone: choose another target= and runtime="
            )


def filled_spec(checkpoint: Checkpoint) -> tuple[Any, dict[str, tuple[str, ...]]]:
    """CTranslate2's description of the model, whole, and the layers in each of its int8 matrices.

    Raises UserError for layers of one matrix of which some are quantized and some are not.
    """
    from ctranslate2.specs.model_spec import OPTIONAL, index_spec
    from ctranslate2.specs.whisper_spec import WhisperSpec

    model: Any = checkpoint.model
    architecture, config = checkpoint.architecture, model.config
    stacks = zip(architecture.depth(config), architecture.heads(config), strict=True)
    spec = WhisperSpec(*(number for stack in stacks for number in stack))
    matrices = matrices_of(architecture, config)
    tied = _weight(model, architecture.head) is _weight(model, architecture.embedding)
    for scope, names in matrices.items():
        fill(index_spec(spec, scope), {name: model.get_submodule(name) for name in names})
    for scope, name in norms_of(architecture, config).items():
        norm = index_spec(spec, scope)
        norm.gamma, norm.beta = map(narrowest, model.get_submodule(name).parameters())
    for scope, name in positions_of(architecture, model).items():
        index_spec(spec, scope).encodings = narrowest(_weight(model, name))
    spec.register_vocabulary(vocabulary(checkpoint))
    spec.validate()
    if tied:
        del matrices[HEAD]
        spec.decoder.projection.weight = f"{EMBEDDING}/weight"
        spec.decoder.projection.weight_scale = OPTIONAL  # the alias is one of the scale, too
    quantized = {
        scope: names
        for scope, names in matrices.items()
        if index_spec(spec, scope).weight.dtype == "int8"
    }
    for scope in matrices.keys() - quantized if quantized else ():
        keep_float(index_spec(spec, scope), scope)
    return spec, quantized


def _weight(model: nn.Module, name: str) -> Tensor:
    module: Any = model.get_submodule(name)
    weight: Tensor = module.weight
    return weight


def matrices_of(architecture: Architecture, config: Any) -> dict[str, tuple[str, ...]]:
    """The layers whose output channels each matrix holds, in their order."""
    first, second = (part.layer for part in architecture.stem())
    found: dict[str, tuple[str, ...]] = {"encoder/conv1": (first,), "encoder/conv2": (second,)}
    for scope, block, sites in _blocks(architecture, config):
        names = (site.layers for site in block.sites)
        found |= {f"{scope}/{site}": layers for site, layers in zip(sites, names, strict=True)}
    for index in range(architecture.depth(config)[1]):
        found[f"decoder/layer_{index}/{CROSS_MEMORY}"] = architecture.cross_layers(index)
    return found | {EMBEDDING: (architecture.embedding,), HEAD: (architecture.head,)}


def norms_of(architecture: Architecture, config: Any) -> dict[str, str]:
    """The norm of the model that each of CTranslate2's is."""
    found = {
        "encoder/layer_norm": architecture.encoder_norm,
        "decoder/layer_norm": architecture.decoder_norm,
    }
    for scope, block, sites in _blocks(architecture, config):
        for place, site in zip(sites, block.sites, strict=True):
            if place.endswith(FIRST) and site.source:
                found[f"{scope}/{place.removesuffix(FIRST)}layer_norm"] = site.source
    return found


def _blocks(
    architecture: Architecture, config: Any
) -> Iterator[tuple[str, Block, tuple[str, ...]]]:
    """Every block's name there, itself, and what its sites are called there."""
    for index, block in enumerate(architecture.encoder_blocks(config)):
        yield f"encoder/layer_{index}", block, ENCODER_SITES
    for index, block in enumerate(architecture.decoder_blocks(config)):
        yield f"decoder/layer_{index}", block, DECODER_SITES


def positions_of(architecture: Architecture, model: Any) -> dict[str, str]:
    """The table of positions of either stack: what writes to its stream by looking up, but for
    the embedding of tokens."""
    return {
        f"{stream.stack}/position_encodings": name
        for stream in architecture.residual_streams(model.config)
        for name in stream.writers
        if isinstance(model.get_submodule(name), nn.Embedding) and name != architecture.embedding
    }


def fill(spec: Any, layers: Mapping[str, Any]) -> None:
    """Give `spec` the weights and biases of `layers`, one below the other.

    Raises UserError where some are quantized and some are not.
    """
    weights = {name: getattr(layer, "quantized", None) for name, layer in layers.items()}
    stored = [one for one in weights.values() if one is not None]
    if stored and len(stored) < len(layers):
        floats = [name for name, one in weights.items() if one is None]
        raise UserError(
            f"{', '.join(layers)} are one matrix in CTranslate2, and {', '.join(floats)} is float: "
            "quantize all of them or none"
        )
    if stored:
        codes = torch.cat([one.codes for one in stored])
        spec.weight = codes.reshape(-1, *next(iter(layers.values())).weight.shape[1:])
        spec.weight_scale = 1 / torch.cat([one.parameters.scale[:, 0] for one in stored]).float()
    else:
        spec.weight = narrowest(torch.cat([layer.weight for layer in layers.values()]))
    biases = [getattr(layer, "bias", None) for layer in layers.values()]
    if any(bias is not None for bias in biases):
        spec.bias = narrowest(
            torch.cat(
                [
                    layer.weight.new_zeros(len(layer.weight)) if bias is None else bias
                    for bias, layer in zip(biases, layers.values(), strict=True)
                ]
            )
        )


def keep_float(spec: Any, scope: str) -> None:
    """Have a validated float matrix loaded as it is, see above."""
    # A spec takes no attributes that its class does not know.
    vars(spec)[FLOAT], spec.weight = spec.weight, f"{scope}/{FLOAT}"


def vocabulary(checkpoint: Checkpoint) -> list[str]:
    """The text of every token; CTranslate2 finds the special ones by it."""
    texts = {token: text for text, token in checkpoint.tokenizer.get_vocab().items()}
    size = int(checkpoint.model.config.vocab_size)
    return [texts.get(token, f"<|{token}|>") for token in range(size)]


def describe(config: Any, model: Any, layers: Mapping[str, Sequence[str]]) -> None:
    """What CTranslate2 and faster-whisper look up in `config.json`, and which layers are where."""
    generation = model.generation_config
    size = int(model.config.vocab_size)
    config.suppress_ids, config.suppress_ids_begin = (
        known_tokens(getattr(generation, name, None) or (), size)
        for name in ("suppress_tokens", "begin_suppress_tokens")
    )
    config.lang_ids = sorted((getattr(generation, "lang_to_id", None) or {}).values())
    config.alignment_heads = getattr(generation, "alignment_heads", None)
    config.add_attribute(LAYERS, layers)
