"""Settings as the command line composes them."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from edge_asr.config import CONF, Settings, settings_from


def composed(*overrides: str) -> Settings:
    """The settings of a run with `overrides`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain: Any = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    plain.pop("experiment", None)
    return settings_from(plain)
