"""Parts of the stage `outliers`: importing this package registers them."""

from edge_asr.quant.outliers import none

__all__ = ["none"]
