"""What a run that failed leaves behind: `error.json` in its folder, gone once it succeeds."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import edge_asr
from edge_asr.errors import UserError, first_line
from edge_asr.store.files import write_text_atomically

ERROR_NAME = "error.json"


@contextmanager
def failure_noted(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Note in `folder` whatever exception ends the block, with the settings that led to it.

    An interruption is no failure: the same command goes on.
    """
    try:
        yield
    except Exception as error:
        note_failure(folder, settings, error)
        raise
    with suppress(OSError):
        (folder / ERROR_NAME).unlink()
        folder.rmdir()  # where nothing but the failure was in it


def note_failure(folder: Path, settings: Mapping[str, Any], error: Exception) -> None:
    """Note in `folder` what has ended, or kept from beginning, the run of `settings`."""
    plain = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "package": edge_asr.__version__,
        "error": type(error).__name__,
        "message": str(error),
        "traceback": traceback.format_exception(error),
        "settings": settings,
    }
    with suppress(OSError):  # such as the full disk that it is about
        write_text_atomically(folder / ERROR_NAME, json.dumps(plain, indent=1, default=str))


def failure_in(folder: Path) -> str | None:
    """What ended the run of a folder, in one line; None where no failure is noted."""
    try:
        plain = json.loads((folder / ERROR_NAME).read_text(encoding="utf-8"))
        kind, message = str(plain["error"]), first_line(Exception(plain["message"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError):
        return f"{folder / ERROR_NAME} cannot be read"
    return message if kind == UserError.__name__ else f"{kind}: {message}"
