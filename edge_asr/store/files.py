"""Files written whole or not at all, and their sizes in words."""

from __future__ import annotations

import os
import re
import time
import uuid
from contextlib import suppress
from pathlib import Path

from edge_asr.errors import UserError

LEFTOVER = ".tmp"
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never part of one.

    Raises OSError with the name of the file, of which nothing is left behind.
    """
    # Short, for a name of its own may be as long as the file system allows.
    temporary = path.with_name(f".{uuid.uuid4().hex}{LEFTOVER}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:  # which names no file where a disk is full
        raise OSError(error.errno, error.strerror, str(path)) from error
    remove_leftovers(path.parent)


def remove_leftovers(folder: Path, seconds: float = 3600) -> None:
    """Remove what writes into `folder` that were killed left there, unless one may be going on."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(LEFTOVER):
                with suppress(OSError):
                    if time.time() - entry.stat().st_mtime >= seconds:
                        Path(entry).unlink()


def write_text_atomically(path: Path, text: str) -> None:
    """The same for text, in UTF-8."""
    write_bytes_atomically(path, text.encode())


def parse_size(text: str, option: str) -> int:
    """`10GB`, `500 MB` or plain bytes as a number. Raises UserError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise UserError(f"{option}={text}: give a size such as 500MB or 10GB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def show_size(count: int) -> str:
    """Bytes with the largest unit that leaves a number of at least 1."""
    for unit in ("TB", "GB", "MB", "KB"):
        if count >= UNITS[unit]:
            return f"{count / UNITS[unit]:.1f} {unit}"
    return f"{count} B"
