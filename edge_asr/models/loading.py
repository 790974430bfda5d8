"""Load a checkpoint by embedded name, local folder or hub id, and verify its map.

Only safetensors are read and no code that comes with a checkpoint is run.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from edge_asr.errors import UserError
from edge_asr.models.families.base import Architecture, end_tokens
from edge_asr.models.families.moonshine import Moonshine
from edge_asr.models.families.whisper import Whisper

ARCHITECTURES: dict[str, type[Architecture]] = {
    architecture.family: architecture for architecture in (Whisper, Moonshine)
}
EMBEDDED = ("whisper-micro", "moonshine-micro")
# Lower case and without punctuation, which every English tokenizer gives back unchanged.
SAMPLE_TEXT = "the quick brown fox jumps over the lazy dog"
NAMES_SHOWN = 3

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
        tokens_per_second: Cap on generated tokens a second of audio, or None.
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


def hub_revision(reference: str) -> str:
    """The commit of the hub id `reference` that loading it now would give.

    Without a network that is the one in the local cache.

    Raises:
        UserError: when it can neither be reached nor is cached.
    """
    with _explained(reference, "hub"), _quiet():
        config = cached_file(reference, "config.json")
    # The cache keeps every revision in a folder named by its commit.
    return Path(str(config)).parent.name


def load_checkpoint(
    reference: str,
    *,
    name: str | None = None,
    device: str = "cpu",
    tokens_per_second: float | None = None,
) -> Checkpoint:
    """Load a checkpoint in float32 and check its weights, tokenizer and architecture map.

    Without `tokens_per_second` the family's published cap holds (Moonshine: 6.5).

    Raises:
        UserError: when it cannot be found or reached, holds no safetensors or not exactly the
            weights its config asks for, has no usable tokenizer, belongs to no supported family,
            or does not fit its family's map; when `device` is none of this machine's.
    """
    # First, so that a wrong device costs no download.
    _check_device(device)
    location, source = locate(reference)
    with _explained(reference, source), _quiet():
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
        architecture = architecture_of(config.model_type)
        with _explained_weights(reference):
            # Wrong shapes are let through here to be named below with the other differences.
            model, differences = AutoModelForSpeechSeq2Seq.from_pretrained(
                location,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        _check_weights(reference, model, architecture, differences)
        feature_extractor = AutoFeatureExtractor.from_pretrained(location, trust_remote_code=False)
        tokenizer = _load_tokenizer(reference, location)
    model.to(device).eval().requires_grad_(False)
    architecture.verify(model, model.config)
    _check_tokenizer(reference, tokenizer, (*architecture.prompt(model), *end_tokens(model)))
    if tokens_per_second is None:
        tokens_per_second = architecture.default_tokens_per_second
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


def _check_device(device: str) -> None:
    """Raises UserError where nothing can be computed on `device` here."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UserError(f"device={device}: is no device; use device=cpu or device=cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device}: PyTorch finds no CUDA GPU here; use device=cpu")
    try:
        # Also refuses a GPU number that does not exist, and kinds that are not built in.
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={device}: cannot be used here ({_first_line(error)}); use device=cpu"
        ) from error


def _check_weights(
    reference: str,
    model: PreTrainedModel,
    architecture: Architecture,
    differences: Mapping[str, Collection[Any]],
) -> None:
    """Raises UserError unless the file held exactly the model's tensors, in its shapes.

    The library fills a missing or misshapen tensor with random values and goes on.
    """
    missing = set(differences["missing_keys"])
    head: Any = model.get_submodule(architecture.head)
    embedding: Any = model.get_submodule(architecture.embedding)
    if head.weight is embedding.weight:
        missing.discard(f"{architecture.head}.weight")
    mismatched = [
        f"{name} {tuple(found)} instead of {tuple(wanted)}"
        for name, found, wanted in differences["mismatched_keys"]
    ]
    found = {
        "missing": missing,
        "unexpected": differences["unexpected_keys"],
        "of another shape": mismatched,
    }
    parts = [f"{what}: {_listed(names)}" for what, names in found.items() if names]
    if parts:
        raise UserError(
            f"model.path={reference!r}: model.safetensors does not fit config.json "
            f"({'; '.join(parts)}); restore both files from one and the same checkpoint"
        )


def _load_tokenizer(reference: str, location: str) -> Any:
    """Raises UserError, or what `_explained` turns into one, where there is none to read."""
    try:
        return AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    except (OSError, ValueError):
        raise
    except Exception as error:  # a damaged file is a bare Exception of the tokenizers library
        raise UserError(
            f"model.path={reference!r}: the tokenizer cannot be read ({error!r}); restore the "
            "tokenizer.json published with the checkpoint"
        ) from error


def _check_tokenizer(reference: str, tokenizer: Any, specials: Collection[int]) -> None:
    """Raises UserError for a tokenizer that cannot write transcripts.

    Without its files the library builds an empty one, and every transcript would be empty.
    """
    problem = None
    if len(tokenizer) <= max(specials):
        problem = f"has {len(tokenizer)} tokens, but the model's prompt and end use {max(specials)}"
    else:
        tokens = tokenizer.encode(SAMPLE_TEXT, add_special_tokens=False)
        text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        if text != SAMPLE_TEXT:
            problem = f"turns {SAMPLE_TEXT!r} into {text!r}"
    if problem:
        raise UserError(
            f"model.path={reference!r}: the tokenizer {problem}; restore the tokenizer.json "
            "published with the checkpoint"
        )


def _listed(names: Collection[str]) -> str:
    more = len(names) - NAMES_SHOWN
    shown = ", ".join(sorted(names)[:NAMES_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)


@contextmanager
def _explained_weights(reference: str) -> Iterator[None]:
    """Say which file is damaged where the library only says at which byte."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"model.path={reference!r}: model.safetensors cannot be read ({_first_line(error)}); "
            "restore or download it again"
        ) from error


@contextmanager
def _explained(reference: str, source: Source) -> Iterator[None]:
    """Turn the library's many ways of not finding a file into one sentence."""
    try:
        yield
    except (OSError, ValueError, HFValidationError) as error:
        reason = _first_line(error)
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
