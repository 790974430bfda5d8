"""Load a checkpoint by embedded name, local folder or hub id, and check it before anything runs.

Only safetensors are read and no code that comes with a checkpoint is run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from edge_asr.errors import UserError, first_line
from edge_asr.models.checks import config_problem, extractor_problem, feature_problem
from edge_asr.models.decoding import AS_PUBLISHED, Decoding, Task
from edge_asr.models.families.base import Architecture, end_tokens, families
from edge_asr.models.families.generation import token_problem
from edge_asr.models.families.moonshine import Moonshine as Moonshine
from edge_asr.models.families.whisper import Whisper as Whisper
from edge_asr.models.files import CheckpointFiles, find_files, quiet

# Lower case and without punctuation, which every English tokenizer gives back unchanged.
SAMPLE_TEXT = "the quick brown fox jumps over the lazy dog"
NAMES_SHOWN = 3
CONFIG, GENERATION, TOKENIZER = (
    "config.json",
    "generation_config.json",
    "tokenizer.json or tokenizer_config.json",
)
FEATURES = ("processor_config.json", "preprocessor_config.json")
LARGEST_WEIGHT = 65504.0  # the largest float16
TIMESTAMPS = 1501  # tokens, which older tokenizers of Whisper leave to the library
ROUND_ROWS, MOST_FILLED = 8, 128
# Said explicitly, for a configuration may name code on a hub.
ATTENTION = "sdpa"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with everything needed to feed it and read it.

    Attributes:
        name: Short name for tables and folders.
        files: Where it came from.
        model: The float32 model in evaluation mode.
        feature_extractor, tokenizer: Its Hugging Face processor parts.
        architecture: The family's map, verified against the model.
        tokens_per_second: Cap on generated tokens a second of audio, or None.
        warnings: What is set in the checkpoint and not done here, a sentence each.
        float_bits: Width in which most of its floats are stored.
        decoding: What the user wants decoded.
        dtypes: In which its floats are stored, where `files` do not tell because a quantized model
            was loaded.
    """

    name: str
    files: CheckpointFiles = field(repr=False)
    model: PreTrainedModel = field(repr=False)
    feature_extractor: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    architecture: Architecture = field(repr=False)
    tokens_per_second: float | None = None
    warnings: tuple[str, ...] = ()
    float_bits: int = 32
    decoding: Decoding = AS_PUBLISHED
    dtypes: Mapping[str, torch.dtype] | None = field(default=None, repr=False)

    @property
    def language(self) -> str:
        """Code of the language that is decoded."""
        return self.architecture.language(self.model)

    @property
    def task(self) -> Task:
        """Whether it is transcribed or translated to English."""
        return self.architecture.task(self.model)

    def stored_dtype(self, path: str) -> torch.dtype:
        """The dtype in which the checkpoint stores the parameter at `path`; that of most of its
        values for one that only a rewrite has made."""
        if self.dtypes is not None:
            return self.dtypes[path]
        return self.files.dtypes.get(path, self.files.usual_dtype)


def load_checkpoint(
    source: str | CheckpointFiles,
    *,
    name: str | None = None,
    device: str = "cpu",
    tokens_per_second: float | None = None,
    decoding: Decoding = AS_PUBLISHED,
) -> Checkpoint:
    """Load a checkpoint in float32 and check its weights, processor and architecture map.

    Without `tokens_per_second` the family's published cap holds (Moonshine: 6.5, or 13 where
    `decoding` declares another language than English or Spanish).

    Raises:
        UserError: when it cannot be found or reached, holds no safetensors or not exactly the
            weights its config asks for, weights that are no usable numbers, a processor that does
            not fit the model, belongs to no supported family, or does not fit its family's map;
            when `device` is none of this machine's, or `decoding` wants a language or task that
            the model does not know.
    """
    # First, so that a wrong device costs no download.
    check_device(device)
    files = find_files(source) if isinstance(source, str) else source
    reference = files.reference
    # Refuse weights that are no floats, before the library casts them, and files that are no JSON,
    # before it goes on without them.
    _ = files.dtypes, files.processing_fingerprint
    with quiet():
        config, architecture = read_config(files)
        model: Any = _load_model(files, config, architecture)
        _check_extractor(files)
        feature_extractor, tokenizer = load_processor(reference, files.folder)
    model.to(device).eval().requires_grad_(False)
    with _explained(reference, GENERATION):
        warnings = architecture.settle_generation(model, tokenizer, decoding)
    problem = feature_problem(architecture, model.config, feature_extractor)
    _refuse(reference, _features_file(files.folder), problem)
    architecture.verify(model, model.config)
    with _explained(reference, TOKENIZER):
        problem = _tokenizer_problem(tokenizer, model, architecture)
    if problem:
        raise UserError(
            f"model.path={reference!r}: the tokenizer {problem}; restore the tokenizer.json "
            "published with the checkpoint"
        )
    return Checkpoint(
        name=name or Path(reference).name,
        files=files,
        model=model,
        feature_extractor=feature_extractor,
        tokenizer=tokenizer,
        architecture=architecture,
        tokens_per_second=architecture.tokens_per_second(tokens_per_second, decoding.language),
        float_bits=files.float_bits,
        warnings=tuple(warnings),
        decoding=decoding,
    )


def _load_model(files: CheckpointFiles, config: Any, architecture: Architecture) -> PreTrainedModel:
    """The float32 model, its names and values checked; raises as `load_checkpoint`."""
    reference = files.reference
    if files.holds(GENERATION):
        _refuse(reference, GENERATION, token_problem(files.json(GENERATION)))
        with _explained(reference, GENERATION):
            GenerationConfig.from_pretrained(files.folder)
    with _explained(reference, CONFIG):
        # Wrong shapes are let through here to be named below with the other differences.
        model, differences = AutoModelForSpeechSeq2Seq.from_pretrained(
            files.folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=ATTENTION,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check_names(reference, model, architecture, differences)
    _check_values(reference, model)
    return model


def _check_extractor(files: CheckpointFiles) -> None:
    """Raises UserError for a number with which the library makes no feature extractor."""
    name = _features_file(files.folder)
    if files.holds(name):
        plain = files.json(name)
        own = plain.get("feature_extractor")
        _refuse(files.reference, name, extractor_problem(own if isinstance(own, dict) else plain))


def read_config(files: CheckpointFiles) -> tuple[Any, Architecture]:
    """The configuration of a checkpoint and the map of its family.

    Raises UserError, naming the field, for a configuration that no model can be made of, or a
    family that is not supported.
    """
    plain = files.json(CONFIG)
    with _explained(files.reference, CONFIG), quiet():
        architecture = architecture_of(str(plain.get("model_type")))
        # What the weights do not tell, the library would fill in.
        absent = next((name for name in architecture.head_fields if name not in plain), None)
        labels = plain.get("num_labels")
        if absent:
            problem: str | None = f"{absent} is missing"
        elif isinstance(labels, int) and labels > files.parameters:  # it would make a list of them
            problem = f"num_labels {labels} is more than the weights hold values"
        else:
            config = AutoConfig.from_pretrained(files.folder, trust_remote_code=False)
            shapes = {name: shape for name, (_, shape, _) in files.tensors.items()}
            problem = config_problem(architecture, config, shapes)
    _refuse(files.reference, CONFIG, problem)
    return config, architecture


def empty_model(folder: Path) -> PreTrainedModel:
    """A float32 model of the configuration in `folder`, its weights not yet those of anything."""
    with quiet():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model: PreTrainedModel = AutoModelForSpeechSeq2Seq.from_config(
            config, dtype=torch.float32, attn_implementation=ATTENTION, trust_remote_code=False
        )
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval().requires_grad_(False)


def load_processor(reference: str, folder: Path) -> tuple[Any, Any]:
    """Feature extractor and tokenizer. Raises UserError where one cannot be read."""
    with _explained(reference, _features_file(folder)):
        feature_extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    with _explained(reference, TOKENIZER):
        return feature_extractor, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _features_file(folder: Path) -> str:
    """Where the feature extractor is described: newer processors have one file for all."""
    return next((name for name in FEATURES if (folder / name).is_file()), FEATURES[-1])


def architecture_of(model_type: str) -> Architecture:
    """The map of a Hugging Face `model_type`. Raises UserError for an unsupported one."""
    if model_type not in families:
        raise UserError(
            f"model_type={model_type!r} in config.json is not supported; supported are "
            f"{', '.join(families)}"
        )
    return families[model_type]()


def check_device(device: str) -> None:
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
            f"device={device}: cannot be used here ({first_line(error)}); use device=cpu"
        ) from error


def _refuse(reference: str, name: str, problem: str | None) -> None:
    """Raises UserError for a problem of a file, if there is one."""
    if problem:
        raise UserError(f"model.path={reference!r}: {name}: {problem}; restore the published file")


def _check_names(
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


def _check_values(reference: str, model: PreTrainedModel) -> None:
    """Raises UserError, naming the tensor, for weights that no model can have learned."""
    for name, parameter in model.named_parameters():
        largest = parameter.detach().abs().max()
        problem = None
        if not bool(largest.isfinite()):
            problem = "holds values that are no finite numbers"
        elif float(largest) > LARGEST_WEIGHT:
            problem = f"holds values up to {float(largest):.3g}, beyond float16"
        elif parameter.ndim > 1 and not float(largest):
            problem = "is zero throughout"
        if problem:
            raise UserError(
                f"model.path={reference!r}: tensor {name} {problem}; the file is damaged or its "
                "training failed, give another checkpoint"
            )


def _tokenizer_problem(
    tokenizer: Any, model: PreTrainedModel, architecture: Architecture
) -> str | None:
    """Why a tokenizer cannot write the model's transcripts, if it cannot: half a sentence.

    Without its files the library builds an empty one, and every transcript would be empty.
    """
    specials = {*architecture.prompt(model), *end_tokens(model)}
    rows = int(model.config.vocab_size)
    ids = set(tokenizer.get_vocab().values())
    largest = max(ids, default=-1)
    problem = None
    if len(tokenizer) <= max(specials):
        problem = f"has {len(tokenizer)} tokens, but the model's prompt and end use {max(specials)}"
    elif largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        problem = f"has token {largest} ({token!r}), but the model's embedding only {rows} rows"
    elif len(ids) <= largest:
        problem = f"gives no token to {largest + 1 - len(ids)} of its {largest + 1} numbers"
    elif not _fits_vocabulary(largest + 1, rows):
        problem = f"has {largest + 1} tokens, but the model's embedding {rows} rows"
    elif found := architecture.foreign_token(model, tokenizer):
        problem = f"is another model's: token {found[0]} is {found[1]!r}, not {found[2]!r}"
    else:
        tokens = tokenizer.encode(SAMPLE_TEXT, add_special_tokens=False)
        text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        if text != SAMPLE_TEXT:
            problem = f"turns {SAMPLE_TEXT!r} into {text!r}"
    return problem


def _fits_vocabulary(tokens: int, rows: int) -> bool:
    """Whether a tokenizer of so many tokens can be that of an embedding with so many rows: as many,
    all but Whisper's timestamps, or rows that were filled up to a round number."""
    missing = rows - tokens
    return missing in (0, TIMESTAMPS) or (rows % ROUND_ROWS == 0 and missing < MOST_FILLED)


def _listed(names: Collection[str]) -> str:
    more = len(names) - NAMES_SHOWN
    shown = ", ".join(sorted(names)[:NAMES_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


@contextmanager
def _explained(reference: str, name: str) -> Iterator[None]:
    """A file with a value that makes no model fails anywhere in the library."""
    try:
        yield
    except UserError as error:
        raise UserError(f"model.path={reference!r}: {error}") from error
    except Exception as error:
        raise UserError(
            f"model.path={reference!r}: {name} cannot be used "
            f"({type(error).__name__}: {first_line(error)}); restore the published {name}"
        ) from error
