"""What the choices behind the agents pay: algorithms, ablations, and prices; one result file and table from all.

`python -m benchmarks.agent_choices` measures each part that was not measured by this code on these data before, and writes
`results/agent_choices.json`; `--part NAME` measures one and prints it. Trained agents are kept below `artifacts/benchmarks`.
"""

from __future__ import annotations

from benchmarks.common import launch
from benchmarks.parts import PartedBenchmark

CHOICES = PartedBenchmark("agent_choices", "benchmarks.agents_", ("algorithms", "ablations", "costs"), ("envs",), seeds=2)


def main() -> None:
    """Measure one part, or all, and write the result."""
    CHOICES.main(__doc__)


if __name__ == "__main__":
    launch(main)
