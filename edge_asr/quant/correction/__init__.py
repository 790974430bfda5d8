"""Parts of the stage `correction`: importing this package registers them."""

from edge_asr.quant.correction import bias, none

__all__ = ["bias", "none"]
