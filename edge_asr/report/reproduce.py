"""The command that makes a run again, from the settings in its record."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from edge_asr.cli.catalogue import choices
from edge_asr.cli.compose import base_settings
from edge_asr.cli.overrides import quoted
from edge_asr.config import CONF
from edge_asr.store.plain_json import finite
from edge_asr.store.record import Record

SCHEMA = 4  # the first whose settings are called as today
COMMAND = "python -m edge_asr.run"
CUSTOM = "custom"  # any checkpoint by its path
ANY = "rtn"  # stands for a recipe that does not come with the package
NO_PART = NO_TARGET = "none"
# Stands for a file that does not come with the package.
PLAINEST = {"scheme": "default", "target": NO_TARGET}
# Words that mean themselves to Hydra: no number, no null, no truth value.
PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf|on|off|yes|no)$)[A-Za-z_][\w./-]*", re.I)


def command_of(record: Record) -> str | None:
    """What to type, at which commit; None for a record of an older schema.

    Only what differs from the defaults of today is said.
    """
    if record.schema_version < SCHEMA or "stages" not in record.config.get("method", {}):
        return None
    words = " ".join(shlex.quote(word) for word in words_of(record.config))
    commit = record.environment.git_commit
    return (f"git checkout {shlex.quote(commit)}\n" if commit else "") + f"{COMMAND} {words}"


def words_of(config: Mapping[str, Any]) -> list[str]:
    """The overrides that give these settings."""
    plain = dict(config)
    words = [*_model(plain.pop("model")), *_method(plain.pop("method"))]
    words += _of_file("scheme", plain.pop("scheme"))
    if target := plain.pop("target", None):
        own = list(_of_file("target", target))
        words += [] if own == [f"target={NO_TARGET}"] else own
    for group in ("data", "calibration", "protocol"):
        section = dict(plain.pop(group))
        section |= section.pop("options", {})
        name = section.pop("name")
        words.append(f"{group}={name}")
        words += _differences(section, _base().get(group, {}) | _node(group, name), group)
    return words + list(_differences(plain, _base()))


def _model(own: Mapping[str, Any]) -> Iterator[str]:
    known = _files("model")
    name = next((one for one, file in known.items() if file.get("path") == own["path"]), CUSTOM)
    yield f"model={name}"
    yield from _differences(own, _base()["model"] | known[name], "model")


def _method(own: Mapping[str, Any]) -> Iterator[str]:
    known = _files("method")
    name = own["name"] if own["name"] in known else ANY
    yield f"method={name}"
    chosen = {
        str(stage).removeprefix("override "): str(part)
        for entry in known[name]["defaults"]
        if isinstance(entry, dict)
        for stage, part in entry.items()
    }
    for stage, part in own["stages"].items():
        usual = _part(stage, chosen.get(stage, NO_PART))
        if part["name"] != usual.get("name"):
            yield f"method/{stage}={part['name']}"
            usual = _node(f"method/{stage}", part["name"])
        yield from _differences(
            {key: value for key, value in part.items() if key != "name"}, usual, f"method.{stage}"
        )
    rules = known[name].get("rules", [])
    yield from _differences({"rules": own.get("rules", [])}, {"rules": rules}, "method")


def _of_file(group: str, own: Mapping[str, Any]) -> Iterator[str]:
    """A choice whose settings are those of a file, and how they differ."""
    known = _files(group)
    name = own["name"] if own["name"] in known else PLAINEST[group]
    yield f"{group}={name}"
    settings = {key: value for key, value in own.items() if key != "name"}
    yield from _differences(settings, _base()[group] | known[name], group)


def _differences(
    own: Mapping[str, Any], usual: Mapping[str, Any], place: str = ""
) -> Iterator[str]:
    for name, value in own.items():
        key = f"{place}.{name}" if place else name
        default = usual.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            yield from _differences(value, default, key)
        elif value != default:
            yield f"{key}={_value(value)}"


def _value(value: Any) -> str:
    """A value as Hydra's grammar has it."""
    if isinstance(value, str):
        return value if PLAIN.fullmatch(value) else quoted(value)
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_value(one)}' for key, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    return json.dumps(value)


def _part(stage: str, choice: str) -> dict[str, Any]:
    """The settings of a part as a recipe chooses it: a part's own, or of a file that changes it."""
    file = dict(_files(f"method/{stage}").get(choice, {}))
    if not file:
        return _node(f"method/{stage}", choice)
    settings: dict[str, Any] = {}
    for entry in file.pop("defaults", []):
        settings |= {} if entry == "_self_" else _part(stage, str(entry))
    return settings | file


@cache
def _base() -> dict[str, Any]:
    plain: dict[str, Any] = finite(base_settings())
    return plain


@cache
def _node(group: str, name: str) -> dict[str, Any]:
    """The defaults of what is chosen as `group=name`."""
    for one in choices():
        if (one.group, one.name) == (group, name):
            plain: dict[str, Any] = finite(one.node)
            return plain
    return {}


@cache
def _files(group: str) -> dict[str, dict[str, Any]]:
    """The files of a group in conf/."""
    return {
        path.stem: finite(OmegaConf.to_container(OmegaConf.load(path)))
        for path in sorted((CONF / group).glob("*.yaml"))
    }
