"""The files of a checkpoint: where they are, whether they are safe to load, what is in them."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from edge_asr.errors import UserError, first_line
from edge_asr.store.fingerprint import Digests, fingerprint

EMBEDDED = ("whisper-micro", "moonshine-micro")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What decides about tensors' meaning, and what decides about features, tokens and prompts.
ARCHITECTURE_FILES = ("config.json",)
PROCESSING_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "normalizer.json",
    "merges.txt",
)
# Fields that say who wrote a file, not what it means.
NO_CONTENT = ("transformers_version", "_name_or_path", "_commit_hash")
# Organisations that moved on the hub, by what they were called before: a cache may hold checkpoints
# under that name, which the open ASR leaderboard's scripts still use (d1e99b2, 2026-08-21).
MOVED = {"moonshine-ai": "UsefulSensors"}
FLOAT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Source = Literal["embedded", "folder", "hub"]


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint on this machine.

    Attributes:
        reference: What the user asked for: embedded name, folder or hub id.
        source: Which of the three it was.
        folder: Where its files are.
        revision: The commit of a hub id, or None.
        digests: Remembers what has been read.
        float_weights: Of a quantized model the fingerprint of the float one's weights, if known.
    """

    reference: str
    source: Source
    folder: Path
    revision: str | None = None
    digests: Digests = field(default_factory=Digests)
    float_weights: str | None = None

    @cached_property
    def weights(self) -> tuple[Path, ...]:
        """The safetensors files. Raises UserError where an index names anything else."""
        shards = self._indexed()
        if self.holds(WEIGHTS):  # which is what the library loads, whatever an index says
            return (self.folder / WEIGHTS,)
        if not shards:
            raise UserError(
                f"model.path={self.reference!r} is a folder without a complete checkpoint: no "
                f"{WEIGHTS}; other formats can run code and are never read"
            )
        return shards

    def _indexed(self) -> tuple[Path, ...]:
        """The files that an index names, if there is one; raises as `weights`."""
        if not self.holds(INDEX):
            return ()
        names = self.json(INDEX).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise UserError(f"model.path={self.reference!r}: {INDEX} has no weight_map; restore it")
        for name in dict.fromkeys(map(str, names.values())):
            plain = Path(name).name == name and not name.startswith(".")
            if not (plain and name.endswith(".safetensors")):
                raise UserError(
                    f"model.path={self.reference!r}: {INDEX} names {name!r}; only .safetensors "
                    "files in the folder itself are read"
                )
            if not self.holds(name):
                raise UserError(
                    f"model.path={self.reference!r}: {INDEX} names {name!r}, which is not there; "
                    "download the checkpoint again"
                )
        return tuple(self.folder / name for name in sorted(set(names.values())))

    @cached_property
    def tensors(self) -> dict[str, tuple[str, list[int], str]]:
        """Of every stored tensor its dtype (as safetensors calls it), shape and SHA-256.

        Raises UserError for a file that cannot be read, none at all, or a tensor that is not
        float32, float16 or bfloat16.
        """
        found: dict[str, tuple[str, list[int], str]] = {}
        for path in self.weights:
            with _explained_weights(self.reference, path.name):
                (part,) = self.digests.of([path], "tensors", _tensors_of)
            found |= {name: (*entry,) for name, entry in part.items()}
        if not found:
            raise UserError(
                f"model.path={self.reference!r}: {self.weights[0].name} holds no tensors; "
                "restore or download it again"
            )
        for name, (dtype, _, _) in sorted(found.items()):
            if dtype not in FLOAT_DTYPES:
                raise UserError(
                    f"model.path={self.reference!r}: tensor {name} is {dtype}, no float of 16 or "
                    "32 bits; give the float checkpoint it was made from"
                )
        return found

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The dtype of every stored tensor."""
        return {name: FLOAT_DTYPES[dtype] for name, (dtype, _, _) in self.tensors.items()}

    @cached_property
    def usual_dtype(self) -> torch.dtype:
        """The dtype of most stored values."""
        values: Counter[torch.dtype] = Counter()
        for name, (_, shape, _) in self.tensors.items():
            values[self.dtypes[name]] += torch.Size(shape).numel()
        return values.most_common(1)[0][0]

    @property
    def float_bits(self) -> int:
        """Bits of most stored values."""
        return torch.finfo(self.usual_dtype).bits

    @property
    def parameters(self) -> int:
        """Stored values in all."""
        return sum(torch.Size(shape).numel() for _, shape, _ in self.tensors.values())

    def columns(self, layer: str) -> int | None:
        """Columns of the weight of a layer, as a matrix; None where it is not stored under that
        name."""
        stored = self.tensors.get(f"{layer}.weight")
        return stored and torch.Size(stored[1][1:]).numel()

    @cached_property
    def weights_fingerprint(self) -> str:
        """Of tensors by name, dtype, shape and bytes, and the architecture's configuration."""
        configuration = {name: self._content(name) for name in ARCHITECTURE_FILES}
        return fingerprint({"tensors": self.tensors, "configuration": configuration})

    @cached_property
    def processing_fingerprint(self) -> str:
        """Of what turns audio into features and tokens into text, and of the decoder's prompt."""
        return fingerprint({name: self._content_fingerprint(name) for name in PROCESSING_FILES})

    def _content_fingerprint(self, name: str) -> str | None:
        """Of a file's content, None where it is not there; remembered, for vocabularies are long
        and every run of a sweep asks."""
        if not self.holds(name):
            return None
        with self._explained_file(name):
            path = self.folder / name
            (found,) = self.digests.of(
                [path], "content", lambda _: fingerprint(self._content(name))
            )
        return str(found)

    def holds(self, name: str) -> bool:
        """Whether there is such a file. Raises UserError for what has its name and is none: a
        folder, a pipe, a link to nowhere."""
        path = self.folder / name
        if path.is_file():
            return True
        if os.path.lexists(path):
            raise UserError(
                f"model.path={self.reference!r}: {name} is no regular file; "
                "restore the published one"
            )
        return False

    def _content(self, name: str) -> Any:
        if not self.holds(name):
            return None
        if not name.endswith(".json"):
            with self._explained_file(name):
                return (self.folder / name).read_text(encoding="utf-8", errors="replace")
        plain = self.json(name)
        return {key: value for key, value in plain.items() if key not in NO_CONTENT}

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file. Raises UserError where it is none."""
        with self._explained_file(name):
            plain = json.loads((self.folder / name).read_text(encoding="utf-8"))
        if not isinstance(plain, dict):
            raise UserError(
                f"model.path={self.reference!r}: {name} is no JSON object; "
                "restore the published file"
            )
        return plain

    @contextmanager
    def _explained_file(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"model.path={self.reference!r}: {name} cannot be read ({first_line(error)}); "
                "restore the published file"
            ) from error


def _tensors_of(path: Path) -> dict[str, list[Any]]:
    """Dtype, shape and SHA-256 of every tensor of a safetensors file."""
    found = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # no mapping
            part = file.get_slice(name)
            content = b""
            if part.get_dtype() in FLOAT_DTYPES:
                tensor = file.get_tensor(name).contiguous()
                content = tensor.flatten().view(torch.uint8).numpy().tobytes()
            found[name] = [
                part.get_dtype(), list(part.get_shape()), hashlib.sha256(content).hexdigest(),
            ]  # fmt: skip
    return found


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
    try:
        folder = Path(reference).expanduser()
        if folder.is_dir():
            return str(folder), "folder"
    # A name too long, a folder that may not be entered, the home of nobody.
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"model.path={reference!r} cannot be read ({first_line(error)}); give a folder, a hub "
            f"id of the form owner/name, or one of {', '.join(EMBEDDED)}"
        ) from error
    if reference.startswith((".", "/", "~")) or reference.count("/") != 1:
        near = difflib.get_close_matches(reference, EMBEDDED, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"embedded names are {', '.join(EMBEDDED)}"
        raise UserError(
            f"model.path={reference!r} is no folder here and no hub id of the form owner/name; "
            f"{hint}"
        )
    return reference, "hub"


def find_files(reference: str, digests: Digests | None = None) -> CheckpointFiles:
    """The files of an embedded checkpoint, a folder, or a hub id, which is fetched.

    Raises:
        UserError: when it cannot be found or reached, or is quantized already.
    """
    location, source = locate(reference)
    folder, revision = Path(location), None
    if source == "hub":
        folder = _fetch_moved(reference)
        # The cache keeps every revision in a folder named by its commit.
        revision = folder.name
    files = CheckpointFiles(reference, source, folder, revision, digests or Digests())
    if not files.holds("config.json"):
        raise UserError(
            f"model.path={reference!r} is a folder without a complete checkpoint (config.json, "
            f"{WEIGHTS}, tokenizer, preprocessor_config.json): no config.json"
        )
    if files.json("config.json").get("quantization_config") is not None:
        raise UserError(
            f"model.path={reference!r}: config.json has a quantization_config: the checkpoint is "
            "already quantized; give the float checkpoint it was made from"
        )
    return files


def _fetch_moved(reference: str) -> Path:
    """The local snapshot of a hub id, or of what it was called before its organisation moved."""
    try:
        return _fetch(reference)
    except UserError:
        owner, _, name = reference.partition("/")
        if owner in MOVED:
            with suppress(UserError):  # the name that was asked for is the one to complain about
                return _fetch(f"{MOVED[owner]}/{name}")
        raise


def _fetch(reference: str) -> Path:
    """The local snapshot of a hub id, with whatever of its files is needed.

    Without a network it is the one in the local cache.
    """
    with _explained_fetch(reference), quiet():
        config = Path(str(cached_file(reference, "config.json")))
        for name in (*PROCESSING_FILES, WEIGHTS, INDEX):
            cached_file(
                reference,
                name,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        files = CheckpointFiles(reference, "hub", config.parent)
        # What else an index may name, and one that is damaged, is refused where it is read.
        named = files.json(INDEX).get("weight_map") if files.holds(INDEX) else None
        for name in sorted(map(str, named.values())) if isinstance(named, dict) else ():
            if name.endswith(".safetensors"):
                cached_file(reference, name)
    return config.parent


@contextmanager
def _explained_weights(reference: str, name: str) -> Iterator[None]:
    """Say which file is damaged where the library only says at which byte."""
    try:
        yield
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UserError(
            f"model.path={reference!r}: {name} cannot be read ({first_line(error)}); "
            "restore or download it again"
        ) from error


@contextmanager
def _explained_fetch(reference: str) -> Iterator[None]:
    """Turn the library's many ways of not finding a file into one sentence."""
    try:
        yield
    except (OSError, ValueError, HFValidationError) as error:
        raise UserError(
            f"model.path={reference!r} could not be fetched from the Hugging Face hub; "
            "connect to the network, or download it elsewhere (hf download "
            f"{reference}) and give its folder as model.path=FOLDER, or use an embedded "
            f"model (model=whisper_micro). The library said: {first_line(error)}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no reports of the library's while loading; the run shows its own."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    hub = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub)
        if was_enabled:
            transformers_logging.enable_progress_bar()
