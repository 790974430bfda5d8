"""Run records turned into CSV, Markdown and console tables."""
