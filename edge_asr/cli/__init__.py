"""The command line: composing settings, showing progress and results."""
