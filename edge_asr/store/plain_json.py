"""Frozen dataclasses to plain JSON and back."""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from edge_asr.errors import UserError

T = TypeVar("T")


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
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _mismatch(path: Path, where: str, value: object, wanted: str) -> UserError:
    return UserError(
        f"{path}: {where or 'the record'}: {value!r} is not {wanted}; "
        "repair the record or make the run again"
    )


def _parse_class(kind: type[T], value: Any, where: str, path: Path) -> T:
    if not isinstance(value, dict):
        raise _mismatch(path, where, value, "an object")
    hints = typing.get_type_hints(kind)
    prefix = f"{where}." if where else ""
    for entry in dataclasses.fields(typing.cast(Any, kind)):
        required = (
            entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        )
        if required and entry.name not in value:
            raise UserError(
                f"{path}: {prefix}{entry.name}: is missing; repair the record or make the run again"
            )
    for name in value:
        if name not in hints:
            raise _mismatch(path, f"{prefix}{name}", value[name], "a field of this schema version")
    parsed = {
        name: _parse(hints[name], item, f"{prefix}{name}", path) for name, item in value.items()
    }
    try:
        return kind(**parsed)
    except ValueError as error:
        raise _mismatch(path, where, str(error), "valid") from error


def _parse(kind: Any, value: Any, where: str, path: Path) -> Any:
    """`value`, as JSON gave it, turned into the annotated type `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is typing.Literal:
        if value not in arguments:
            raise _mismatch(path, where, value, f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is types.UnionType:
        (inner,) = (option for option in arguments if option is not types.NoneType)
        return None if value is None else _parse(inner, value, where, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise _mismatch(path, where, value, "a list")
        return tuple(
            _parse(arguments[0], item, f"{where}[{index}]", path)
            for index, item in enumerate(value)
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise _mismatch(path, where, value, "an object")
        return {
            key: _parse(arguments[1], item, f"{where}.{key}", path) for key, item in value.items()
        }
    if dataclasses.is_dataclass(kind):
        return _parse_class(typing.cast(type, kind), value, where, path)
    # In Python a truth value is an integer, and JSON writes 4.0 as a float or an integer.
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _mismatch(path, where, value, f"of type {kind.__name__}")
    return value


def parse(kind: type[T], plain: Any, path: Path) -> T:
    """Build the dataclass `kind` from JSON values, checking every field's type.

    Annotations may use the JSON scalars, `Any`, `X | None`, `tuple[X, ...]`, `dict[str, X]` and
    further dataclasses. A field with a default may be missing; an unknown one may not be there.

    Args:
        kind: The class to build.
        plain: What `json.loads` returned.
        path: The file it came from, for messages.

    Raises:
        UserError: A field is missing, unknown, of the wrong type or refused by its class; the
            message names the file and the field.
    """
    return _parse_class(kind, plain, "", path)
