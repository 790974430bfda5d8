"""What a row is called: the nearest known recipe and what differs, never part of a key.

Equal settings have one label, however they were given, and different settings never share one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from edge_asr.config import BASE_RECIPE, CONF
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.stages import STAGES

# Where two recipes are equally near, the earlier one gives its name.
FIRST = ("float", "rtn", "gptq")
OTHER_PART = 1000  # as far apart as so many settings
LONGEST = 120

Parts = Mapping[str, Mapping[str, Any]]


def method_label(recipe: Recipe) -> str:
    """`gptq`, `rtn+rounding=adaround`, `gptq+rounding.damping=0.5`."""
    own, known = recipe.identity, known_recipes()
    names = sorted(known, key=lambda name: (name not in FIRST, name))
    nearest = min(names, key=lambda name: _distance(own, known[name]))
    return "+".join([nearest, *_changes(own, known[nearest])])


@cache
def known_recipes() -> dict[str, dict[str, Any]]:
    """The parts of every recipe that comes with the package, by name."""
    return {
        path.stem: Recipe.build(_stages(path)).identity
        for path in sorted((CONF / "method").glob("*.yaml"))
        if path.stem != BASE_RECIPE
    }


def _stages(path: Path) -> dict[str, dict[str, Any]]:
    """The parts that a recipe's file names, with the settings that their files change."""
    stages = {}
    for entry in _plain(path)["defaults"]:
        if isinstance(entry, dict):
            ((name, choice),) = entry.items()
            stage = str(name).removeprefix("override ")
            stages[stage] = _part(stage, str(choice))
    return stages


def _part(stage: str, choice: str) -> dict[str, Any]:
    path = CONF / "method" / stage / f"{choice}.yaml"
    if not path.is_file():  # a part itself, with its own defaults
        return {"name": choice}
    plain = _plain(path)
    settings: dict[str, Any] = {}
    for entry in plain.pop("defaults", []):
        if entry != "_self_":
            settings |= _part(stage, str(entry))
    return settings | plain


def _plain(path: Path) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _distance(own: Parts, other: Parts) -> int:
    parts = sum(part["name"] != other[stage]["name"] for stage, part in own.items())
    return OTHER_PART * parts + len(_changes(own, other))


def _changes(own: Parts, other: Parts) -> list[str]:
    """What differs from `other`: parts, and settings that are not that part's usual ones."""
    changes = []
    for stage, part in own.items():
        usual = other[stage]
        if part["name"] != usual["name"]:
            changes.append(f"{stage}={part['name']}")
            usual = STAGES[stage].identity(STAGES[stage].build({"name": part["name"]}))
        changes += [
            f"{stage}.{name}={_shown(value)}"
            for name, value in part.items()
            if value != usual[name]
        ]
    return changes


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(_shown, value)) + "]"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def folder_name(model: str, words: str, run: str) -> Path:
    """`model/gptq-W3-0123456789ab`, below the results folder."""
    return Path(_plain_name(model)) / f"{_plain_name(words)[:LONGEST]}-{run}"


def _plain_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", name).lstrip(".") or "model"
