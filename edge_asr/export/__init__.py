"""Quantized models as the files of runtimes: the very codes, read back and compared bit for bit."""
