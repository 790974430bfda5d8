"""Hypotheses, word error rate and its uncertainty."""
