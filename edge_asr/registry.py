"""One generic, typed registry a stage: a part's name leads to its class."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from edge_asr.errors import UserError

Part = TypeVar("Part")


class Registry(Generic[Part]):
    """The parts of one stage, each a frozen dataclass whose fields are its settings."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._parts: dict[str, type[Part]] = {}

    def register(self, name: str) -> Callable[[type[Part]], type[Part]]:
        """Class decorator. Raises ValueError when the name is taken."""

        def add(part: type[Part]) -> type[Part]:
            if name in self._parts:
                raise ValueError(f"{self.stage} {name!r} is registered twice")
            self._parts[name] = part
            return part

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))

    def build(self, options: Mapping[str, Any]) -> Part:
        """The part named `options["name"]` with the other options as its settings.

        Raises:
            UserError: for an unknown part or setting, with the nearest known one.
        """
        # A frozen dataclass holds tuples where a configuration file has lists.
        settings = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in options.items()
            if key != "name"
        }
        name = str(options.get("name", "none"))
        if name not in self._parts:
            raise UserError(f"method/{self.stage}={name}: {nearest(name, self)}")
        part = self._parts[name]
        known = {field.name for field in fields(part)}  # type: ignore[arg-type]
        for key in settings:
            if key not in known:
                allowed = nearest(key, known) if known else f"{name!r} has no settings"
                raise UserError(f"method.{self.stage}.{key}={settings[key]}: {allowed}")
        kinds = get_type_hints(part)
        for key, value in settings.items():
            try:
                TypeAdapter(kinds[key]).validate_python(value, strict=True)
            except ValidationError as error:
                raise UserError(
                    f"method.{self.stage}.{key}={value!r}: {error.errors()[0]['msg']}"
                ) from error
        return part(**settings)


def nearest(word: str, known: Iterator[str] | Registry[Any] | set[str]) -> str:
    """A hint for a misspelt `word`: the nearest known one and all of them."""
    options = sorted(known)
    match = difflib.get_close_matches(word, options, n=1)
    return (f"did you mean {match[0]}? " if match else "") + f"known are {', '.join(options)}"
