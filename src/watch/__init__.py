"""From packets to a decision: the trained system watching a real network, in shadow mode."""
