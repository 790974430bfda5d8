"""TesseraQ hardens its codes in stretches."""

from __future__ import annotations

import torch

from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import minimum_of
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.rounding.tesseraq import HardeningCodes, TesseraQ
from edge_asr.quant.trainable import LayerStart


def test_scales_leave_a_stored_minimum_where_it_is() -> None:
    grid = Grid(4, zero_point="minimum", include_zero=False)
    weight = 5 + 0.1 * torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    start = LayerStart(weight, minmax_parameters(weight, grid), grid)
    codes = TesseraQ().trainable_rounding({"one": start})
    assert isinstance(codes, HardeningCodes)
    with torch.no_grad():
        codes.scale_logits["0"].fill_(0.1)
    found = codes.parameters_of("one")
    assert bool((found.scale > start.parameters.scale).all())
    before, after = (minimum_of(one.zero, one.scale, grid) for one in (start.parameters, found))
    assert torch.equal(after, before)


def test_decided_codes_stay_and_the_undecided_move() -> None:
    """TesseraQ: nothing but hardening changes a fixed logit, whatever the gradients are."""
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    start = LayerStart(weight, minmax_parameters(weight, Grid(3)), Grid(3))
    part = TesseraQ(iterations=20, trained_shares=(0.5, 0.25))
    codes = part.trainable_rounding({"one": start})
    assert isinstance(codes, HardeningCodes)
    (optimizer,) = codes.optimizers(20)
    target = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    for step in range(1, 21):
        before, fixed = codes.logits["0"].detach().clone(), codes.get_buffer("fixed_0").clone()
        assert int((~fixed).sum()) == (48 if step <= 10 else 24)
        optimizer.zero_grad()
        (codes.fake_quantized("one") - target).square().sum().backward()
        optimizer.step()
        assert torch.equal(codes.logits["0"][fixed], before[fixed])
        assert not torch.equal(codes.logits["0"][~fixed], before[~fixed])
        codes.after_step(step, 20)
    assert bool(codes.get_buffer("fixed_0").all())
    assert torch.equal(codes.fake_quantized("one"), codes.quantized("one").dequantize())
