"""Risk sensors learned from real IoT traffic, and what trains, tracks and evaluates them."""
