"""Roll-outs, statistics, tables and figures."""
