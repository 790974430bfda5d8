"""Where a run was made: versions, code, system."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import edge_asr


@dataclass(frozen=True)
class Environment:
    """Where the run was made; `git_commit` and `git_dirty` are null outside a checkout."""

    package: str
    git_commit: str | None
    git_dirty: bool | None
    python: str
    libraries: dict[str, str]
    platform: str
    device: str
    threads: int


def _git(*arguments: str) -> str | None:
    folder = Path(edge_asr.__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


# Libraries that need not be there.
OTHER_RUNTIMES = ("onnxruntime", "ctranslate2", "pywhispercpp", "faster_whisper")


def current_environment(device: str, threads: int) -> Environment:
    """The environment of this process; `device` is described by who uses it."""
    # An installed copy may lie inside some other project's checkout: not our commit.
    tracked = _git("ls-files", "--error-unmatch", "__init__.py") is not None
    # Code and configuration alone: results that a run has left do not make its code another.
    status = _git("status", "--porcelain", "--", ".", "../conf") if tracked else None
    names = ["torch", "transformers", "numpy", "jiwer", "kaldialign"]
    names += [name for name in OTHER_RUNTIMES if importlib.util.find_spec(name)]
    return Environment(
        package=edge_asr.__version__,
        git_commit=_git("rev-parse", "HEAD") if tracked else None,
        git_dirty=None if status is None else bool(status),
        python=platform.python_version(),
        libraries={name: metadata.version(name) for name in names},
        platform=f"{platform.system()} {platform.machine()}",
        device=device,
        threads=threads,
    )
