"""What a run is called: an id made of everything that can change one of its numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from edge_asr.config import CalibrationSettings, MethodSettings, Settings
from edge_asr.data.embedded import embedded_calibration, embedded_test
from edge_asr.data.manifest import ManifestCorpus
from edge_asr.models.loading import hub_revision, locate
from edge_asr.store.record import run_id


def float_settings(settings: Settings) -> Settings:
    """The float run on the same clips that a quantized run is compared with."""
    nothing = {"name": "none"}
    return dataclasses.replace(
        settings,
        method=MethodSettings("float", nothing, nothing, nothing, nothing, nothing),
        calibration=CalibrationSettings("embedded"),
        # Whoever asks for a quantized run again does not doubt its baseline.
        rerun=False,
    )


def run_identity(settings: Settings) -> str:
    """The run's id: the settings that can change a number, and the files they point to.

    Raises:
        UserError: when the model's path leads nowhere, or a hub id cannot be reached.
    """
    location, source = locate(settings.model.path)
    data, calibration = settings.data, settings.calibration
    identity = settings.identity()
    identity["files"] = {
        "model": (
            hub_revision(location) if source == "hub" else _digest(_model_files(Path(location)))
        ),
        "data": _clips_digest(data.path, data.where, data.limit),
        "calibration": (
            _clips_digest(calibration.path, calibration.where, None, calibration=True)
            if settings.method.quantizes
            else None
        ),
    }
    return run_id(identity)


def folder_name(settings: Settings, run: str) -> Path:
    """`model/method-w3a8-g64-0123456789ab`, below the results folder."""
    model = _plain(settings.model.name or Path(settings.model.path).name)
    if not settings.method.quantizes:
        return Path(model) / f"float-{run}"
    group = f"-g{settings.group_size}" if settings.group_size else ""
    method = _plain(settings.method.label)
    symmetric = "-sym" if settings.symmetric else ""
    activation = settings.activation_grid
    inputs = f"a{activation.bits}" if activation else ""
    static = "-static" if activation and activation.granularity == "tensor" else ""
    return Path(model) / f"{method}-w{settings.bits}{inputs}{static}{group}{symmetric}-{run}"


def _model_files(folder: Path) -> list[Path]:
    """The files that a model is loaded from; its card does not change a number."""
    suffixes = (".json", ".safetensors", ".txt", ".model")
    return sorted(path for path in folder.iterdir() if path.suffix in suffixes)


def _clips_digest(
    path: str | None, where: Mapping[str, str], limit: int | None, *, calibration: bool = False
) -> str:
    """Digest of a manifest and of the size and time of every clip it lists.

    The clips that come with the package change only together with their manifest and the
    package's version.
    """
    if path is None:
        shipped = embedded_calibration() if calibration else embedded_test()
        return _digest([shipped.path])
    corpus = ManifestCorpus(path, where=where, limit=limit, require_text=not calibration)
    digest = hashlib.sha256(_digest([corpus.path]).encode())
    for row in corpus.rows:
        clip = corpus.path.parent / row.audio
        if clip.is_file():
            status = clip.stat()
            digest.update(f"{row.audio} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".") or "model"


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
