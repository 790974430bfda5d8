"""Muon: momentum steps made orthogonal, for the weight matrices of a network's blocks.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/), with the update scaled to
AdamW's typical root mean square as in Liu et al. 2025, "Muon is Scalable for LLM Training"
(arXiv:2502.16982), eq. 4. In float32, matrices of one shape together: torch.optim.Muon works
on one matrix at a time in bfloat16, which is slow on a processor without it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Nearly the orthogonal polar factor of each of `matrices` [count, rows, columns].

    Newton-Schulz iterations bring every singular value near 1 (0.7 to 1.2), not onto it.
    """
    first, third, fifth = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = first * x + (third * gram + fifth * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized, with decoupled weight decay; matrices only."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                ahead = torch.stack([self._look_ahead(p, group["momentum"]) for p in parameters])
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, orthogonalized(ahead), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update, alpha=rate)

    def _look_ahead(self, parameter: nn.Parameter, momentum: float) -> torch.Tensor:
        """The gradient blended with the running momentum once more (Nesterov)."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum)
