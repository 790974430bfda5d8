"""Load a checkpoint by embedded name, local folder or hub id, and verify its map.

Only safetensors are read and no code that comes with a checkpoint is run.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import HFValidationError
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from edge_asr.errors import UserError
from edge_asr.models.architecture import Architecture
from edge_asr.models.moonshine import Moonshine
from edge_asr.models.whisper import Whisper

ARCHITECTURES: dict[str, type[Architecture]] = {
    architecture.family: architecture for architecture in (Whisper, Moonshine)
}
EMBEDDED = ("whisper-micro", "moonshine-micro")

Source = Literal["embedded", "folder", "hub"]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with everything needed to feed it and read it.

    Attributes:
        name: Short name for tables and folders.
        reference: What the user asked for: embedded name, folder or hub id.
        source: Which of the three it was.
        model: The float32 model in evaluation mode.
        feature_extractor, tokenizer: Its Hugging Face processor parts.
        architecture: The family's map, verified against the model.
        tokens_per_second: The family's published cap on generated tokens a second of audio
            (Moonshine: 6.5), or None.
    """

    name: str
    reference: str
    source: Source
    model: PreTrainedModel
    feature_extractor: Any
    tokenizer: Any
    architecture: Architecture
    tokens_per_second: float | None = None


def embedded_folder(name: str) -> Path:
    """The folder of an embedded checkpoint."""
    return Path(str(resources.files("edge_asr"))) / "assets" / name


def locate(reference: str) -> tuple[str, Source]:
    """Where `reference` lies: an embedded name, an existing folder, or else a hub id.

    Raises:
        UserError: for a path that does not exist, or a name that is nearly an embedded one.
    """
    if reference in EMBEDDED:
        return str(embedded_folder(reference)), "embedded"
    if Path(reference).expanduser().is_dir():
        return str(Path(reference).expanduser()), "folder"
    if reference.startswith((".", "/", "~")) or reference.count("/") != 1:
        near = difflib.get_close_matches(reference, EMBEDDED, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"embedded names are {', '.join(EMBEDDED)}"
        raise UserError(
            f"model.path={reference!r} is no folder here and no hub id of the form owner/name; "
            f"{hint}"
        )
    return reference, "hub"


def load_checkpoint(
    reference: str,
    *,
    name: str | None = None,
    device: str = "cpu",
    tokens_per_second: float | None = None,
) -> Checkpoint:
    """Load a checkpoint in float32 and check its architecture map.

    Raises:
        UserError: when it cannot be found or reached, holds no safetensors, belongs to no
            supported family, or does not fit its family's map.
    """
    location, source = locate(reference)
    with _explained(reference, source), _quiet():
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
        architecture = architecture_of(config.model_type)
        model = AutoModelForSpeechSeq2Seq.from_pretrained(
            location,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
        )
        feature_extractor = AutoFeatureExtractor.from_pretrained(location, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    model.to(device).eval().requires_grad_(False)
    architecture.verify(model, model.config)
    architecture.prompt(model)
    return Checkpoint(
        name=name or Path(reference).name,
        reference=reference,
        source=source,
        model=model,
        feature_extractor=feature_extractor,
        tokenizer=tokenizer,
        architecture=architecture,
        tokens_per_second=tokens_per_second,
    )


def architecture_of(model_type: str) -> Architecture:
    """The map of a Hugging Face `model_type`. Raises UserError for an unsupported one."""
    if model_type not in ARCHITECTURES:
        raise UserError(
            f"model_type={model_type!r} is not supported; "
            f"supported are {', '.join(sorted(ARCHITECTURES))}"
        )
    return ARCHITECTURES[model_type]()


def weights_sha256(model: PreTrainedModel) -> str:
    """SHA-256 over all named parameters, so that a record says which weights it measured."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _explained(reference: str, source: Source) -> Iterator[None]:
    """Turn the library's many ways of not finding a file into one sentence."""
    try:
        yield
    except (OSError, ValueError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        if source == "hub":
            raise UserError(
                f"model.path={reference!r} could not be fetched from the Hugging Face hub; "
                "connect to the network, or download it elsewhere (hf download "
                f"{reference}) and give its folder as model.path=FOLDER, or use an embedded "
                f"model (model=whisper_micro). The library said: {reason}"
            ) from error
        raise UserError(
            f"model.path={reference!r} is a folder without a complete checkpoint (config.json, "
            f"model.safetensors, tokenizer, preprocessor_config.json): {reason}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No per-tensor progress bars while loading; the run shows its own."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
