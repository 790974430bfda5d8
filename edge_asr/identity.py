"""What a run is called: an id made of everything that can change one of its numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from edge_asr.config import CalibrationSettings, MethodSettings, Settings
from edge_asr.models.loading import locate
from edge_asr.record import run_id


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
        UserError: when the model's path leads nowhere.
    """
    location, source = locate(settings.model.path)
    identity = settings.identity()
    identity["files"] = {
        "model": None if source == "hub" else _digest(_model_files(Path(location))),
        "data": _manifest_digest(settings.data.path),
        "calibration": (
            _manifest_digest(settings.calibration.path) if settings.method.quantizes else None
        ),
    }
    return run_id(identity)


def folder_name(settings: Settings, run: str) -> Path:
    """`model/method-w3-g64-0123456789ab`, below the results folder."""
    model = _plain(settings.model.name or Path(settings.model.path).name)
    if not settings.method.quantizes:
        return Path(model) / f"float-{run}"
    group = f"-g{settings.group_size}" if settings.group_size else ""
    return Path(model) / f"{_plain(settings.method.name)}-w{settings.bits}{group}-{run}"


def _model_files(folder: Path) -> list[Path]:
    """The files that a model is loaded from; its card does not change a number."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".") or "model"


def _manifest_digest(path: str | None) -> str | None:
    manifest = None if path is None else Path(path).expanduser()
    return _digest([manifest]) if manifest and manifest.is_file() else None


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
