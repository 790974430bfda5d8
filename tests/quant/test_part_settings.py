"""What holds for the settings of every registered part: explained, bounded, refused by name."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt

import edge_asr.quant.recipe  # noqa: F401
from edge_asr.errors import UserError
from edge_asr.quant.stages import STAGES
from edge_asr.settings import field_types, show_value

SETTINGS = [
    (stage, name, setting)
    for stage, registry in STAGES.items()
    for name in registry
    for setting in field_types(registry[name])
]
# One or several names and what is said of them, in Google style.
ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (.+(?:\n {8}.+)*)", re.MULTILINE)


def sentences(kind: type[object]) -> dict[str, str]:
    """What the class or the nearest of its bases says of every setting."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, attributes = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")
        for names, text in ENTRY.findall(attributes):
            found |= dict.fromkeys(names.split(", "), text)
    return found


def numbers(hint: Any) -> Iterator[tuple[type[int] | type[float], list[Any]]]:
    """Every int or float in an annotation, with its bounds."""
    if hint in (int, float):
        yield hint, []
    elif get_origin(hint) is Annotated and get_args(hint)[0] in (int, float):
        kind, *fields = get_args(hint)
        yield kind, [bound for field in fields for bound in field.metadata]
    else:
        for part in get_args(hint):
            yield from numbers(part)


def just_outside(kind: type[int] | type[float], bound: Any) -> float:
    """The number nearest to the bound that it refuses."""
    if isinstance(bound, Gt | Lt):
        return bound.gt if isinstance(bound, Gt) else bound.lt  # type: ignore[return-value]
    limit: Any = bound.ge if isinstance(bound, Ge) else bound.le
    sign = -1 if isinstance(bound, Ge) else 1
    return limit + sign if kind is int else math.nextafter(limit, sign * math.inf)


@pytest.mark.parametrize(("stage", "name", "setting"), SETTINGS)
def test_every_setting_is_explained(stage: str, name: str, setting: str) -> None:
    text = sentences(STAGES[stage][name]).get(setting, "")
    assert re.match(r"[A-Z](.|\n)*\.$", text), text
    assert not text.startswith("See ")


@pytest.mark.parametrize(("stage", "name", "setting"), SETTINGS)
def test_every_number_is_bounded_and_refused_just_outside(
    stage: str, name: str, setting: str
) -> None:
    entry = STAGES[stage][name]
    hint = field_types(entry)[setting]
    for kind, bounds in numbers(hint):
        assert [isinstance(bound, Ge | Gt) for bound in bounds] == [True, False]
        assert isinstance(bounds[1], Le | Lt)
        refused = [just_outside(kind, bound) for bound in bounds]
        for value in refused + [math.inf, math.nan] * (kind is float):
            given = (value,) if get_origin(hint) is tuple else value
            named = re.escape(f"method.{stage}.{setting}={show_value(given)}: must be ")
            with pytest.raises(UserError, match=f"^{named}"):
                entry(**{setting: given})
