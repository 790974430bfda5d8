"""What the benches of quantization share: clips, settings, provenance, processes of their own."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from edge_asr.calibration.batches import CalibrationBatch, calibration_batches
from edge_asr.calibration.capture import CalibrationPass, CapturedBlock
from edge_asr.cli.compose import compose_settings
from edge_asr.config import CalibrationSettings, Settings
from edge_asr.data.manifest import ManifestCorpus
from edge_asr.errors import UserError
from edge_asr.models.families.base import Architecture
from edge_asr.models.files import CheckpointFiles
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.context import BlockContext
from edge_asr.quant.formats import TensorFormat
from edge_asr.quant.layers import install_layers
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.result import Quantization
from edge_asr.quant.sequential import quantize_model
from edge_asr.store.environment import Environment, current_environment
from edge_asr.store.files import write_text_atomically
from edge_asr.store.plain_json import finite


def add_clip_arguments(parser: argparse.ArgumentParser, clips: int) -> None:
    """The options that say which model is quantized on which clips."""
    parser.add_argument("--model", type=Path, required=True, help="folder of a checkpoint")
    parser.add_argument("--manifest", type=Path, required=True, help="calibration clips")
    parser.add_argument("--where", action="append", default=[], help="FIELD=VALUE, may be repeated")
    parser.add_argument("--clips", type=int, default=clips)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--padding-weight",
        type=float,
        default=CalibrationSettings.padding_weight,
        help="what a frame that pads a calibration clip counts",
    )
    parser.add_argument(
        "--pack",
        action=argparse.BooleanOptionalAction,
        default=CalibrationSettings.pack,
        help="join calibration clips until a window is full",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


def add_grid_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say how wide the weights become."""
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", default="128", help="or null")


@dataclass(frozen=True)
class Subject:
    """What was measured, and by which code: the model, its calibration clips, the environment.

    `weights_sha256` is the fingerprint of the checkpoint's weights; in older files, a digest of
    the loaded parameters.
    """

    environment: Environment
    model: str
    weights_sha256: str
    manifest_sha256: str
    where: tuple[str, ...]
    batch_size: int
    padding_weight: float = field(default=0.0, kw_only=True)
    pack: bool = field(default=False, kw_only=True)


def subject_of(arguments: argparse.Namespace, files: CheckpointFiles) -> Subject:
    """Raises UserError if the manifest cannot be read."""
    try:
        manifest = arguments.manifest.read_bytes()
    except OSError as error:
        raise UserError(
            f"--manifest={arguments.manifest}: cannot be read ({error.strerror}); "
            "give a JSON-lines file of clips"
        ) from error
    return Subject(
        environment=current_environment("cpu", arguments.threads),
        model=arguments.model.name,
        weights_sha256=files.weights_fingerprint,
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        where=tuple(arguments.where),
        batch_size=arguments.batch_size,
        padding_weight=arguments.padding_weight,
        pack=arguments.pack,
    )


def run(parser: argparse.ArgumentParser, action: Callable[[], None]) -> None:
    """Call `action`; a mistake of the user's, or Ctrl-C, ends in one line."""
    try:
        action()
    except UserError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(128 + signal.SIGINT, "interrupted; what --out holds stays\n")


def block_contexts(
    model: PreTrainedModel,
    architecture: Architecture,
    batches: Sequence[CalibrationBatch],
    formats: Mapping[str, TensorFormat],
) -> Iterator[tuple[CapturedBlock, BlockContext]]:
    """Every block of `model`, whose Linears are replaced, on its way from the first to the last.

    Nothing is quantized; `formats` are for parts that ask what would be.
    """
    blocks = list(architecture.blocks(model.config))
    install_layers(model, (name for block in blocks for name in block.layers))
    for captured in CalibrationPass(model, architecture, batches).captured_blocks():
        work = BlockContext(
            model, architecture, captured.block, captured.module,
            captured.calls, captured.row_weights, formats,
        )  # fmt: skip
        yield captured, work


def corpus_of(arguments: argparse.Namespace) -> ManifestCorpus:
    """The manifest's clips. Raises UserError if it or its choice cannot be read."""
    for pair in arguments.where:
        if "=" not in pair:
            raise UserError(f"--where {pair}: give FIELD=VALUE, a field of the manifest's rows")
    where = dict(pair.split("=", 1) for pair in arguments.where)
    return ManifestCorpus(arguments.manifest, where=where, require_text=False)


def draw(
    arguments: argparse.Namespace, checkpoint: Checkpoint
) -> tuple[list[CalibrationBatch], float]:
    """The calibration batches and the seconds they took."""
    corpus = corpus_of(arguments)
    began = time.perf_counter()
    batches = calibration_batches(
        checkpoint, corpus, arguments.clips, arguments.batch_size, 0,
        padding_weight=arguments.padding_weight, pack=arguments.pack,
    )  # fmt: skip
    return batches, time.perf_counter() - began


def draw_valid_rows(
    arguments: argparse.Namespace, checkpoint: Checkpoint, batch_size: int
) -> list[CalibrationBatch]:
    """The same clips in batches of another size, a window each, their padding left out."""
    changed = {"batch_size": batch_size, "padding_weight": 0.0, "pack": False}
    return draw(argparse.Namespace(**vars(arguments) | changed), checkpoint)[0]


def settings_of(
    arguments: argparse.Namespace, method: str, changes: Sequence[str] = ()
) -> Settings:
    """The settings of a run of `method` with `changes` (KEY=VALUE)."""
    overrides = [
        *changes,
        f"method={method}",
        "model=custom",
        f"model.path={arguments.model}",
        f"bits={arguments.bits}",
        f"group_size={arguments.group_size}",
    ]
    return compose_settings(*overrides)


def method_of(settings: Settings, checkpoint: Checkpoint) -> tuple[Recipe, dict[str, TensorFormat]]:
    """The recipe, and what is asked for of every Linear inside a block."""
    recipe = Recipe.build(settings.method.stages)
    scheme = settings.rules()
    slots = checkpoint.architecture.slots(checkpoint.model.config)
    return recipe, scheme.resolve(slots)


def quantize(
    checkpoint: Checkpoint,
    batches: Sequence[CalibrationBatch],
    recipe: Recipe,
    formats: Mapping[str, TensorFormat],
) -> Quantization:
    """Quantize the checkpoint's model in place, as a run does by default."""
    return quantize_model(
        checkpoint.model,
        checkpoint.architecture,
        batches,
        recipe,
        formats,
        stored_dtype=checkpoint.stored_dtype,
        dtype=getattr(torch, CalibrationSettings.dtype),
    )


def measured_alone(command: Sequence[object]) -> dict[str, Any]:
    """The JSON object in the last line that a process of its own prints.

    What it says of an error goes to the terminal. Raises UserError where it fails.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        line = " ".join(words)
        raise UserError(f"exit code {done.returncode} of {line}; mend what it says above")
    measured = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(measured, dict)
    return measured


def write_measurements(path: Path, made: Any) -> None:
    """Write a dataclass as JSON, whole or not at all."""
    plain = finite(dataclasses.asdict(made))
    write_text_atomically(path, json.dumps(plain, indent=2) + "\n")


def processor() -> str:
    """What the processor calls itself and its widest vectors, or what the system knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{names[0] if names else platform.processor()}, {vectors}"
