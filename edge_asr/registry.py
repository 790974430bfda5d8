"""One registry for all that is chosen by name: parts, families, runtimes, runtime ops.

A kind of thing (`rounding`, `family`, ...) has a `Registry` of its own, and `REGISTRIES` holds all
of them, so that a contract can be tested over everything there is.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from edge_asr.errors import UserError
from edge_asr.settings import check_value, field_types, show_value

T = TypeVar("T")

REGISTRIES: dict[str, Registry[Any]] = {}


class Registry(Generic[T]):
    """The things of one kind by name.

    Args:
        kind: Its name, unique.
        option: What a user types before the name, for messages: `method/rounding`.
    """

    def __init__(self, kind: str, option: str | None = None) -> None:
        if kind in REGISTRIES:
            raise ValueError(f"the kind {kind!r} is registered twice")
        REGISTRIES[kind] = self
        self.kind, self.option = kind, option or kind
        self._entries: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator. Raises ValueError when the name is taken."""

        def add(entry: type[T]) -> type[T]:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __getitem__(self, name: str) -> type[T]:
        """Raises UserError for an unknown name, with the nearest known one."""
        if name not in self._entries:
            raise UserError(f"{self.option}={name}: {nearest(name, self)}")
        return self._entries[name]

    def name_of(self, entry: object) -> str:
        """The name that the class of `entry` is registered under. Raises KeyError if it is not."""
        for name, known in self._entries.items():
            if type(entry) is known:
                return name
        raise KeyError(f"{type(entry).__name__} is no registered {self.kind}")

    def build(self, options: Mapping[str, Any], prefix: str | None = None) -> T:
        """The entry named `options["name"]`, a dataclass, with the other options as its settings.

        Args:
            options: Name and settings.
            prefix: What stands before a setting on the command line, if not this registry's option.

        Raises:
            UserError: for an unknown name or setting, with the nearest known one, or a value that
                is not allowed.
        """
        name = str(options.get("name", "none"))
        entry, prefix = self[name], prefix or self.option.replace("/", ".")
        settings = {key: value for key, value in options.items() if key != "name"}
        known = field_types(entry)
        for key, value in settings.items():
            if key not in known:
                allowed = nearest(key, known) if known else f"{name!r} has no settings"
                raise UserError(f"{prefix}.{key}={show_value(value)}: {allowed}")
            settings[key] = check_value(f"{prefix}.{key}", known[key], value)
        return entry(**settings)

    def identity(self, entry: T) -> dict[str, Any]:
        """What makes results of this entry differ from another's: name, version and settings."""
        return {
            "name": self.name_of(entry),
            "version": getattr(entry, "version", 1),
            **dataclasses.asdict(entry),  # type: ignore[call-overload]
        }


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt `word`: the nearest known one and all of them."""
    options = sorted(known)
    match = difflib.get_close_matches(word, options, n=1)
    return (f"did you mean {match[0]}? " if match else "") + f"known are {', '.join(options)}"
