"""Parts of the stage `rounding`: importing this package registers them."""

from edge_asr.quant.rounding import adaround, gptq, nearest, none, signround, tesseraq

__all__ = ["adaround", "gptq", "nearest", "none", "signround", "tesseraq"]
