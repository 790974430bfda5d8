"""What a tensor is stored as: settings of the quantizer of weights and of layer inputs.

Reference implementations differ in whether the grid is signed, how a symmetric one is scaled,
whether zero is forced into the range, and whether the zero point is an integer; each of these is a
setting here, so that every reference can be matched bit for bit. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge_asr.errors import UserError

Granularity = Literal["tensor", "channel", "group", "token"]
ZeroPoint = Literal["integer", "float", "minimum"]
ActivationGranularity = Literal["token", "group", "tensor"]
StaticRange = Literal["extreme", "mean"]

BITS = range(2, 9)
SCALE_BITS = 16  # scales, minima and zero points that are no integers are stored as float16
VALUE_BITS = 16  # weights that stay off the grid are stored as float16
INDEX_BITS = 16  # an index of a column
SMALLEST_SCALE = 2.0**-24  # the smallest number above zero in float16


@dataclass(frozen=True)
class Grid:
    """Settings of a uniform grid over a matrix [rows, columns].

    Rows are output channels for weights and tokens for activations.

    Attributes:
        bits: Width of a code, 2 to 8.
        symmetric: One magnitude for both signs; no zero point is stored.
        signed: Codes from -2^(b-1) to 2^(b-1)-1 instead of 0 to 2^b-1. Symmetric: scale =
            magnitude / (2^(b-1) - 1), instead of 2 magnitude / (2^b - 1).
        signed_scale: Of a symmetric signed grid: scale = - extreme / 2^(b-1), where the extreme is
            the value of largest magnitude with its sign, which then lies on the lowest code
            exactly (ggml's q4_0). The scale may be negative.
        include_zero: Widen every range so that it contains zero (IST-DASLab GPTQ does).
        zero_point: `integer` (rounded and clamped onto the grid), `float`, or `minimum`: the value
            of code 0 is stored instead (ggml's q4_1), and the zero point follows from it.
        granularity: What shares one scale: the `tensor`, a row (`channel`, `token`), or a
            `group` of `group_size` columns in a row; the last group of a row may be shorter.
        group_size: Columns a group; None unless the granularity is `group`.
        minimum_scale: Scales are never smaller in magnitude than this.
        half_scales: Round scales, float zero points and minima to float16, the width they are
            stored and charged with. The references keep them in float32.
    """

    bits: int
    symmetric: bool = False
    signed: bool = False
    signed_scale: bool = False
    include_zero: bool = True
    zero_point: ZeroPoint = "integer"
    granularity: Granularity = "channel"
    group_size: int | None = None
    minimum_scale: float = SMALLEST_SCALE
    half_scales: bool = True

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UserError(f"bits={self.bits}: allowed are {BITS.start} to {BITS.stop - 1}")
        if (self.granularity == "group") != (self.group_size is not None):
            raise UserError(
                f"group_size={self.group_size} does not fit granularity={self.granularity!r}: "
                "give a group size with 'group' and none otherwise"
            )
        if self.group_size is not None and self.group_size < 1:
            raise UserError(f"group_size={self.group_size}: must be at least 1, or null")
        if self.signed_scale and not (self.symmetric and self.signed):
            raise UserError("signed_scale needs a grid that is symmetric and signed")
        if self.zero_point == "minimum" and (self.symmetric or self.signed):
            raise UserError(
                "zero_point=minimum with symmetric=true: a symmetric grid stores no zero point; "
                "set symmetric=false, or leave zero_point out"
            )

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        return self.lowest + (1 << self.bits) - 1

    @property
    def steps(self) -> int:
        """Steps between the lowest and the highest code."""
        return (1 << self.bits) - 1

    @property
    def stores_zero(self) -> bool:
        """Whether a zero point is stored with every scale."""
        return not self.symmetric

    def columns_per_group(self, columns: int) -> int:
        return min(self.group_size or columns, columns)


@dataclass(frozen=True)
class ActivationGrid:
    """Settings of a quantized layer input.

    Attributes:
        bits: Width of a code, 2 to 8.
        symmetric: One magnitude for both signs on a signed grid, scale = magnitude /
            (2^(b-1) - 1); otherwise a zero point from a range that contains zero (QuaRot's
            two variants).
        granularity: What shares one scale: a `token`; a `group` of `group_size` channels of one, as
            ggml and MatMulNBits compute; or the `tensor`.
        static_range: Of `tensor` alone, where it is known from calibration: `extreme`, the extremes
            of all calibration rows, or `mean`, the extremes of every clip averaged over clips. All
            others are dynamic: taken from what passes, and of a `tensor` from all rows of one call.
        clip_ratio: Both ends of every range are multiplied by this, above 0 to 1.
        group_size: Channels a group; None unless the granularity is `group`.
        half_scales: Dynamic scales are kept in float16, as ggml does, once codes are taken; static
            ones always are.

    Raises:
        UserError: A setting is out of its range, or two do not fit each other.
    """

    bits: int
    symmetric: bool = False
    granularity: ActivationGranularity = "token"
    static_range: StaticRange | None = None
    clip_ratio: float = 1.0
    group_size: int | None = None
    half_scales: bool = False

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UserError(f"act_bits={self.bits}: allowed are {BITS.start} to {BITS.stop - 1}")
        if self.granularity != "tensor" and self.static_range is not None:
            raise UserError(
                f"act_range={self.static_range} with act_granularity={self.granularity}: "
                "only a range of a whole tensor is known from calibration; give "
                "act_granularity=tensor, or act_range=null"
            )
        if (self.granularity == "group") != (self.group_size is not None):
            raise UserError(
                f"act_group_size={self.group_size} with act_granularity={self.granularity}: give a "
                "group size with group, and null otherwise"
            )
        if not 0 < self.clip_ratio <= 1:
            raise UserError(f"act_clip_ratio={self.clip_ratio}: must be above 0 and at most 1")

    @property
    def static(self) -> bool:
        """Whether its range is stored with the model."""
        return self.static_range is not None

    @property
    def of_call(self) -> bool:
        """Whether its range is one of all that passes in a call."""
        return self.granularity == "tensor" and not self.static

    @property
    def grid(self) -> Grid:
        """The grid of rows (tokens) x channels. Only static scales are stored, in float16."""
        return Grid(
            bits=self.bits,
            symmetric=self.symmetric,
            signed=self.symmetric,
            granularity=self.granularity,
            group_size=self.group_size,
            half_scales=self.static,
        )

    @property
    def label(self) -> str:
        """`A8`, `A8 sym`, `A8 static`, `A8 static mean`, `A8 g32 sym half`, `A4 sym clip 0.9`."""
        words = [f"A{self.bits}"]
        words += ["static"] if self.static else []
        words += ["tensor"] if self.of_call else []
        words += [f"g{self.group_size}"] if self.group_size else []
        words += ["mean"] if self.static_range == "mean" else []
        words += ["sym"] if self.symmetric else []
        words += ["half"] if self.half_scales else []
        words += [f"clip {self.clip_ratio:g}"] if self.clip_ratio != 1 else []
        return " ".join(words)


@dataclass(frozen=True)
class TensorFormat:
    """How the weight of a layer is stored and its input is read; None is floating point."""

    weights: Grid | None = None
    inputs: ActivationGrid | None = None

    @property
    def label(self) -> str:
        """`W4`, `W3 g32 sym A8`, `float`."""
        words = []
        if self.weights is not None:
            words.append(f"W{self.weights.bits}")
            words += [f"g{self.weights.group_size}"] if self.weights.group_size else []
            convention = convention_of(self.weights)
            words += ["sym"] if convention else []
            words += [convention] if convention and convention != "unsigned" else []
            words += ["minimum"] if self.weights.zero_point == "minimum" else []
        if self.inputs is not None:
            words += ([] if words else ["W float"]) + [self.inputs.label]
        return " ".join(words) or "float"


SYMMETRIC: dict[str, dict[str, bool]] = {
    "unsigned": {},
    "signed": {"signed": True},
    "signed_scale": {"signed": True, "signed_scale": True},
}


def convention_of(grid: Grid) -> Literal["unsigned", "signed", "signed_scale", False]:
    """The symmetric convention of a grid by its name; False: it has zero points."""
    if not grid.symmetric:
        return False
    if grid.signed_scale:
        return "signed_scale"
    return "signed" if grid.signed else "unsigned"
