"""Parts of the stage `range`: importing this package registers them."""

from edge_asr.quant.range import minmax

__all__ = ["minmax"]
