"""Agents (requirement G): the contest and its gates, what perfect readings would be worth, other networks; one result file and table from all.

`python -m benchmarks.agents` measures each part that was not measured by this code on these data before, and writes `results/agents.json`;
`--part NAME` measures one and prints it. Trained agents are kept below `artifacts/benchmarks`, so that a run that was cut off goes on.
"""

from __future__ import annotations

from benchmarks.common import launch
from benchmarks.parts import PartedBenchmark

AGENTS = PartedBenchmark(
    "agents",
    "benchmarks.agents_",
    ("contest", "ceiling", "transfer"),
    ("envs",),
    seeds=10,
)


def main() -> None:
    """Measure one part, or all, and write the result."""
    AGENTS.main(__doc__)


if __name__ == "__main__":
    launch(main)
