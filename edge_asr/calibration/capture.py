"""Calibration batches on their way through a model, stopping at every block.

Whoever receives a `CapturedBlock` may change the block's weights before asking for the next one:
the batches then go on through the changed block.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edge_asr.models.families.base import Architecture
from edge_asr.models.families.sites import Block, counted_rows

# Rows that pass through a block at once: two of Whisper's windows. What a block computes on the way
# is many times as large as its inputs, and that of few clips stays in the processor's cache.
ROWS_AT_ONCE = 3000


class Batch(Protocol):
    """What quantization needs of a calibration batch."""

    @property
    def encoder_inputs(self) -> Mapping[str, Tensor]: ...
    @property
    def frame_weights(self) -> Tensor: ...
    @property
    def decoder_input_ids(self) -> Tensor: ...
    @property
    def token_mask(self) -> Tensor: ...


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a module; hidden states are the first positional one.

    `dtype` is that of products and attention when it is run; the rest stays as the model is.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    dtype: torch.dtype = torch.float32

    @property
    def hidden(self) -> Tensor:
        states: Tensor = self.args[0]
        return states

    def run(self, module: Callable[..., Any]) -> Tensor:
        """The module's first output."""
        with torch.autocast(
            self.hidden.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16
        ):
            output = module(*self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output

    def run_in_parts(self, module: Callable[..., Any]) -> Tensor:
        """The same, a few clips at a time; for modules that give as many rows as they read."""
        return torch.cat([self.select(clips).run(module) for clips in self.parts()])

    def parts(self) -> Sequence[Tensor]:
        """Numbers of the clips of the batch, as many together as have `ROWS_AT_ONCE` rows."""
        values = (*self.args, *self.kwargs.values())
        rows = [one.shape[1] for one in values if isinstance(one, Tensor) and one.ndim == 3]
        return torch.arange(len(self.hidden)).split(max(1, ROWS_AT_ONCE // max(rows)))

    def select(self, clips: Tensor) -> Call:
        """The same call for `clips` (their numbers) of its batch alone."""
        count = len(self.hidden)

        def chosen(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim > 1 and len(value) == count:
                return value[clips]
            if isinstance(value, tuple | list):
                return type(value)(chosen(one) for one in value)
            return value

        kwargs = {name: chosen(value) for name, value in self.kwargs.items()}
        return replace(self, args=chosen(self.args), kwargs=kwargs)

    def follow(self, hidden: Tensor) -> Call:
        """The same call with other hidden states, for the block that comes next."""
        return replace(self, args=(hidden, *self.args[1:]))


class Outputs(Sequence[Tensor]):
    """The outputs of a module's calls, one a calibration batch."""

    @abstractmethod
    def of(self, index: int, clips: Tensor | None = None) -> Tensor:
        """The output of call number `index`, or of some `clips` of its batch alone."""

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self.of(one) for one in range(len(self))[index]]
        return self.of(range(len(self))[index])


class KeptOutputs(Outputs):
    """Outputs that were computed once and lie in memory."""

    def __init__(self, outputs: Iterable[Tensor] = ()) -> None:
        self._outputs = list(outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def of(self, index: int, clips: Tensor | None = None) -> Tensor:
        return self._outputs[index] if clips is None else self._outputs[index][clips]


class OutputsOnDemand(Outputs):
    """Outputs computed at every look, with the weights the module then has."""

    def __init__(self, module: nn.Module, calls: Sequence[Call]) -> None:
        self._module, self._calls = module, calls

    def __len__(self) -> int:
        return len(self._calls)

    @torch.no_grad()
    def of(self, index: int, clips: Tensor | None = None) -> Tensor:
        call = self._calls[index]
        return (call if clips is None else call.select(clips)).run_in_parts(self._module)


class SharedMemory(nn.Module):
    """The encoder's last norm with every cross-attention key and value layer that reads it."""

    def __init__(self, norm: nn.Module, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.norm = norm
        self.layers = nn.ModuleList(layers)

    def forward(self, states: Tensor) -> Tensor:
        """Keys and values [..., sum of out_features] of encoder states [..., hidden]."""
        memory = self.norm(states)
        return torch.cat([layer(memory) for layer in self.layers], -1)


@dataclass
class CapturedBlock:
    """One block with its inputs of every batch.

    Attributes:
        model: The model it is a block of.
        block: The block's map.
        module: Runs the block.
        calls: Its inputs, one call a batch; gone once the next block is asked for.
        row_weights: What the rows of every batch count, [batch, positions].
        bulky: The outputs are many times as large as the inputs, so they are not kept.
    """

    model: PreTrainedModel
    block: Block
    module: nn.Module
    calls: list[Call]
    row_weights: Sequence[Tensor]
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
            self._outputs = KeptOutputs(call.run_in_parts(self.module) for call in self.calls)
        return self._outputs

    @torch.no_grad()
    def go_on(self) -> None:
        """Turn the calls, one by one, into those of the next block."""
        for index, call in enumerate(self.calls):
            output = self._outputs[index] if self._outputs else call.run_in_parts(self.module)
            self.calls[index] = call.follow(output)
        self._outputs = KeptOutputs()


class _Reached(Exception):
    """Stops a forward pass once the inputs that are looked for are known."""


class CalibrationPass:
    """One pass of calibration batches through one model, its blocks run in `dtype`."""

    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        batches: Sequence[Batch],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.architecture, self.batches = model, architecture, batches
        self.dtype = dtype

    def captured_blocks(self) -> Iterator[CapturedBlock]:
        """Every block in forward order, the shared cross-attention memory between the stacks."""
        encoder = self.architecture.encoder_blocks(self.model.config)
        decoder = self.architecture.decoder_blocks(self.model.config)
        frames = [batch.frame_weights.to(self.model.device) for batch in self.batches]
        calls = self._enter_encoder(encoder[0])
        for block in encoder:
            captured = self._captured(block, calls, frames)
            yield captured
            captured.go_on()
        block = self.architecture.memory_block(self.model.config)
        norm = self.model.get_submodule(block.module)
        layers = [self.model.get_submodule(name) for name in block.layers]
        # Rows on their own, so that none is needed but those that count.
        counted = [counted_rows(weights) for weights in frames]
        yield CapturedBlock(
            self.model,
            block,
            SharedMemory(norm, layers),
            [
                Call((call.hidden[:, rows],), {}, self.dtype)
                for call, rows in zip(calls, counted, strict=True)
            ],
            [weights[:, rows] for weights, rows in zip(frames, counted, strict=True)],
            bulky=True,
        )
        with torch.no_grad():
            memory = [norm(calls.pop(0).hidden) for _ in self.batches]
        tokens = [batch.token_mask.to(self.model.device).float() for batch in self.batches]
        calls = self._enter_decoder(decoder[0], memory)
        for index, block in enumerate(decoder):
            if index:
                captured.go_on()
            captured = self._captured(block, calls, tokens)
            yield captured

    def calls_of(self, name: str) -> list[Call]:
        """With what the layer at path `name`, which is outside of blocks, is called."""
        return [
            self._capture(
                self.model,
                name,
                {
                    **self._placed(batch.encoder_inputs),
                    "decoder_input_ids": batch.decoder_input_ids.to(self.model.device),
                    "use_cache": False,
                },
            )
            for batch in self.batches
        ]

    def _captured(
        self, block: Block, calls: list[Call], row_weights: Sequence[Tensor]
    ) -> CapturedBlock:
        module = self.model.get_submodule(block.module)
        return CapturedBlock(self.model, block, module, calls, row_weights)

    def _enter_encoder(self, first: Block) -> list[Call]:
        stack = self.model.get_submodule(self.architecture.encoder_module)
        return [
            self._capture(stack, first.module, self._placed(batch.encoder_inputs))
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
            calls.append(self._capture(stack, first.module, arguments))
        return calls

    def _placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    @torch.no_grad()
    def _capture(self, stack: nn.Module, path: str, inputs: Mapping[str, Any]) -> Call:
        """The arguments with which `stack` first calls the module at `path`."""
        caught: list[Call] = []

        def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not args:
                args = (kwargs.pop("hidden_states"),)
            caught.append(Call(args, dict(kwargs), self.dtype))
            raise _Reached

        module = self.model.get_submodule(path)
        # Before the block's own hooks: a call caught behind them would pass them twice.
        with module.register_forward_pre_hook(catch, with_kwargs=True, prepend=True):
            try:
                stack(**inputs)
            except _Reached:
                return caught[0]
        raise RuntimeError(f"{path} was never called: the architecture map is wrong")
