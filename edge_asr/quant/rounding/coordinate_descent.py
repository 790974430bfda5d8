"""Coordinate descent over codes: each column anew the best it can be, given all the others.

GPTQ rounds every column once, when those behind it are still free; afterwards a better code may be
in reach. Kim et al. 2025 (GuidedQuant, arXiv:2505.07004, section 4) cycle over the columns: with
D = Q - W and the objective tr(D H Dᵀ), column j is best at q_j - (D H)_j / H_jj, and so is the
level nearest to that. No step raises the objective.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from edge_asr.quant.grid import code_dtype, dequantize, quantize
from edge_asr.quant.weight import QuantizedWeight

BLOCK = 128


def polished(
    rounded: QuantizedWeight, target: Tensor, hessian: Tensor, order: Tensor, cycles: int
) -> QuantizedWeight:
    """`rounded` after so many cycles over its columns.

    Args:
        rounded: What the cycles start from; its scales, zero points and outliers stay.
        target: The weight it stands for [rows, columns].
        hessian: Of the output error in a row, damped, [columns, columns].
        order: Numbers of the columns in the order they are visited.
        cycles: Fewer are made where one changes no code.
    """
    hessian = hessian.double()[order][:, order]
    diagonal = hessian.diagonal()
    scale, zero = (one.double().T[order] for one in rounded.parameters.expand(target.shape[1]))
    codes = rounded.codes.double().T[order]
    fixed = torch.zeros_like(codes, dtype=torch.bool)
    if rounded.outliers is not None:
        fixed = rounded.outliers.mask.T[order]
    values = torch.where(
        fixed, rounded.dequantize().double().T[order], dequantize(codes, scale, zero)
    )
    # Of D H, stored by column as D is.
    slopes = hessian @ (values - target.double().T[order])
    for _ in range(cycles):
        before = codes.clone()
        for start in range(0, len(codes), BLOCK):
            stop = min(start + BLOCK, len(codes))
            moved = torch.zeros_like(values[start:stop])
            for column in range(start, stop):
                if not diagonal[column]:
                    continue
                best = values[column] - slopes[column] / diagonal[column]
                code = quantize(best, scale[column], zero[column], rounded.grid)
                code = torch.where(fixed[column], codes[column], code)
                value = dequantize(code, scale[column], zero[column])
                change = torch.where(fixed[column], 0.0, value - values[column])
                codes[column], moved[column - start] = code, change
                values[column] += change
                slopes[start:stop].addr_(hessian[start:stop, column], change)
            outside = torch.ones(len(codes), dtype=torch.bool)
            outside[start:stop] = False
            slopes[outside] += hessian[outside, start:stop] @ moved
        if torch.equal(codes, before):
            break
    natural = torch.argsort(order)
    found = codes[natural].T.to(code_dtype(rounded.grid)).contiguous()
    return replace(rounded, codes=found)
