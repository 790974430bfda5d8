"""Greedy search: the decoder step by step, over a batch that finished clips leave."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from edge_asr.models.families.base import Architecture, end_tokens
from edge_asr.quant.layers import QuantizedLinear

# Two logits so close can swap places by rounding alone.
NEAR_TIE = 1e-3


@dataclass(frozen=True)
class SearchTokens:
    """The tokens that steer a search.

    Attributes:
        prompt: What the decoder starts from.
        ends: Those that end a text.
        suppressed: Never written; numbers beyond the vocabulary mean nothing.
        suppressed_first: Not written first.
    """

    prompt: Sequence[int]
    ends: Collection[int]
    suppressed: Sequence[int] = ()
    suppressed_first: Sequence[int] = ()


def search_tokens(model: Any, architecture: Architecture) -> SearchTokens:
    """Those of a model, as its generation settings have them."""
    generation = model.generation_config
    return SearchTokens(
        architecture.prompt(model),
        end_tokens(model),
        getattr(generation, "suppress_tokens", None) or (),
        getattr(generation, "begin_suppress_tokens", None) or (),
    )


@dataclass
class FoundTokens:
    """What was found for one clip.

    Attributes:
        tokens: After the prompt, the end token excluded.
        ended: An end token came within the limit.
        near_ties: Steps at which the second-best logit was within `NEAR_TIE` of the best.
    """

    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    near_ties: int = 0


def greedy_search(
    decoder: nn.Module,
    head: nn.Linear,
    memory: Tensor,
    memory_mask: Mapping[str, Tensor],
    tokens: SearchTokens,
    limits: Sequence[int],
    *,
    prompt_at_once: bool = True,
) -> list[FoundTokens]:
    """The most likely token at every step, clip by clip.

    Args:
        decoder: A decoder of transformers, which takes and fills a cache.
        head: What turns its states into logits.
        memory: The encoder's output [clips, frames, width], which is overwritten.
        memory_mask: The decoder's keyword arguments that hide padded frames, [clips, frames].
        tokens: Prompt, ends and suppressed tokens.
        limits: Most tokens of each clip, the end token included, at least 1.
        prompt_at_once: The tokens of the prompt pass together, not one after the other.
    """
    found = [FoundTokens() for _ in limits]
    rows = _Rows(memory, memory_mask, torch.tensor(tokens.prompt, device=memory.device))
    if not prompt_at_once:
        rows.read_but_last(decoder)
    vocabulary = head.out_features
    always = _known(tokens.suppressed, vocabulary, memory.device)
    at_first = _known([*tokens.suppressed, *tokens.suppressed_first], vocabulary, memory.device)
    suppressed = at_first
    while rows.clips:
        logits = _logits(head, rows.step(decoder)).index_fill_(0, suppressed, -torch.inf)
        suppressed = always
        best, chosen = logits.max(0, keepdim=True)
        second = logits.scatter_(0, chosen, -torch.inf).amax(0)
        near = (best[0] - second < NEAR_TIE).tolist()
        finished = []
        for row, token in enumerate(chosen[0].tolist()):
            clip = rows.clips[row]
            one = found[clip]
            one.near_ties += near[row]
            if token in tokens.ends:
                one.ended = True
            else:
                one.tokens.append(token)
            if one.ended or len(one.tokens) == limits[clip]:
                finished.append(row)
        rows.tokens = chosen.T
        rows.drop(finished)
    return found


def known_tokens(tokens: Iterable[int], vocabulary: int) -> list[int]:
    """Those that a vocabulary of this size has: configurations name others too, such as -1."""
    return [token for token in tokens if 0 <= token < vocabulary]


def greedy_tokens(
    step: Callable[[int], np.ndarray], tokens: SearchTokens, limit: int
) -> FoundTokens:
    """The most likely token at every step of one clip, where another runtime makes the steps.

    Args:
        step: Takes a token and gives the logits [vocabulary] of the next, which are overwritten.
        tokens: Prompt, ends and suppressed tokens.
        limit: Most tokens, the end token included, at least 1.
    """
    found = FoundTokens()
    for token in tokens.prompt:
        logits = step(int(token))
    suppressed = [*tokens.suppressed, *tokens.suppressed_first]
    while True:
        logits[known_tokens(suppressed, len(logits))] = -np.inf
        suppressed = list(tokens.suppressed)
        best = int(logits.argmax())
        most, logits[best] = logits[best], -np.inf
        found.near_ties += bool(most - logits.max() < NEAR_TIE)
        if best in tokens.ends:
            found.ended = True
            return found
        found.tokens.append(best)
        if len(found.tokens) == limit:
            return found
        logits = step(best)


class _Rows:
    """The clips that are still decoded, a row each, and all that the decoder keeps of them.

    Attributes:
        clips: Which clip each row is.
        tokens: What each is given next [rows, tokens].
    """

    def __init__(self, memory: Tensor, memory_mask: Mapping[str, Tensor], prompt: Tensor) -> None:
        self.clips = list(range(len(memory)))
        self.tokens = prompt.repeat(len(memory), 1)
        self._memory = memory
        self._mask = {name: value.clone() for name, value in memory_mask.items()}
        # Of these the second holds the keys and values of `memory`, computed in the first step.
        self._caches = (DynamicCache(), DynamicCache())
        self._cache = EncoderDecoderCache(*self._caches)

    def step(self, decoder: nn.Module) -> Tensor:
        """The decoder's states behind each row's last token [rows, width]."""
        states: Tensor = decoder(
            input_ids=self.tokens,
            encoder_hidden_states=self._memory,
            past_key_values=self._cache,
            use_cache=True,
            **self._mask,
        ).last_hidden_state
        return states[:, -1]

    def read_but_last(self, decoder: nn.Module) -> None:
        """Pass all of what each row is given but the last token, one after the other."""
        *given, last = self.tokens.split(1, dim=1)
        for self.tokens in given:
            self.step(decoder)
        self.tokens = last

    def drop(self, finished: Sequence[int]) -> None:
        """Let rows leave, given in ascending order.

        The last row moves to the place that is free, and tensors are narrowed to a view, so that
        one row is copied and not all of them.
        """
        moves, rows = [], len(self.clips)
        for row in reversed(finished):
            rows -= 1
            if row != rows:
                moves.append((rows, row))
        if rows == len(self.clips):
            return

        def left(tensor: Tensor) -> Tensor:
            for source, target in moves:
                tensor[target] = tensor[source]
            return tensor[:rows]

        for source, target in moves:
            self.clips[target] = self.clips[source]
        del self.clips[rows:]
        self.tokens, self._memory = left(self.tokens), left(self._memory)
        self._mask = {name: left(value) for name, value in self._mask.items()}
        layers: list[Any] = [layer for cache in self._caches for layer in cache.layers]
        for layer in layers:
            layer.keys, layer.values = left(layer.keys), left(layer.values)


def _logits(head: nn.Linear, states: Tensor) -> Tensor:
    """float32 logits [vocabulary, rows] of states [rows, width].

    The weight comes first: MKL multiplies it by a few rows up to twice as fast as these by it.
    """
    if isinstance(head, QuantizedLinear):
        states = head.read(states)
    logits = head.weight @ states.T
    if head.bias is not None:
        logits += head.bias[:, None]
    return logits.float()


def _known(tokens: Sequence[int], vocabulary: int, device: torch.device) -> Tensor:
    return torch.tensor(known_tokens(tokens, vocabulary), dtype=torch.long, device=device)
