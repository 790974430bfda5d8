"""Cayley steps against the transform's closed form."""

from __future__ import annotations

import torch

from edge_asr.quant.transform.cayley import CayleySGD, cayley_step, orthogonal_again
from edge_asr.quant.transform.hadamard_matrices import random_orthogonal


def test_a_cayley_step_stays_orthogonal_and_goes_downhill() -> None:
    generator = torch.Generator().manual_seed(0)
    target, start = (random_orthogonal(12, generator).float() for _ in range(2))
    matrix = orthogonal_again(start)

    def distance(x: torch.Tensor) -> float:
        return float((x - target).square().sum())

    first = distance(matrix)
    for _ in range(20):
        moved = cayley_step(matrix, 2 * (matrix - target), rate=0.02)
        assert distance(moved) < distance(matrix)
        matrix = moved
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(12), atol=1e-4, rtol=0)
    assert distance(matrix) < first


def test_a_cayley_step_solves_the_cayley_transform() -> None:
    """Against the transform's closed form, by inverting the matrix."""
    generator = torch.Generator().manual_seed(1)
    matrix = random_orthogonal(8, generator)
    gradient = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    skew = (gradient @ matrix.T - matrix @ gradient.T) / 2
    rate = 0.1 / float(skew.abs().sum(0).max())
    one = torch.eye(8, dtype=torch.float64)
    exact = torch.linalg.inv(one + rate / 2 * skew) @ (one - rate / 2 * skew) @ matrix
    torch.testing.assert_close(cayley_step(matrix, gradient, rate), exact, atol=1e-8, rtol=0)


def test_long_training_stays_orthogonal() -> None:
    matrix = torch.nn.Parameter(torch.eye(10))
    optimizer = CayleySGD([matrix], lr=1.5)
    generator = torch.Generator().manual_seed(2)
    for _ in range(300):
        matrix.grad = torch.randn(10, 10, generator=generator)
        optimizer.step()
    product = matrix.detach() @ matrix.detach().T
    torch.testing.assert_close(product, torch.eye(10), atol=2e-2, rtol=0)
