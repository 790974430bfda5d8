"""Settings that are declared once: type, range and default of a field say all there is to check.

A range stands in the annotation, `n_grid: Annotated[int, Field(ge=1, le=1000)] = 20`, and the
sentence that explains a setting under `Attributes:` in its class's docstring. Nothing here imports
torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from edge_asr.errors import UserError

T = TypeVar("T")

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1e6)]
Damping = Annotated[float, Field(ge=1e-20, le=1e6)]
Iterations = Annotated[int, Field(ge=1, le=1_000_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Steps = Annotated[int, Field(ge=1, le=10_000)]
Bits = Annotated[int, Field(ge=2, le=8)]
ScheduleName = Literal["short", "paper"]

# JSON and arithmetic can hold neither infinity nor what is no number.
_CONFIG = ConfigDict(strict=True, allow_inf_nan=False)
_LARGE = 10_000


class Checked:
    """Base of the frozen dataclasses that hold settings: each value is checked when one is made.

    A subclass with a `__post_init__` of its own calls this one first.
    """

    @classmethod
    def option(cls) -> str:
        """What stands before a field's name on the command line, such as `method.rounding`."""
        return ""

    def __post_init__(self) -> None:
        """Raises UserError that names the option, its value and what is allowed."""
        prefix = f"{self.option()}." if self.option() else ""
        for name, hint in field_types(type(self)).items():
            checked = check_value(f"{prefix}{name}", hint, getattr(self, name))
            object.__setattr__(self, name, checked)


def field_types(kind: type[Any]) -> Mapping[str, Any]:
    """The annotation of every field of a dataclass, ranges included."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def build(kind: type[T], plain: Mapping[str, Any], prefix: str = "") -> T:
    """A dataclass of settings, those inside of it too, from plain values by name.

    Args:
        kind: The class, `Checked` or with fields like one.
        plain: Values by the names of its fields; a value of a field that is settings itself is a
            mapping.
        prefix: What stands before a name on the command line.

    Raises:
        UserError: for an unknown name, with the nearest known one, a missing value, or one that is
            not allowed.
    """
    known, values = field_types(kind), {}
    for name, value in plain.items():
        option = f"{prefix}.{name}" if prefix else str(name)
        if name not in known:
            where = nearest(str(name), known) if known else "it has no settings"
            raise UserError(f"{option}={show_value(value)}: no such setting; {where}")
        inner = known[name]
        if isinstance(inner, type) and issubclass(inner, Checked):
            if not isinstance(value, Mapping):
                own = ", ".join(field_types(inner))
                raise UserError(f"{option}={show_value(value)}: set one of its own: {own}")
            values[name] = build(inner, value, option)
        else:
            values[name] = check_value(option, inner, value)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING
        if field.name not in values and required and field.default_factory is dataclasses.MISSING:
            option = f"{prefix}.{field.name}" if prefix else field.name
            raise UserError(f"{option} is needed; give it, {option}=...")
    return kind(**values)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt `word`: the nearest known one and all of them."""
    options = sorted(known)
    match = difflib.get_close_matches(word, options, n=1)
    return (f"did you mean {match[0]}? " if match else "") + f"known are {', '.join(options)}"


def check_value(option: str, hint: Any, value: Any) -> Any:
    """`value` as `hint` wants it: a list becomes a tuple, a whole number a float where that is due.

    Raises UserError that says what is allowed.
    """
    # A frozen dataclass holds tuples where a configuration file has lists.
    given = tuple(value) if isinstance(value, list) else value
    if isinstance(given, int | float) and not isinstance(given, bool) and _is_text(hint):
        given = str(given)  # such as a size or a name that is all digits
    try:
        return _adapter(hint).validate_python(given)
    except ValidationError as error:
        raise UserError(f"{option}={show_value(value)}: must be {in_words(hint)}") from error


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=None if dataclasses.is_dataclass(hint) else _CONFIG)


def show_value(value: Any) -> str:
    """A value as it is typed on a command line: null, true, [1,2]."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(show_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}: {show_value(one)}" for key, one in value.items()) + "}"
    return str(value)


def _is_text(hint: Any) -> bool:
    bare = {get_args(one)[0] if get_origin(one) is Annotated else one for one in _options(hint)}
    return bare <= {str, types.NoneType}


def in_words(hint: Any) -> str:
    """What a setting may be: `a whole number from 1 to 1000, or null`."""
    options = _options(hint)
    null = types.NoneType in options
    words = [_one_in_words(option) for option in options if option is not types.NoneType]
    return " or ".join(words) + (", or null" if null else "")


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _one_in_words(hint: Any) -> str:
    bounds: list[Any] = []
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        for extra in extras:
            bounds += extra.metadata if isinstance(extra, FieldInfo) else [extra]
    if get_origin(hint) is Literal:
        words = list(map(show_value, get_args(hint)))
        return words[0] if len(words) == 1 else "one of " + ", ".join(words)
    if len(_options(hint)) > 1:
        return in_words(hint)
    if get_origin(hint) is tuple:
        return f"a list, each {_one_in_words(get_args(hint)[0])}"
    if any(isinstance(one, MinLen) for one in bounds):
        return "text that is not empty"
    names: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}
    return " ".join([names.get(hint, "text" if hint is str else "a mapping"), *_range(bounds)])


def _range(bounds: list[Any]) -> list[str]:
    low = next((one for one in bounds if isinstance(one, Ge | Gt)), None)
    high = next((one for one in bounds if isinstance(one, Le | Lt)), None)
    if isinstance(low, Ge) and isinstance(high, Le):
        return [f"from {_number(low.ge)} to {_number(high.le)}"]
    words = []
    if low is not None:
        words += [
            f"at least {_number(low.ge)}" if isinstance(low, Ge) else f"above {_number(low.gt)}"
        ]
    if high is not None:
        end = f"at most {_number(high.le)}" if isinstance(high, Le) else f"below {_number(high.lt)}"
        words += ["and", end] if words else [end]
    return words


def _number(value: Any) -> str:
    if value == 2**63 - 1:
        return "2^63 - 1"
    return (
        f"{value:,}".replace(",", " ")
        if isinstance(value, int) and value > _LARGE
        else f"{value:g}"
    )
