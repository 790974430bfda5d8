"""All settings of a run as frozen dataclasses, validated when they are built.

Everything below takes these, never the composed configuration itself. Each setting is declared
here, once: its type, range, default and sentence; those of a part, a source of clips or a protocol
stand with that class. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from pydantic import Field

import edge_asr
from edge_asr.errors import UserError
from edge_asr.models.decoding import Decoding, Dtype
from edge_asr.quant.scheme import DEFAULT, Scheme
from edge_asr.quant.target import Target
from edge_asr.settings import (
    Bits,
    Checked,
    Count,
    Fraction,
    Rate,
    ScheduleName,
    Seed,
    build,
    nearest,
)
from edge_asr.store.files import parse_size
from edge_asr.store.plain_json import finite

PACKAGE = Path(edge_asr.__file__).resolve().parent
# In an installed package it lies inside, in a checkout beside it.
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())
BASE_RECIPE = "base"  # what the files of conf/method share; no method

Text = Annotated[str, Field(min_length=1)]
# Of a shorthand, `default` is not given: what recipe and scheme say holds.
WeightBits = Bits | Literal["float", "default"]
ActivationBits = Bits | Literal["default"] | None
GroupSize = Count | Literal["default"] | None
Symmetric = bool | Literal["unsigned", "signed", "signed_scale", "default"]


@dataclass(frozen=True)
class ModelSettings(Checked):
    """Which checkpoint.

    Attributes:
        path: Its hub id, local folder or embedded name.
        name: Its name in tables and folders; null: the last part of the path.
        tokens_per_second: Cap on generated tokens a second of audio; null: the family's own.
    """

    path: Text
    name: Text | None = None
    tokens_per_second: Rate | None = None


@dataclass(frozen=True)
class MethodSettings(Checked):
    """A recipe.

    Attributes:
        name: The file of conf/method it comes from; decides nothing.
        stages: For every stage that it uses, the part's name and its settings.
        rules: The recipe's own rules of the scheme, before all others.
    """

    name: str
    stages: Mapping[str, Any]
    rules: tuple[Any, ...] = ()


@dataclass(frozen=True)
class SchemeSettings(Checked):
    """What tensors are stored as, rule by rule.

    Attributes:
        name: The file of conf/scheme it comes from; decides nothing.
        rules: Rules of which later ones win, such as [{bits: 4}, {role: fc2, bits: 8}]; each
            selects by stack, role, name (a pattern) and kind, and sets bits, group_size, symmetric,
            zero_point (integer or minimum), act_bits, act_symmetric, act_granularity,
            act_group_size, act_range, act_clip_ratio and act_half_scales.
    """

    name: str = "default"
    rules: tuple[Any, ...] = ()


@dataclass(frozen=True)
class StackSettings(Checked):
    """Settings of one stack: shorthands of the scheme, and what it computes in.

    Attributes:
        bits: Weight bits of this stack.
        group_size: Columns that share a scale in this stack.
        symmetric: No zero point in this stack, and by which convention.
        act_bits: Activation bits of this stack.
        dtype: What this stack transcribes in; null: float32 on a CPU, as the checkpoint is stored
            elsewhere.
    """

    bits: WeightBits = DEFAULT
    group_size: GroupSize = DEFAULT
    symmetric: Symmetric = DEFAULT
    act_bits: ActivationBits = DEFAULT
    dtype: Dtype | None = None


@dataclass(frozen=True)
class DataSettings(Checked):
    """The clips to transcribe.

    Attributes:
        name: Where they come from.
        limit: Only this many clips; null: all.
        options: Settings of where they come from.
    """

    name: str
    limit: Count | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CalibrationSettings(Checked):
    """The clips to calibrate on.

    Attributes:
        name: Where they come from.
        clips: How many clips to draw.
        batch_size: Clips a calibration batch.
        seed: Seed of the draw.
        allow_overlap: Calibrate even on clips that are transcribed too, whose error then is no
            longer that of unknown speech.
        padding_weight: What a frame that pads a clip counts, where the model hears it as speech
            (Whisper's silence up to 30 s); a frame of the clip counts 1.
        pack: Join clips, 0.3 s of silence between two, until such a window is full.
        dtype: Of products and attention in blocks that calibration clips pass through; bfloat16 is
            faster where the processor has it.
        options: Settings of where they come from.
    """

    name: str
    clips: Count = 128
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16
    seed: Seed = 0
    allow_overlap: bool = False
    padding_weight: Fraction = 0.125
    pack: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ProtocolSettings(Checked):
    """How hypotheses are scored.

    Attributes:
        name: The protocol.
        resamples: Bootstrap draws behind every interval.
        seed: Seed of the bootstrap.
    """

    name: str
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    seed: Seed = 0


@dataclass(frozen=True)
class Settings(Checked):
    """One run, whole.

    Attributes:
        model: Checkpoint, a name from conf/model, or custom with model.path.
        method: Recipe, a name from conf/method.
        scheme: What tensors are stored as, a name from conf/scheme.
        target: The runtime whose formats alone are allowed, a name from conf/target.
        data: Clips to transcribe.
        calibration: Clips to calibrate on.
        protocol: How hypotheses are scored.
        decode: How the decoder is told to write.
        encoder: Settings of the encoder alone.
        decoder: Settings of the decoder alone.
        bits: Shorthand of the scheme: weight bits; default: what recipe and scheme say, else 4.
        act_bits: Shorthand: activation bits, a scale a token; null: float.
        group_size: Shorthand: columns that share a scale; null: one scale an output channel.
        symmetric: Shorthand: no zero point, and by which convention.
        schedule: How long learned parts train: short, or paper for their authors' own schedules.
        runtime: Who transcribes.
        batch_size: Clips decoded together; 1 is Moonshine's exact mode.
        max_new_tokens: Cap on every clip's tokens below the model's own; null: none.
        float_bits: Width of the float baseline and of what stays float; null: as the checkpoint
            stores it.
        layer_errors: Measure layers' output errors; null: where clips pass through anyway.
        device: cpu, cuda, cuda:0, ...
        threads: CPU threads; null: the library's choice.
        results: Folder of records and hypotheses.
        store: Folder of finished steps, shared by runs; null: .edge_asr beside results.
        store_cap: Quantized models in the store take at most so much, such as 10GB.
        rerun: Quantize and transcribe again even if that is in the store.
    """

    model: ModelSettings
    method: MethodSettings
    scheme: SchemeSettings
    data: DataSettings
    calibration: CalibrationSettings
    protocol: ProtocolSettings
    target: Target = field(default_factory=Target)
    decode: Decoding = field(default_factory=Decoding)
    encoder: StackSettings = field(default_factory=StackSettings)
    decoder: StackSettings = field(default_factory=StackSettings)
    bits: WeightBits = DEFAULT
    act_bits: ActivationBits = DEFAULT
    group_size: GroupSize = DEFAULT
    symmetric: Symmetric = DEFAULT
    schedule: ScheduleName = "short"
    runtime: Text = "torch"
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    max_new_tokens: Count | None = None
    float_bits: Literal[16, 32] | None = None
    layer_errors: bool | None = None
    device: Text = "cpu"
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    results: Text = "runs"
    store: Text | None = None
    store_cap: Text = "10GB"
    rerun: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.store_cap_bytes
        # Values out of range, or none of the target's, before anything heavy is imported.
        for slot, formats in self.rules().role_formats().items():
            for format in formats:
                self.target.refuse(slot, format)

    def rules(self) -> Scheme:
        """The scheme of all rules and shorthands. Raises UserError for one that cannot be read."""
        return Scheme.build(
            self.method.rules, self.scheme.rules, self.shorthands, self.target.rules
        )

    @property
    def shorthands(self) -> dict[str, dict[str, Any]]:
        """The shorthands of the scheme by stack, "" for both; later ones win."""
        names = ("bits", "group_size", "symmetric", "act_bits")
        stacks = {"": self, "encoder": self.encoder, "decoder": self.decoder}
        return {
            stack: {name: getattr(given, name) for name in names} for stack, given in stacks.items()
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
        plain: dict[str, Any] = finite(dataclasses.asdict(self))
        # The parts that train have their schedule among their own settings.
        for name in ("results", "store", "store_cap", "rerun", "threads", "schedule"):
            del plain[name]
        return plain


def target_named(name: str) -> Target:
    """The target of a file that comes with the package. Raises UserError for an unknown name."""
    known = {path.stem: path for path in (CONF / "target").glob("*.yaml")}
    if name not in known:
        raise UserError(f"target={name}: {nearest(name, known)}")
    plain = OmegaConf.to_container(OmegaConf.load(known[name]))
    assert isinstance(plain, dict)
    return build(Target, {str(key): value for key, value in plain.items()}, Target.option())


def settings_from(plain: Mapping[str, Any]) -> Settings:
    """Build the settings of one run from a resolved configuration.

    Raises:
        UserError: naming the field that does not fit, its value and what is wanted.
    """
    whole = dict(plain)
    for group, kind, rest in (
        ("method", MethodSettings, "stages"),
        ("data", DataSettings, "options"),
        ("calibration", CalibrationSettings, "options"),
    ):
        if isinstance(whole.get(group), Mapping):
            whole[group] = _gathered(whole[group], kind, rest)
    for group in ("model", "method", "scheme", "data", "calibration", "protocol"):
        if not whole.get(group) or "name" not in whole[group]:
            raise UserError(
                f"{group}={whole.get(group) or 'null'}: is needed; choose one, {group}=NAME"
            )
    return build(Settings, whole)


def _gathered(plain: Mapping[str, Any], kind: type[Checked], rest: str) -> dict[str, Any]:
    """`plain` with all that is no field of `kind` under its field `rest`."""
    own = {entry.name for entry in dataclasses.fields(kind)} - {rest}  # type: ignore[arg-type]
    return {
        **{name: value for name, value in plain.items() if name in own},
        rest: {name: value for name, value in plain.items() if name not in own},
    }


def defaults_of(kind: type[Any]) -> dict[str, Any]:
    """The defaults of a dataclass of settings, as plain values; of settings inside of it too.

    What has no default is `???`, Hydra's word for a value that must be given.
    """
    plain: dict[str, Any] = {}
    for entry in dataclasses.fields(kind):
        value: Any = "???"
        if entry.default is not dataclasses.MISSING:
            value = entry.default
        elif entry.default_factory is not dataclasses.MISSING:
            value = entry.default_factory()
        inner = isinstance(value, Checked)
        plain[entry.name] = defaults_of(type(value)) if inner else value
    return plain
