"""Word error rate, its uncertainty, and what a model costs to run and to store."""
