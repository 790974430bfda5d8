"""What a runtime can hold: the policy of a target, as data of conf/target.

A target sets what its runtime asks for wherever a run says nothing, and refuses what it cannot
hold with the reason and the nearest thing it can. How its runtime reads activations is simulated.
Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from edge_asr.errors import UserError
from edge_asr.models.tensors import Slot
from edge_asr.quant.formats import ActivationGrid, Grid, TensorFormat, convention_of
from edge_asr.quant.scheme import Assigned, Rule
from edge_asr.settings import Bits, Checked, Count, show_value

Convention = Literal["unsigned", "signed", "signed_scale", False]
Kept = Literal["quantized", "preferred", "either", "float"]


@dataclass(frozen=True)
class Target(Checked):
    """What quantized layers may be for a runtime to hold them; null: whatever a scheme can say.

    Of every list the first entry holds where a run says nothing.

    Attributes:
        name: The file of conf/target it comes from; what exports to it and runs it goes by that.
        bits: Widths of weights.
        symmetric: Conventions of weights without a zero point; false: with one.
        zero_point: What is stored of a zero point: an integer, or a minimum instead of it.
        group_sizes: Columns that may share a scale; null among them: one scale an output channel.
        whole_groups: Whether groups must divide the columns of a layer.
        inputs: Ways to read activations, each with act_bits, act_symmetric, ..., or none of them
            for floats.
        layers: Whether Linear layers are quantized, all of them, or may stay floating point.
        embedding: Whether the token embedding, and a head that is the same tensor, is quantized as
            layers are, is so unless a run says otherwise (preferred), stays floating point, or
            either.
        embedding_bits: Its widths; null: those of layers.
        convolution: The same of convolutions.
        convolution_inputs: What they read; null: the same as layers.
        runtime_ops: Whether operations that could not be folded into weights can run with it.
        outliers: Whether weights of a layer can stay floating point.
        families: Those whose models it runs; null: all.
        half_scales: Whether scales are exported in float16, and so none that are quantized
            themselves.
    """

    name: str = "none"
    bits: tuple[Bits, ...] | None = None
    symmetric: tuple[Convention, ...] | None = None
    zero_point: Literal["integer", "minimum"] = "integer"
    group_sizes: tuple[Count | None, ...] | None = None
    whole_groups: bool = False
    inputs: tuple[Mapping[str, Any], ...] | None = None
    layers: Literal["quantized", "either"] = "either"
    embedding: Kept = "either"
    embedding_bits: tuple[Bits, ...] | None = None
    convolution: Kept = "either"
    convolution_inputs: tuple[Mapping[str, Any], ...] | None = None
    runtime_ops: bool = True
    outliers: bool = True
    half_scales: bool = False
    families: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in vars(self).items():
            if value == ():
                raise UserError(f"target.{name}=[]: give at least one, or null for any")
        for field in ("inputs", "convolution_inputs"):
            for index, one in enumerate(getattr(self, field) or ()):
                place = f"target.{field}[{index}]"
                if foreign := [name for name in one if not name.startswith("act_")]:
                    raise UserError(
                        f"{place}.{foreign[0]}: says nothing of inputs; give act_bits, ..."
                    )
                Rule.parse({"act_bits": None, **one}, place)

    @classmethod
    def option(cls) -> str:
        return "target"

    @property
    def rules(self) -> tuple[dict[str, Any], ...]:
        """What it sets where a run says nothing, as rules of the scheme."""
        given = {
            "bits": self.bits, "symmetric": self.symmetric, "group_size": self.group_sizes
        }  # fmt: skip
        rule: dict[str, Any] = {name: values[0] for name, values in given.items() if values}
        if self.zero_point != "integer":
            rule["zero_point"] = self.zero_point
        inputs = dict(self.inputs[0]) if self.inputs else {}
        rules: list[dict[str, Any]] = [rule | inputs]
        if self.embedding in ("quantized", "preferred"):
            own = {"bits": self.embedding_bits[0]} if self.embedding_bits else {}
            rules += [{"kind": "embedding", **rule, **own}, {"kind": "head", **inputs}]
        if self.convolution in ("quantized", "preferred"):
            read = self.convolution_inputs or self.inputs or ({},)
            rules.append({"kind": "convolution", **rule, **read[0]})
        return tuple(one for one in rules if one.keys() - {"kind"})

    def refuse(self, slot: Slot, format: TensorFormat, columns: int | None = None) -> None:
        """Raises UserError where the runtime cannot hold the layer of `slot` in `format`.

        `columns` are the layer's; None: not known yet.
        """
        name = slot.name
        self._refuse_kind(slot, format)
        if slot.kind == "embedding" and format.weights is not None:
            # No runtime fills up the rows of a table.
            whole = replace(self, whole_groups=self.group_sizes is not None)
            whole = replace(whole, bits=self.embedding_bits or self.bits)
            whole._refuse_grid(slot, format.weights, columns)
        elif format.weights is not None:
            self._refuse_grid(slot, format.weights, columns)
            ways = self.inputs
            if slot.kind == "convolution":
                ways = self.convolution_inputs or ways
            if ways is not None:
                self._refuse_inputs(slot, format.inputs, format.weights, ways)
        elif self.inputs is not None and format.inputs is not None:
            remedy = (
                "add act_bits: null to the rule that keeps them, or set act_bits=null of its stack"
            )
            if slot.kind != "linear":
                remedy = f"add {{kind: {slot.kind}, act_bits: null}} to scheme.rules"
            raise UserError(
                f"target={self.name}: {name} keeps its weights in floating point and is to read "
                f"{format.inputs.label}; its runtime reads floats there: {remedy}"
            )

    def refuse_family(self, family: str) -> None:
        """Raises UserError where the runtime does not run models of `family`."""
        if self.families is not None and family not in self.families:
            raise UserError(
                f"target={self.name}: its runtime runs {_listed(self.families)} alone, and the "
                f"model is of the family {family}; use target=onnx_nbits without runtime=, or "
                "another model="
            )

    def refuse_parts(
        self, outliers: bool, quantized_scales: bool, names: Mapping[str, str]
    ) -> None:
        """Raises UserError where the runtime cannot hold what the parts of a recipe leave.

        Args:
            outliers: Whether weights stay floating point.
            quantized_scales: Whether scales are quantized themselves.
            names: The parts, by stage.
        """
        if outliers and not self.outliers:
            raise UserError(
                f"target={self.name} with method/outliers={names['outliers']}: its runtime holds "
                "no weights of a layer apart; use method=gptq and method/outliers=none"
            )
        if quantized_scales and self.half_scales:
            raise UserError(
                f"target={self.name} with method/range={names['range']}: its scales are exported "
                "in float16, and those of this range are quantized themselves; use method/range=mse"
            )

    def refuse_runtime_ops(self, transform: str, remedy: str) -> None:
        """Raises UserError, with how to do without them, where the runtime cannot run what
        `transform` leaves to run with the model."""
        if not self.runtime_ops:
            raise UserError(
                f"target={self.name} with method/transform={transform}: its runtime has no "
                f"operations between layers that do not belong to the checkpoint; use {remedy}"
            )

    def _refuse_inputs(
        self,
        slot: Slot,
        found: ActivationGrid | None,
        weights: Grid,
        ways: tuple[Mapping[str, Any], ...],
    ) -> None:
        own = [Assigned(group_size=weights.group_size, **one).format().inputs for one in ways]
        if found in own:
            return
        kind: dict[str, Any] = {} if slot.kind == "linear" else {"kind": slot.kind}
        # The nearest one is quantized if what was asked for is.
        best = min(range(len(own)), key=lambda one: ((own[one] is None) != (found is None), one))
        remedy = "set act_bits=null and leave out scheme= and other act_ settings"
        if kind:
            remedy = f"leave act_bits out of the rule for kind: {slot.kind}"
        if ways[best]:
            rule = show_value(kind | dict(ways[best]))
            remedy = f"leave act_bits and scheme= out and set scheme.rules=[{rule}]"
            if kind:
                remedy = f"add {rule} to scheme.rules"
        raise UserError(
            f"target={self.name}: {slot.name} is to read {found.label if found else 'floats'}; its "
            f"runtime reads {' or '.join(one.label if one else 'floats' for one in own)}: "
            f"{remedy}"
        )

    def _refuse_kind(self, slot: Slot, format: TensorFormat) -> None:
        """Whether it is quantized."""
        kept = {
            "linear": self.layers, "embedding": self.embedding, "head": self.embedding,
            "convolution": self.convolution,
        }.get(slot.kind, "either")  # fmt: skip
        if kept == "float" and format != TensorFormat():
            raise UserError(
                f"target={self.name}: {slot.name} is to be {format.label}; its runtime keeps it in "
                f"floating point: leave out the rule for kind: {slot.kind}"
            )
        if kept == "quantized" and format.weights is None:
            raise UserError(
                f"target={self.name}: {slot.name} stays floating point; its runtime holds all "
                f"matrices in one format: quantize with target={self.name}, and leave out what "
                "keeps it so"
            )

    def _refuse_grid(self, slot: Slot, grid: Grid, columns: int | None) -> None:
        name = slot.name

        def remedy(option: str, value: Any) -> str:
            if slot.kind == "linear":
                return f"set {option}={show_value(value)}"
            return f"set {option}: {show_value(value)} in the rule for kind: {slot.kind}"

        if self.bits is not None and grid.bits not in self.bits:
            best = min(self.bits, key=lambda one: (abs(one - grid.bits), -one))
            raise UserError(
                f"target={self.name}: {name} has bits={grid.bits}; its runtime has kernels for "
                f"{_listed(self.bits)} bits: {remedy('bits', best)}"
            )
        asymmetric = not grid.symmetric and False in (self.symmetric or ())
        if asymmetric and grid.zero_point != self.zero_point:
            raise UserError(
                f"target={self.name}: {name} has {_ZERO_POINTS[grid.zero_point]}; its runtime "
                f"holds {_ZERO_POINTS[self.zero_point]}: "
                + (
                    "use method/range=mse"
                    if grid.zero_point == "float" and self.zero_point == "integer"
                    else f"quantize with target={self.name}, and leave zero_point out of rules"
                )
            )
        found = convention_of(grid)
        if self.symmetric is not None and found not in self.symmetric:
            raise UserError(
                f"target={self.name}: {name} has symmetric={show_value(found)}; its runtime holds "
                f"{_listed(self.symmetric)}: {remedy('symmetric', self.symmetric[0])}"
            )
        sizes = self.group_sizes
        if sizes is not None and grid.group_size not in sizes:
            wanted = grid.group_size or columns or max(one or 0 for one in sizes)
            held = [one for one in sizes if one is None or columns is None or columns % one == 0]
            fitting = held if self.whole_groups and held else sizes
            nearest = min(fitting, key=lambda one: abs((one or columns or wanted) - wanted))
            raise UserError(
                f"target={self.name}: {name} has group_size={show_value(grid.group_size)}; its "
                f"runtime holds {_listed(sizes)}: {remedy('group_size', nearest)}"
            )
        size = grid.group_size
        if self.whole_groups and size and columns is not None and columns % size:
            fitting = [one for one in sizes or range(1, size) if one is None or columns % one == 0]
            other = f"leave it floating point, {{name: {name}, bits: float, act_bits: null}}"
            if slot.kind != "linear":
                other = f"leave out the rule for kind: {slot.kind}"
            if self.layers == "quantized":
                other = "it cannot hold this model, use target=onnx_nbits without runtime="
            if fitting:
                other = remedy("group_size", max(fitting, key=lambda one: one or 0))
            raise UserError(
                f"target={self.name}: groups of {size} do not divide the {columns} columns of "
                f"{name}, and its runtime has no shorter ones: {other}"
            )


_ZERO_POINTS = {
    "float": "zero points between the steps of its grid",
    "integer": "whole zero points",
    "minimum": "minima in place of zero points",
}
# Of no runtime in particular.
ANYTHING = Target()


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(show_value, values))
