"""SpinQuant: learn the rotations, so that the quantized model's own loss falls.

Liu et al. 2024 (arXiv:2405.16406), section 3: R1 of the residual streams and R2 of the value
heads start as random Hadamard matrices and are trained by Cayley SGD on the cross-entropy of
the quantized network; the online Hadamard before `fc2` (R4) is fixed. Keys are not cached
in low precision here, so there is no R3.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from edge_asr.calibration.capture import Batch
from edge_asr.models.families.base import end_tokens
from edge_asr.models.families.sites import Site
from edge_asr.quant.activation import InputQuantizer
from edge_asr.quant.context import ModelContext, Reconstruction
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import dequantize, quantize, straight_through_round
from edge_asr.quant.layers import QuantizedLinear
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.reconstruction import EVALUATED_CLIPS, Length, Trained, evenly_spread
from edge_asr.quant.stages import Transform, transforms
from edge_asr.quant.transform.cayley import CayleySGD, orthogonal_again
from edge_asr.quant.transform.hadamard import rotate_model
from edge_asr.quant.transform.rotation import (
    StreamTensors,
    double_precision,
    rotate_inputs,
    rotate_outputs,
    stream_tensors,
)
from edge_asr.settings import Rate, ScheduleName

# Encoder frames that are trained through at once: two of Whisper's windows. Memory grows with it,
# and the gradients of a step's clips add up to the same.
FRAMES_AT_ONCE = 3000


class Spins(nn.Module):
    """Further rotations of a model that is rotated already; the identity until trained.

    Attributes:
        streams: One [width, width] for each residual stream.
        heads: One [head_dim, head_dim] for every attention, shared by its heads.
    """

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        architecture, config = context.architecture, context.model.config
        residual = architecture.residual_streams(config)
        self._streams: list[StreamTensors] = [
            stream_tensors(context.model, architecture, stream) for stream in residual
        ]
        self._sites: list[Site] = [
            site
            for block in architecture.blocks(config)
            for site in block.sites
            if site.role == "out"
        ]
        heads = dict(zip(("encoder", "decoder"), architecture.heads(config), strict=True))
        width = architecture.width(config)
        self.streams = nn.ParameterList([torch.eye(width) for _ in self._streams])
        self.heads = nn.ParameterList(
            [torch.eye(width // heads[site.stack]) for site in self._sites]
        )

    def rotated(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters and buffers by path with the rotations folded in; differentiable."""
        result = dict(tensors)
        for paths, matrix in zip(self._streams, self.streams, strict=True):
            for name in paths.inputs:
                _change(result, f"{name}.weight", rotate_inputs, matrix)
            for name in paths.tables:
                _change(result, f"{name}.weight", rotate_inputs, matrix)
            for name in paths.outputs:
                _change(result, f"{name}.weight", rotate_outputs, matrix)
                _change_bias(result, name, matrix)
            if paths.entry is not None:
                _change(result, paths.entry, rotate_inputs, matrix)
            if paths.exit is not None:
                _change(result, paths.exit, rotate_outputs, matrix)
        for site, matrix in zip(self._sites, self.heads, strict=True):
            value, (out,) = str(site.source), site.layers
            _change(result, f"{value}.weight", rotate_outputs, matrix)
            _change_bias(result, value, matrix)
            _change(result, f"{out}.weight", rotate_inputs, matrix)
        return result


def _change(
    tensors: dict[str, Tensor],
    path: str,
    kernel: Callable[[Tensor, Tensor], Tensor],
    matrix: Tensor,
) -> None:
    tensors[path] = kernel(tensors[path], matrix.to(tensors[path].dtype))


def _change_bias(tensors: dict[str, Tensor], layer: str, matrix: Tensor) -> None:
    path = f"{layer}.bias"
    if path in tensors:
        tensors[path] = rotate_inputs(tensors[path][None], matrix.to(tensors[path].dtype))[0]


@transforms.register("spin")
@dataclass(frozen=True)
class Spin(Trained, Transform):
    """Rotations like those of `hadamard`, learned on the quantized network's own loss.

    The network that is trained through has quantized activations and float weights where the run
    quantizes activations, as the authors train for GPTQ; without quantized activations its
    weights are rounded to nearest instead, for a rotation alone changes nothing in a float model.
    Activations are quantized there on a range of every token's own, even if the run's are static,
    and no outlier is kept, for ranges and outliers are chosen on the rotated model.

    Attributes:
        learning_rate: Step size of Cayley SGD at first; it falls along a cosine.
        max_grad_norm: Largest norm of the gradients of all rotations together; longer ones are
            shortened to it, as the authors' trainer does unless told otherwise.
        seed: Seed of the first rotations and of the order of the calibration clips.
        untie: Store a head of its own instead of two explicit rotations a token.
    """

    reads_statistics: ClassVar[bool] = True
    trains_model: ClassVar[bool] = True

    # The authors take one sample on each of eight devices.
    lengths: ClassVar[Mapping[ScheduleName, Length]] = {
        "short": Length(100, clips=1),
        "paper": Length(100, clips=8),
    }

    learning_rate: Rate = 1.5
    max_grad_norm: Rate = 1.0
    untie: bool = False

    def rewrite_model(self, context: ModelContext) -> None:
        rotate_model(context, seed=self.seed, untie=self.untie, across_heads=False, dense=True)
        spins = Spins(context).to(context.model.device)
        with _quantized_inputs(context):
            self._train(context, spins)
        with torch.no_grad(), double_precision(context.model):
            tensors = _tensors(context.model)
            spins.double()
            for matrix in spins.parameters():
                # Steps are orthogonal to a few decimals only; folding must be exact.
                matrix.copy_(orthogonal_again(matrix))
            for path, value in spins.rotated(tensors).items():
                tensors[path].copy_(value)

    @property
    def evaluations(self) -> int:
        return 5

    def _train(self, context: ModelContext, spins: Spins) -> None:
        """Train `spins` and leave them at the best iterate that was evaluated."""
        fixed = {path: value.detach() for path, value in _tensors(context.model).items()}
        before = best = _mean_loss(context, spins, fixed)
        kept = copy.deepcopy(spins.state_dict())
        training = self.training
        measured, steps = training.evaluation_steps, training.iterations
        optimizer = CayleySGD(spins.parameters(), lr=self.learning_rate, seed=self.seed)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(self.seed)
        seconds = 0.0
        for done in range(1, steps + 1):
            began = time.perf_counter()
            batch = context.batches[
                int(torch.randint(len(context.batches), (1,), generator=generator))
            ]
            order = torch.randperm(len(batch.token_mask), generator=generator)
            optimizer.zero_grad()
            _add_gradients(context, batch, spins, fixed, order[: training.clips])
            torch.nn.utils.clip_grad_norm_(spins.parameters(), self.max_grad_norm)
            optimizer.step()
            schedule.step()
            seconds += time.perf_counter() - began
            context.on_step(done, steps)
            if done in measured and (current := _mean_loss(context, spins, fixed)) < best:
                best, kept = current, copy.deepcopy(spins.state_dict())
        spins.load_state_dict(kept)
        if not best < before:
            context.warnings.append(f"spin: {steps} steps did not lower the loss of {before:.3g}")
        context.reconstructions.append(Reconstruction(before, best, steps, seconds))


def _add_gradients(
    context: ModelContext, batch: Batch, spins: Spins, fixed: Mapping[str, Tensor], clips: Tensor
) -> None:
    """Add to `spins` the gradients of the mean cross-entropy of some of a batch's transcripts.

    The parameters are rotated once; the clips pass through them a few at a time.
    """
    at_once = max(1, FRAMES_AT_ONCE // batch.frame_weights.shape[1])
    with torch.enable_grad():
        rotated = _trained_through(context, spins, fixed)
        leaves = {
            path: value.detach().requires_grad_() if value.requires_grad else value
            for path, value in rotated.items()
        }
        tokens = 0
        for part in clips.split(at_once):
            loss, count = _summed_loss(context, batch, leaves, part)
            loss.backward()
            tokens += count
        gradients = {path: leaf.grad for path, leaf in leaves.items() if leaf.grad is not None}
        torch.autograd.backward(
            [rotated[path] for path in gradients],
            [gradient / max(tokens, 1) for gradient in gradients.values()],
        )


@torch.no_grad()
def _mean_loss(context: ModelContext, spins: Spins, fixed: Mapping[str, Tensor]) -> float:
    """Cross-entropy a token over some clips, the same ones at every call."""
    tensors = _trained_through(context, spins, fixed)
    total, tokens = 0.0, 0
    masks = [batch.token_mask for batch in context.batches]
    for index, clips in evenly_spread(masks, EVALUATED_CLIPS):
        loss, count = _summed_loss(context, context.batches[index], tensors, clips)
        total, tokens = total + float(loss), tokens + count
    return total / max(tokens, 1)


def _trained_through(
    context: ModelContext, spins: Spins, fixed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The rotated parameters and buffers, weights rounded to nearest if activations are float."""
    tensors = spins.rotated(fixed)
    if not _reads_quantized(context):
        for name, format in context.formats.items():
            if format.weights is not None:
                path = f"{name}.weight"
                tensors[path] = _nearest(tensors[path], format.weights)
    return tensors


def _summed_loss(
    context: ModelContext,
    batch: Batch,
    tensors: dict[str, Tensor],
    clips: Tensor | slice = slice(None),
) -> tuple[Tensor, int]:
    """Cross-entropy of some of a batch's transcripts, and the number of their tokens.

    The token that ends a transcript counts; the prompt, which is forced in decoding, does not.
    """
    device = context.model.device
    tokens, valid = batch.decoder_input_ids[clips].to(device), batch.token_mask[clips].to(device)
    inputs = {name: value[clips].to(device) for name, value in batch.encoder_inputs.items()}
    inputs |= {"decoder_input_ids": tokens}
    prompt = len(context.architecture.prompt(context.model))
    logits = functional_call(context.model, tensors, (), inputs | {"use_cache": False}).logits
    targets = _next_tokens(tokens, valid, prompt, min(end_tokens(context.model)))
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return loss, int((targets >= 0).sum())


def _next_tokens(tokens: Tensor, valid: Tensor, prompt: int, end: int) -> Tensor:
    """What follows every position of `tokens` [batch, positions], or -100 where nobody asks.

    `valid` marks tokens that are no padding, which comes last; the first `prompt` are given.
    """
    following = torch.full_like(tokens, end)
    following[:, :-1] = torch.where(valid[:, 1:], tokens[:, 1:], end)
    following[~valid] = -100
    following[:, : prompt - 1] = -100
    return following


def _nearest(weight: Tensor, grid: Grid) -> Tensor:
    """`weight` at its nearest grid points, with a straight-through gradient."""
    scale, zero = minmax_parameters(weight, grid).expand(weight.shape[1])
    return dequantize(quantize(weight, scale, zero, grid, straight_through_round), scale, zero)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by path."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@contextmanager
def _quantized_inputs(context: ModelContext) -> Iterator[None]:
    """Quantize what every layer of a block reads, a scale a token, inside the context."""
    layers = {
        name: cast(QuantizedLinear, context.model.get_submodule(name)) for name in context.formats
    }
    kept = {name: layer.quantize_input for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            inputs = context.formats[name].inputs
            if inputs is not None:
                dynamic = replace(inputs, granularity="token", static_range=None)
                layer.quantize_input = InputQuantizer(dynamic)
        yield
    finally:
        for name, layer in layers.items():
            layer.quantize_input = kept[name]


def _reads_quantized(context: ModelContext) -> bool:
    return any(format.inputs for format in context.formats.values())
