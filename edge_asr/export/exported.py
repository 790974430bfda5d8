"""What an exported folder says of itself: `export.json`, and a checkpoint without its weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import edge_asr
from edge_asr.errors import UserError
from edge_asr.export.base import format_of
from edge_asr.models.decoding import Decoding
from edge_asr.models.files import (
    ARCHITECTURE_FILES,
    NO_CONTENT,
    PROCESSING_FILES,
    CheckpointFiles,
)
from edge_asr.models.loading import Checkpoint, architecture_of, empty_model, load_processor
from edge_asr.quant.layers import quantized_layers
from edge_asr.quant.model_folder import STEM
from edge_asr.quant.scheme import scheme_label
from edge_asr.settings import build
from edge_asr.store.files import write_text_atomically
from edge_asr.store.fingerprint import file_sha256
from edge_asr.store.plain_json import parse
from edge_asr.store.record import RECORD_NAME

EXPORT = "export.json"
(CONFIG,) = ARCHITECTURE_FILES


@dataclass(frozen=True)
class ExportedFile:
    """One file of a folder. `copied`: its format does not need it, but `checkpoint_of` does."""

    bytes: int
    sha256: str
    copied: bool = False


@dataclass(frozen=True)
class Export:
    """What a folder holds.

    Attributes:
        edge_asr: Version of the package that wrote it.
        target: A name of conf/target.
        checkpoint, family: Name of the model and of its architecture.
        source: Where its float checkpoint was: embedded name, folder or hub id.
        formats: What every layer is stored as, in words.
        tokens_per_second: Cap on generated tokens a second of audio, or null.
        float_bits: Width in which the checkpoint stores most of its floats.
        decode: What is decoded.
        config: The checkpoint's `config.json`.
        files: Every other file, by its path in the folder.
        weights_sha256: Fingerprint of the float checkpoint's weights; None: it is not known.
    """

    edge_asr: str
    target: str
    checkpoint: str
    family: str
    source: str
    formats: str
    tokens_per_second: float | None
    float_bits: int
    decode: dict[str, str | None]
    config: dict[str, Any]
    files: dict[str, ExportedFile] = field(default_factory=dict)
    weights_sha256: str | None = None

    @property
    def bytes(self) -> int:
        """All that its format needs."""
        return sum(one.bytes for one in self.files.values() if not one.copied)


def describe(checkpoint: Checkpoint, target: str, folder: Path) -> None:
    """Write `export.json` into a folder that holds the model, and copy what it lacks of the files
    that make features and texts."""
    copied = set()
    for name in PROCESSING_FILES:
        path = checkpoint.files.folder / name
        if path.is_file() and not (folder / name).exists():
            shutil.copyfile(path, folder / name)
            copied.add(name)
    layers = quantized_layers(checkpoint.model)
    formats = {name: format_of(one, one.quantized) for name, one in layers.items()}
    slots = checkpoint.architecture.slots(checkpoint.model.config)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    export = Export(
        edge_asr=edge_asr.__version__,
        target=target,
        checkpoint=checkpoint.name,
        family=checkpoint.architecture.family,
        source=checkpoint.files.reference,
        formats=scheme_label(slots, formats),
        tokens_per_second=checkpoint.tokens_per_second,
        float_bits=checkpoint.float_bits,
        decode=asdict(checkpoint.decoding),
        config=checkpoint.files.json(CONFIG),
        files={
            name: ExportedFile(path.stat().st_size, file_sha256(path), name in copied)
            for name, path in files.items()
            if path.is_file()
        },
        weights_sha256=_float_weights(checkpoint),
    )
    write_text_atomically(folder / EXPORT, json.dumps(asdict(export), indent=2) + "\n")


def _float_weights(checkpoint: Checkpoint) -> str | None:
    if quantized_layers(checkpoint.model):
        return checkpoint.files.float_weights
    return checkpoint.files.weights_fingerprint


def read_export(folder: Path) -> Export:
    """What an exported folder holds, every file compared with what was written.

    Raises:
        UserError: it holds no export, or not all of one.
    """
    path = folder / EXPORT
    if not path.is_file():
        if any((folder / name).exists() for name in (RECORD_NAME, f"{STEM}.safetensors")):
            raise UserError(
                f"{folder}: holds a model whose quantization is simulated in floats, which is no "
                f"file of a runtime; write one: python -m edge_asr.export {folder} --target ..."
            )
        raise UserError(
            f"{folder}: has no {EXPORT}; give a folder that python -m edge_asr.export wrote"
        )
    export = parse(Export, path.read_bytes(), path, "export the model again")
    if all(one.copied for one in export.files.values()):
        raise UserError(f"{path}: names no file of a model; export the model again")
    for name, file in export.files.items():
        own = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            problem = "is not in the folder itself"
        elif not own.is_file():
            problem = "is missing"
        elif own.stat().st_size != file.bytes:
            problem = f"has {own.stat().st_size} bytes, and {file.bytes} were written"
        elif file_sha256(own) != file.sha256:
            problem = "holds other bytes than were written"
        else:
            continue
        raise UserError(f"{own}: {problem}; export the model again")
    return export


def checkpoint_of(export: Export, folder: Path) -> Checkpoint:
    """The checkpoint that was exported, but for its weights: memory that nobody has written to,
    and so takes none."""
    with TemporaryDirectory() as made:
        whole = Path(made)
        for name in PROCESSING_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, whole / name)
        # Not the folder's own, which may be a file of its format.
        (whole / CONFIG).write_text(json.dumps(export.config), encoding="utf-8")
        with torch.device("meta"):
            unwritten = empty_model(whole)
        model: Any = unwritten.to_empty(device="cpu")
        feature_extractor, tokenizer = load_processor(str(folder), whole)
    architecture = architecture_of(export.family)
    decoding = build(Decoding, export.decode, Decoding.option())
    architecture.settle_generation(model, tokenizer, decoding)
    return Checkpoint(
        name=export.checkpoint,
        files=CheckpointFiles(export.source, "folder", folder),
        model=model,
        feature_extractor=feature_extractor,
        tokenizer=tokenizer,
        architecture=architecture,
        tokens_per_second=export.tokens_per_second,
        float_bits=export.float_bits,
        decoding=decoding,
    )


def difference(export: Export, files: CheckpointFiles) -> str | None:
    """In words, how a checkpoint is another one than what was exported."""
    own, other = (
        {name: value for name, value in plain.items() if name not in NO_CONTENT}
        for plain in (export.config, files.json(CONFIG))
    )
    names = sorted(own.keys() | other.keys())
    for name in names:
        if own.get(name) != other.get(name):
            return f"{CONFIG} has another {name}"
    if export.weights_sha256 not in (None, files.weights_fingerprint):
        return "it has other weights"
    return None
