"""One registry for all that is chosen by name: parts, families, corpora, protocols, runtimes.

A kind of thing (`rounding`, `family`, ...) has a `Registry` of its own, and `REGISTRIES` holds all
of them, so that a contract can be tested over everything there is. Another package adds to them by
an entry point of the group `edge_asr.plugins`, which names the module that registers its things.
"""

from __future__ import annotations

import dataclasses
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from edge_asr.errors import UserError
from edge_asr.settings import build, nearest

T = TypeVar("T")

PLUGINS = "edge_asr.plugins"
REGISTRIES: dict[str, Registry[Any]] = {}


@cache
def load_plugins() -> tuple[str, ...]:
    """Import what other packages announce, once; their names.

    Raises UserError for one that cannot be imported.
    """
    points = sorted(entry_points(group=PLUGINS), key=lambda point: point.name)
    for point in points:
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist else point.value
            raise UserError(
                f"plugin {point.name} ({point.value}) cannot be imported: "
                f"{type(error).__name__}: {error}; mend or uninstall {package}"
            ) from error
    return tuple(point.name for point in points)


def import_modules(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, which registers what is in them."""
    for module in pkgutil.iter_modules(path):
        import_module(f"{package}.{module.name}")


class Registry(Generic[T]):
    """The things of one kind by name.

    Args:
        kind: Its name, unique.
        options: What a user types before the name, such as `method/rounding`; several where things
            of the kind are chosen in several places, none where no user chooses.
    """

    def __init__(self, kind: str, *options: str) -> None:
        if kind in REGISTRIES:
            raise ValueError(f"the kind {kind!r} is registered twice")
        REGISTRIES[kind] = self
        self.kind, self.options = kind, options
        self._entries: dict[str, type[T]] = {}

    @property
    def option(self) -> str:
        """What stands before a name in messages."""
        return self.options[0] if self.options else self.kind

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator. Raises ValueError when the name is taken, or no name."""
        # Names are typed, and part of file names.
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"{self.kind} {name!r}: a name has letters, digits, _, - and .")

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
            load_plugins()
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
        settings = {key: value for key, value in options.items() if key != "name"}
        return build(self[name], settings, prefix or self.option.replace("/", "."))

    def identity(self, entry: T) -> dict[str, Any]:
        """What makes results of this entry differ from another's: name, version and settings."""
        return {
            "name": self.name_of(entry),
            "version": getattr(entry, "version", 1),
            **dataclasses.asdict(entry),  # type: ignore[call-overload]
        }
