"""Parts of the stage `transform`: importing this package registers them."""

from edge_asr.quant.transform import awq, cle, hadamard, let, none, smooth, spin

__all__ = ["awq", "cle", "hadamard", "let", "none", "smooth", "spin"]
