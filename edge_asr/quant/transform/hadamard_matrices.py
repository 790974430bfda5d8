"""Hadamard matrices of many orders, and their product with activations in n log n steps.

A Hadamard matrix H of order n has entries ±1 and H Hᵀ = n I; it can exist only for n = 1, 2
and multiples of 4. Known here are Sylvester's for 2, Paley's two constructions over every
finite field of odd order q (of order q + 1 where q = 3 mod 4, of order 2 (q + 1) where
q = 1 mod 4; Paley 1933, "On orthogonal matrices"), and all Kronecker products of them. Of the
orders below 256 that is every multiple of 4 but 92, 116, 156, 172, 184, 188, 232 and 236.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce
from itertools import product
from typing import Any

import torch
from torch import Tensor

from edge_asr.quant.layers import RuntimeOp, modules
from edge_asr.quant.packing import pack, unpack
from edge_asr.quant.transform.rotation import Rotation


def prime_power(number: int) -> tuple[int, int] | None:
    """(p, k) with p prime and p^k = `number`, or None."""
    prime = next((p for p in range(2, math.isqrt(number) + 1) if number % p == 0), number)
    power = round(math.log(number, prime)) if number > 1 else 0
    return (prime, power) if power and prime**power == number else None


def quadratic_characters(prime: int, power: int) -> dict[tuple[int, ...], int]:
    """Whether each element of the field of order q = prime^power (odd) is a square.

    Elements are coefficient tuples of polynomials over the integers modulo `prime`, constant
    first. The characters are 0 for zero, 1 for squares and -1 for the others.

    The even powers of a primitive element are the squares. A polynomial modulo which x runs
    through all q - 1 other elements before it returns to one makes a field, with x primitive.
    """
    one = (1, *[0] * (power - 1))
    for low in product(range(prime), repeat=power):  # x^power = -low
        characters = {(0,) * power: 0}
        element, sign = one, 1
        while element not in characters:
            characters[element] = sign
            carry = element[-1]
            shifted = (0, *element[:-1])
            element = tuple((a - carry * b) % prime for a, b in zip(shifted, low, strict=True))
            sign = -sign
        if element == one and len(characters) == prime**power:
            return characters
    raise ValueError(f"{prime}^{power} is not the order of a finite field")


def jacobsthal(order: int) -> Tensor:
    """Characters of all differences of two elements of the field of `order`, float64 [q, q]."""
    found = prime_power(order)
    if found is None or found[0] == 2:
        raise ValueError(f"{order} is not a power of an odd prime")
    prime, power = found
    characters = quadratic_characters(prime, power)
    elements = list(product(range(prime), repeat=power))
    table = torch.tensor([characters[element] for element in elements], dtype=torch.float64)
    digits = torch.tensor(elements)
    differences = (digits[:, None] - digits) % prime
    places = prime ** torch.arange(power - 1, -1, -1)
    return table[(differences * places).sum(-1)]


def _paley_field(order: int) -> int | None:
    """The order of the field from which Paley makes a Hadamard matrix of `order`, or None."""
    if order % 4:
        return None
    for field in (order - 1, order // 2 - 1):
        congruent = field % 4 == (3 if field == order - 1 else 1)
        if congruent and field > 1 and prime_power(field):
            return field
    return None


def paley(order: int) -> Tensor:
    """Paley's Hadamard matrix, float64 [order, order]. Raises ValueError where there is none."""
    field = _paley_field(order)
    if field is None:
        raise ValueError(f"no construction of Paley's gives order {order}")
    first = field == order - 1
    bordered = torch.ones(field + 1, field + 1, dtype=torch.float64)
    bordered[0, 0] = 0
    bordered[1:, 0] = -1 if first else 1
    bordered[1:, 1:] = jacobsthal(field)
    identity = torch.eye(field + 1, dtype=torch.float64)
    if first:
        return identity + bordered
    full = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
    corner = torch.tensor([[1, -1], [-1, -1]], dtype=torch.float64)
    return torch.kron(bordered, full) + torch.kron(identity, corner)


@cache
def kronecker_orders(order: int) -> tuple[int, ...] | None:
    """Orders of known matrices whose Kronecker product has `order`, largest first.

    Of all factorizations the one with the fewest steps a value; None if there is none.
    """
    if order == 1:
        return ()
    found = []
    for factor in range(2, order + 1):
        if order % factor == 0 and (factor == 2 or _paley_field(factor)):
            rest = kronecker_orders(order // factor)
            if rest is not None:
                found.append(tuple(sorted((factor, *rest), reverse=True)))
    return min(found, key=_steps, default=None)


def _steps(orders: tuple[int, ...]) -> int:
    """Additions for every value: one for each factor 2, as many as its order for another."""
    return sum(1 if order == 2 else order for order in orders)


def largest_known_order(width: int) -> int:
    """The largest divisor of `width` that is the order of a known Hadamard matrix."""
    divisors = (order for order in range(width, 0, -1) if width % order == 0)
    return next(order for order in divisors if kronecker_orders(order) is not None)


def _factor(order: int) -> Tensor:
    return torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double() if order == 2 else paley(order)


def hadamard_matrix(order: int) -> Tensor:
    """A Hadamard matrix, float64 [order, order]. Raises ValueError where none is known."""
    orders = kronecker_orders(order)
    if orders is None:
        raise ValueError(f"no Hadamard matrix of order {order} is known here")
    return reduce(torch.kron, map(_factor, orders), torch.ones(1, 1, dtype=torch.float64))


def random_orthogonal(order: int, generator: torch.Generator) -> Tensor:
    """A uniformly random orthogonal matrix, float64 [order, order].

    The QR factorization of a Gaussian matrix is uniform once R's diagonal is made positive
    (Mezzadri 2007, arXiv:math-ph/0609050, section 5).
    """
    gaussian = torch.randn(order, order, dtype=torch.float64, generator=generator)
    orthogonal, upper = torch.linalg.qr(gaussian)
    return orthogonal * upper.diagonal().sign()


@modules.register("hadamard")
class FastHadamard(RuntimeOp):
    """Multiply rows [..., width] by I ⊗ H/√n ⊗ I, and by random signs where given.

    The Hadamard matrix of order n = m·2^k (m from Paley's) is the Kronecker product that
    `kronecker_orders` finds. A row costs width × (k + Σ m + 1) MACs: an addition for each
    factor 2, a product with each other factor, and one multiplication by ±1/√n. Signs and the
    entries of the other factors are stored, one bit each.

    Args:
        width: Channels of a row.
        order: Order n of the Hadamard matrix; n × stride divides the width.
        stride: Distance of the channels that are mixed: `stride` interleaved Hadamards in every
            run of n × stride channels.
        signs: ±1 [width] that multiply the row before the Hadamard, or None.
        inverse: Apply the transpose of all this.

    Raises:
        ValueError: when no matrix of the order is known or it does not fit the width.
    """

    signs: Tensor | None

    def __init__(
        self,
        width: int,
        order: int,
        *,
        stride: int = 1,
        signs: Tensor | None = None,
        inverse: bool = False,
    ) -> None:
        super().__init__()
        orders = kronecker_orders(order)
        if orders is None or width % (order * stride):
            raise ValueError(f"no Hadamard of order {order} and stride {stride} for width {width}")
        self.width, self.order, self.stride, self.inverse = width, order, stride, inverse
        self.orders, self.scale = orders, order**-0.5
        for size in {size for size in orders if size != 2}:
            self.register_buffer(f"factor_{size}", _factor(size).float())
        self.register_buffer("signs", None if signs is None else signs.detach().float().clone())

    @property
    def macs_per_row(self) -> int:
        return self.width * (_steps(self.orders) + 1)

    @property
    def stored_bits(self) -> float:
        dense = sum(size**2 for size in {*self.orders} - {2})
        return float(dense + (0 if self.signs is None else self.signs.numel()))

    def description(self) -> dict[str, Any]:
        """Factors are made anew from the order, so that only signs are stored."""
        names = ("width", "order", "stride", "inverse")
        return {name: getattr(self, name) for name in names}

    def stored(self) -> dict[str, Tensor]:
        return {} if self.signs is None else {"signs": pack(self.signs > 0, 1)}

    @classmethod
    def rebuild(cls, description: Mapping[str, Any], stored: Mapping[str, Tensor]) -> FastHadamard:
        signs = None
        if "signs" in stored:
            signs = 2.0 * unpack(stored["signs"], 1, description["width"]).float() - 1
        return cls(**description, signs=signs)

    def forward(self, inputs: Tensor) -> Tensor:
        signs = None if self.signs is None else self.signs.to(inputs.dtype)
        rows = inputs if signs is None or self.inverse else inputs * signs
        stride = self.stride
        for order in reversed(self.orders):
            rows = self._mix(rows, order, stride)
            stride *= order
        rows = rows * self.scale
        return rows if signs is None or not self.inverse else rows * signs

    def _mix(self, rows: Tensor, order: int, stride: int) -> Tensor:
        """Multiply by one Kronecker factor: channels that are `stride` apart, `order` of them."""
        parts = rows.reshape(*rows.shape[:-1], -1, order, stride)
        if order == 2:
            first, second = parts.unbind(-2)
            mixed = torch.stack((first + second, first - second), -2)
        else:
            factor = self.get_buffer(f"factor_{order}").to(rows.dtype)
            mixed = (parts.mT @ (factor.T if self.inverse else factor)).mT
        return mixed.reshape(rows.shape)


@dataclass(frozen=True)
class RandomHadamard(Rotation):
    """The rotation diag(signs) H/√n, which runs with the model in n log n steps and stores n bits.

    Attributes:
        signs: ±1, float64 [n].
    """

    signs: Tensor

    @classmethod
    def draw(cls, order: int, generator: torch.Generator) -> RandomHadamard:
        """With random signs. Raises ValueError where no matrix of the order is known."""
        signs = 2.0 * torch.randint(2, (order,), generator=generator).double() - 1
        return cls(signs[:, None] * hadamard_matrix(order) / order**0.5, signs)

    def runtime_op(self, *, inverse: bool = False) -> RuntimeOp:
        order = len(self.signs)
        return FastHadamard(order, order, signs=self.signs, inverse=inverse)
