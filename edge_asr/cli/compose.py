"""From words such as `method=gptq` to the settings of a run, by Hydra's own composition.

Nothing here imports torch, so that a mistake is answered at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from edge_asr.cli.catalogue import MISSING, choices, class_settings
from edge_asr.cli.overrides import parse, prepare, values
from edge_asr.config import (
    BASE_RECIPE,
    CONF,
    CalibrationSettings,
    DataSettings,
    ModelSettings,
    ProtocolSettings,
    SchemeSettings,
    Settings,
    defaults_of,
    settings_from,
)
from edge_asr.errors import UserError, first_line
from edge_asr.quant.target import Target
from edge_asr.settings import nearest

# Settings that all choices of a group share.
SHARED: dict[str, type] = {
    "model": ModelSettings,
    "scheme": SchemeSettings,
    "target": Target,
    "data": DataSettings,
    "calibration": CalibrationSettings,
    "protocol": ProtocolSettings,
}
LAUNCHER = "hydra/launcher"
# What the plugin brings that each extra installs.
PLUGINS = {"joblib": "joblib", "slurm": "submitit_slurm"}
NEEDED = ("model", "method", "scheme", "target", "data", "calibration", "protocol")


def compose_settings(*words: str) -> Settings:
    """The settings of a run with the overrides `words`, outside of a command line.

    Raises UserError for a word that does not fit.
    """
    with Composer() as composer:
        return composer.settings(prepare(words, sweep=False))


def settings_of(composed: DictConfig) -> Settings:
    """The settings of a composed configuration. Raises UserError for values that do not fit."""
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        raise UserError(f"{key} is needed; give {key}=...{_sentence(key)}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {first_line(error)}") from error
    assert isinstance(plain, dict)
    plain.pop("experiment", None)
    return settings_from({str(key): value for key, value in plain.items()})


@dataclass
class Composer:
    """Hydra's composition over conf/, what is registered, and a user's own folder.

    Used as a context manager.

    Attributes:
        config_dir: A folder of further configuration, or None.
        config_name: The primary configuration.
    """

    config_dir: str | None = None
    config_name: str = "config"
    _outer: Any = None  # of a program that runs under Hydra itself
    _repositories: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def __enter__(self) -> Composer:
        register()
        version.setbase("1.3")
        path = create_config_search_path(str(CONF))
        if self.config_dir is not None:
            folder = Path(self.config_dir).expanduser().resolve()
            if not folder.is_dir():
                raise UserError(
                    f"--config-dir={self.config_dir}: is no folder; give one of .yaml files"
                )
            # As hydra.main places it: a name that both have is the package's.
            path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
        # What `hydra.initialize_config_dir` does, for more than one folder.
        self._outer = get_gh_backup()
        GlobalHydra.instance().clear()
        Hydra.create_main_hydra2("edge_asr", path)
        return self

    def __exit__(self, *_: Any) -> None:
        restore_gh_from_backup(self._outer)

    def settings(self, words: Sequence[str]) -> Settings:
        """The settings with prepared `words`. Raises UserError for a word that does not fit."""
        settings = settings_of(self.config(words))
        known = [one.name for one in choices() if one.group == "runtime"]
        if settings.runtime not in known:
            raise UserError(f"runtime={settings.runtime}: {nearest(settings.runtime, known)}")
        return settings

    def config(self, words: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
        """The configuration with prepared `words`, checked. Raises as `settings`."""
        for override in parse(words):
            self._check_choice(override, words)
        try:
            return self._compose(words, with_hydra)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise self._explained(error, words) from error

    def launched(self, words: Sequence[str]) -> DictConfig:
        """What Hydra's launchers are told of a sweep with prepared `words`. Raises as `config`."""
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None, "it is used within the composer's block"
        try:
            return hydra.compose_config(
                config_name=self.config_name,
                overrides=list(words),
                run_mode=RunMode.MULTIRUN,
                with_log_configuration=False,
            )
        except (HydraException, OmegaConfBaseException) as error:
            raise self._explained(error, words) from error

    def _compose(self, words: Sequence[str], with_hydra: bool = False) -> DictConfig:
        return compose(self.config_name, list(words), return_hydra_config=with_hydra)

    def options(self, group: str, words: Sequence[str] = ()) -> list[str]:
        """The names that can be chosen in `group`, empty if it is none.

        `words` are looked at for further folders, `hydra.searchpath=[...]`.
        """
        further = [word for word in words if word.lstrip("+").startswith("hydra.searchpath=")]
        place = tuple(further)
        if place not in self._repositories:
            # What the loader's own `get_group_options` does anew for every group, which takes as
            # long as composing a configuration.
            loader: Any = GlobalHydra.instance().config_loader()
            _, repository = loader._parse_overrides_and_create_caching_repo(
                self.config_name, further
            )
            self._repositories[place] = repository
        found = self._repositories[place].get_group_options(group, ObjectType.CONFIG)
        return [name for name in found if (group, name) != ("method", BASE_RECIPE)]

    def groups(self) -> list[str]:
        """All groups of choices."""
        loader = GlobalHydra.instance().config_loader()
        found, waiting = [], [""]
        while waiting:
            parent = waiting.pop()
            for name in loader.list_groups(parent):
                group = f"{parent}/{name}" if parent else name
                if group != "hydra" and not group.startswith("hydra/"):
                    found.append(group)
                    waiting.append(group)
        return sorted(found)

    def _check_choice(self, override: Override, words: Sequence[str]) -> None:
        group = override.key_or_group.partition("@")[0]
        if group == LAUNCHER:
            self._check_launcher(str(override.value()), words)
        if group.startswith("hydra"):
            return
        known = self.options(group, words)
        if not known and override.is_delete():
            raise UserError(f"~{group}: nothing can be left out; set it to what you want")
        if not known and "." in group and (parts := self.options(group.replace(".", "/"), words)):
            place = group.replace(".", "/")
            raise UserError(f"{override.input_line}: a part is chosen with {place}={parts[0]}, ...")
        if not known:
            if "/" in group:
                raise UserError(f"{group}: no such choice; {nearest(group, self.groups())}")
            return
        if override.is_delete():
            if group in NEEDED:
                raise UserError(f"~{group}: is needed; choose one: {', '.join(known)}")
            return
        for word in values(override):
            value = parse([word])[0].value()
            if value is None and group == "experiment":
                continue
            if not isinstance(value, str) or value not in known:
                shown = "null" if value is None else value
                raise UserError(f"{group}={shown}: {nearest(str(shown), known)}")

    def _check_launcher(self, name: str, words: Sequence[str]) -> None:
        known = self.options(LAUNCHER, words)
        if name in PLUGINS and PLUGINS[name] not in known:
            raise UserError(
                f"{LAUNCHER}={name}: Hydra's plugin for it is not installed; "
                f"pip install 'edge_asr[{name}]'"
            )
        if name not in known:
            raise UserError(f"{LAUNCHER}={name}: {nearest(name, known)}")

    def _explained(self, error: Exception, words: Sequence[str]) -> UserError:
        """What Hydra says in many lines, in one."""
        text = str(error)
        if match := re.match(r"Could not append to config. An item is already at '(.*)'", text):
            return UserError(f"+{match[1]}: is there already; leave out the plus")
        if match := re.match(r"Ambiguous value for argument '(.*)'", text):
            return UserError(f"{match[1]}: several values; add -m to make a run of each")
        match = re.match(r"Could not (?:override|append|delete|add)[^']*'([^']+)'", text)
        if match is None:
            return UserError(first_line(error))
        key = match[1]
        word = next((one for one in words if one.lstrip("+~").startswith(key)), key)
        chosen = [one for one in words if self.options(one.lstrip("+~").partition("=")[0])]
        return UserError(f"{word}: {self._unknown(key, chosen)}")

    def _unknown(self, key: str, chosen: Sequence[str]) -> str:
        """Where the option `key` ceases to exist, and what there is instead."""
        node: Any = self._compose(chosen)
        place: list[str] = []
        for name in key.split("."):
            if not isinstance(node, DictConfig) or name not in node:
                known = [str(one) for one in node] if isinstance(node, DictConfig) else []
                return _no_option(name, ".".join(place), node, known)
            place.append(name)
            node = node[name] if not OmegaConf.is_missing(node, name) else None
        return "cannot be set"


def _no_option(name: str, place: str, node: Any, known: list[str]) -> str:
    group = place.replace(".", "/")
    own = node.get("name") if isinstance(node, DictConfig) and "name" in node else None
    having = [one for one in choices() if one.group == group and name in one.node]
    # Where it must be given, it is what one would look for.
    others = [one.name for one in sorted(having, key=lambda one: one.node[name] != MISSING)]
    if own is not None and others:
        return f"{group}={own} has no option {name}; {group}={others[0]} has it"
    known = [one for one in known if one not in ("name", "experiment")]
    if not known:
        return f"no option {name}; {group}={own} has none"
    return f"no option {name}; {nearest(name, known)}"


def _sentence(key: str) -> str:
    """What a setting is, in brackets, if its class says so."""
    group, _, name = key.rpartition(".")
    places = [(choice.group.replace("/", "."), choice.settings) for choice in choices()]
    places += [(place, class_settings(kind)) for place, kind in SHARED.items()]
    for place, settings in places:
        for one in settings:
            if (place, one.name) == (group, name) and one.default == MISSING:
                return f" ({one.sentence.removesuffix('.')})"
    return ""


def register() -> None:
    """Tell Hydra what can be chosen and set, with the defaults of the classes.

    Raises UserError for a plugin that cannot be imported.
    """
    store = ConfigStore.instance()
    store.store(name="settings", node=base_settings())
    for choice in choices():
        if choice.group != "runtime":  # a plain setting, no group of the configuration
            store.store(group=choice.group, name=choice.name, node=choice.node)


def base_settings() -> dict[str, Any]:
    """Every setting of a run that no choice brings, with its default."""
    plain = {name: value for name, value in defaults_of(Settings).items() if value != MISSING}
    for group, kind in SHARED.items():
        shared = defaults_of(kind)
        plain[group] = {
            name: value for name, value in shared.items() if name not in ("name", "options")
        }
    return plain
