"""Command line: one phase, or all of them in order."""
