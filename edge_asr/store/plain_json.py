"""Dataclasses to plain JSON and back, every field checked by pydantic."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from edge_asr.errors import UserError

T = TypeVar("T")

# A truth value is no number and 4.0 no integer; JSON's integers do for floats all the same.
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_SHOWN = 60  # characters of a wrong value
_WORDS = {"missing": "is missing", "unexpected_keyword_argument": "is no field of this version"}


def finite(value: Any) -> Any:
    """The value as JSON types, with null for every number that is not finite."""
    if isinstance(value, bool):
        return value
    # NumPy's numbers are registered here but are unknown to the json module.
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {finite(str(key)): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, str):
        # A path may hold bytes that are no UTF-8, for which Python has characters and JSON none.
        return value.encode(errors="backslashreplace").decode()
    return value


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(with_config(STRICT)(kind))


def parse(
    kind: type[T],
    content: str | bytes,
    origin: object,
    remedy: str = "repair the file or make the run again with rerun=true",
) -> T:
    """Build the dataclass `kind` from JSON, checking every field's type.

    A field with a default may be missing; an unknown one may not be there.

    Args:
        kind: The class to build.
        content: The JSON.
        origin: Where it came from, for messages: a file, or a line of one.
        remedy: What the user can do about a mistake.

    Raises:
        UserError: It is no JSON, or a field is missing, unknown, of the wrong type or refused by
            its class; one line that names origin, field and value.
    """
    try:
        return _adapter(kind).validate_json(content)  # type: ignore[arg-type]  # is hashable
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    where = where.removeprefix(".")
    said = _WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
    # Where a class refuses its values, the message has them; where nothing is, or no JSON, the
    # input is all that stands around it.
    if first["type"] not in ("missing", "value_error", "json_invalid"):
        where += f"{'=' if where else ''}{first['input']!r:.{_SHOWN}}"
    line = ": ".join(filter(None, (str(origin), where, f"{said}; {remedy}")))
    raise UserError("".join(one if one.isprintable() else repr(one)[1:-1] for one in line))
