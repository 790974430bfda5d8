"""Hadamard matrices of every needed order, and their fast product."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from edge_asr.quant.transform.hadamard_matrices import (
    FastHadamard,
    RandomHadamard,
    hadamard_matrix,
    jacobsthal,
    kronecker_orders,
    largest_known_order,
    paley,
    prime_power,
    quadratic_characters,
    random_orthogonal,
)

# Widths, MLP widths and head widths of the published models and of the embedded ones.
PUBLISHED = (
    384, 512, 768, 1024, 1280, 288, 416, 1536, 2048, 3072, 4096, 5120, 1152, 1664,
    64, 36, 52, 144, 576, 24,
)  # fmt: skip


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 28, 40, 48, 60, 100, 108, *PUBLISHED])
def test_a_hadamard_matrix_has_orthogonal_rows_of_signs(order: int) -> None:
    """H Hᵀ = n I; of large orders, at a hundred random rows."""
    matrix = hadamard_matrix(order).float()  # sums of ±1 are exact
    assert torch.all(matrix.abs() == 1)
    rows = torch.randperm(order, generator=torch.Generator().manual_seed(order))[:100]
    assert torch.equal(matrix[rows] @ matrix.T, order * torch.eye(order)[rows])


def test_powers_of_two_are_sylvesters() -> None:
    for power in range(6):
        assert np.array_equal(hadamard_matrix(2**power).numpy(), scipy.linalg.hadamard(2**power))


@pytest.mark.parametrize("order", [3, 6, 10, 14, 18, 92, 116, 1001])
def test_an_order_without_a_known_matrix_is_refused(order: int) -> None:
    assert kronecker_orders(order) is None
    with pytest.raises(ValueError, match=f"order {order}"):
        hadamard_matrix(order)


def test_the_orders_below_256_that_are_missing_are_those_documented() -> None:
    missing = [order for order in range(4, 256, 4) if kronecker_orders(order) is None]
    assert missing == [92, 116, 156, 172, 184, 188, 232, 236]


@pytest.mark.parametrize("field", [3, 5, 7, 9, 11, 13, 25, 27, 49, 81])
def test_jacobsthal_matrices_of_fields(field: int) -> None:
    """Q Qᵀ = q I - J and Q J = 0 hold for the squares of a field and for no other signs."""
    matrix = jacobsthal(field)
    expected = field * torch.eye(field) - torch.ones(field, field)
    assert torch.equal(matrix @ matrix.T, expected.double())
    assert torch.all(matrix.sum(1) == 0)
    symmetric = field % 4 == 1
    assert torch.equal(matrix.T, matrix if symmetric else -matrix)


@pytest.mark.parametrize("prime", [3, 7, 13, 31, 101])
def test_characters_of_prime_fields_follow_eulers_criterion(prime: int) -> None:
    characters = quadratic_characters(prime, 1)
    for number in range(1, prime):
        expected = 1 if pow(number, (prime - 1) // 2, prime) == 1 else -1
        assert characters[(number,)] == expected
    assert characters[(0,)] == 0


def test_prime_powers() -> None:
    powers = {p**k: (p, k) for p in (2, 3, 5, 7, 11, 13) for k in range(1, 8) if p**k < 170}
    found = {n: prime_power(n) for n in range(170)}
    for number, expected in powers.items():
        assert found[number] == expected
    for number in (0, 1, 6, 12, 15, 45, 100):
        assert found[number] is None


def test_unusable_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="15"):
        jacobsthal(15)
    with pytest.raises(ValueError, match="8"):
        jacobsthal(8)
    with pytest.raises(ValueError, match="10"):
        paley(10)
    with pytest.raises(ValueError, match=r"6\^1"):
        quadratic_characters(6, 1)


@pytest.mark.parametrize(
    ("width", "order"), [(10, 2), (35, 1), (92, 4), (80, 80), (6, 2), (60, 60), (230, 2)]
)
def test_the_largest_known_order_that_divides(width: int, order: int) -> None:
    assert largest_known_order(width) == order


@settings(deadline=None, max_examples=40)
@given(
    order=st.sampled_from([1, 2, 4, 12, 20, 24, 36, 144]),
    stride=st.integers(1, 5),
    runs=st.integers(1, 3),
    inverse=st.booleans(),
    signed=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_fast_product_is_the_matrix_product(
    order: int, stride: int, runs: int, inverse: bool, signed: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    width = runs * order * stride
    signs = 2.0 * torch.randint(2, (width,), generator=generator) - 1
    inputs = torch.randn(2, 3, width, dtype=torch.float64, generator=generator)
    small = hadamard_matrix(order).numpy() / math.sqrt(order)
    full = np.kron(np.kron(np.eye(runs), small), np.eye(stride))
    if signed:
        full = np.diag(signs.numpy()) @ full
    expected = inputs.numpy() @ (full.T if inverse else full)
    op = FastHadamard(width, order, stride=stride, signs=signs if signed else None, inverse=inverse)
    np.testing.assert_allclose(op(inputs).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("width", "steps"),
    [(1536, 12 + 7), (2048, 11), (1152, 12 + 12 + 3), (1664, 52 + 5), (5120, 20 + 8)],
)
def test_the_cost_is_what_the_product_runs(width: int, steps: int) -> None:
    """Products with dense factors as PyTorch counts them, the other steps by hand."""
    op = FastHadamard(width, width)
    assert op.macs_per_row == width * (steps + 1)
    orders = kronecker_orders(width)
    assert orders is not None
    twos = orders.count(2)
    counter = FlopCounterMode(display=False)
    with counter:
        op(torch.randn(7, width))
    assert counter.get_total_flops() == 2 * 7 * (op.macs_per_row - width * (twos + 1))
    assert op.stored_bits == sum(order**2 for order in set(orders) - {2})


def test_a_product_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="order 10"):
        FastHadamard(10, 10)
    with pytest.raises(ValueError, match="width 30"):
        FastHadamard(30, 4)


def test_random_rotations_are_orthogonal_and_seeded() -> None:
    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    for draw in (
        lambda seed: random_orthogonal(40, generator(seed)),
        lambda seed: RandomHadamard.draw(40, generator(seed)).matrix,
    ):
        matrix = draw(3)
        identity = torch.eye(40, dtype=torch.float64)
        torch.testing.assert_close(matrix @ matrix.T, identity, atol=1e-12, rtol=0)
        assert torch.equal(matrix, draw(3))
        assert not torch.equal(matrix, draw(4))


@pytest.mark.parametrize("inverse", [False, True])
def test_a_random_hadamard_runs_as_its_matrix(inverse: bool) -> None:
    rotation = RandomHadamard.draw(48, torch.Generator().manual_seed(1))
    inputs = torch.randn(5, 48, dtype=torch.float64)
    expected = inputs @ (rotation.matrix.T if inverse else rotation.matrix)
    op = rotation.runtime_op(inverse=inverse)
    torch.testing.assert_close(op(inputs), expected, atol=1e-12, rtol=0)
    assert op.stored_bits == 12**2 + 48
