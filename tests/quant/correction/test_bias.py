"""Bias correction against the mean error of real outputs."""

from __future__ import annotations

import torch
from quant.sites import correlated_inputs, site_context

from edge_asr.quant.correction.bias import BiasCorrection
from edge_asr.quant.formats import Grid
from edge_asr.quant.layers import QuantizedLinear
from edge_asr.quant.rounding.nearest import Nearest


def rounded_layer(bias: bool) -> tuple[QuantizedLinear, torch.nn.Linear, torch.Tensor]:
    """A layer at 2 bits whose bias was corrected, its float original, and the inputs."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(20, 7, bias=bias)
    inputs = correlated_inputs(0, 300, 20) + 3.0
    context = site_context(plain.weight.detach(), inputs, Grid(2))
    copied = torch.nn.Linear(20, 7, bias=bias)
    copied.load_state_dict(plain.state_dict())
    layer = QuantizedLinear.from_linear(copied)
    with torch.no_grad():
        layer.weight.copy_(Nearest().round(context)["layer"].dequantize())
        BiasCorrection().repair(context, {"layer": layer})
    return layer, plain, inputs


def test_the_mean_output_is_that_of_the_float_layer() -> None:
    layer, plain, inputs = rounded_layer(bias=True)
    with torch.no_grad():
        uncorrected = inputs @ layer.weight.T + plain.bias
        expected, found = plain(inputs), layer(inputs)
    assert float((uncorrected - expected).mean(0).abs().max()) > 0.1
    torch.testing.assert_close(found.mean(0), expected.mean(0), atol=1e-3, rtol=1e-4)


def test_a_layer_without_bias_stays_without() -> None:
    layer, _, _ = rounded_layer(bias=False)
    assert layer.bias is None
