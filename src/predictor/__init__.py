"""The sensor contract."""
