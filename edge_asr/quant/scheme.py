"""A scheme says what every tensor is stored as: ordered rules, of which the later win.

A rule selects tensors (by stack, role, name pattern and kind) and sets what it names (bits,
group_size, ...); what it does not name stays as the rules before left it. The rules of a run are,
in this order: the recipe's own, the target's, the named scheme's, and the shorthands of the
command line.
Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, get_args

from edge_asr.errors import UserError
from edge_asr.models.tensors import ROLES, Role, Slot, Stack, TensorKind
from edge_asr.quant.formats import (
    SYMMETRIC,
    ActivationGranularity,
    ActivationGrid,
    Grid,
    StaticRange,
    TensorFormat,
)
from edge_asr.settings import nearest, show_value

SELECTORS = ("stack", "role", "name", "kind")
CHOICES: dict[str, tuple[str, ...]] = {
    "stack": get_args(Stack),
    "role": get_args(Role),
    "kind": get_args(TensorKind),
}
FLOAT: Final = "float"
WEIGHTS = ("linear", "convolution", "embedding", "head")  # kinds that have one
DEFAULT: Final = "default"  # of a shorthand: not given
NAMES_IN_LABEL = 3


@dataclass(frozen=True)
class Assigned:
    """What the rules so far set for a tensor; the first values hold where no rule says more.

    Attributes:
        bits: Width of a weight code, 2 to 8, or `float`.
        group_size: Columns that share a scale; None for one scale an output channel.
        symmetric: Whether zero points are left out: false, true (as `unsigned`) or a convention.
        zero_point: Of weights that are not symmetric: `integer`, or `minimum` where the value of
            code 0 is stored instead.
        act_bits: Width of an input's code, or None where it stays float.
        act_range: Where the range of a whole tensor is from: calibration (`extreme`, `mean`) or
            what passes at every call (`dynamic`).
        act_group_size: Channels of a group of an input, or `weights` for as many as the weights
            have columns a group.
        act_symmetric, act_granularity, act_clip_ratio, act_half_scales: See `ActivationGrid`.
    """

    bits: int | Literal["float"] = 4
    group_size: int | None = None
    symmetric: bool | str = False
    zero_point: Literal["integer", "minimum"] = "integer"
    act_bits: int | None = None
    act_symmetric: bool = False
    act_granularity: ActivationGranularity = "token"
    act_range: StaticRange | Literal["dynamic"] | None = None
    act_clip_ratio: float = 1.0
    act_group_size: int | Literal["weights"] | None = None
    act_half_scales: bool = False

    def format(self) -> TensorFormat:
        """The format of a tensor. Raises UserError for a value out of its range."""
        inputs = None
        if self.act_bits is not None:
            if self.act_granularity == "tensor" and self.act_range is None:
                raise UserError(
                    "act_range=null with act_granularity=tensor: give extreme or mean for a range "
                    "from calibration, or dynamic for one from what passes at every call"
                )
            size = self.act_group_size
            if size == "weights" and self.group_size is None:
                raise UserError(
                    "act_group_size=weights with group_size=null: weights with a scale a channel "
                    "have no groups; set group_size=32"
                )
            inputs = ActivationGrid(
                self.act_bits,
                self.act_symmetric,
                self.act_granularity,
                None if self.act_range == "dynamic" else self.act_range,
                self.act_clip_ratio,
                self.group_size if size == "weights" else size,
                self.act_half_scales,
            )
        if self.bits == FLOAT:
            return TensorFormat(None, inputs)
        name = "unsigned" if self.symmetric is True else str(self.symmetric)
        convention = SYMMETRIC[name] if self.symmetric else {}
        weights = Grid(
            bits=int(self.bits),
            symmetric=bool(self.symmetric),
            granularity="channel" if self.group_size is None else "group",
            group_size=self.group_size,
            signed=convention.get("signed", False),
            signed_scale=convention.get("signed_scale", False),
            zero_point=self.zero_point,
            include_zero=self.zero_point == "integer",
        )
        return TensorFormat(weights, inputs)


# The source of rules that a target sets.
OF_TARGET = "target"
# What a rule may say of weights that have codes.
OF_CODES = ("group_size", "symmetric", "zero_point")
# The types a rule's values may have, as YAML and the command line give them.
_KINDS: dict[str, tuple[type, ...]] = {
    "bits": (int, str),
    "group_size": (int, type(None)),
    "symmetric": (bool, str),
    "zero_point": (str,),
    "act_bits": (int, type(None)),
    "act_symmetric": (bool,),
    "act_granularity": (str,),
    "act_range": (str, type(None)),
    "act_clip_ratio": (float, int),
    "act_group_size": (int, str, type(None)),
    "act_half_scales": (bool,),
}
_WORDS: dict[str, tuple[str | None, ...]] = {
    "bits": (FLOAT,),
    "symmetric": tuple(SYMMETRIC),
    "zero_point": ("integer", "minimum"),
    "act_group_size": ("weights",),
    "act_granularity": get_args(ActivationGranularity),
    "act_range": (*get_args(StaticRange), "dynamic", None),
}


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        select: What it selects by; a tensor has to match all of it. Without `kind`, Linear layers.
        assign: What it sets.
        source: Where it was given, for messages: `scheme.rules[0]`, `bits=3`.
    """

    select: Mapping[str, str]
    assign: Mapping[str, Any]
    source: str = field(compare=False)

    @classmethod
    def parse(cls, plain: Mapping[str, Any], source: str) -> Rule:
        """From a mapping. Raises UserError naming the field, its value and what is allowed."""
        if not isinstance(plain, Mapping):
            raise UserError(f"{source}: {plain!r} is no rule; write {{role: fc2, bits: 8}}")
        known = {*SELECTORS, *_KINDS}
        for name in plain:
            if name not in known:
                raise UserError(f"{source}.{name}={plain[name]}: {nearest(str(name), known)}")
        select = {name: plain[name] for name in SELECTORS if plain.get(name) is not None}
        for name, value in select.items():
            if name in CHOICES and value not in CHOICES[name]:
                raise UserError(f"{source}.{name}={value}: {nearest(str(value), {*CHOICES[name]})}")
        assign = {name: value for name, value in plain.items() if name in _KINDS}
        for name, value in assign.items():
            _check_value(source, name, value)
        if not assign:
            raise UserError(f"{source}: sets nothing; give it bits, group_size, act_bits, ...")
        return cls(select, assign, source)

    @property
    def kind(self) -> str:
        return self.select.get("kind", "linear")

    def matches(self, slot: Slot) -> bool:
        """Whether all selectors match `slot`."""
        return (
            slot.kind == self.kind
            and self.select.get("stack", slot.stack) == slot.stack
            and self.select.get("role", slot.role) == slot.role
            and fnmatchcase(slot.name, self.select.get("name", "*"))
        )


def _check_value(source: str, name: str, value: Any) -> None:
    wrong_kind = not isinstance(value, _KINDS[name]) or (
        isinstance(value, bool) and bool not in _KINDS[name]
    )
    words = _WORDS.get(name)
    if wrong_kind or (words and isinstance(value, str) and value not in words):
        allowed = [str(word).lower() if word is None else word for word in words or ()]
        allowed += ["true", "false"] if bool in _KINDS[name] else []
        allowed += ["a number"] if {int, float} & {*_KINDS[name]} else []
        allowed += ["null"] if type(None) in _KINDS[name] and None not in (words or ()) else []
        raise UserError(f"{source}.{name}={value!r}: allowed are {', '.join(allowed)}")


@dataclass(frozen=True)
class Scheme:
    """The rules of a run, in order."""

    rules: tuple[Rule, ...] = ()

    @classmethod
    def build(
        cls,
        recipe: Sequence[Mapping[str, Any]],
        named: Sequence[Mapping[str, Any]],
        shorthands: Mapping[str, Mapping[str, Any]],
        target: Sequence[Mapping[str, Any]] = (),
    ) -> Scheme:
        """From the recipe's own rules, those of a target, a named scheme's, and shorthands.

        `shorthands` holds, for every stack ("" for both), values by name; `default` is not given.
        Raises UserError for a rule that cannot be read.
        """
        rules = [Rule.parse(one, f"method.rules[{index}]") for index, one in enumerate(recipe)]
        rules += [Rule.parse(one, OF_TARGET) for one in target]
        rules += [Rule.parse(one, f"scheme.rules[{index}]") for index, one in enumerate(named)]
        for stack, values in shorthands.items():
            given = {name: value for name, value in values.items() if value != DEFAULT}
            for name, value in given.items():
                prefix = f"{stack}." if stack else ""
                selected = {"stack": stack} if stack else {}
                try:
                    rules.append(Rule.parse({**selected, name: value}, "shorthand"))
                except UserError as error:
                    raise UserError(str(error).replace("shorthand.", prefix)) from error
        rules = [
            replace(one, source=_shown(one)) if one.source == "shorthand" else one for one in rules
        ]
        return cls(tuple(rules))

    def assigned(self, slot: Slot, start: Assigned | None = None) -> Assigned:
        """What the rules set for `slot`, which has `start` where none says more."""
        result = start or Assigned()
        for rule in self.rules:
            if rule.matches(slot):
                result = replace(result, **rule.assign)
        return result

    def resolve(self, slots: Iterable[Slot]) -> dict[str, TensorFormat]:
        """The format of every Linear among `slots`, and of what else is to be quantized, by name.

        A head is stored as the embedding is, unless rules of its own say otherwise.

        Raises:
            UserError: a rule matches nothing, gives a format to attention or its cache, sets how
                inputs are read where none is quantized, or has a value out of range.
        """
        slots = list(slots)
        for rule in self.rules:
            if not any(rule.matches(slot) for slot in slots):
                raise UserError(f"{rule.source}: matches no tensor of this model{_hint(rule)}")
            if rule.kind not in WEIGHTS and not _leaves_float(rule):
                raise UserError(
                    f"{rule.source}: {rule.kind} stays floating point so far, only weights and "
                    "what they read can be quantized; leave the rule out"
                )
            if rule.kind == "embedding" and rule.assign.get("act_bits") is not None:
                raise UserError(
                    f"{rule.source}: an embedding reads numbers of tokens, there is nothing to "
                    "quantize; leave act_bits out, or give it to kind: head"
                )
        assigned: dict[str, Assigned] = {}
        table = Assigned(bits=FLOAT)
        for slot in slots:
            if slot.kind == "linear":
                assigned[slot.name] = self.assigned(slot)
            elif slot.kind in WEIGHTS:
                start = table if slot.kind == "head" else Assigned(bits=FLOAT)
                own = self.assigned(slot, start)
                if slot.kind == "embedding":
                    table = own
                elif slot.kind == "head" and own.bits == FLOAT:
                    # A target says how one is read that is quantized.
                    own = self._of_users().assigned(slot, start)
                if own.bits != FLOAT or own.act_bits is not None:
                    assigned[slot.name] = own
        self._check_unused_activation(assigned.values())
        self._check_without_bits(slots, assigned)
        return {name: one.format() for name, one in assigned.items()}

    def _of_users(self) -> Scheme:
        return Scheme(tuple(rule for rule in self.rules if rule.source != OF_TARGET))

    def _check_without_bits(self, slots: Iterable[Slot], assigned: Mapping[str, Assigned]) -> None:
        """Rules of a user that say how weights are quantized which nothing quantizes."""
        coded = {name for name, one in assigned.items() if one.bits != FLOAT}
        for rule in self._of_users().rules:
            names = [name for name in OF_CODES if name in rule.assign]
            own = [slot.name for slot in slots if rule.matches(slot)]
            if rule.kind != "linear" and names and not coded.intersection(own):
                raise UserError(
                    f"{rule.source}: {names[0]}={show_value(rule.assign[names[0]])}: nothing gives "
                    f"kind: {rule.kind} bits; add bits: 8"
                )

    def _check_unused_activation(self, assigned: Iterable[Assigned]) -> None:
        if any(one.act_bits is not None for one in assigned):
            return
        for rule in self._of_users().rules:
            for name, value in rule.assign.items():
                if name.startswith("act_") and name != "act_bits":
                    raise UserError(
                        f"{rule.source}: {name}={value}: nothing quantizes activations; "
                        "add act_bits=8"
                    )

    def role_formats(self) -> dict[Slot, list[TensorFormat]]:
        """The formats that layers of every stack and role may have, in any model.

        What depends on names is not known before there is a model, so rules with a name pattern
        are taken both ways. Raises UserError for a value out of its range.
        """
        unnamed = Scheme(tuple(rule for rule in self.rules if "name" not in rule.select))
        anywhere = Scheme(
            tuple(
                replace(rule, select={k: v for k, v in rule.select.items() if k != "name"})
                for rule in self.rules
            )
        )
        found: dict[Slot, list[TensorFormat]] = {}
        for stack, roles in ROLES.items():
            for role in roles:
                slot = Slot(f"{stack}.{role}", stack, role, "linear")
                variants = [unnamed.assigned(slot).format(), anywhere.assigned(slot).format()]
                found[slot] = list(dict.fromkeys(variants))
        return found


def _shown(rule: Rule) -> str:
    """A shorthand as it is typed: `encoder.bits=4`."""
    prefix = f"{rule.select['stack']}." if rule.select else ""
    return ", ".join(f"{prefix}{name}={value}" for name, value in rule.assign.items())


def _hint(rule: Rule) -> str:
    stack, role = rule.select.get("stack"), rule.select.get("role")
    if rule.kind == "linear" and stack in ROLES and role is not None:
        return f"; roles of the {stack} are {', '.join(ROLES[stack])}"
    return "; leave it out or mend what it selects"


def _leaves_float(rule: Rule) -> bool:
    return rule.assign.get("bits", FLOAT) == FLOAT and rule.assign.get("act_bits") is None


def scheme_label(slots: Iterable[Slot], formats: Mapping[str, TensorFormat]) -> str:
    """What tells the formats of a model's layers from those of any other scheme, in a few words.

    The most frequent format comes first; then the parts that differ: `W4, encoder W8`; then what
    is quantized outside of blocks: `W4, embedding W8`, a head only where it differs from that.
    """
    chosen = [slot for slot in slots if slot.name in formats]
    linear = [slot for slot in chosen if slot.kind == "linear"]
    table = next((formats[slot.name] for slot in chosen if slot.kind == "embedding"), None)
    outside = [
        slot
        for slot in chosen
        if slot.kind != "linear" and not (slot.kind == "head" and formats[slot.name] == table)
    ]
    groups: dict[TensorFormat, list[Slot]] = {}
    for slot in linear:
        groups.setdefault(formats[slot.name], []).append(slot)
    ordered = sorted(groups, key=lambda one: -len(groups[one]))
    words = [ordered[0].label] if ordered else [FLOAT]
    for one in ordered[1:]:
        words += [f"{where} {one.label}" for where in _places(groups[one], linear)]
    words += dict.fromkeys(f"{slot.role} {formats[slot.name].label}" for slot in outside)
    return ", ".join(words)


def _places(chosen: Sequence[Slot], every: Sequence[Slot]) -> list[str]:
    """`chosen` as whole stacks, roles, roles of a stack and, at last, single names."""
    left = dict.fromkeys(chosen)
    places = []
    for how in (
        lambda slot: slot.stack,
        lambda slot: str(slot.role),
        lambda slot: f"{slot.stack}.{slot.role}",
    ):
        for place in dict.fromkeys(map(how, left)):
            members = [slot for slot in every if how(slot) == place]
            if all(slot in left for slot in members):
                places.append(place)
                for slot in members:
                    del left[slot]
    names = [slot.name for slot in left]
    if len(names) > NAMES_IN_LABEL:
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:6]
        names = [*names[: NAMES_IN_LABEL - 1], f"and {len(names) - 2} more ({digest})"]
    return places + ([" ".join(names)] if names else [])
