"""The training loop of parts that are trained on the whole model, through its next tokens.

Such a part supplies a `ModelLearnable` and a loss of the logits along the transcripts of the
calibration clips. What is trained block by block is in `reconstruction.py`.
"""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edge_asr.calibration.capture import Batch
from edge_asr.models.families.base import end_tokens
from edge_asr.quant.context import ModelContext, Reconstruction
from edge_asr.quant.reconstruction import EVALUATED_CLIPS, Schedule, evenly_spread

# Encoder frames that are trained through at once: two of Whisper's windows. Memory grows with it,
# and the gradients of a step's clips add up to the same.
FRAMES_AT_ONCE = 3000
# Of what follows a position of which nobody asks.
NOT_ASKED = -100


class ModelLearnable(nn.Module):
    """Trainable parameters and the model they stand for.

    `state_dict` must hold everything that training changes, so that the best iterate can be kept.
    """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The model's parameters and buffers by path, differentiable, as training sees them."""


class TokenLoss(Protocol):
    """Sums the loss of some `clips` of calibration batch number `index` over their tokens."""

    def __call__(self, index: int, clips: Tensor, logits: Tensor, following: Tensor) -> Tensor:
        """
        Args:
            index, clips: Which clips.
            logits: Of what they expect next, [clips, positions, tokens].
            following: What comes next, [clips, positions]; `NOT_ASKED` where it does not count.
        """
        ...


def train_model(
    context: ModelContext,
    learnable: ModelLearnable,
    loss: TokenLoss,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    *,
    max_grad_norm: float,
    apart: bool,
) -> Reconstruction:
    """Train `learnable` and leave it at the best iterate that was evaluated, the start included.

    The rate of `optimizer` falls along a cosine. Losses are means over tokens.

    Args:
        context: The model and the calibration batches.
        learnable: Changed in place.
        loss: What is to become small.
        optimizer: Over all of the learnable's parameters.
        schedule: Steps, evaluations, seed.
        max_grad_norm: Largest norm of all gradients together; longer ones are shortened to it.
        apart: Evaluate on clips that are not trained on.
    """
    evaluated, trained = chosen_clips(context.batches, apart=apart)
    before = best = _mean_loss(context, learnable, loss, evaluated)
    kept = copy.deepcopy(learnable.state_dict())
    measured, steps = schedule.evaluation_steps, schedule.iterations
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(schedule.seed)
    seconds = 0.0
    for done in range(1, steps + 1):
        began = time.perf_counter()
        index, clips = trained[int(torch.randint(len(trained), (1,), generator=generator))]
        order = clips[torch.randperm(len(clips), generator=generator)]
        optimizer.zero_grad()
        add_gradients(context, learnable, loss, index, order[: schedule.clips])
        torch.nn.utils.clip_grad_norm_(learnable.parameters(), max_grad_norm)
        optimizer.step()
        rates.step()
        seconds += time.perf_counter() - began
        context.on_step(done, steps)
        if done in measured:
            current = _mean_loss(context, learnable, loss, evaluated)
            if current < best:
                best, kept = current, copy.deepcopy(learnable.state_dict())
    learnable.load_state_dict(kept)
    return Reconstruction(before, best, steps, seconds)


Chosen = list[tuple[int, Tensor]]


def chosen_clips(batches: Sequence[Batch], *, apart: bool) -> tuple[Chosen, Chosen]:
    """Every batch's number and those of its clips that evaluations look at, and that steps do.

    `apart`: a quarter of the clips with a transcript for evaluations, the others for steps, which
    are none where there is only one. Otherwise steps look at all clips.
    """
    masks = [batch.token_mask for batch in batches]
    if not apart:
        every = [(index, torch.arange(len(mask))) for index, mask in enumerate(masks)]
        return evenly_spread(masks, EVALUATED_CLIPS), every
    transcribed = sum(int(mask.any(1).sum()) for mask in masks)
    evaluated = evenly_spread(masks, min(EVALUATED_CLIPS, max(1, transcribed // 4)))
    taken = dict(evaluated)
    trained = []
    for index, mask in enumerate(masks):
        own = mask.any(1).cpu()
        if index in taken:
            own[taken[index]] = False
        if bool(own.any()):
            trained.append((index, own.nonzero().flatten()))
    return evaluated, trained


def add_gradients(
    context: ModelContext, learnable: ModelLearnable, loss: TokenLoss, index: int, clips: Tensor
) -> None:
    """Add to `learnable` the gradients of the mean loss of some of a batch's clips.

    Its tensors are made once; the clips pass through them a few at a time.
    """
    with torch.enable_grad():
        made = learnable.tensors()
        leaves = {
            path: value.detach().requires_grad_() if value.requires_grad else value
            for path, value in made.items()
        }
        tokens = 0
        for part in few_at_once(context.batches[index], clips):
            total, count = _summed_loss(context, leaves, loss, index, part)
            total.backward()
            tokens += count
        gradients = {path: leaf.grad for path, leaf in leaves.items() if leaf.grad is not None}
        torch.autograd.backward(
            [made[path] for path in gradients],
            [gradient / max(tokens, 1) for gradient in gradients.values()],
        )


@torch.no_grad()
def _mean_loss(
    context: ModelContext, learnable: ModelLearnable, loss: TokenLoss, evaluated: Chosen
) -> float:
    """The loss a token over the clips that evaluations look at."""
    tensors = learnable.tensors()
    total, tokens = 0.0, 0
    for index, clips in evaluated:
        for part in few_at_once(context.batches[index], clips):
            found, count = _summed_loss(context, tensors, loss, index, part)
            total, tokens = total + float(found), tokens + count
    return total / max(tokens, 1)


def _summed_loss(
    context: ModelContext, tensors: dict[str, Tensor], loss: TokenLoss, index: int, clips: Tensor
) -> tuple[Tensor, int]:
    """The loss of some of a batch's clips, and the number of tokens it is of.

    The token that ends a transcript counts; the prompt, which is forced in decoding, does not.
    """
    batch, model = context.batches[index], context.model
    inputs = model_inputs(batch, clips, model.device)
    logits = functional_call(model, tensors, (), inputs | {"use_cache": False}).logits
    prompt = len(context.architecture.prompt(model))
    valid = batch.token_mask[clips].to(model.device)
    following = next_tokens(inputs["decoder_input_ids"], valid, prompt, min(end_tokens(model)))
    return loss(index, clips, logits, following), int((following != NOT_ASKED).sum())


def model_inputs(batch: Batch, clips: Tensor, device: torch.device) -> dict[str, Tensor]:
    """What the model reads of some of a batch's clips and their transcripts."""
    inputs = {name: value[clips].to(device) for name, value in batch.encoder_inputs.items()}
    return inputs | {"decoder_input_ids": batch.decoder_input_ids[clips].to(device)}


def few_at_once(batch: Batch, clips: Tensor) -> Iterator[Tensor]:
    """`clips` of the batch, as many together as have `FRAMES_AT_ONCE` frames."""
    yield from clips.split(max(1, FRAMES_AT_ONCE // batch.frame_weights.shape[1]))


def next_tokens(tokens: Tensor, valid: Tensor, prompt: int, end: int) -> Tensor:
    """What follows every position of `tokens` [batch, positions], or `NOT_ASKED`.

    `valid` marks tokens that are no padding, which comes last; the first `prompt` are given.
    """
    following = torch.full_like(tokens, end)
    following[:, :-1] = torch.where(valid[:, 1:], tokens[:, 1:], end)
    following[~valid] = NOT_ASKED
    following[:, : prompt - 1] = NOT_ASKED
    return following
