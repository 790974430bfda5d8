"""Checkpoints and the two architecture maps, the only code that knows module names."""
