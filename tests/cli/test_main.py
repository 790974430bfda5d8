"""Exit codes by rule, and one line for what a user can mend."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable

import pytest

from edge_asr.cli.main import exit_code, printable
from edge_asr.errors import UserError


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("bits=17: too many"), 2, "error: bits=17: too many"),
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "error: /x/y: No space left"),
        (MemoryError("9 GB"), 1, "error: out of memory (9 GB); set smaller batch_size="),
        (UserError("a\x1b[31mb\nc"), 2, r"error: a\x1b[31mb\nc"),
    ],
)
def test_what_ends_a_command_is_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(raising(error), "stopped") == code
    told = capsys.readouterr().err
    assert told.startswith(line)
    assert told.count("\n") == 1


def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(raising(ZeroDivisionError("x"))) == 1
    assert "Traceback" in capsys.readouterr().err


def test_done_is_zero() -> None:
    assert exit_code(lambda: None) == 0


def test_what_a_terminal_lacks_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert exit_code(lambda: print("Δ WER 2.1× – é ─")) == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"d WER 2.1x - ? -\n"


def test_a_name_cannot_steer_the_terminal() -> None:
    assert printable("é \x1b[2J\t.wav") == "é \\x1b[2J\\t.wav"
