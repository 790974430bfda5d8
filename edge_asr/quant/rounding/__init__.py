"""Parts of the stage `rounding`: importing this package registers them."""

from edge_asr.quant.rounding import gptq, nearest

__all__ = ["gptq", "nearest"]
