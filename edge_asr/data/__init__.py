"""Corpora, audio decoding and calibration batches."""
