"""Making up for what earlier layers lost: weights fitted to the float model's outputs.

A layer that is rounded behind others reads x where the float model's reads f. So its weights had
better be such that W' x is near W f. With H = E[x xᵀ] and M = E[(f - x) xᵀ] the best ones are
W' = W + W M H^-1. The methods differ in how far they go and in the way to it:

- qep: a share of the way (Arai et al. 2025, arXiv:2504.09629, Quantization Error Propagation);
- qronos: all of it, the first column rounded before the others are corrected (Zhang et al. 2025,
  arXiv:2505.11695, algorithm 1 and its authors' code);
- gptaq: each column's own part when it is reached, by later columns alone (Li et al. 2025,
  arXiv:2504.02692, equation 15 and its authors' code).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.errors import UserError
from edge_asr.quant.context import Fit, Observation, SiteContext
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import dequantize, quantize
from edge_asr.quant.protection import fixed_fit
from edge_asr.quant.rounding.inverse_factor import InverseFactor, factorize
from edge_asr.quant.stages import SiteRounding, roundings
from edge_asr.settings import Damping, Fraction, show_value

# What the authors of each take; qronos goes all the way.
AUTHORS_ALPHA = {"qep": 0.5, "gptaq": 0.25}
AUTHORS_DAMPING = {"qronos": 1e-6}
DAMPING = 0.01


def largest_eigenvalue(symmetric: Tensor, iterations: int = 30) -> float:
    """Of a positive semidefinite matrix [columns, columns], by so many power iterations."""
    vector = functional.normalize(torch.ones(len(symmetric), dtype=symmetric.dtype), dim=0)
    length = 0.0
    for _ in range(iterations):
        reached = symmetric @ vector
        length = float(torch.linalg.vector_norm(reached))
        vector = functional.normalize(reached, dim=0)
    return length


def correction(weight: Tensor, mismatch: Tensor, factor: InverseFactor) -> Tensor:
    """W M H^-1, what all of the way to the best weights adds to `weight` [rows, columns].

    `mismatch` is M, [columns, columns], of the scale of the Hessian that `factor` inverts.
    """
    ordered = (weight.double() @ mismatch)[:, factor.order]
    return factor.solve(ordered)[:, torch.argsort(factor.order)]


def qronos_weight(
    weight: Tensor,
    statistics: InputStatistics,
    factor: InverseFactor,
    rounded: Callable[[Tensor], Tensor],
) -> Tensor:
    """The weights that Qronos hands to GPTQ: the first column on its grid, the others corrected
    to that and to what the float model reads.

    Args:
        weight: Float weight [rows, columns].
        statistics: Of its input, paired.
        factor: Of their Hessian.
        rounded: Gives the values that the first column in the order of `factor` is rounded to.
    """
    order, natural = factor.order, torch.argsort(factor.order)
    hessian = statistics.hessian[order][:, order]
    cross = hessian + statistics.mismatch[order][:, order]
    weights = weight.double()[:, order]
    column = weights @ cross[:, 0] - weights[:, 1:] @ hessian[0, 1:]
    column = rounded(column / hessian[0, 0] if hessian[0, 0] else weights[:, 0])
    rest = factor.upper[1:, 1:]
    cross.diagonal().add_(factor.added)
    target = weights @ cross[:, 1:] - column[:, None] * hessian[0, 1:]
    corrected = torch.cat([column[:, None], (target @ rest.T) @ rest], 1)
    return corrected[:, natural]


def carried_mismatch(statistics: InputStatistics, factor: InverseFactor, alpha: float) -> Tensor:
    """What each column adds to later ones, `alpha` triu(M Vᵀ, 1) V with H^-1 = Vᵀ V: strictly
    upper triangular [columns, columns], in the order of `factor`."""
    mismatch = statistics.mismatch[factor.order][:, factor.order]
    return alpha * (mismatch @ factor.upper.T).triu(1) @ factor.upper


def held_out_alpha(weight: Tensor, statistics: InputStatistics, fitted: InverseFactor) -> float:
    """The share of qep's correction that would have been best on clips it was not made from.

    Ours: the correction D of two thirds of the clips, by `fitted`, the factor of their Hessian,
    leaves |W f - (W + a D) x|² on the others, a parabola in a, whose lowest point is a = <W M, D> /
    <D H, D> with H and M of the others, clamped to [0, 1].
    """
    held_out = statistics.held_out
    assert held_out is not None
    change = correction(weight, statistics.fitted.mismatch, fitted)
    gain = float((weight.double() @ held_out.mismatch * change).sum())
    cost = 2 * held_out.output_error(change)
    return min(max(gain / cost, 0.0), 1.0) if cost > 0 else 0.0


@dataclass(frozen=True)
class Start:
    """What is rounded of one layer.

    Attributes:
        weight: [rows, columns].
        fit: Fits scales and zero points to it.
        target: What the rounded weight is to be near, in the metric of the Hessian.
        carried: See `carried_mismatch`.
    """

    weight: Tensor
    fit: Fit
    target: Tensor
    carried: Tensor | None = None

    def settled(self, order: Tensor) -> Tensor:
        """The weight with all of `carried` in it, where no rounding comes between columns."""
        if self.carried is None:
            return self.weight
        rest = torch.eye(len(order), dtype=self.carried.dtype) - self.carried
        ordered = self.weight.to(rest.dtype)[:, order]
        settled = torch.linalg.solve_triangular(rest, ordered, upper=True, left=False)
        return settled[:, torch.argsort(order)].to(self.weight.dtype)


@dataclass(frozen=True)
class Compensating(SiteRounding):
    """Settings of parts that can make up for what earlier layers lost.

    Attributes:
        observe: What a site reads when it is rounded: block, with its block still float, or site,
            with the earlier sites of its block rounded; null: site where something is compensated.
        compensation: What of the errors of earlier layers a layer makes up for, and how.
        alpha: Share that is made up for: a number, or layer for each layer's own, found on
            held-out clips; null: as the authors, 0.5 with qep, 0.25 with gptaq.
        damping: What is added to the Hessian's diagonal at first, relative to its mean (qronos: to
            the largest eigenvalue); doubled until it can be factorized; null: 0.01 (qronos: 1e-6).
        damping_limit: Largest damping that is tried before the layer is rounded to nearest instead.
    """

    observe: Literal["block", "site"] | None = None
    compensation: Literal["none", "qep", "qronos", "gptaq"] = "none"
    alpha: Fraction | Literal["layer"] | None = None
    damping: Damping | None = None
    damping_limit: Damping = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_use()
        compensates = self.compensation != "none"
        defaults: dict[str, object] = {
            "observe": "site" if compensates else "block",
            "alpha": AUTHORS_ALPHA.get(self.compensation),
        }
        if compensates or self.reads_statistics:
            defaults["damping"] = AUTHORS_DAMPING.get(self.compensation, DAMPING)
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.damping is not None and self.damping > self.damping_limit:
            first, limit = f"damping={self.damping}", f"damping_limit={self.damping_limit}"
            # A limit that nobody gave is not to blame.
            raise UserError(
                f"method.rounding.{first}: must be at most {limit}"
                if self.damping_limit == Compensating.damping_limit
                else f"method.rounding.{limit}: must be at least {first}"
            )

    def _check_use(self) -> None:
        """Raises UserError for what nothing would read."""
        given = f"method.rounding.alpha={show_value(self.alpha)}"
        chosen = f"method.rounding.compensation={self.compensation}"
        if self.alpha is not None and self.compensation not in AUTHORS_ALPHA:
            raise UserError(
                f"{given} with {chosen}: it would change nothing; use qep or gptaq, or "
                "method.rounding.alpha=null"
            )
        if self.compensation == "qronos" and self.damping is not None and self.damping > DAMPING:
            raise UserError(
                f"method.rounding.damping={self.damping} with {chosen}: there it is a share of the "
                f"largest eigenvalue; give {DAMPING} at most, or null for the authors' "
                f"{AUTHORS_DAMPING['qronos']}"
            )
        if self.damping is not None and not (self.reads_statistics or self.observation.paired):
            raise UserError(
                f"method.rounding.damping={self.damping} with {chosen}: it would change nothing; "
                "use method.rounding.compensation=qep or method/rounding=gptq"
            )
        if self.alpha == "layer" and self.compensation != "qep":
            raise UserError(
                f"{given} with {chosen}: only qep's has a closed form; give a number, or null"
            )

    @property
    def observation(self) -> Observation:
        paired = self.compensation != "none"
        return Observation(self.observe == "site", paired, held_out=self.alpha == "layer")

    def factor(self, context: SiteContext, *, act_order: bool) -> InverseFactor | None:
        """The factor of the site's inverse Hessian; None, with a warning where there is data, if
        there is none."""
        if not context.statistics.rows:
            return None
        factor = self._factorize(context.statistics, act_order, context.outliers.columns)
        part, names = roundings.name_of(self), ", ".join(context.weights)
        if factor is None:
            context.warnings.append(
                f"{part}: no Cholesky factor up to damping {self.damping_limit} for {names}; "
                "rounded to nearest instead"
            )
        elif factor.damping > self._first_damping:
            context.warnings.append(
                f"{part}: damping raised from {self._first_damping} to {factor.damping:g} "
                f"for {names}"
            )
        return factor

    @property
    def _first_damping(self) -> float:
        return DAMPING if self.damping is None else self.damping

    def _factorize(
        self, statistics: InputStatistics, act_order: bool, last: Tensor | None = None
    ) -> InverseFactor | None:
        hessian = statistics.hessian
        return factorize(
            hessian,
            damping=self._first_damping,
            damping_limit=self.damping_limit,
            act_order=act_order,
            last=last,
            unit=largest_eigenvalue(hessian) if self.compensation == "qronos" else None,
        )

    def starts(self, context: SiteContext, factor: InverseFactor | None) -> dict[str, Start]:
        """Every layer of the site as it is to be rounded."""
        weights, statistics = context.weights, context.statistics
        if factor is None or self.compensation == "none":
            return {name: Start(one, context.fits[name], one) for name, one in weights.items()}
        mismatch, alphas = statistics.mismatch, self._alphas(context)
        starts = {}
        for name, weight in weights.items():
            fit = context.fits[name]
            change = alphas.get(name, 1.0) * correction(weight, mismatch, factor)
            target = (weight.double() + change).to(weight.dtype)
            if self.compensation == "gptaq":
                carried = carried_mismatch(statistics, factor, alphas[name])
                starts[name] = Start(weight, fit, target, carried)
            elif self.compensation == "qronos":
                parameters = fit(weight)
                first, grid = int(factor.order[0]), context.grids[name]
                scale, zero = (one[:, first].double() for one in parameters.expand(weight.shape[1]))

                def rounded(
                    column: Tensor, scale: Tensor = scale, zero: Tensor = zero, grid: Grid = grid
                ) -> Tensor:
                    return dequantize(quantize(column, scale, zero, grid), scale, zero)

                found = qronos_weight(weight, statistics, factor, rounded)
                starts[name] = Start(found.to(weight.dtype), fixed_fit(parameters), target)
            else:
                starts[name] = Start(target, fit, target)
        return starts

    def _alphas(self, context: SiteContext) -> dict[str, float]:
        """Alpha of every layer of the site, where there is one."""
        if self.alpha is None:
            return {}
        if isinstance(self.alpha, float):
            return dict.fromkeys(context.weights, self.alpha)
        statistics, part = context.statistics, roundings.name_of(self)
        usual, names = AUTHORS_ALPHA["qep"], ", ".join(context.weights)
        if statistics.held_out is None or not statistics.held_out.rows:
            context.warnings.append(f"{part}: no held-out clips for alpha of {names}; {usual}")
            return dict.fromkeys(context.weights, usual)
        fitted = self._factorize(statistics.fitted, act_order=False)
        if fitted is None:
            context.warnings.append(f"{part}: no Cholesky factor for alpha of {names}; {usual}")
            return dict.fromkeys(context.weights, usual)
        return {
            name: held_out_alpha(weight, statistics, fitted)
            for name, weight in context.weights.items()
        }
