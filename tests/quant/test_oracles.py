"""Learned parts against their papers' formulas, written out once more on one small problem.

Everything is in float64. Oracles share no kernel with the parts: gradients are autograd's through
the straight-through estimator below, optimizer steps are written out.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_asr.calibration.capture import Call, KeptOutputs
from edge_asr.models.families.base import Block, Site
from edge_asr.quant.formats import Grid, TensorFormat
from edge_asr.quant.layers import install_layers
from edge_asr.quant.range.lwc import LearnedWeightClipping
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.reconstruction import Learnable, Scheduled, reconstruct
from edge_asr.quant.rounding.adaround import AdaRound
from edge_asr.quant.rounding.signround import SignRound
from edge_asr.quant.rounding.tesseraq import TesseraQ
from edge_asr.quant.soft import LayerStart, RewrittenBlock, RoundedBlock
from edge_asr.quant.transform.cayley import CayleySGD
from edge_asr.quant.transform.let import LearnedEquivalentTransformation
from edge_asr.quant.weight import QuantizedWeight, round_nearest
from edge_asr.quant.work import BlockWork, Reconstruction

HIGHEST, GROUP = 7, 8
GRID = Grid(3, granularity="group", group_size=GROUP, half_scales=False)
Path = list[dict[str, Tensor]]
Encoded = tuple[Tensor, Tensor, Tensor]  # codes, scale h, zero point z
Factor = Tensor | float


def variable(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def through(values: Tensor) -> Tensor:
    """Rounded values with the gradient of the identity."""
    return values + (values.round() - values).detach()


def spread(groups: Tensor) -> Tensor:
    """One value [rows, groups] a group, for each of its columns; one alone broadcasts."""
    return groups if groups.numel() == 1 else groups.repeat_interleave(GROUP, 1)


def encoded(
    weight: Tensor, beta: Factor = 1.0, alpha: Factor = 1.0, offset: Factor = 0.0,
    *, whole: bool = False, zero: Callable[[Tensor], Tensor] = torch.round,
) -> Encoded:  # fmt: skip
    """Codes clamp(round(W / h + V) + z, 0, 2^N - 1), h = (alpha max W - beta min W) / (2^N - 1)
    and z = round(-beta min W / h), of every group or of the whole weight."""
    groups = weight.reshape(1, 1, -1) if whole else weight.unflatten(1, (-1, GROUP))
    low, high = beta * groups.amin(2), alpha * groups.amax(2)
    scale = (high - low) / HIGHEST
    point = zero(-low / scale)
    codes = through(weight / spread(scale) + offset) + spread(point)
    return codes.clamp(0, HIGHEST), scale, point


def values_of(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return spread(scale) * (codes - spread(zero))


def rectified(logits: Tensor) -> Tensor:
    """AdaRound, eq. 23."""
    return (logits.sigmoid() * 1.2 - 0.1).clamp(0, 1)


def softened(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Min-max scale and zero point, lower codes and logits of the way up to `weight` itself."""
    _, scale, zero = encoded(weight)
    exact = weight / spread(scale)
    up = (exact - exact.floor() + 0.1) / 1.2
    return scale, zero, exact.floor() + spread(zero), variable((up / (1 - up)).log())


class Adam:
    """Kingma and Ba 2014 (arXiv:1412.6980), algorithm 1; decay is a part of the gradient."""

    def __init__(self, values: Sequence[Tensor], rate: float, decay: float = 0.0) -> None:
        self.values, self.rate, self.decay, self.steps = list(values), rate, decay, 0
        self.moments = [[torch.zeros_like(value), torch.zeros_like(value)] for value in values]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        self.steps += 1
        for value, slope, moment in zip(self.values, gradients, self.moments, strict=True):
            gradient = slope + self.decay * value if self.decay else slope
            moment[0] = 0.9 * moment[0] + 0.1 * gradient
            moment[1] = 0.999 * moment[1] + 0.001 * gradient**2
            mean, square = moment[0] / (1 - 0.9**self.steps), moment[1] / (1 - 0.999**self.steps)
            value -= self.rate * mean / (square.sqrt() + 1e-8)


def descend(loss: Callable[[int], Tensor], steps: int, *adams: Adam) -> list[list[Tensor]]:
    """Take `steps`; where every step left every value: one list a value."""
    values = [value for adam in adams for value in adam.values]
    own: list[list[Tensor]] = [[] for _ in values]
    for step in range(steps):
        slopes = iter(torch.autograd.grad(loss(step), values))
        for adam in adams:
            adam.step([next(slopes) for _ in adam.values])
        for trail, value in zip(own, values, strict=True):
            trail.append(value.detach().clone())
    return own


@dataclass(frozen=True)
class Problem:
    """A Linear 16 -> 12 that reads noisy rows and is to answer as on the clean ones."""

    weight: Tensor
    bias: Tensor
    inputs: Tensor
    targets: Tensor
    mask: Tensor

    def loss(self, weight: Tensor) -> Tensor:
        return self.distance(self.inputs @ weight.T + self.bias)

    def distance(self, outputs: Tensor) -> Tensor:
        return (outputs - self.targets)[self.mask].square().sum(1).mean()

    @property
    def work(self) -> BlockWork:
        block = nn.Sequential(OrderedDict(fc=nn.Linear(16, 12, dtype=torch.float64)))
        block.load_state_dict({"fc.weight": self.weight, "fc.bias": self.bias})
        return bench(block, Site("fc1", "encoder", ("fc",), None, "frame"), self)


def bench(block: nn.Module, site: Site, problem: Problem, grid: Grid = GRID) -> BlockWork:
    install_layers(block, site.layers)
    architecture = SimpleNamespace(tied_logit_channels=1, on_leading_rows=lambda *_: None)
    return BlockWork(
        cast(Any, block), cast(Any, architecture), Block("block", "encoder", (site,)), block,
        [Call((problem.inputs,), {})], [problem.mask],
        dict.fromkeys(site.layers, TensorFormat(grid)), KeptOutputs([problem.targets]),
    )  # fmt: skip


@pytest.fixture
def problem() -> Problem:
    draw = torch.Generator().manual_seed(0)
    weight, bias, mixing, clean, noise = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in [(12, 16), (12,), (16, 16), (2, 20, 16), (2, 20, 16)]
    )
    clean = clean @ mixing / 4
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 13:] = False
    return Problem(weight, bias, clean + 0.1 * noise, clean @ weight.T + bias, mask)


def trained(
    work: BlockWork, block: Learnable, part: Scheduled, evaluations: int = 1
) -> tuple[Reconstruction, Path]:
    """Train `block`; also its parameters right behind every optimizer step."""
    path: Path = []
    after_step = block.after_step

    def record(step: int, iterations: int) -> None:
        path.append({name: value.detach().clone() for name, value in block.named_parameters()})
        after_step(step, iterations)

    block.after_step = record  # type: ignore[method-assign]
    return reconstruct(work, block, replace(part.schedule, evaluations=evaluations)), path


def rounded(problem: Problem, part: Any, evaluations: int = 1) -> tuple[Any, Reconstruction, Path]:
    """Train the rounding of the problem's weight, behind min-max ranges."""
    start = LayerStart(problem.weight, minmax_parameters(problem.weight, GRID), GRID)
    soft = part.soft_rounding({"fc": start})
    block = RoundedBlock(soft, {"fc": None})
    return soft, *trained(problem.work, block, part, evaluations)


def close(path: Path, names: Sequence[str], own: Sequence[Sequence[Tensor]]) -> None:
    """Whether the parameters `names` went the oracle's way, and went somewhere."""
    for name, trail in zip(names, own, strict=True):
        for theirs, ours in zip(path, trail, strict=True):
            torch.testing.assert_close(theirs[name], ours, rtol=1e-8, atol=1e-9)
        assert float((trail[-1] - trail[0]).abs().max()) > 1e-2, name


def stored(weight: QuantizedWeight, codes: Tensor, scale: Tensor, zero: Tensor) -> None:
    """Whether `weight` is the oracle's."""
    assert torch.equal(weight.codes.double(), codes.detach().round())
    torch.testing.assert_close((weight.parameters.scale, weight.parameters.zero), (scale, zero))


def lowered(result: Reconstruction, own: Tensor) -> None:
    """Whether the last iterate was kept, with the oracle's loss."""
    assert result.loss_before > result.loss_after == pytest.approx(own.item())


def test_adaround(problem: Problem) -> None:
    """Eq. 21 to 25 of arXiv:2004.10568; beta and its warm-up as BRECQ's code has them."""
    steps, rate, regularization = 50, 0.03, 0.02
    scale, zero, down, logits = softened(problem.weight)

    def loss(step: int) -> Tensor:
        up = rectified(logits)
        total = problem.loss(values_of((down + up).clamp(0, HIGHEST), scale, zero))
        if step < 0.2 * steps:
            return total
        beta = 20 - 18 * (step - 0.2 * steps) / (0.8 * steps)
        return total + regularization * (1 - (2 * up - 1).abs() ** beta).sum()

    own = descend(loss, steps, Adam([logits], rate))
    part = AdaRound(iterations=steps, clips=None, learning_rate=rate, regularization=regularization)
    soft, result, path = rounded(problem, part)
    close(path, ["rounding.logits.0"], own)
    codes = (down + (rectified(logits) >= 0.5)).clamp(0, HIGHEST)
    stored(soft.quantized("fc"), codes, scale, zero)
    lowered(result, problem.loss(values_of(codes, scale, zero)))


def test_tesseraq(problem: Problem) -> None:
    """Eq. 5 to 8 of arXiv:2410.19103: a rising share of codes becomes hard, every time those
    farthest from 1/2; scales s 2 sigma(v). As in the authors' code (LLMC) both sigma are AdaRound's
    rectified one, hard logits infinite, and every stretch has an Adam of its own."""
    shares, length, rate, scale_rate, decay = (0.5, 0.25), 20, 0.02, 0.01, 0.1
    scale, zero, down, logits = softened(problem.weight)
    factor = variable(torch.zeros_like(scale))
    trails: list[Any] = []

    def loss(codes: Tensor) -> Tensor:
        return problem.loss(values_of(codes.clamp(0, HIGHEST), scale * 2 * rectified(factor), zero))

    for share in shares:
        with torch.no_grad():
            up = rectified(logits)
            border = float(np.quantile((up - 0.5).abs().numpy(), share))
            logits[up > 0.5 + border] = torch.inf
            logits[up < 0.5 - border] = -torch.inf
            assert int(logits.isfinite().sum()) == share * logits.numel()
        adams = Adam([logits], rate), Adam([factor], scale_rate, decay)
        trails += zip(*descend(lambda _: loss(down + rectified(logits)), length, *adams))
    part = TesseraQ(
        iterations=length * len(shares), clips=None, soft_shares=shares, learning_rate=rate,
        scale_learning_rate=scale_rate, scale_weight_decay=decay,
    )  # fmt: skip
    soft, result, path = rounded(problem, part)
    own = [one.clamp(-1e4, 1e4) for one, _ in trails], [one for _, one in trails]
    close(path, ["rounding.logits.0", "rounding.scale_logits.0"], own)
    codes = (down + (logits >= 0)).clamp(0, HIGHEST)
    stored(soft.quantized("fc"), codes, (scale * 2 * rectified(factor)).detach(), zero)
    lowered(result, loss(codes))


@pytest.mark.parametrize("rate", [None, 0.1], ids=["1/steps", "0.1"])
def test_signround(problem: Problem, rate: float | None) -> None:
    """Eq. 3 to 6 and algorithm 1 of arXiv:2309.05516; the best of all iterates is kept."""
    steps, weight = 30, problem.weight
    offset = variable(torch.zeros_like(weight))
    alpha, beta = (variable(torch.ones(12, 2, dtype=torch.float64)) for _ in range(2))
    values = [offset, alpha, beta]

    def quantized() -> Encoded:
        return encoded(weight, beta, alpha, offset, zero=through)

    def loss() -> Tensor:
        return problem.loss(values_of(*quantized()))

    first = best = loss().item()
    kept, own = copy.deepcopy(values), []
    for step in range(steps):
        slopes = torch.autograd.grad(loss(), values)
        with torch.no_grad():
            for value, slope in zip(values, slopes, strict=True):
                value -= (rate or 1 / steps) * (1 - step / steps) * torch.sign(slope)
            own.append([value.detach().clone() for value in values])
            offset.clamp_(-0.5, 0.5)
            alpha.clamp_(0, 1)
            beta.clamp_(0, 1)
        if loss().item() < best:
            best, kept = loss().item(), copy.deepcopy(values)
    part = SignRound(iterations=steps, clips=None, learning_rate=rate)
    soft, result, path = rounded(problem, part, evaluations=steps)
    names = [f"rounding.{one}.0" for one in ("offset", "high", "low")]
    close(path, names, list(zip(*own, strict=True)))
    offset, alpha, beta = kept
    stored(soft.quantized("fc"), *quantized())
    assert (result.loss_before, result.loss_after) == pytest.approx((first, best))
    assert best < 0.9 * first


def test_lwc(problem: Problem) -> None:
    """Eq. 2 of arXiv:2308.13137: both factors behind a sigmoid, no gradient through the rounding
    of z (the authors' code); AdamW without decay is Adam."""
    steps, rate = 30, 0.05
    low, high = (variable(torch.full((12, 2), 4.0, dtype=torch.float64)) for _ in range(2))

    def clipped() -> Encoded:
        return encoded(problem.weight, low.sigmoid(), high.sigmoid())

    def loss() -> Tensor:
        return problem.loss(values_of(*clipped()))

    own = descend(lambda _: loss(), steps, Adam([low, high], rate))
    work, part = problem.work, LearnedWeightClipping(steps, clips=None, learning_rate=rate)
    ranges = part.soft_range(work)
    result, path = trained(work, RewrittenBlock(work, None, ranges), part)
    close(path, ["ranges.low.0", "ranges.high.0"], own)
    parameters = ranges.parameters_of("fc", problem.weight)
    stored(round_nearest(problem.weight, parameters, GRID), *clipped())
    lowered(result, loss())


class Attention(nn.Module):
    """A norm, and one head of attention without scaling on what it gives."""

    def __init__(self, draw: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.q, self.k, self.v = (nn.Linear(16, 12) for _ in range(3))
        self.double()
        with torch.no_grad():
            for value in self.parameters():
                value.normal_(0, 0.3, generator=draw)
            self.norm.weight.exp_()

    def forward(self, states: Tensor) -> Tensor:
        rows = self.norm(states)
        return (self.q(rows) @ self.k(rows).mT).softmax(-1) @ self.v(rows)


def test_let(problem: Problem) -> None:
    """Eq. 3 to 5 of arXiv:2308.13137, with eq. 2's ranges trained beside them, as in its eq. 1.

    The oracle moves activations, (X - delta) / s, where the part moves the norm. Starts: delta of
    Outlier Suppression+, s of SmoothQuant. One range a tensor: those of rows and groups follow
    their row, and then the queries' and keys' s_a, which scale rows, have no gradient.
    """
    steps, rate, range_rate = 20, 0.02, 0.05
    grid = Grid(3, granularity="tensor", half_scales=False)
    module = Attention(torch.Generator().manual_seed(1))
    weights = {name: value.detach().clone() for name, value in module.named_parameters()}
    with torch.no_grad():
        targets, rows = module(problem.inputs), module.norm(problem.inputs)
    problem = replace(problem, targets=targets)
    site = Site("qkv", "encoder", ("q", "k", "v"), "norm", "frame", logit_layers=("q", "k"))
    work = bench(module, site, problem, grid)
    part = LearnedEquivalentTransformation(steps, clips=None, learning_rate=rate)
    transform = cast(Any, part.soft_transform(work).double())  # statistics are in float32
    starts = transform.scale["0"], transform.shift["0"], transform.logit_scale["0"]
    scale, shift, logit = map(variable, starts)
    valid, stacked = rows[problem.mask], torch.cat([weights[f"{one}.weight"] for one in "qkv"])
    middle = (valid.amax(0) + valid.amin(0)) / 2
    smooth = ((valid - middle).abs().amax(0) / stacked.abs().amax(0)) ** 0.5
    for value, start in ((shift, middle), (scale, smooth), (logit, torch.ones_like(logit))):
        torch.testing.assert_close(value.detach(), start, rtol=1e-6, atol=1e-6)
    logits = [variable(torch.full((1, 1), 4.0, dtype=torch.float64)) for _ in range(6)]

    def moved(index: int) -> tuple[Tensor, Tensor]:
        ratio = (1 / logit, logit, torch.ones_like(logit))[index]
        weight, bias = (weights[f"{'qkv'[index]}.{one}"] for one in ("weight", "bias"))
        return ratio[:, None] * weight * scale, ratio * (bias + weight @ shift)

    def clipped(index: int) -> Encoded:
        factors = logits[index].sigmoid(), logits[3 + index].sigmoid()
        return encoded(moved(index)[0], *factors, whole=True)

    def loss() -> Tensor:
        query, key, value = (
            (rows - shift) / scale @ values_of(*clipped(index)).T + moved(index)[1]
            for index in range(3)
        )
        return problem.distance(torch.softmax(query @ key.mT, -1) @ value)

    adams = Adam([scale, shift, logit], rate), Adam(logits, range_rate)
    own = descend(lambda _: loss(), steps, *adams)
    ranges = LearnedWeightClipping(steps, clips=None, learning_rate=range_rate).soft_range(work)
    block = RewrittenBlock(work, transform, ranges)
    result, path = trained(work, block, part)
    names = [f"transform.{one}.0" for one in ("scale", "shift", "logit_scale")]
    names += [f"ranges.{end}.{index}" for end in ("low", "high") for index in range(3)]
    close(path, names, own)
    for index, name in enumerate("qkv"):
        weight = block.rewritten()[f"{name}.weight"]
        nearest = round_nearest(weight, ranges.parameters_of(name, weight), grid)
        stored(nearest, *clipped(index))
    lowered(result, loss())


@pytest.mark.parametrize(("rate", "steps"), [(2e-4, 150), (1.5, 8)], ids=["free", "capped"])
def test_spinquant(problem: Problem, rate: float, steps: int) -> None:
    """Algorithm 1 of arXiv:2002.01113 without momentum, its linear equation solved exactly, on a
    rotation that shall make a weight round well (arXiv:2405.16406, section 3.2).

    Five fixed-point iterations from X - a A X leave at most |a A / 2|^6 of a step's way.
    """
    matrix = nn.Parameter(torch.linalg.qr(problem.inputs[0, :16])[0])
    optimizer = CayleySGD([matrix], lr=rate)
    one, own, caps = torch.eye(16, dtype=torch.float64), matrix.detach().clone(), set()

    def loss(rotation: Tensor) -> Tensor:
        return problem.loss(values_of(*encoded(problem.weight @ rotation)) @ rotation.T)

    def solved(start: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        hat = gradient @ start.T - start @ (start.T @ gradient @ start.T) / 2
        skew = hat - hat.T
        length = min(rate, 2 * 0.5 / (float(skew.abs().sum(0).max()) + 1e-8))
        caps.add(length < rate)
        half = length / 2 * skew
        return torch.linalg.solve(one + half, (one - half) @ start), half

    first = loss(matrix).item()
    for _ in range(steps):
        if rate > 1:  # where the five iterations leave the orthogonal matrices
            left, _, right = torch.linalg.svd(matrix.detach())
            matrix.data.copy_(left @ right)
        before = matrix.detach().clone()
        matrix.grad = torch.autograd.grad(loss(matrix), matrix)[0]
        exact, half = solved(before, matrix.grad)
        optimizer.step()
        allowed = torch.linalg.matrix_norm(half, 2) ** 6 * torch.linalg.norm(exact - before)
        assert float(torch.linalg.norm(matrix.detach() - exact)) < 1.01 * float(allowed) + 1e-10
        free = variable(own)
        own = solved(own, torch.autograd.grad(loss(free), free)[0])[0]
    assert caps == {rate > 1}
    if rate < 1:
        torch.testing.assert_close(matrix.detach(), own, rtol=0, atol=1e-7)
        assert loss(matrix).item() < first
