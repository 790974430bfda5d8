"""Parts of the stage `outliers`: importing this package registers them."""

from edge_asr.quant.outliers import columns, none, unstructured

__all__ = ["columns", "none", "unstructured"]
