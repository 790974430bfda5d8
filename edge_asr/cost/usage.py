"""How often every layer and attention of a model runs, phase by phase.

The phases and their counts are defined in `edge_asr.cost.model`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edge_asr.cost.records import AttentionRecord, Inventory, LayerRecord, OnlineRecord, Workload

Phase = Literal["encoder", "prefill", "decode"]
PHASES: tuple[Phase, ...] = ("encoder", "prefill", "decode")
FRAME = "frame"
TOKEN = "token"


@dataclass(frozen=True)
class Work:
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
    def of(cls, workloads: Sequence[Workload]) -> Work:
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


def _uses_of_layer(layer: LayerRecord | OnlineRecord, work: Work) -> tuple[LayerUse, ...]:
    if layer.axis == TOKEN:
        return (
            LayerUse("prefill", work.prompt, 1),
            LayerUse("decode", work.steps, work.steps),
        )
    if layer.axis not in work.axes:
        raise ValueError(f"{layer.name}: axis {layer.axis!r} is not in every workload's positions")
    # A decoder layer on encoder frames makes the cross-attention keys and values.
    phase: Phase = "encoder" if layer.stack == "encoder" else "prefill"
    return (LayerUse(phase, work.axes[layer.axis], 1),)


def _uses_of_attention(attention: AttentionRecord, work: Work) -> tuple[AttentionUse, ...]:
    frames = work.axes[FRAME]
    if attention.stack == "encoder":
        return (AttentionUse("encoder", frames, work.frames_frames, frames, 0),)
    if attention.kind == "self":
        return (
            AttentionUse("prefill", work.prompt, work.prompt_prompt, work.prompt, work.prompt),
            AttentionUse("decode", work.steps, work.step_keys, work.step_keys, work.steps),
        )
    return (
        AttentionUse("prefill", work.prompt, work.prompt_frames, frames, frames),
        AttentionUse("decode", work.steps, work.step_frames, work.step_frames, 0),
    )


def layer_uses(inventory: Inventory, work: Work) -> Iterator[tuple[LayerRecord, LayerUse]]:
    """Every layer in every phase that runs it."""
    for layer in inventory.layers:
        for use in _uses_of_layer(layer, work):
            yield layer, use


def online_uses(inventory: Inventory, work: Work) -> Iterator[tuple[OnlineRecord, LayerUse]]:
    """All work between layers in every phase that runs it."""
    for online in inventory.online:
        for use in _uses_of_layer(online, work):
            yield online, use


def attention_uses(
    inventory: Inventory, work: Work
) -> Iterator[tuple[AttentionRecord, AttentionUse]]:
    """Every attention in every phase that runs it."""
    for attention in inventory.attentions:
        for use in _uses_of_attention(attention, work):
            yield attention, replace(use, products=use.products * attention.padding)
