"""How often every layer and attention of a model runs, phase by phase.

The phases and their counts are defined in `edge_asr.cost.model`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edge_asr.cost.records import (
    AttentionRecord,
    LayerRecord,
    ModelSummary,
    RuntimeOpRecord,
    Workload,
)

Phase = Literal["encoder", "prefill", "decode"]
PHASES: tuple[Phase, ...] = ("encoder", "prefill", "decode")
FRAME = "frame"
TOKEN = "token"


@dataclass(frozen=True)
class MeanCounts:
    """Every count the formulas need, averaged over utterances.

    All costs are linear in these products of counts, so the cost of the means is the mean cost.
    """

    axes: dict[str, float]
    prompt: float
    steps: float
    prompt_prompt: float
    prompt_frames: float
    step_keys: float
    step_frames: float
    frames_frames: float

    @classmethod
    def of(cls, workloads: Sequence[Workload]) -> MeanCounts:
        """The means over `workloads`.

        Raises:
            ValueError: No workload, or one without encoder frames.
        """
        if not workloads:
            raise ValueError("workloads: give at least one")

        def mean(count: Callable[[Workload], int]) -> float:
            return sum(map(count, workloads)) / len(workloads)

        def frames(one: Workload) -> int:
            if FRAME not in one.positions:
                raise ValueError(f"positions: no axis {FRAME!r} in {sorted(one.positions)}")
            return one.positions[FRAME]

        axes = set.intersection(*(set(one.positions) for one in workloads))
        return cls(
            axes={
                axis: sum(w.positions[axis] for w in workloads) / len(workloads) for axis in axes
            },
            prompt=mean(lambda w: w.prompt_tokens),
            steps=mean(lambda w: w.generated_tokens - 1),
            prompt_prompt=mean(lambda w: w.prompt_tokens**2),
            prompt_frames=mean(lambda w: w.prompt_tokens * frames(w)),
            # p + 1, p + 2, ... p + n - 1 keys.
            step_keys=mean(
                lambda w: (
                    (w.generated_tokens - 1) * w.prompt_tokens
                    + w.generated_tokens * (w.generated_tokens - 1) // 2
                )
            ),
            step_frames=mean(lambda w: (w.generated_tokens - 1) * frames(w)),
            frames_frames=mean(lambda w: frames(w) ** 2),
        )


@dataclass(frozen=True)
class LayerUse:
    """Output positions of a layer in a phase, and how often its weight is fetched for them."""

    phase: Phase
    positions: float
    fetches: float


@dataclass(frozen=True)
class AttentionUse:
    """Positions of an attention in a phase; keys stand for keys and values alike.

    `products` counts pairs of a query and a key, enlarged by the attention's `padding`: padded
    heads multiply more values than they store.
    """

    phase: Phase
    queries: float
    products: float
    keys_read: float
    keys_written: float


def _uses_of_layer(
    layer: LayerRecord | RuntimeOpRecord, counts: MeanCounts
) -> tuple[LayerUse, ...]:
    if layer.axis == TOKEN:
        return (
            LayerUse("prefill", counts.prompt, 1),
            LayerUse("decode", counts.steps, counts.steps),
        )
    if layer.axis not in counts.axes:
        raise ValueError(f"{layer.name}: axis {layer.axis!r} is not in every workload's positions")
    # A decoder layer on encoder frames makes the cross-attention keys and values.
    phase: Phase = "encoder" if layer.stack == "encoder" else "prefill"
    return (LayerUse(phase, counts.axes[layer.axis], 1),)


def _uses_of_attention(attention: AttentionRecord, counts: MeanCounts) -> tuple[AttentionUse, ...]:
    frames = counts.axes[FRAME]
    if attention.stack == "encoder":
        return (AttentionUse("encoder", frames, counts.frames_frames, frames, 0),)
    if attention.kind == "self":
        return (
            AttentionUse(
                "prefill", counts.prompt, counts.prompt_prompt, counts.prompt, counts.prompt
            ),
            AttentionUse("decode", counts.steps, counts.step_keys, counts.step_keys, counts.steps),
        )
    return (
        AttentionUse("prefill", counts.prompt, counts.prompt_frames, frames, frames),
        AttentionUse("decode", counts.steps, counts.step_frames, counts.step_frames, 0),
    )


def layer_uses(summary: ModelSummary, counts: MeanCounts) -> Iterator[tuple[LayerRecord, LayerUse]]:
    """Every layer in every phase that runs it."""
    for layer in summary.layers:
        for use in _uses_of_layer(layer, counts):
            yield layer, use


def runtime_op_uses(
    summary: ModelSummary, counts: MeanCounts
) -> Iterator[tuple[RuntimeOpRecord, LayerUse]]:
    """Every runtime op between layers in every phase that runs it."""
    for extra in summary.runtime_ops:
        for use in _uses_of_layer(extra, counts):
            yield extra, use


def attention_uses(
    summary: ModelSummary, counts: MeanCounts
) -> Iterator[tuple[AttentionRecord, AttentionUse]]:
    """Every attention in every phase that runs it."""
    for attention in summary.attentions:
        for use in _uses_of_attention(attention, counts):
            yield attention, replace(use, products=use.products * attention.padding)
