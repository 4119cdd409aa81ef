"""Torch-facing view of the data."""
