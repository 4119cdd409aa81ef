"""Traffic in: loaders, taxonomy, splits, windows, the statistical profile and the trace bank."""
