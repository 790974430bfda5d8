"""What quantizing a model found, besides the model itself, and its plain JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_asr.quant.context import Reconstruction


@dataclass(frozen=True)
class LayerResult:
    """Errors of one quantized layer; None where they were not measured.

    Attributes:
        output_error: Mean square of the change of the layer's output that its weights make, in
            units of the output's variance, on the inputs of the quantized prefix.
        nearest_error: The same, had the weights only been rounded to the nearest grid point of
            their min-max range before the block was rewritten (but after the whole model was, as
            rotations do: see a run of `rtn` for what those change).
    """

    output_error: float | None = None
    nearest_error: float | None = None


@dataclass(frozen=True)
class BlockResult:
    """One quantized block.

    Attributes:
        seconds: Wall time of all stages on it.
        reconstructions: What each learned stage did to its loss.
        phases: Seconds of what the time went to, also to bring the block its inputs.
    """

    seconds: float
    reconstructions: tuple[Reconstruction, ...] = ()
    phases: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass
class Quantization:
    """All quantized layers and blocks by name, warnings, and what a rewrite of the whole model
    did to its loss."""

    layers: dict[str, LayerResult] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    blocks: dict[str, BlockResult] = field(default_factory=dict)
    reconstructions: list[Reconstruction] = field(default_factory=list)

    def summary(self, block: str) -> str:
        """The block's name, and what learning did to its loss."""
        losses = [
            f"loss {learned.loss_before:.3g} to {learned.loss_after:.3g}"
            for learned in self.blocks[block].reconstructions
        ]
        return ", ".join([block, *losses])

    @property
    def output_error(self) -> float | None:
        """Summed output error of all layers, if it was measured."""
        errors = [layer.output_error for layer in self.layers.values()]
        known = [error for error in errors if error is not None]
        return sum(known) if known and len(known) == len(errors) else None

    def join(self, other: Quantization) -> None:
        """Add what another part of the model gave."""
        self.layers |= other.layers
        self.warnings += other.warnings
        self.blocks |= other.blocks
        self.reconstructions += other.reconstructions

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Quantization:
        """Of what `to_plain` gave."""
        blocks = {
            name: BlockResult(
                block["seconds"],
                tuple(Reconstruction(**learned) for learned in block["reconstructions"]),
                block.get("phases", {}),
            )
            for name, block in plain["blocks"].items()
        }
        return cls(
            layers={name: LayerResult(**layer) for name, layer in plain["layers"].items()},
            warnings=list(plain["warnings"]),
            blocks=blocks,
            reconstructions=[Reconstruction(**one) for one in plain["reconstructions"]],
        )
