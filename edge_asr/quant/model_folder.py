"""A quantized model as a folder that needs nothing else: weights, description, processor files."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

# Importing the parts registers every module that a stored model may hold.
import edge_asr.quant.recipe  # noqa: F401
from edge_asr.errors import UserError
from edge_asr.models.decoding import Decoding
from edge_asr.models.files import ARCHITECTURE_FILES, PROCESSING_FILES, CheckpointFiles
from edge_asr.models.loading import Checkpoint, architecture_of, empty_model, load_processor
from edge_asr.quant import artefact
from edge_asr.quant.layers import install_layers
from edge_asr.settings import build

STEM = "quantized"


def save_model(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the quantized model of `checkpoint` into `folder`.

    What is not quantized keeps the dtype in which the checkpoint stores it; `load_model` gives a
    model with bit-equal outputs on the same machine, device and thread count.
    """
    tensors, description = artefact.capture(checkpoint.model, stored_dtype=checkpoint.stored_dtype)
    description |= {
        "family": checkpoint.architecture.family,
        "name": checkpoint.name,
        "tokens_per_second": checkpoint.tokens_per_second,
        "float_bits": checkpoint.float_bits,
        "decode": asdict(checkpoint.decoding),
        "tie_word_embeddings": bool(checkpoint.model.config.tie_word_embeddings),
    }
    artefact.write(folder, STEM, (tensors, description))
    for name in (*ARCHITECTURE_FILES, *PROCESSING_FILES):
        path = checkpoint.files.folder / name
        if path.is_file():
            shutil.copyfile(path, folder / name)


def load_model(folder: Path, device: str = "cpu", decoding: Decoding | None = None) -> Checkpoint:
    """The quantized model that `save_model` wrote; without `decoding` it decodes what it did then.

    Raises:
        UserError: the folder holds none, or `decoding` wants a language or task that the model does
            not know.
    """
    found = artefact.read(folder, STEM)
    if found is None:
        raise UserError(
            f"{folder}: holds no quantized model; give a folder that `save` wrote, or one of a "
            "store's quantize step"
        )
    tensors, description = found
    model: Any = empty_model(folder)
    architecture = architecture_of(str(description["family"]))
    install_layers(
        model, (name for block in architecture.blocks(model.config) for name in block.layers)
    )
    install_layers(model, artefact.layer_names(description))
    model.config.tie_word_embeddings = description["tie_word_embeddings"]
    if not model.config.tie_word_embeddings and architecture.is_tied(model):
        head: Any = model.get_submodule(architecture.head)
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    artefact.restore(model, tensors, description)
    model.to(device)
    reference = str(description["name"])
    feature_extractor, tokenizer = load_processor(reference, folder)
    if decoding is None:
        decoding = build(Decoding, description.get("decode", {}), Decoding.option())
    warnings = architecture.settle_generation(model, tokenizer, decoding)
    return Checkpoint(
        name=reference,
        files=CheckpointFiles(reference, "folder", folder),
        model=model,
        feature_extractor=feature_extractor,
        tokenizer=tokenizer,
        architecture=architecture,
        tokens_per_second=description["tokens_per_second"],
        warnings=tuple(warnings),
        float_bits=int(description["float_bits"]),
        decoding=decoding,
        dtypes={name: value.dtype for name, value in tensors.items() if ":" not in name},
    )


def tensor_bytes(folder: Path) -> int:
    """Bytes of the file of weights, its header included."""
    return (folder / f"{STEM}.safetensors").stat().st_size
