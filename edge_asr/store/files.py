"""Files written whole or not at all, and their sizes in words."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

from edge_asr.errors import UserError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never part of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
