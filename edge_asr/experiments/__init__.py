"""A kind of experiment a file, made of shared steps."""
