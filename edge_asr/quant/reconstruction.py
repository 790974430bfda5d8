"""The one training loop of every learned part: make a quantized block answer as the float one.

A part supplies a `Learnable`: trainable parameters and the weights they stand for. The loop
minimises the weighted squared distance between the block's output under those weights, on the
inputs of the quantized prefix, and the float model's output of the same block (asymmetric
block reconstruction: Nagel et al. 2020, arXiv:2004.10568, section 3.4; Li et al. 2021,
arXiv:2102.05426, section 3.2).
"""

from __future__ import annotations

import copy
import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from edge_asr.quant.context import BlockContext, Reconstruction
from edge_asr.settings import Checked, Count, Iterations, ScheduleName, Seed

# Clips, evenly spread over all, that an evaluation of a block looks at.
EVALUATED_CLIPS = 16


@dataclass(frozen=True)
class Length:
    """What the name of a schedule stands for: see the settings of these names in `Scheduled`."""

    iterations: int
    clips: int
    patience: int | None = None


@dataclass(frozen=True)
class Schedule:
    """How long and in which order a block is trained.

    Attributes:
        iterations: Optimizer steps.
        clips: Calibration clips a step, drawn from one calibration batch; None for all of it.
        evaluations: How often, evenly spread, the rounded block is measured.
        patience: Evaluations without a better one before training stops, or None.
        seed: Seed of the order of the clips.
        aug_loss: A step also counts the distance to what the float block makes of the same inputs,
            those that the quantized blocks before it give (OmniQuant's authors' code, option of the
            same name). Evaluations, and so the best iterate, do not count it.
    """

    iterations: int
    clips: int | None = None
    evaluations: int = 10
    patience: int | None = None
    seed: int = 0
    aug_loss: bool = False

    @property
    def evaluation_steps(self) -> frozenset[int]:
        """Steps, counted from 1, after which the block is measured; the last is among them."""
        count = min(self.evaluations, self.iterations)
        return frozenset(
            math.ceil(self.iterations * number / count) for number in range(1, count + 1)
        )


@dataclass(frozen=True)
class Trained(Checked):
    """Settings that every part has which is trained.

    Those that the schedule's name stands for are null until one is made, and then what it says.

    Attributes:
        schedule: How long it trains: short, or paper for as long as its authors.
        iterations: Optimizer steps, of every block where blocks are trained, unless it stops
            early; null: by schedule.
        clips: Calibration clips a step, or batch for a whole calibration batch; null: by schedule.
        seed: Seed of the order of the calibration clips.
    """

    lengths: ClassVar[Mapping[ScheduleName, Length]]
    # 2: evaluations look at some clips, and schedules have names.
    version: ClassVar[int] = 2

    schedule: ScheduleName = "short"
    iterations: Iterations | None = None
    clips: Count | Literal["batch"] | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in vars(self.lengths[self.schedule]).items():
            if getattr(self, name, value) is None:
                object.__setattr__(self, name, value)

    @property
    def evaluations(self) -> int:
        """Evaluations of what is trained, evenly spread over its training."""
        return 10

    @property
    def training(self) -> Schedule:
        """How it is trained."""
        assert self.iterations is not None
        clips = None if self.clips == "batch" else self.clips
        return Schedule(self.iterations, clips, self.evaluations, seed=self.seed)


@dataclass(frozen=True)
class Scheduled(Trained):
    """Settings that every part has which is trained block by block.

    Attributes:
        patience: Of ten evaluations of a block, how many in a row may find no better loss before
            its training stops; ten for never; null: by schedule.
        aug_loss: Train also towards what the float block makes of the quantized blocks' outputs.
    """

    patience: Count | None = None
    aug_loss: bool = False

    @property
    def training(self) -> Schedule:
        return replace(super().training, patience=self.patience, aug_loss=self.aug_loss)


# OmniQuant's authors train 20 epochs of 128 samples (40 at 2 bits), one a step.
OMNIQUANT_LENGTHS: Mapping[ScheduleName, Length] = {
    "short": Length(300, clips=1, patience=5),
    "paper": Length(2560, clips=1),
}


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
    """The reconstruction loss of a block under replaced parameters.

    Evaluations look at `most` clips.
    """

    def __init__(self, context: BlockContext, most: int = EVALUATED_CLIPS) -> None:
        if len(context.targets) != len(context.calls):
            raise ValueError("the block has no float outputs to learn from")
        self.context = context
        self._block, self._calls = context.on_counted_rows
        self._relative = {id(value): name for name, value in self._block.named_parameters()}
        self._fixed = {name: value.detach() for name, value in self._block.named_parameters()}
        self._evaluated = evenly_spread(context.row_weights, most)

    def of_step(
        self,
        tensors: Mapping[str, Tensor],
        index: int,
        clips: Tensor | None = None,
        usual_rows: float | None = None,
        *,
        aug_loss: bool = False,
    ) -> Tensor:
        """Squared distance to the float output, summed over channels, weighted mean over rows.

        Args:
            tensors: The block's changed parameters by path.
            index: Number of the batch.
            clips: Numbers of clips of the batch, where not all of them are meant.
            usual_rows: Divides the sum instead of the rows' own weight, so that every row weighs
                the same in training however long the clips of a step are.
            aug_loss: Add the distance to the float block's output on the same inputs.
        """
        replaced = self._fixed | {
            self._relative[id(self.context.model.get_parameter(path))]: value
            for path, value in tensors.items()
        }
        call, weights = self._calls[index], self.context.row_weights[index]
        if clips is not None:
            clips = clips.to(weights.device)
            call, weights = call.select(clips), weights[clips]
        output = call.run(
            lambda *args, **kwargs: functional_call(self._block, replaced, args, kwargs)
        )
        rows = self.context.output_rows(weights)
        distance = (output - self.context.targets.of(index, clips)[:, rows]).square().sum(-1)
        if aug_loss:
            # Nothing is put into the block before training ends: it still is the float one.
            with torch.no_grad(), self.context.float_inputs():
                own = call.run(self._block)
            distance = distance + (output - own).square().sum(-1)
        total = usual_rows if usual_rows is not None else weights.sum().clamp(min=1)
        return (distance * weights[:, rows]).sum() / total

    @torch.no_grad()
    def evaluated(self, tensors: Mapping[str, Tensor]) -> float:
        """The loss over all clips, or `EVALUATED_CLIPS` of them, every row counted by its weight.

        They are the same ones at every call.
        """
        total = rows = 0.0
        for index, clips in self._evaluated:
            for part in self._calls[index].select(clips).parts():
                total += float(self.of_step(tensors, index, clips[part], 1.0))
            rows += float(self.context.row_weights[index][clips].sum())
        return total / (rows or 1)


def reconstruct(context: BlockContext, learnable: Learnable, schedule: Schedule) -> Reconstruction:
    """Train `learnable` on the block, leave it at its best iterate, note the losses in `context`.

    The starting point counts as an iterate, so the loss never ends above where it began.
    `context.on_evaluation` is called after every evaluation.

    Args:
        context: The block, with targets.
        learnable: Changed in place.
        schedule: Steps, evaluations, seed.
    """
    with context.clock.phase("training"):
        result = _train(context, learnable, schedule)
    context.reconstructions.append(result)
    if not result.loss_after < result.loss_before:
        context.warnings.append(
            f"{context.block.module}: {result.iterations} steps of training did not lower its loss "
            f"of {result.loss_before:.3g}; it stays where they started"
        )
    return result


def _train(context: BlockContext, learnable: Learnable, schedule: Schedule) -> Reconstruction:
    with torch.enable_grad():
        tensors = learnable.tensors()
    trained = [path for path, value in tensors.items() if value.requires_grad]
    del tensors
    with thread_independent_norms(context.module, map(context.model.get_parameter, trained)):
        return _best_iterate(context, learnable, schedule)


@contextmanager
def thread_independent_norms(block: nn.Module, trained: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside the context, gradients of scales and biases of LayerNorms in `block` that are among
    the parameters `trained` do not depend on the number of threads.

    PyTorch's own backward on a processor sums them in as many parts as there are threads, and
    training at 2 bits makes another model of that. Here the affine part is one of its own.
    """

    def apart(norm: nn.LayerNorm, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        del output
        values = functional.layer_norm(args[0], norm.normalized_shape, eps=norm.eps)
        if norm.weight is not None:
            values = values * norm.weight
        return values if norm.bias is None else values + norm.bias

    chosen = set(map(id, trained))
    with ExitStack() as hooks:
        for module in block.modules():
            if isinstance(module, nn.LayerNorm) and id(module.weight) in chosen:
                hooks.enter_context(module.register_forward_hook(apart))
        yield


def _best_iterate(
    context: BlockContext, learnable: Learnable, schedule: Schedule
) -> Reconstruction:
    loss = BlockLoss(context)
    before = best = loss.evaluated(learnable.stored_tensors())
    kept = copy.deepcopy(learnable.state_dict())
    if not any(bool(weights.any()) for weights in context.row_weights):
        return Reconstruction(before, before, 0)
    optimizers = learnable.optimizers(schedule.iterations)
    order = _clip_order(context.row_weights, schedule)
    usual_rows = _usual_rows(context.row_weights, schedule)
    measured = schedule.evaluation_steps
    waited = step = 0
    seconds = 0.0
    for step in range(1, schedule.iterations + 1):
        began = time.perf_counter()
        index, clips = next(order)
        with torch.enable_grad():
            total = loss.of_step(
                learnable.tensors(), index, clips, usual_rows, aug_loss=schedule.aug_loss
            )
            total = total + learnable.penalty((step - 1) / schedule.iterations)
        for optimizer in optimizers:
            optimizer.zero_grad()
        total.backward()
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            learnable.after_step(step, schedule.iterations)
        seconds += time.perf_counter() - began
        if step in measured:
            current = loss.evaluated(learnable.stored_tensors())
            context.on_evaluation(step, schedule.iterations, current)
            waited = 0 if current < best else waited + 1
            if current < best:
                best, kept = current, copy.deepcopy(learnable.state_dict())
            if schedule.patience is not None and waited >= schedule.patience:
                break
    learnable.load_state_dict(kept)
    return Reconstruction(before, best, step, seconds)


Step = tuple[int, Tensor | None]


def _clip_order(row_weights: Sequence[Tensor], schedule: Schedule) -> Iterator[Step]:
    """A batch's number and the numbers of some of its clips (None: all), without end.

    Every clip with a row that counts comes once in every round, in an order shuffled anew.
    """
    generator = torch.Generator().manual_seed(schedule.seed)
    while True:
        steps = _one_round(row_weights, schedule.clips, generator)
        for position in torch.randperm(len(steps), generator=generator):
            yield steps[int(position)]


def _one_round(
    row_weights: Sequence[Tensor], count: int | None, generator: torch.Generator
) -> list[Step]:
    """Every batch's clips with a row that counts, shuffled and `count` a step."""
    steps: list[Step] = []
    for index, weights in enumerate(row_weights):
        transcribed = weights.any(1).nonzero().flatten().cpu()
        if count is None or count >= len(weights):
            steps += [(index, None)] * bool(len(transcribed))
            continue
        shuffled = transcribed[torch.randperm(len(transcribed), generator=generator)]
        steps += [(index, part) for part in shuffled.split(count) if len(part)]
    return steps


def evenly_spread(row_weights: Sequence[Tensor], most: int) -> list[tuple[int, Tensor]]:
    """Every batch's number and those of its clips, at most so many in all, that have rows."""
    clips = [
        (index, int(clip))
        for index, weights in enumerate(row_weights)
        for clip in weights.any(1).nonzero().flatten()
    ]
    chosen: dict[int, list[int]] = {}
    for index, clip in clips[:: max(1, math.ceil(len(clips) / most))]:
        chosen.setdefault(index, []).append(clip)
    return [(index, torch.tensor(some)) for index, some in chosen.items()]


def _usual_rows(row_weights: Sequence[Tensor], schedule: Schedule) -> float:
    """Rows a step, counted by their weights, the mean over a round of `_clip_order`."""
    steps = _one_round(row_weights, schedule.clips, torch.Generator())
    return sum(float(weights.sum()) for weights in row_weights) / max(len(steps), 1)
