"""What calibration tells about the input of a site: one accumulator for all its layers."""

from __future__ import annotations

import torch
from torch import Tensor

# Columns whose products with all later ones are taken at once: wide enough for a fast product.
STRIPE = 512
# One clip in so many is held out, where some are.
HELD_OUT_EVERY = 3


def add_column_products(total: Tensor, rows: Tensor) -> None:
    """Add XᵀX of X [rows, columns] to `total`, symmetric [columns, columns], in place.

    Of many columns little more than half is computed and mirrored; up to `STRIPE`, all of it.
    """
    for start in range(0, len(total), STRIPE):
        stop = min(start + STRIPE, len(total))
        total[start:, start:stop] += (rows[:, start:].T @ rows[:, start:stop]).to(total.device)
        total[start:stop, stop:] = total[stop:, start:stop].T


def quadratic_form(rows: Tensor, symmetric: Tensor) -> float:
    """Sum of x S xᵀ over `rows` [count, columns] with S [columns, columns] symmetric."""
    total = 0.0
    for start in range(0, rows.shape[1], STRIPE):
        stripe = rows[:, start : start + STRIPE] @ symmetric[start : start + STRIPE, start:]
        stripe[:, STRIPE:] *= 2
        total += float((stripe * rows[:, start:]).sum())
    return total


class InputStatistics:
    """Moments and extremes of a site's input, over the rows that count.

    Attributes:
        rows: Rows seen, each counted by its weight.
        minimum, maximum: Extremes of every column, float32 [columns]; zeros without any row.
        clip_minimum, clip_maximum: The same of every clip that has a row, [clips, columns].
        held_out: Of one clip in `HELD_OUT_EVERY` alone, which are among all clips too; or None.

    The caller says what a row weighs: a frame of speech or a token 1, so that long clips weigh as
    much as their frames, and padding little or nothing. Extremes are those of all rows of any
    weight above zero. Products are taken in float32 and summed in float64.
    """

    def __init__(self, columns: int, *, paired: bool = False, held_out: bool = False) -> None:
        """`paired` ones are told, with every input, what the float model's site reads instead."""
        self.rows = 0.0
        self.minimum = torch.zeros(columns)
        self.maximum = torch.zeros(columns)
        self.clip_minimum = torch.zeros(0, columns)
        self.clip_maximum = torch.zeros(0, columns)
        self._sum = torch.zeros(columns, dtype=torch.float64)
        self._magnitudes = torch.zeros(columns, dtype=torch.float64)
        self._products = torch.zeros(columns, columns, dtype=torch.float64)
        self._mismatch = torch.zeros(columns if paired else 0, columns, dtype=torch.float64)
        self.held_out = InputStatistics(columns, paired=paired) if held_out else None
        self._clips = 0

    def update(self, inputs: Tensor, weights: Tensor, floats: Tensor | None = None) -> None:
        """Add `inputs` [batch, positions, columns], each row by its weight [batch, positions].

        `floats`, of the shape of `inputs`, is what the float model reads at the same rows.
        """
        if self.held_out is not None:
            chosen = (torch.arange(len(inputs)) + self._clips + 1) % HELD_OUT_EVERY == 0
            chosen = chosen.to(inputs.device)
            self._clips += len(inputs)
            self.held_out.update(
                inputs[chosen], weights[chosen], None if floats is None else floats[chosen]
            )
        counted = weights > 0
        rows, weight = inputs[counted].float(), weights[counted][:, None]
        if not len(rows):
            return
        add_column_products(self._products, rows * weight.sqrt())
        if floats is not None:
            # Exactly zero where both read the same.
            self._mismatch += (((floats[counted].float() - rows) * weight).T @ rows).cpu()
        self._sum += (rows * weight).sum(0, dtype=torch.float64).cpu()
        self._magnitudes += (rows.abs() * weight).sum(0, dtype=torch.float64).cpu()
        clips = [clip[chosen].float() for clip, chosen in zip(inputs, counted, strict=True)]
        lows = torch.stack([clip.amin(0) for clip in clips if len(clip)]).cpu()
        highs = torch.stack([clip.amax(0) for clip in clips if len(clip)]).cpu()
        self.clip_minimum = torch.cat([self.clip_minimum, lows])
        self.clip_maximum = torch.cat([self.clip_maximum, highs])
        self.minimum, self.maximum = self.clip_minimum.amin(0), self.clip_maximum.amax(0)
        self.rows += float(weight.sum(dtype=torch.float64))

    def part(self, first: int, count: int) -> InputStatistics:
        """The statistics of columns `first` to `first + count - 1` alone."""
        if first == 0 and count == len(self._sum):
            return self
        return self.select(torch.arange(first, first + count))

    def select(self, columns: Tensor) -> InputStatistics:
        """The statistics of `columns` (their numbers) alone, in that order.

        Without what the float model reads and what is held out: whole layers make use of those.
        """
        part = InputStatistics(0)
        part.rows = self.rows
        part.minimum, part.maximum = self.minimum[columns], self.maximum[columns]
        part.clip_minimum = self.clip_minimum[:, columns]
        part.clip_maximum = self.clip_maximum[:, columns]
        part._sum, part._magnitudes = self._sum[columns], self._magnitudes[columns]
        part._products = self._products[columns][:, columns]
        return part

    def without(self, columns: Tensor) -> InputStatistics:
        """The same where `columns` (bool) are always zero, as if errors in them did not exist."""
        rest = self.select(torch.arange(len(columns)))
        for part in (rest.minimum, rest.maximum, rest._sum, rest._magnitudes):
            part[columns] = 0
        for part in (rest.clip_minimum, rest.clip_maximum, rest._products):
            part[:, columns] = 0
        rest._products[columns] = 0
        return rest

    @property
    def mean(self) -> Tensor:
        """Mean of every column, float64 [columns]."""
        return self._sum / (self.rows or 1)

    @property
    def mean_magnitude(self) -> Tensor:
        """Mean of |x| of every column, float64 [columns]."""
        return self._magnitudes / (self.rows or 1)

    @property
    def largest_magnitude(self) -> Tensor:
        """Largest |x| of every column, float32 [columns]."""
        return torch.maximum(self.minimum.abs(), self.maximum.abs())

    @property
    def second_moment(self) -> Tensor:
        """Mean of x xᵀ over rows, float64 [columns, columns]; zeros without any row."""
        return self._products / (self.rows or 1)

    @property
    def hessian(self) -> Tensor:
        """Hessian of the mean squared output error in one weight row: 2 E[x xᵀ]."""
        return self._products * (2 / (self.rows or 1))

    @property
    def mismatch(self) -> Tensor:
        """2 E[(f - x) xᵀ] with f what the float model reads, float64 [columns, columns]."""
        return self._mismatch * (2 / (self.rows or 1))

    @property
    def fitted(self) -> InputStatistics:
        """Rows and products of all clips but those that are held out."""
        assert self.held_out is not None
        rest = InputStatistics(0)
        rest.rows = self.rows - self.held_out.rows
        rest._products = self._products - self.held_out._products
        rest._mismatch = self._mismatch - self.held_out._mismatch
        return rest

    def relative_output_error(self, weight: Tensor, rounded: Tensor) -> float:
        """Output error of `rounded` in units of the output's variance, summed over channels.

        The variance stays the same where outputs are rescaled or rotated together, and where a
        constant moves from the input into the bias, so the error can be summed over layers and
        compared between methods. Zero without any row or variance.
        """
        offset = weight.detach().double().cpu() @ self.mean
        variance = self.output_error(weight) - float(offset.square().sum())
        return self.output_error(weight - rounded) / variance if variance > 0 else 0.0

    def output_error(self, difference: Tensor) -> float:
        """Mean over rows of the squared norm of `difference` x: tr(D E[x xᵀ] Dᵀ).

        `difference` is [out_features, columns], for example W - Ŵ (or W for the mean square of
        the output without its bias).
        """
        wide = difference.detach().double().cpu()
        return quadratic_form(wide, self._products) / (self.rows or 1)
