"""Calibration batches on their way through a model, stopping at every block.

Whoever receives a `Station` may change the block's weights before asking for the next one:
the batches then go on through the changed block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edge_asr.models.architecture import Architecture, Block, leading_rows
from edge_asr.quant.work import Batch, Call, KeptOutputs, Outputs, OutputsOnDemand, SharedMemory


@dataclass
class Station:
    """One block with its inputs of every batch.

    Attributes:
        block: The block's map.
        module: Runs the block.
        calls: Its inputs, one call a batch.
        masks: Valid rows [batch, positions] of every batch.
        bulky: The outputs are many times as large as the inputs, so they are not kept.
    """

    block: Block
    module: nn.Module
    calls: Sequence[Call]
    masks: Sequence[Tensor]
    bulky: bool = False
    _outputs: Outputs = field(default_factory=KeptOutputs)

    @torch.no_grad()
    def outputs(self) -> Outputs:
        """The block's outputs [batch, positions, channels], of the weights it has now.

        Computed once, at the first call; bulky ones every time one is asked for, and so only
        as long as the weights stay.
        """
        if self.bulky:
            return OutputsOnDemand(self.module, self.calls)
        if not self._outputs:
            self._outputs = KeptOutputs(call.run(self.module) for call in self.calls)
        return self._outputs


class _Captured(Exception):
    """Stops a forward pass once the first block's inputs are known."""


class Passage:
    """One pass of calibration batches through one model."""

    def __init__(
        self, model: PreTrainedModel, architecture: Architecture, batches: Sequence[Batch]
    ) -> None:
        self.model, self.architecture, self.batches = model, architecture, batches

    def stations(self) -> Iterator[Station]:
        """Every block in forward order, the shared cross-attention memory between the stacks."""
        encoder = self.architecture.encoder_blocks(self.model.config)
        decoder = self.architecture.decoder_blocks(self.model.config)
        frames = [batch.frame_mask.to(self.model.device) for batch in self.batches]
        calls = self._enter_encoder(encoder[0])
        for block in encoder:
            station = self._station(block, calls, frames)
            yield station
            calls = _following(station)
        block = self.architecture.memory_block(self.model.config)
        norm = self.model.get_submodule(block.module)
        layers = [self.model.get_submodule(name) for name in block.layers]
        # Rows on their own, so that none is needed behind a batch's last valid one.
        ends = [leading_rows(mask) for mask in frames]
        yield Station(
            block,
            SharedMemory(norm, layers),
            [Call((call.hidden[:, :end],), {}) for call, end in zip(calls, ends, strict=True)],
            [mask[:, :end] for mask, end in zip(frames, ends, strict=True)],
            bulky=True,
        )
        with torch.no_grad():
            memory = [norm(call.hidden) for call in calls]
        tokens = [batch.token_mask.to(self.model.device) for batch in self.batches]
        calls = self._enter_decoder(decoder[0], memory)
        for block in decoder:
            station = self._station(block, calls, tokens)
            yield station
            calls = _following(station)

    def _station(self, block: Block, calls: Sequence[Call], masks: Sequence[Tensor]) -> Station:
        return Station(block, self.model.get_submodule(block.module), calls, masks)

    def _enter_encoder(self, first: Block) -> list[Call]:
        stack = self.model.get_submodule(self.architecture.encoder_module)
        return [
            self._capture(stack, first, self._placed(batch.encoder_inputs))
            for batch in self.batches
        ]

    def _enter_decoder(self, first: Block, memory: Sequence[Tensor]) -> list[Call]:
        stack = self.model.get_submodule(self.architecture.decoder_module)
        calls = []
        for batch, states in zip(self.batches, memory, strict=True):
            inputs = self._placed(batch.encoder_inputs)
            hidden = self.architecture.memory_mask(inputs, states.shape[1])
            arguments = {
                "input_ids": batch.decoder_input_ids.to(self.model.device),
                "encoder_hidden_states": states,
                "use_cache": False,
                **hidden,
            }
            calls.append(self._capture(stack, first, arguments))
        return calls

    def _placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    @torch.no_grad()
    def _capture(self, stack: nn.Module, first: Block, inputs: Mapping[str, Any]) -> Call:
        """The arguments with which `stack` calls its first block."""
        caught: list[Call] = []

        def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not args:
                args = (kwargs.pop("hidden_states"),)
            caught.append(Call(args, dict(kwargs)))
            raise _Captured

        module = self.model.get_submodule(first.module)
        # Before the block's own hooks: a call caught behind them would pass them twice.
        with module.register_forward_pre_hook(catch, with_kwargs=True, prepend=True):
            try:
                stack(**inputs)
            except _Captured:
                return caught[0]
        raise RuntimeError(f"{first.module} was never called: the architecture map is wrong")


def _following(station: Station) -> list[Call]:
    """The calls of the next block."""
    return [
        call.follow(output) for call, output in zip(station.calls, station.outputs(), strict=True)
    ]
