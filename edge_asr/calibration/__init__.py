"""Calibration batches, captured block inputs and input statistics."""
