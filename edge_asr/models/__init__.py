"""Loading checkpoints, and the architecture maps of their families."""
