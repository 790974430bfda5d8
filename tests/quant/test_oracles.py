"""Learned parts against their papers' formulas, written out once more on one small problem.

In float64; gradients are autograd's through the estimator below, steps are written out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from edge_asr.calibration.capture import Call, KeptOutputs
from edge_asr.models.families.sites import Block, Site
from edge_asr.quant.context import BlockContext, Reconstruction
from edge_asr.quant.formats import Grid, TensorFormat
from edge_asr.quant.layers import install_layers
from edge_asr.quant.range.lwc import LearnedWeightClipping
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.reconstruction import Learnable, Scheduled, reconstruct
from edge_asr.quant.rounding.adaround import AdaRound
from edge_asr.quant.rounding.signround import SignRound
from edge_asr.quant.rounding.tesseraq import TesseraQ
from edge_asr.quant.trainable import LayerStart, RewrittenBlock, RoundedBlock
from edge_asr.quant.transform.cayley import CayleySGD
from edge_asr.quant.transform.let import LearnedEquivalentTransformation
from edge_asr.quant.weight import QuantizedWeight, round_nearest

HIGHEST, GROUP = 7, 8
GRID = Grid(3, granularity="group", group_size=GROUP, half_scales=False)
Path = list[dict[str, Tensor]]
Quantized = tuple[Tensor, Tensor, Tensor]  # codes, scale h, zero point z


def variable(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def through(values: Tensor) -> Tensor:
    """Rounded values with the gradient of the identity."""
    return values + (values.round() - values).detach()


def spread(groups: Tensor) -> Tensor:
    """One value [rows, groups] a group, for each of its columns; one alone broadcasts."""
    return groups if groups.numel() == 1 else groups.repeat_interleave(GROUP, 1)


def quantize(
    weight: Tensor, beta: Any = 1.0, alpha: Any = 1.0, offset: Any = 0.0,
    *, whole: bool = False, zero: Callable[[Tensor], Tensor] = torch.round,
) -> Quantized:  # fmt: skip
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


def between_codes(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Min-max scale and zero point, lower codes and logits of the way up to `weight` itself."""
    _, scale, zero = quantize(weight)
    exact = weight / spread(scale)
    up = (exact - exact.floor() + 0.1) / 1.2
    return scale, zero, exact.floor() + spread(zero), variable((up / (1 - up)).log())


def descend(
    loss: Callable[[int], Tensor], steps: int, *values: tuple[Tensor, float, float]
) -> list[list[Tensor]]:
    """Where every step of Adam (arXiv:1412.6980, algorithm 1) left `values`: value, rate and
    decay, a part of the gradient, each."""
    leaves = [value for value, _, _ in values]
    first, second = ([torch.zeros_like(value) for value in leaves] for _ in range(2))
    own = []
    for step in range(steps):
        for index, slope in enumerate(torch.autograd.grad(loss(step), leaves)):
            value, rate, decay = values[index]
            gradient = slope + decay * value.detach() if decay else slope
            first[index] = 0.9 * first[index] + 0.1 * gradient
            second[index] = 0.999 * second[index] + 0.001 * gradient**2
            root = (second[index] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            value.data -= rate * first[index] / (1 - 0.9 ** (step + 1)) / root
        own.append([value.detach().clone() for value in leaves])
    return own


@dataclass(frozen=True)
class Problem:
    """A Linear 16 -> 12 that reads noisy rows and is to answer as on the clean ones."""

    weight: Tensor
    inputs: Tensor
    targets: Tensor
    mask: Tensor

    def loss(self, weight: Tensor) -> Tensor:
        return self.distance(self.inputs @ weight.T)

    def distance(self, outputs: Tensor) -> Tensor:
        return (outputs - self.targets)[self.mask].square().sum(1).mean()

    @property
    def context(self) -> BlockContext:
        fc = nn.Linear(16, 12, bias=False)
        fc.weight = nn.Parameter(self.weight.clone())
        site = Site("fc1", "encoder", ("fc",), None, "frame")
        return context_of(nn.Sequential(OrderedDict(fc=fc)), site, self)


def context_of(block: nn.Module, site: Site, problem: Problem, grid: Grid = GRID) -> BlockContext:
    install_layers(block, site.layers)
    architecture = SimpleNamespace(tied_logit_channels=1, on_counted_rows=lambda *_: None)
    return BlockContext(
        cast(Any, block), cast(Any, architecture), Block("block", "encoder", (site,)), block,
        [Call((problem.inputs,), {})], [problem.mask.float()],
        dict.fromkeys(site.layers, TensorFormat(grid)), KeptOutputs([problem.targets]),
    )  # fmt: skip


@pytest.fixture
def problem() -> Problem:
    draw = torch.Generator().manual_seed(0)
    weight, mixing, clean, noise = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in [(12, 16), (16, 16), (2, 20, 16), (2, 20, 16)]
    )
    clean = clean @ mixing / 4
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 13:] = False
    return Problem(weight, clean + 0.1 * noise, clean @ weight.T, mask)


def trained(
    context: BlockContext, block: Learnable, part: Scheduled, evaluations: int = 1
) -> tuple[Reconstruction, Path]:
    """Train `block`; also its parameters right behind every optimizer step."""
    path: Path = []
    after_step = block.after_step

    def record(step: int, iterations: int) -> None:
        path.append({name: value.detach().clone() for name, value in block.named_parameters()})
        after_step(step, iterations)

    block.after_step = record  # type: ignore[method-assign]
    return reconstruct(context, block, replace(part.training, evaluations=evaluations)), path


def rounded(problem: Problem, part: Any, evaluations: int = 1) -> tuple[Any, Reconstruction, Path]:
    """Train the rounding of the problem's weight, behind min-max ranges."""
    start = LayerStart(problem.weight, minmax_parameters(problem.weight, GRID), GRID)
    trainable = part.trainable_rounding({"fc": start})
    block = RoundedBlock(trainable, {"fc": None})
    return trainable, *trained(problem.context, block, part, evaluations)


def close(path: Path, own: Sequence[Sequence[Tensor]], *names: str) -> None:
    """Whether parameters `names` went the oracle's way, and somewhere; 1e4 is infinite."""
    for theirs, ours in zip(path, own, strict=True):
        for name, value in zip(names, ours, strict=True):
            torch.testing.assert_close(theirs[name], value.clamp(-1e4, 1e4), rtol=1e-8, atol=1e-9)
    assert all(float((path[-1][name] - path[0][name]).abs().max()) > 1e-2 for name in names)


def stored(weight: QuantizedWeight, codes: Tensor, scale: Tensor, zero: Tensor) -> None:
    """Whether `weight` is the oracle's."""
    assert torch.equal(weight.codes.double(), codes.detach().round())
    torch.testing.assert_close((weight.parameters.scale, weight.parameters.zero), (scale, zero))


def test_adaround(problem: Problem) -> None:
    """Eq. 21 to 25 of arXiv:2004.10568; beta and its warm-up as BRECQ's code has them."""
    steps, rate, regularization = 50, 0.03, 0.02
    scale, zero, down, logits = between_codes(problem.weight)

    def loss(step: int) -> Tensor:
        up = rectified(logits)
        pull = regularization if step >= 0.2 * steps else 0.0
        beta = 20 - 18 * (step - 0.2 * steps) / (0.8 * steps)
        fake_quantized = values_of((down + up).clamp(0, HIGHEST), scale, zero)
        return problem.loss(fake_quantized) + pull * (1 - (2 * up - 1).abs() ** beta).sum()

    own = descend(loss, steps, (logits, rate, 0.0))
    part = AdaRound(
        iterations=steps, clips="batch", learning_rate=rate, regularization=regularization
    )
    trainable, result, path = rounded(problem, part)
    close(path, own, "rounding.logits.0")
    codes = (down + (rectified(logits) >= 0.5)).clamp(0, HIGHEST)
    stored(trainable.quantized("fc"), codes, scale, zero)
    expected = problem.loss(values_of(codes, scale, zero)).item()
    assert result.loss_before > result.loss_after == pytest.approx(expected)


def test_tesseraq(problem: Problem) -> None:
    """Eq. 5 to 8 of arXiv:2410.19103: a rising share of codes becomes hard, every time those
    farthest from 1/2; scales s 2 sigma(v). As in the authors' code (LLMC) both sigma are AdaRound's
    rectified one, hard logits infinite, and every stretch has an Adam of its own."""
    shares, length, rate, scale_rate, decay = (0.5, 0.25), 20, 0.02, 0.01, 0.1
    scale, zero, down, logits = between_codes(problem.weight)
    factor = variable(torch.zeros_like(scale))
    own = []

    def loss(codes: Tensor) -> Tensor:
        return problem.loss(values_of(codes.clamp(0, HIGHEST), scale * 2 * rectified(factor), zero))

    for share in shares:
        up = rectified(logits).detach()
        border = torch.quantile((up - 0.5).abs(), share)
        logits.data[up > 0.5 + border] = torch.inf
        logits.data[up < 0.5 - border] = -torch.inf
        assert int(logits.isfinite().sum()) == share * logits.numel()
        groups = (logits, rate, 0.0), (factor, scale_rate, decay)
        own += descend(lambda _: loss(down + rectified(logits)), length, *groups)
    part = TesseraQ(
        iterations=length * len(shares), clips="batch", trained_shares=shares, learning_rate=rate,
        scale_learning_rate=scale_rate, scale_weight_decay=decay,
    )  # fmt: skip
    trainable, result, path = rounded(problem, part)
    close(path, own, "rounding.logits.0", "rounding.scale_logits.0")
    codes = (down + (logits >= 0)).clamp(0, HIGHEST)
    stored(trainable.quantized("fc"), codes, (scale * 2 * rectified(factor)).detach(), zero)
    assert result.loss_before > result.loss_after == pytest.approx(loss(codes).item())


@pytest.mark.parametrize("rate", [None, 0.1], ids=["1/steps", "0.1"])
def test_signround(problem: Problem, rate: float | None) -> None:
    """Eq. 3 to 6 and algorithm 1 of arXiv:2309.05516; the best of all iterates is kept."""
    steps, weight = 30, problem.weight
    offset = variable(torch.zeros_like(weight))
    alpha, beta = (variable(torch.ones(12, 2, dtype=torch.float64)) for _ in range(2))
    values = [offset, alpha, beta]

    def quantized() -> Quantized:
        return quantize(weight, beta, alpha, offset, zero=through)

    def loss() -> Tensor:
        return problem.loss(values_of(*quantized()))

    best, kept, own = loss().item(), list(map(variable, values)), []
    for step in range(steps):
        slopes = torch.autograd.grad(loss(), values)
        for value, slope in zip(values, slopes, strict=True):
            value.data -= (rate or 1 / steps) * (1 - step / steps) * torch.sign(slope)
        own.append([value.detach().clone() for value in values])
        for value, low in ((offset, -0.5), (alpha, 0), (beta, 0)):
            value.data.clamp_(low, low + 1)
        if loss().item() < best:
            best, kept = loss().item(), list(map(variable, values))
    part = SignRound(iterations=steps, clips="batch", patience=steps, learning_rate=rate)
    trainable, result, path = rounded(problem, part, evaluations=steps)
    close(path, own, "rounding.offset.0", "rounding.high.0", "rounding.low.0")
    offset, alpha, beta = kept
    stored(trainable.quantized("fc"), *quantized())
    assert result.loss_before > result.loss_after == pytest.approx(best)


def test_lwc(problem: Problem) -> None:
    """Eq. 2 of arXiv:2308.13137: both factors behind a sigmoid, no gradient through the rounding
    of z (the authors' code); AdamW without decay is Adam."""
    steps, rate, context = 30, 0.05, problem.context
    low, high = (variable(torch.full((12, 2), 4.0, dtype=torch.float64)) for _ in range(2))

    def clipped() -> Quantized:
        return quantize(problem.weight, low.sigmoid(), high.sigmoid())

    def loss() -> Tensor:
        return problem.loss(values_of(*clipped()))

    own = descend(lambda _: loss(), steps, (low, rate, 0.0), (high, rate, 0.0))
    part = LearnedWeightClipping(
        iterations=steps, clips="batch", learning_rate=rate, initial_logit=4.0
    )
    ranges = part.trainable_range(context)
    result, path = trained(context, RewrittenBlock(context, None, ranges), part)
    close(path, own, "ranges.low.0", "ranges.high.0")
    parameters = ranges.parameters_of("fc", problem.weight)
    stored(round_nearest(problem.weight, parameters, GRID), *clipped())
    assert result.loss_before > result.loss_after == pytest.approx(loss().item())


class Attention(nn.ModuleDict):
    """A norm, and one head of attention, without scaling, on what it gives."""

    def forward(self, states: Tensor) -> Tensor:
        rows = self["norm"](states)
        query, key, value = (self[one](rows) for one in "qkv")
        return torch.softmax(query @ key.mT, -1) @ value


def test_let(problem: Problem) -> None:
    """Eq. 3 to 5 of arXiv:2308.13137, with eq. 2's ranges trained beside them, as in its eq. 1.

    The oracle moves activations, (X - delta) / s, where the part moves the norm. One range a
    tensor: those of rows or groups follow their row, and s_a, a scale of rows, has no gradient.
    """
    steps, rate, range_rate, names = 20, 0.02, 0.05, ("scale", "shift", "logit_scale")
    grid = Grid(3, granularity="tensor", half_scales=False)
    norm, draw = nn.LayerNorm(16), torch.Generator().manual_seed(1)
    module = Attention({"norm": norm, **{one: nn.Linear(16, 12) for one in "qkv"}})
    for parameter in module.double().parameters():
        parameter.data.normal_(0, 0.3, generator=draw)
    norm.weight.data.exp_()
    weights = {name: value.detach().clone() for name, value in module.named_parameters()}
    with torch.no_grad():
        problem, rows = replace(problem, targets=module(problem.inputs)), norm(problem.inputs)
    site = Site("qkv", "encoder", ("q", "k", "v"), "norm", "frame", logit_layers=("q", "k"))
    context = context_of(module, site, problem, grid)
    part = LearnedEquivalentTransformation(
        iterations=steps, clips="batch", learning_rate=rate, weight_only=True
    )
    transform = cast(Any, part.trainable_transform(context).double())  # statistics are in float32
    scale, shift, logit = (variable(getattr(transform, one)["0"]) for one in names)
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

    def clipped(index: int) -> Quantized:
        factors = logits[index].sigmoid(), logits[3 + index].sigmoid()
        return quantize(moved(index)[0], *factors, whole=True)

    def loss() -> Tensor:
        query, key, value = (
            (rows - shift) / scale @ values_of(*clipped(index)).T + moved(index)[1]
            for index in range(3)
        )
        return problem.distance(torch.softmax(query @ key.mT, -1) @ value)

    rates = [(value, rate, 0.0) for value in (scale, shift, logit)]
    rates += [(value, range_rate, 0.0) for value in logits]
    own = descend(lambda _: loss(), steps, *rates)
    clipping = LearnedWeightClipping(
        iterations=steps, clips="batch", learning_rate=range_rate, initial_logit=4.0
    )
    ranges = clipping.trainable_range(context)
    block = RewrittenBlock(context, transform, ranges)
    result, path = trained(context, block, part)
    ends = [f"ranges.{end}.{index}" for end in ("low", "high") for index in range(3)]
    close(path, own, *(f"transform.{one}.0" for one in names), *ends)
    for index, name in enumerate("qkv"):
        weight = block.rewritten()[f"{name}.weight"]
        stored(round_nearest(weight, ranges.parameters_of(name, weight), grid), *clipped(index))
    assert result.loss_before > result.loss_after == pytest.approx(loss().item())


@pytest.mark.parametrize(("rate", "steps"), [(1e-3, 150), (1.5, 8)], ids=["free", "capped"])
def test_spinquant(problem: Problem, rate: float, steps: int) -> None:
    """Algorithm 1 of arXiv:2002.01113 without momentum, its linear equation solved exactly, on a
    rotation that shall make a weight round well (arXiv:2405.16406, section 3.2).

    Five fixed-point iterations from X - a A X leave at most |a A / 2|^6 of a step's way.
    """
    start = -torch.linalg.qr(problem.inputs[0, :16])[0]  # so that a renewal would turn signs
    matrix, own, one = nn.Parameter(start.clone()), start, torch.eye(16, dtype=start.dtype)
    optimizer, caps = CayleySGD([matrix], lr=rate), set()

    def loss(rotation: Tensor) -> Tensor:
        return problem.loss(values_of(*quantize(problem.weight @ rotation)) @ rotation.T)

    def solved(before: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        hat = gradient @ before.T - before @ (before.T @ gradient @ before.T) / 2
        skew = hat - hat.T
        length = min(rate, 2 * 0.5 / (float(skew.abs().sum(0).max()) + 1e-8))
        caps.add(length < rate)
        half = length / 2 * skew
        return torch.linalg.solve(one + half, (one - half) @ before), half

    for _ in range(steps):
        if rate > 1:  # then five iterations do not stay among orthogonal matrices
            left, _, right = torch.linalg.svd(matrix.detach())
            matrix.data.copy_(left @ right)
        before = matrix.detach().clone()
        (matrix.grad,) = torch.autograd.grad(loss(matrix), matrix)
        exact, half = solved(before, matrix.grad)
        optimizer.step()
        allowed = torch.linalg.matrix_norm(half, 2) ** 6 * torch.linalg.norm(exact - before)
        assert torch.linalg.norm(matrix.detach() - exact) < 1.01 * allowed + 1e-10
        free = variable(own)
        own = solved(own, torch.autograd.grad(loss(free), free)[0])[0]
    assert caps == {rate > 1}
    assert torch.linalg.norm(own - start) > 0.1
    if rate < 1:
        torch.testing.assert_close(matrix.detach(), own, rtol=0, atol=1e-7)
