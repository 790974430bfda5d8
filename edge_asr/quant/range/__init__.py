"""Parts of the stage `range`: importing this package registers them."""

from edge_asr.quant.range import awq_clip, hqq, lwc, minmax, mse, none, percentile, second_level

__all__ = ["awq_clip", "hqq", "lwc", "minmax", "mse", "none", "percentile", "second_level"]
