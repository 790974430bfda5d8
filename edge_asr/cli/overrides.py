"""Words such as `method=gptq`, read by Hydra's own parser, made ready for it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from edge_asr.errors import UserError, first_line

# Their values are text, whatever they look like.
PATHS = (
    *("model.path", "data.path", "calibration.path", "results", "store"),
    *("data.revision", "calibration.revision"),  # a commit can look like a number, 94e0102
)
# A manifest may have any field, so these keys are new to the configuration.
OPEN = ("data.where.", "calibration.where.")
# Which part, source or recipe it is, is chosen by its group and follows from that.
CHOSEN = re.compile(r"(method(\.\w+)?|scheme|data|calibration|protocol)\.name")


def prepare(words: Sequence[str], *, sweep: bool) -> list[str]:
    """The words as Hydra reads them: what its grammar has no reading for is quoted.

    So paths with spaces, `é`, `=`, `(` or `~` mean what they say.

    Args:
        words: Overrides, as typed.
        sweep: Whether commas separate several values.

    Raises:
        UserError: for a word that is no `name=value`, or names a choice by its `.name`.
    """
    return [_prepared(word, sweep) for word in words]


def parse(words: Sequence[str]) -> list[Override]:
    """What Hydra makes of prepared words. Raises UserError for one that it cannot read."""
    try:
        return list(OverridesParser.create().parse_overrides(list(words)))
    except HydraException as error:
        said = first_line(error)
        raise UserError(f"{' '.join(words)}: {said}; write name=value") from error


def values(override: Override) -> Iterator[str]:
    """Every single override that a swept one stands for, or the one itself."""
    if not override.is_sweep_override():
        yield override.input_line or ""
        return
    key = (override.input_line or "").partition("=")[0]
    for value in override.sweep_string_iterator():
        yield f"{key}={value}"


def _prepared(word: str, sweep: bool) -> str:
    name, separator, value = word.partition("=")
    if name != name.strip():  # bits = 3
        name, value = name.strip(), value.strip()
    key = name.lstrip("+~")
    if not separator and not word.startswith("~"):
        raise UserError(f"{word}: is no option; write name=value, such as method=gptq")
    if CHOSEN.fullmatch(key):
        group = key.removesuffix(".name").replace(".", "/")
        raise UserError(f"{word}: a name cannot be set; choose with {group}={value}")
    if key.startswith(OPEN):
        name = f"++{key}"
    if not separator:
        return word
    texts = value.split(",") if sweep else [value]
    if key in PATHS and not _is_quoted(value):
        return f"{name}=" + ",".join(_path(text) for text in texts)
    if _readable(f"{name}={value}"):
        return f"{name}={value}"
    return f"{name}=" + ",".join(
        text if _readable(f"{name}={text}") else quoted(text) for text in texts
    )


def _path(text: str) -> str:
    """A path as Hydra has to be told it."""
    if text in ("null", "") or "${" in text:
        return text
    return quoted(str(Path(text).expanduser()) if text.startswith("~") else text)


def _is_quoted(value: str) -> bool:
    return value[:1] in ("'", '"') and value[-1:] == value[:1] and len(value) > 1


def _readable(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def quoted(text: str) -> str:
    """The text in single quotes, as Hydra's grammar escapes them."""
    # A backslash is itself unless it stands before a quote.
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    escaped = re.sub(r"(\\+)$", lambda match: match[1] * 2, escaped)
    return f"'{escaped}'"
