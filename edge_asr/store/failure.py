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
        raise
    with suppress(OSError):
        (folder / ERROR_NAME).unlink(missing_ok=True)
