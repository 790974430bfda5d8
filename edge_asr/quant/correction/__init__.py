"""Parts of the stage `correction`: importing this package registers them."""

from edge_asr.quant.correction import none

__all__ = ["none"]
