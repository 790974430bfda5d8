"""What a model costs to run and to store."""
