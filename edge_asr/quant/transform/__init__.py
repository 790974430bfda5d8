"""Parts of the stage `transform`: importing this package registers them."""

from edge_asr.quant.transform import none

__all__ = ["none"]
