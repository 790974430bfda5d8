"""From words such as `method=gptq` to the settings of a run, by Hydra's own composition."""

from __future__ import annotations

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from edge_asr.config import CONF, Settings, settings_from


def compose_settings(*overrides: str) -> Settings:
    """The settings of a run with `overrides`, outside of a command line.

    Raises UserError for values that do not fit.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return settings_of(compose("config", list(overrides)))


def settings_of(composed: DictConfig) -> Settings:
    """The settings of a composed configuration. Raises UserError for values that do not fit."""
    plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    plain.pop("experiment", None)
    return settings_from({str(key): value for key, value in plain.items()})
