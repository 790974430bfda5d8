"""The architecture maps, the only code that knows module names."""
