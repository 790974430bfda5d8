"""What can be chosen and set, without importing any of it.

Importing the parts takes seconds (torch), and a misspelt name or `--help` must not wait for that.
So the registered classes of this package are read from their source: names from the decorator
`@registry.register("name")`, settings from annotated fields, sentences from docstrings. Those that
a plugin registers are imported anyway.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

import edge_asr.settings
from edge_asr.config import PACKAGE, defaults_of
from edge_asr.registry import REGISTRIES, load_plugins
from edge_asr.settings import field_types, in_words

MISSING = "???"  # Hydra's word for a value that must be given
FOLDERS = ("quant", "data", "evaluation", "runtimes")
# What the annotation of a setting may name.
NAMES: dict[str, Any] = {
    **vars(edge_asr.settings), "Annotated": Annotated, "Literal": Literal, "Field": Field,
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One setting: its default, what it may be, and its sentence."""

    name: str
    default: Any
    allowed: str
    sentence: str


@dataclass(frozen=True)
class Choice:
    """Something that is chosen by name.

    Attributes:
        group: What is typed before the name, such as `method/rounding`.
        name: The name.
        sentence: The first line of its docstring.
        settings: In the order of its class.
    """

    group: str
    name: str
    sentence: str
    settings: tuple[Setting, ...]

    @property
    def node(self) -> dict[str, Any]:
        """Name and defaults, as Hydra composes them; the run's schedule is that of its parts."""
        defaults = {one.name: one.default for one in self.settings}
        if "schedule" in defaults:
            defaults["schedule"] = "${schedule}"
        return {"name": self.name, **defaults}


def choices() -> tuple[Choice, ...]:
    """Everything that this package registers under an option, and what plugins add.

    Raises UserError for a plugin that cannot be imported.
    """
    own = _own_choices()
    if not load_plugins():
        return own
    known = {(choice.group, choice.name) for choice in own}
    return own + tuple(one for one in registered() if (one.group, one.name) not in known)


def registered() -> Iterator[Choice]:
    """The same for what is imported by now, from the classes themselves."""
    for registry in REGISTRIES.values():
        for name in registry:
            entry = registry[name]
            if dataclasses.is_dataclass(entry):
                for group in registry.options:
                    sentence = summary_of(entry.__doc__ or "")
                    yield Choice(group, name, sentence, class_settings(entry))


def class_settings(kind: type[Any]) -> tuple[Setting, ...]:
    """The settings of an imported class."""
    sentences: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        sentences |= sentences_of(base.__doc__ or "")
    defaults = defaults_of(kind)
    return tuple(
        Setting(name, defaults[name], in_words(hint), sentences.get(name, ""))
        for name, hint in field_types(kind).items()
    )


def sentences_of(docstring: str) -> dict[str, str]:
    """What `Attributes:` of a docstring says of every name; "See ..." says nothing."""
    _, _, block = inspect.cleandoc(docstring).partition("Attributes:\n")
    found = {}
    for entry in re.split(r"^ {4}(?=\S)", re.split(r"^(?=\S)", block, flags=re.M)[0], flags=re.M):
        names, _, text = entry.partition(": ")
        sentence = " ".join(text.split())
        for name in names.split(","):
            if sentence and not sentence.startswith("See "):
                found[name.strip()] = sentence
    return found


def summary_of(docstring: str) -> str:
    """The first sentence of a docstring, in one line."""
    return " ".join(docstring.strip().partition("\n\n")[0].split())


@cache
def _own_choices() -> tuple[Choice, ...]:
    groups: dict[str, tuple[str, ...]] = {}
    found: list[tuple[str, str, _Class]] = []
    for folder in FOLDERS:
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "Registry(" in text or ".register(" in text:
                module = _module(path)
                groups |= module.registries
                found += [
                    (registry, name, one)
                    for one in module.classes.values()
                    for registry, name in one.registered
                ]
    return tuple(
        Choice(group, name, summary_of(one.docstring), tuple(one.settings()))
        for registry, name, one in found
        for group in groups[registry]
    )


class _Module:
    """The classes, registries and literal constants of a source file."""

    def __init__(self, path: Path) -> None:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        self.imports: dict[str, Path] = {}
        self.names: dict[str, Any] = dict(NAMES)
        self.registries: dict[str, tuple[str, ...]] = {}
        self.classes: dict[str, _Class] = {}
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edge_asr."):
                place = PACKAGE.joinpath(*str(node.module).split(".")[1:]).with_suffix(".py")
                self.imports |= {alias.name: place for alias in node.names}
            elif isinstance(node, ast.ClassDef):
                self.classes[node.name] = _Class(node, self)
            elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                self._assign(node, node.value)

    def _assign(self, node: ast.Assign | ast.AnnAssign, value: ast.expr) -> None:
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if not isinstance(target, ast.Name):
            return
        if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "Registry":
            _, *options = (ast.literal_eval(argument) for argument in value.args)
            self.registries[target.id] = tuple(options)
            return
        try:
            self.names[target.id] = ast.literal_eval(value)
        except ValueError:
            return  # no constant, so no default of a setting

    def find(self, name: str) -> _Class | None:
        """The class of that name here, or where it is imported from."""
        if name in self.classes:
            return self.classes[name]
        place = self.imports.get(name)
        return _module(place).classes.get(name) if place and place.is_file() else None


@cache
def _module(path: Path) -> _Module:
    return _Module(path)


class _Class:
    """A class as its source says it."""

    def __init__(self, node: ast.ClassDef, module: _Module) -> None:
        self._node, self._module = node, module
        self.docstring = ast.get_docstring(node) or ""

    @property
    def registered(self) -> list[tuple[str, str]]:
        """The registries, by their variable, and names that its decorators put it under."""
        calls = [one for one in self._node.decorator_list if isinstance(one, ast.Call)]
        return [
            (call.func.value.id, ast.literal_eval(call.args[0]))
            for call in calls
            if isinstance(call.func, ast.Attribute)
            and call.func.attr == "register"
            and isinstance(call.func.value, ast.Name)
        ]

    def lineage(self) -> list[_Class]:
        """Its bases, the farthest first, and itself; each once, in the order dataclasses take."""
        order: list[_Class] = []
        names = [base.id for base in self._node.bases if isinstance(base, ast.Name)]
        for name in reversed(names):
            base = self._module.find(name)
            order += base.lineage() if base else []
        return list(dict.fromkeys([*order, self]))

    def settings(self) -> Iterable[Setting]:
        """Its settings, inherited ones first, as a dataclass orders them."""
        fields: dict[str, tuple[Any, str]] = {}
        sentences: dict[str, str] = {}
        for one in self.lineage():
            sentences |= sentences_of(one.docstring)
            for node in one._node.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    text = ast.unparse(node.annotation)
                    if not text.startswith("ClassVar"):
                        fields[node.target.id] = (one._default(node), one._allowed(text))
        return [
            Setting(name, default, allowed, sentences.get(name, ""))
            for name, (default, allowed) in fields.items()
        ]

    def _allowed(self, annotation: str) -> str:
        # Our own source: only names of `edge_asr.settings` and typing stand there.
        return in_words(eval(annotation, dict(self._module.names)))

    def _default(self, node: ast.AnnAssign) -> Any:
        if node.value is None:
            return MISSING
        if isinstance(node.value, ast.Name):
            return self._module.names[node.value.id]
        if isinstance(node.value, ast.Call):  # field(default_factory=dict)
            return {}
        return ast.literal_eval(node.value)
