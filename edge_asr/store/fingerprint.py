"""Fingerprints of content: never of paths, file times or the words typed."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_asr.store.files import write_text_atomically

log = logging.getLogger(__name__)
KEY_DIGITS = 32


def canonical(value: Any) -> Any:
    """`value` as JSON types with one spelling for equal values.

    Numbers that JSON does not have are words, so that `inf` has a fingerprint as well.

    Raises:
        TypeError: for anything that has no exact JSON form, a path above all.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [canonical(item) for item in value]
    raise TypeError(f"{value!r} has no place in a fingerprint")


def fingerprint(value: Any) -> str:
    """The first 32 hex digits of the SHA-256 of `value`, plain or nested."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digests:
    """Digests of files, remembered by path, size and time so that a file is read once.

    What is remembered only saves the reading. One JSON file for every folder of files, since
    clips come by the thousand.

    Args:
        folder: Where to remember; None to remember nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def of(
        self, paths: Sequence[Path], kind: str, compute: Callable[[Path], Any] = file_sha256
    ) -> list[Any]:
        """What `compute` gives for every path, plain JSON; `kind` names the function.

        Raises:
            OSError: a file cannot be read.
        """
        real = [path.resolve() for path in paths]
        folders: dict[Path, list[Path]] = {}
        for path in real:
            folders.setdefault(path.parent, []).append(path)
        found: dict[Path, Any] = {}
        for parent, here in folders.items():
            found |= self._of_folder(parent, here, kind, compute)
        return [found[path] for path in real]

    def _of_folder(
        self, parent: Path, paths: Sequence[Path], kind: str, compute: Callable[[Path], Any]
    ) -> dict[Path, Any]:
        remembered = self._read(parent)
        known = dict(remembered)
        result = {}
        for path in dict.fromkeys(paths):
            status = path.stat()
            name, stamp = f"{kind}:{path.name}", [status.st_size, status.st_mtime_ns]
            entry = known.get(name)
            if not isinstance(entry, list) or len(entry) != 2 or entry[0] != stamp:
                entry = known[name] = [stamp, compute(path)]
            result[path] = entry[1]
        if known != remembered:
            self._write(parent, known)
        return result

    def _file(self, parent: Path) -> Path | None:
        if self._folder is None:
            return None
        return (
            self._folder / f"{hashlib.sha256(str(parent).encode()).hexdigest()[:KEY_DIGITS]}.json"
        )

    def _read(self, parent: Path) -> dict[str, Any]:
        file = self._file(parent)
        if file is None or not file.is_file():
            return {}
        try:
            plain = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return plain if isinstance(plain, dict) else {}

    def _write(self, parent: Path, known: Mapping[str, Any]) -> None:
        file = self._file(parent)
        if file is None:
            return
        try:
            write_text_atomically(file, json.dumps(known))
        except OSError as error:
            log.debug("digests are not remembered: %s", error)
