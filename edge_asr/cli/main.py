"""What all commands end with: one line for a mistake, and an exit code by rule."""

from __future__ import annotations

import argparse
import codecs
import errno
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from edge_asr.errors import FailedRuns, UserError

DONE, FAILED, USAGE_ERROR, INTERRUPTED = 0, 1, 2, 130
# What only another name or folder mends; a full disk, say, is none of it.
WRONG_PLACE = (
    errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM,
    errno.EROFS,
)  # fmt: skip
# What tables and messages say beyond ASCII, where a terminal cannot show it.
ASCII = {"Δ": "d", "×": "x", "–": "-", "─": "-", "│": "|", "…": "..."}


class Parser(argparse.ArgumentParser):
    """One whose complaint is one line, as every other's."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def exit_code(command: Callable[[], None], interrupted: str = "interrupted") -> int:
    """Run a command and turn what ends it into an exit code, and into one line where it can be.

    0: done; 1: a run failed, or a bug (with its traceback); 2: a mistake of the user's; 130:
    Ctrl-C, told by `interrupted`.
    """
    _show_what_can_be_shown()
    try:
        command()
        sys.stdout.flush()  # so that a full disk is told here, not while Python ends
    except UserError as error:
        return _told(f"error: {error}", USAGE_ERROR)
    except FailedRuns as error:
        return _told(f"error: {error}", FAILED)
    except KeyboardInterrupt:
        return _told(interrupted, INTERRUPTED)
    except BrokenPipeError:
        _write_no_more()  # whoever read has seen enough
        return FAILED
    except OSError as error:
        _write_no_more()
        where, reason = error.filename or "a file", error.strerror or error
        return _told(
            f"error: {where}: {reason}; make room there or choose other folders (results=, store=)",
            USAGE_ERROR if error.errno in WRONG_PLACE else FAILED,
        )
    except MemoryError as error:
        return _told(
            f"error: out of memory ({error}); set smaller batch_size= and calibration.batch_size=",
            FAILED,
        )
    except Exception:
        traceback.print_exc()
        return FAILED
    return DONE


def _told(line: str, code: int) -> int:
    print(printable(line), file=sys.stderr)
    return code


def _write_no_more() -> None:
    """Keep what could not be written to standard output from failing again while Python ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(text: str) -> str:
    """The text in one line, with control characters (of a file's name, say) spelled out."""
    return "".join(
        one
        if one.isprintable() or "\ud800" <= one <= "\udfff"
        else one.encode("unicode_escape").decode()
        for one in text
    )


def _show_what_can_be_shown() -> None:
    """Let no character that a terminal lacks end a run whose work is done."""
    codecs.register_error("edge_asr.ascii", _replacement)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="edge_asr.ascii")


def _replacement(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    part = error.object[error.start : error.end]
    return "".join(ASCII.get(one, "?") for one in part), error.end
