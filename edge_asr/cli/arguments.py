"""A command line taken apart: Hydra's own flags, wherever they stand, and the overrides."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser

from edge_asr.errors import UserError


class _Refused(Exception):
    """What argparse would print with a page of usage."""


@dataclass(frozen=True)
class Arguments:
    """What was typed.

    Attributes:
        flags: Hydra's, by name.
        words: Overrides, as typed.
        hydra_flags: The flags as words again, in front of which no override stands.
    """

    flags: argparse.Namespace
    words: tuple[str, ...]
    hydra_flags: tuple[str, ...]

    @property
    def runs(self) -> bool:
        """Whether runs are asked for, and not a look at the configuration."""
        asked = (self.flags.cfg, self.flags.info, self.flags.shell_completion)
        return not any(asked) and not self.flags.hydra_help


def take_apart(arguments: Sequence[str]) -> Arguments:
    """Flags and overrides in any order. Raises UserError for an unknown or unusable flag."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise _Refused(message)

    # Such as the parser of a subcommand does; its own prints a page and exits.
    parser.error = refuse  # type: ignore[method-assign]
    try:
        flags, unknown = parser.parse_known_intermixed_args(list(arguments))
    except _Refused as error:
        raise UserError(f"{error}; see --help and --hydra-help") from error
    looks = [
        name
        for name in ("run", "multirun", "cfg", "info", "shell_completion")
        if getattr(flags, name)
    ]
    if len(looks) > 1:
        raise UserError(f"--{looks[0]} and --{looks[1]}: give one of them")
    if flags.resolve and not flags.cfg:
        raise UserError("--resolve: goes with --cfg job; add that")
    if flags.config_path is not None:
        raise UserError("--config-path: replaces the package's own; give --config-dir FOLDER")
    if unknown:
        raise UserError(f"{unknown[0]}: no such flag; see --help and --hydra-help")
    return Arguments(flags, tuple(flags.overrides), tuple(_words(parser, flags)))


def _words(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> list[str]:
    words: list[str] = []
    for action in parser._actions:
        value: Any = getattr(flags, action.dest, None)
        if not action.option_strings or value in (None, False, action.default):
            continue
        words.append(action.option_strings[0])
        if value is not True:
            words.append(str(value))
    return words
