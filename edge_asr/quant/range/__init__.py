"""Parts of the stage `range`: importing this package registers them."""

from edge_asr.quant.range import (
    awq_clip,
    double_quantization,
    hqq,
    lwc,
    minmax,
    mse,
    none,
    percentile,
)

__all__ = ["awq_clip", "double_quantization", "hqq", "lwc", "minmax", "mse", "none", "percentile"]
