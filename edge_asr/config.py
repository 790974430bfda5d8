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

from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from edge_asr.errors import UserError
from edge_asr.evaluation.wer import protocol_named
from edge_asr.quant.scheme import DEFAULT
from edge_asr.store.files import parse_size

STRICT = ConfigDict(extra="forbid")
# A manifest's field is compared as text, and `where.speaker=84` arrives as a number.
LENIENT = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
FLOAT_BITS = (16, 32)
CONF = Path(__file__).resolve().parents[1] / "conf"
BASE_RECIPE = "base"  # what the files of conf/method share; no method
MOST_THREADS = 1024


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
    """A recipe.

    Attributes:
        name: The file of conf/method it comes from; decides nothing.
        stages: For every stage that it uses, the part's name and its settings.
        rules: The recipe's own rules of the scheme, before all others.
    """

    name: str
    stages: dict[str, dict[str, Any]]
    rules: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, config=STRICT)
class SchemeSettings:
    """A named scheme: what tensors are stored as, rule by rule; see `edge_asr.quant.scheme`."""

    name: str = "default"
    rules: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, config=STRICT)
class Shorthands:
    """Formats of all Linear layers, or of one stack's; `default` is not given."""

    bits: int | str = DEFAULT
    group_size: int | str | None = DEFAULT
    symmetric: bool | str = DEFAULT
    act_bits: int | str | None = DEFAULT


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
    scheme: SchemeSettings
    data: DataSettings
    calibration: CalibrationSettings
    protocol: ProtocolSettings
    encoder: Shorthands
    decoder: Shorthands
    bits: int | str
    act_bits: int | str | None
    group_size: int | str | None
    symmetric: bool | str
    runtime: str
    batch_size: int
    max_new_tokens: int | None
    float_bits: int | None
    layer_errors: bool | None
    device: str
    threads: int | None
    results: str
    store: str | None
    store_cap: str
    rerun: bool = False

    def __post_init__(self) -> None:
        _at_least("batch_size", self.batch_size, 1)
        _at_least("max_new_tokens", self.max_new_tokens, 1)
        _at_least("threads", self.threads, 1)
        if self.threads is not None and self.threads > MOST_THREADS:
            raise UserError(f"threads={self.threads}: must be at most {MOST_THREADS}")
        if self.float_bits is not None and self.float_bits not in FLOAT_BITS:
            raise UserError(f"float_bits={self.float_bits}: allowed are 16, 32 and null")
        _ = self.store_cap_bytes

    @property
    def shorthands(self) -> dict[str, dict[str, Any]]:
        """The shorthands of the scheme by stack, "" for both; later ones win."""
        everywhere = {
            name: getattr(self, name) for name in ("bits", "group_size", "symmetric", "act_bits")
        }
        return {
            "": everywhere,
            "encoder": dataclasses.asdict(self.encoder),
            "decoder": dataclasses.asdict(self.decoder),
        }

    @property
    def results_folder(self) -> Path:
        return Path(self.results).expanduser()

    @property
    def store_folder(self) -> Path:
        """`store`, by default `.edge_asr` beside the folder of runs."""
        if self.store is not None:
            return Path(self.store).expanduser()
        return self.results_folder.absolute().parent / ".edge_asr"

    @property
    def store_cap_bytes(self) -> int:
        """Bytes that quantized models may take in the store."""
        return parse_size(self.store_cap, "store_cap")

    def provenance(self) -> dict[str, Any]:
        """What was asked for, as plain JSON: all but where results go."""
        plain = dataclasses.asdict(self)
        for name in ("results", "store", "store_cap", "rerun", "threads"):
            del plain[name]
        return plain


def settings_from(plain: Mapping[str, Any]) -> Settings:
    """Build the settings of one run from a resolved configuration.

    Raises:
        UserError: naming every field that does not fit, its value and what is wanted.
    """
    whole = dict(plain)
    method = dict(whole.get("method") or {})
    own = {name: method.pop(name) for name in ("name", "rules") if name in method}
    whole["method"] = {**own, "stages": method}
    try:
        return TypeAdapter(Settings).validate_python(whole)
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
    top = OmegaConf.load(conf / "config.yaml")
    assert isinstance(top, DictConfig)
    options = groups | {str(key) for key in top}
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
            _check_inner_default(override, top.get(option), inner)
        # A sweep in Hydra's own words, as choice(rtn,gptq), is Hydra's to check.
        if name not in groups or "(" in value:
            continue
        known = sorted(path.stem for path in (conf / name).glob("*.yaml"))
        known = [choice for choice in known if choice != BASE_RECIPE]
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


def _check_inner_default(override: str, default: Any, keys: Sequence[str]) -> None:
    """Of an option that config.yaml itself spells out, such as encoder.bits."""
    if keys and isinstance(default, DictConfig) and keys[0] not in default:
        known = sorted(map(str, default))
        raise UserError(
            f"{override}: no option {keys[0]}; {_nearest(keys[0], known)}"
            f"known are {', '.join(known)}"
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
