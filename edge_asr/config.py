"""All settings of a run as frozen dataclasses, validated when they are built.

Everything below takes these, never the composed configuration itself.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from edge_asr.errors import UserError
from edge_asr.evaluation.wer import protocol_named
from edge_asr.quant.formats import BITS, ActivationGrid, Grid

STRICT = ConfigDict(extra="forbid")
# A manifest's field is compared as text, and `where.speaker=84` arrives as a number.
LENIENT = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
FLOAT_BITS = (16, 32)
STAGES = ("transform", "outliers", "range", "rounding", "correction")


@dataclass(frozen=True, config=STRICT)
class ModelSettings:
    """Which checkpoint: hub id, folder or embedded name."""

    path: str
    name: str | None = None
    tokens_per_second: float | None = None

    def __post_init__(self) -> None:
        if self.tokens_per_second is not None and self.tokens_per_second <= 0:
            raise UserError(
                f"model.tokens_per_second={self.tokens_per_second}: must be above 0, or null"
            )


@dataclass(frozen=True, config=STRICT)
class MethodSettings:
    """A recipe: for every stage, the part's name and its settings.

    `group_size` is the recipe's own default; what a run uses is `Settings.group_size`.
    """

    name: str
    transform: dict[str, Any]
    outliers: dict[str, Any]
    range: dict[str, Any]
    rounding: dict[str, Any]
    correction: dict[str, Any]
    changes: list[str] = field(default_factory=list)
    group_size: int | None = None

    def __post_init__(self) -> None:
        if (self.rounding["name"] == "none") != (self.range["name"] == "none"):
            raise UserError(
                f"method/rounding={self.rounding['name']} with method/range={self.range['name']}: "
                "either both are none (method=float) or neither"
            )
        for stage in ("transform", "outliers", "correction"):
            part = getattr(self, stage)["name"]
            if part != "none" and not self.quantizes:
                raise UserError(
                    f"method/{stage}={part} with method/rounding=none: nothing is quantized, so "
                    "it would change nothing; choose another method"
                )

    @property
    def quantizes(self) -> bool:
        return bool(self.rounding["name"] != "none")

    @property
    def label(self) -> str:
        """The recipe's name, followed by the parts that are not its own (`rtn+rounding=gptq`).

        Settings of a part that differ from the recipe's are named as well.
        """
        return "+".join([self.name, *self.changes])

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        return {stage: dict(getattr(self, stage)) for stage in STAGES}


@dataclass(frozen=True, config=STRICT)
class ActivationSettings:
    """How the inputs of quantized layers are quantized; without bits they stay in floating point.

    `name` says which file of conf/activation they come from and decides nothing; the others are
    those of `ActivationGrid`.
    """

    name: str = "none"
    bits: int | None = None
    symmetric: bool = False
    granularity: Literal["token", "tensor"] = "token"
    static_range: Literal["extreme", "mean"] | None = None
    clip_ratio: float = 1.0

    def grid(self, act_bits: int | None) -> ActivationGrid | None:
        """The grid of activations, its width from `bits` or from the option `act_bits`.

        Raises:
            UserError: The two contradict each other, a value is out of its range, or settings
                are given although nothing quantizes activations.
        """
        if act_bits is not None and act_bits not in BITS:
            raise UserError(f"act_bits={act_bits}: allowed are {BITS.start} to {BITS.stop - 1}")
        if None not in (act_bits, self.bits) and act_bits != self.bits:
            raise UserError(
                f"act_bits={act_bits} contradicts activation={self.name} with {self.bits} bits: "
                f"leave one of them out, or give activation.bits={act_bits} instead of act_bits"
            )
        bits = act_bits if self.bits is None else self.bits
        details = dataclasses.asdict(self)
        del details["name"], details["bits"]
        if bits is not None:
            return ActivationGrid(bits, **details)
        plain = dataclasses.asdict(ActivationSettings())
        for name, value in details.items():
            if value != plain[name]:
                raise UserError(
                    f"activation.{name}={value}: nothing quantizes activations; "
                    "add act_bits=8 or activation=int8"
                )
        return None


@dataclass(frozen=True, config=LENIENT)
class DataSettings:
    """The clips to transcribe."""

    name: Literal["embedded", "manifest"]
    path: str | None = None
    condition: Literal["all", "clean", "noisy"] = "all"
    limit: int | None = None
    where: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _needs_path("data", self.name, self.path)
        if self.name == "manifest" and self.condition != "all":
            raise UserError(
                f"data.condition={self.condition} is for data=embedded; "
                f"use data.where.condition={self.condition}"
            )
        _at_least("data.limit", self.limit, 1)


@dataclass(frozen=True, config=LENIENT)
class CalibrationSettings:
    """The clips to calibrate on."""

    name: Literal["embedded", "manifest"]
    path: str | None = None
    where: dict[str, str] = field(default_factory=dict)
    clips: int = 128
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        _needs_path("calibration", self.name, self.path)
        _at_least("calibration.clips", self.clips, 1)
        _at_least("calibration.batch_size", self.batch_size, 1)
        _at_least("calibration.seed", self.seed, 0)


@dataclass(frozen=True, config=STRICT)
class ProtocolSettings:
    """How hypotheses are scored."""

    name: str
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        protocol_named(self.name)
        _at_least("protocol.resamples", self.resamples, 100)
        _at_least("protocol.seed", self.seed, 0)


@dataclass(frozen=True, config=STRICT)
class Settings:
    """One run, whole."""

    model: ModelSettings
    method: MethodSettings
    activation: ActivationSettings
    data: DataSettings
    calibration: CalibrationSettings
    protocol: ProtocolSettings
    bits: int
    act_bits: int | None
    group_size: int | None
    symmetric: bool
    batch_size: int
    max_new_tokens: int | None
    float_bits: int
    device: str
    threads: int | None
    results: str
    rerun: bool = False

    def __post_init__(self) -> None:
        _at_least("batch_size", self.batch_size, 1)
        _at_least("max_new_tokens", self.max_new_tokens, 1)
        _at_least("threads", self.threads, 1)
        _at_least("group_size", self.group_size, 1)
        if self.float_bits not in FLOAT_BITS:
            raise UserError(f"float_bits={self.float_bits}: allowed are 16 and 32")
        _ = self.activation_grid  # raises on bad values and contradictions
        if self.method.quantizes:
            _ = self.grid  # raises on bad bits

    @property
    def grid(self) -> Grid:
        """The weight grid."""
        grouped = self.group_size is not None
        return Grid(
            bits=self.bits,
            symmetric=self.symmetric,
            granularity="group" if grouped else "channel",
            group_size=self.group_size,
        )

    @property
    def activation_grid(self) -> ActivationGrid | None:
        """The grid of activations in a quantized run; None leaves them in floating point."""
        return self.activation.grid(self.act_bits)

    @property
    def results_folder(self) -> Path:
        return Path(self.results).expanduser()

    def identity(self) -> dict[str, Any]:
        """The settings that can change a number, as plain JSON."""
        plain = dataclasses.asdict(self)
        for name in ("threads", "results", "rerun", "act_bits"):
            del plain[name]
        # Nobody has shown that an accelerator finds the same digits as a processor.
        plain["device"] = self.device.partition(":")[0]
        if plain["device"] == "cpu":
            del plain["device"]
        del plain["method"]["group_size"]  # a default, already in the run's own
        # By what they are, so that act_bits=8 and activation=int8 are one run.
        activation = self.activation_grid
        plain["activation"] = (
            {"name": "none"} if activation is None else dataclasses.asdict(activation)
        )
        if not self.method.quantizes:
            for name in ("bits", "group_size", "symmetric", "calibration", "method", "activation"):
                del plain[name]
        return plain


def method_changes(overrides: Iterable[str]) -> list[str]:
    """What a command line changes in a recipe: `method/rounding=gptq` as `rounding=gptq`."""
    return sorted(
        override.lstrip("+~")[len("method") + 1 :]
        for override in overrides
        if override.lstrip("+~").startswith(("method/", "method."))
    )


def settings_from(plain: Mapping[str, Any]) -> Settings:
    """Build the settings of one run from a resolved configuration.

    Raises:
        UserError: naming every field that does not fit, its value and what is wanted.
    """
    try:
        return TypeAdapter(Settings).validate_python(dict(plain))
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc'])}={item['input']!r}: {item['msg']}"
            for item in error.errors()
        ]
        raise UserError("; ".join(lines)) from error


def check_choices(overrides: list[str], conf: Path) -> None:
    """Check every `option=value` on a command line against the files of `conf`.

    An option inside a group, as method.range.steps, has to be in one of the group's files; whether
    the chosen one has it is Hydra's to check.

    Raises:
        UserError: for an unknown option or choice, with the nearest known one.
    """
    groups = {path.relative_to(conf).as_posix() for path in conf.rglob("*") if path.is_dir()}
    options = groups | {str(key) for key in OmegaConf.load(conf / "config.yaml")}
    for override in overrides:
        name, separator, value = override.lstrip("+~").partition("=")
        # What begins with a dash is a flag; Hydra looks after its own.
        if not separator or name.startswith(("-", "hydra")):
            continue
        option, *inner = name.split(".")
        # With a plus a name may be new.
        if not override.startswith("+"):
            if option not in options:
                hint = _nearest(option, options)
                raise UserError(f"{override}: no option {option}; {hint}--help lists them all")
            _check_inner_option(override, conf / option, inner)
        # A sweep in Hydra's own words, as choice(rtn,gptq), is Hydra's to check.
        if name not in groups or "(" in value:
            continue
        known = sorted(path.stem for path in (conf / name).glob("*.yaml"))
        for choice in map(str.strip, value.split(",")):
            if choice not in (*known, "null", ""):
                hint = _nearest(choice, known)
                raise UserError(f"{name}={choice}: {hint}known are {', '.join(known)}")


def _check_inner_option(override: str, group: Path, keys: Sequence[str]) -> None:
    while keys and (group / keys[0]).is_dir():
        group, keys = group / keys[0], keys[1:]
    if not keys or not group.is_dir():
        return
    known = {str(key) for path in group.glob("*.yaml") for key in OmegaConf.load(path)}
    known |= {path.name for path in group.iterdir() if path.is_dir()}
    known.discard("defaults")
    if keys[0] not in known:
        hint = _nearest(keys[0], known)
        raise UserError(
            f"{override}: no option {keys[0]}; {hint}known are {', '.join(sorted(known))}"
        )


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {near[0]}? " if near else ""


def _needs_path(group: str, name: str, path: str | None) -> None:
    if (name == "manifest") != (path is not None):
        raise UserError(
            f"{group}.path={path} with {group}={name}: "
            + (f"give {group}.path=FILE.jsonl" if path is None else f"add {group}=manifest")
        )


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UserError(f"{name}={value}: must be at least {least}")
