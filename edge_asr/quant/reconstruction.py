"""The one training loop of every learned part: make a quantized block answer as the float one.

A part supplies a `Learnable`: trainable parameters and the weights they stand for. The loop
minimises the masked squared distance between the block's output under those weights, on the
inputs of the quantized prefix, and the float model's output of the same block (asymmetric
block reconstruction: Nagel et al. 2020, arXiv:2004.10568, section 3.4; Li et al. 2021,
arXiv:2102.05426, section 3.2).
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edge_asr.errors import UserError
from edge_asr.quant.work import BlockWork, Reconstruction


@dataclass(frozen=True)
class Schedule:
    """How long and in which order a block is trained.

    Attributes:
        iterations: Optimizer steps, one calibration batch each.
        evaluations: How often, evenly spread, the rounded block is measured on all batches.
        patience: Evaluations without a better one before training stops, or None.
        seed: Seed of the order of the batches.
    """

    iterations: int
    evaluations: int = 10
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "evaluations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed={self.seed}: must be from 0 to 2^63 - 1")
        if self.patience is not None and self.patience < 1:
            raise UserError(f"patience={self.patience}: must be at least 1, or null")

    @property
    def evaluation_steps(self) -> frozenset[int]:
        """Steps, counted from 1, after which the block is measured; the last is among them."""
        count = min(self.evaluations, self.iterations)
        return frozenset(
            math.ceil(self.iterations * number / count) for number in range(1, count + 1)
        )


class Trainable(nn.Module):
    """Parameters that are trained the way their paper trains them."""

    @abstractmethod
    def optimizers(self, iterations: int) -> list[torch.optim.Optimizer]:
        """Optimizers over all trainable parameters."""

    def penalty(self, progress: float) -> Tensor | float:
        """What is added to the loss at `progress` (0 to 1) through the schedule."""
        del progress
        return 0.0

    def after_step(self, step: int, iterations: int) -> None:
        """Called after optimizer step number `step` (from 1): clamp, harden, decay rates."""


class Learnable(Trainable):
    """Trainable parameters of one block and the weights they stand for.

    `state_dict` must hold everything that training changes, so that the best iterate can be
    kept and brought back.
    """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The block's changed parameters by path, differentiable, as training sees them."""

    def stored_tensors(self) -> dict[str, Tensor]:
        """The same as they would be stored now, every weight on its grid."""
        return self.tensors()


class BlockLoss:
    """The reconstruction loss of a block under replaced parameters."""

    def __init__(self, work: BlockWork) -> None:
        if len(work.targets) != len(work.calls):
            raise ValueError("the block has no float outputs to learn from")
        self.work = work
        self._relative = {id(value): name for name, value in work.module.named_parameters()}
        self._fixed = {name: value.detach() for name, value in work.module.named_parameters()}
        self.rows = [int(mask.sum()) for mask in work.masks]

    def of_batch(self, index: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """Squared distance to the float output, summed over channels, mean over valid rows."""
        replaced = self._fixed | {
            self._relative[id(self.work.model.get_parameter(path))]: value
            for path, value in tensors.items()
        }
        call = self.work.calls[index]
        output = call.run(
            lambda *args, **kwargs: functional_call(self.work.module, replaced, args, kwargs)
        )
        mask = self.work.masks[index]
        distance = (output - self.work.targets[index]).square().sum(-1)
        return (distance * mask).sum() / max(self.rows[index], 1)

    @torch.no_grad()
    def over_all(self, tensors: Mapping[str, Tensor]) -> float:
        """The loss over all batches, every valid row counted once."""
        total = sum(
            float(self.of_batch(index, tensors)) * rows for index, rows in enumerate(self.rows)
        )
        return total / max(sum(self.rows), 1)


def reconstruct(
    work: BlockWork,
    learnable: Learnable,
    schedule: Schedule,
    on_evaluation: Callable[[int, float], None] = lambda *_: None,
) -> Reconstruction:
    """Train `learnable` on the block, leave it at its best iterate, note the losses in `work`.

    The starting point counts as an iterate, so the loss never ends above where it began.

    Args:
        work: The block, with targets.
        learnable: Changed in place.
        schedule: Steps, evaluations, seed.
        on_evaluation: Called with (step, loss) after every evaluation.
    """
    result = _train(work, learnable, schedule, on_evaluation)
    work.reconstructions.append(result)
    return result


def _train(
    work: BlockWork,
    learnable: Learnable,
    schedule: Schedule,
    on_evaluation: Callable[[int, float], None],
) -> Reconstruction:
    loss = BlockLoss(work)
    before = best = loss.over_all(learnable.stored_tensors())
    kept = copy.deepcopy(learnable.state_dict())
    if not any(loss.rows):
        return Reconstruction(before, before, 0)
    optimizers = learnable.optimizers(schedule.iterations)
    batches = _batch_order(loss.rows, schedule.seed)
    measured = schedule.evaluation_steps
    waited = step = 0
    for step in range(1, schedule.iterations + 1):
        with torch.enable_grad():
            total = loss.of_batch(next(batches), learnable.tensors())
            total = total + learnable.penalty((step - 1) / schedule.iterations)
        for optimizer in optimizers:
            optimizer.zero_grad()
        total.backward()
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            learnable.after_step(step, schedule.iterations)
        if step in measured:
            current = loss.over_all(learnable.stored_tensors())
            on_evaluation(step, current)
            waited = 0 if current < best else waited + 1
            if current < best:
                best, kept = current, copy.deepcopy(learnable.state_dict())
            if schedule.patience is not None and waited >= schedule.patience:
                break
    learnable.load_state_dict(kept)
    return Reconstruction(before, best, step)


def _batch_order(rows: list[int], seed: int) -> Iterator[int]:
    """All batches with a valid row, shuffled anew in every round, without end."""
    generator = torch.Generator().manual_seed(seed)
    usable = torch.tensor([index for index, count in enumerate(rows) if count])
    while True:
        for position in torch.randperm(len(usable), generator=generator):
            yield int(usable[position])
