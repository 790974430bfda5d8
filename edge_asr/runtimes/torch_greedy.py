"""The torch runtime: greedy decoding of a batch of clips, the same for every family."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from edge_asr.errors import UserError, first_line
from edge_asr.memory import is_out_of_memory
from edge_asr.models.decoding import IN_FLOAT32, StackDtypes
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.activation import InputQuantizer
from edge_asr.runtimes.base import DecodedBatch, Runtime, Transcript, runtimes
from edge_asr.runtimes.decoding_model import decoding_model
from edge_asr.runtimes.greedy_search import FoundTokens, greedy_search, search_tokens
from edge_asr.store.phases import PhaseSeconds

Features = Mapping[str, torch.Tensor]


@runtimes.register("torch")
class TorchRuntime(Runtime):
    """A float or simulated quantized model in PyTorch, on any device."""

    # 2: a search of our own in place of the library's; 3: a head's inputs are quantized too.
    version = 3

    def __init__(self, checkpoint: Checkpoint, dtypes: StackDtypes = IN_FLOAT32) -> None:
        self.checkpoint = checkpoint
        self.dtypes = dtypes
        architecture = checkpoint.architecture
        self._model = decoding_model(checkpoint, dtypes)
        self._encoder = self._model.get_submodule(architecture.encoder_module)
        self._decoder = self._model.get_submodule(architecture.decoder_module)
        self._head = self._model.get_submodule(architecture.head)
        self._tokens = search_tokens(self._model, architecture)
        # A runtime with such ranges decodes token by token from the first on.
        self._ranges_of_calls = any(
            one.settings.of_call for one in self._model.modules() if isinstance(one, InputQuantizer)
        )

    def window(self, samples: np.ndarray) -> np.ndarray:
        return clip_to_window(self.checkpoint, samples)

    def token_limit(self, samples: int, max_new_tokens: int | None = None) -> int:
        return token_limit(self.checkpoint, samples, max_new_tokens)

    def prepare(self, clips: Sequence[np.ndarray]) -> Features:
        """The encoder's keyword inputs, on the processor."""
        return self.checkpoint.architecture.model_inputs(self.checkpoint.feature_extractor, clips)

    def warm_up(self) -> None:
        """Raises UserError where the device cannot compute in the dtypes."""
        try:
            super().warm_up()
        except (RuntimeError, TypeError) as error:
            if self.dtypes == IN_FLOAT32 or is_out_of_memory(error):
                raise
            raise UserError(
                f"encoder.dtype={self.dtypes.encoder}, decoder.dtype={self.dtypes.decoder}: "
                f"{self._model.device} cannot compute in them ({first_line(error)}); use float32"
            ) from error

    def decode(self, prepared: Features, limits: Sequence[int]) -> DecodedBatch:
        if self._ranges_of_calls and len(limits) > 1:
            raise UserError(
                f"batch_size={len(limits)}: the model reads ranges of all that passes in a call, "
                "which would depend on the other clips of a batch; set batch_size=1"
            )
        clock = _Clock(self._model.device)
        with torch.inference_mode():
            memory, mask = self._encode(prepared)
            encoder = clock.lap()
            found = greedy_search(
                self._decoder, self._head, memory, mask, self._tokens, limits,
                prompt_at_once=not self._ranges_of_calls,
            )  # fmt: skip
            decoder = clock.lap()
        transcripts = transcripts_of(self.checkpoint.tokenizer, found)
        seconds = PhaseSeconds(encoder=encoder, decoder=decoder, text=clock.lap())
        return DecodedBatch(transcripts, seconds)

    def _encode(self, features: Features) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The encoder's output [clips, frames, width], and what hides padding from the decoder."""
        model = self._model
        dtypes = [getattr(torch, one) for one in (self.dtypes.encoder, self.dtypes.decoder)]
        inputs = {
            name: value.to(model.device, dtypes[0] if value.is_floating_point() else None)
            for name, value in features.items()
        }
        memory = self._encoder(**inputs).last_hidden_state.to(dtypes[1])
        return memory, self.checkpoint.architecture.memory_mask(inputs, memory.shape[1])


class _Clock:
    """Tells the seconds between its laps, when a device has done all that was asked of it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = time.perf_counter()

    def lap(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        before, self._began = self._began, time.perf_counter()
        return self._began - before


def transcripts_of(tokenizer: Any, found: Sequence[FoundTokens]) -> tuple[Transcript, ...]:
    """What was found as text."""
    texts = tokenizer.batch_decode([one.tokens for one in found], skip_special_tokens=True)
    return tuple(
        Transcript(
            text.strip(),
            tuple(one.tokens),
            len(one.tokens) + one.ended,
            not one.ended,
            one.near_ties,
        )
        for text, one in zip(texts, found, strict=True)
    )


def clip_to_window(checkpoint: Checkpoint, samples: np.ndarray) -> np.ndarray:
    """The part of a clip, shape [samples], that the model can hear at once."""
    window = checkpoint.architecture.window_samples(
        checkpoint.model.config, checkpoint.feature_extractor
    )
    return samples if window is None else samples[:window]


def token_limit(checkpoint: Checkpoint, samples: int, max_new_tokens: int | None = None) -> int:
    """Most tokens that a clip of `samples` samples may generate, the end token included."""
    limit = checkpoint.architecture.token_limit(
        checkpoint.model.config,
        len(checkpoint.architecture.prompt(checkpoint.model)),
        samples,
        checkpoint.tokens_per_second,
    )
    return limit if max_new_tokens is None else min(limit, max_new_tokens)


def greedy(
    checkpoint: Checkpoint, clips: Sequence[np.ndarray], limits: Sequence[int]
) -> list[Transcript]:
    """Decode clips greedily in one batch; see `Runtime`."""
    return TorchRuntime(checkpoint).transcribe(clips, limits)
