"""Predictors that hold up (requirements B4, C and D): every part measured, and one result file and table from all.

`python -m benchmarks.predictors` measures each part that was not measured by this code on these data before, and writes
`results/predictors.json`; `--part NAME` measures one and prints it.
"""

from __future__ import annotations

from benchmarks.common import launch
from benchmarks.parts import PartedBenchmark

PREDICTORS = PartedBenchmark(
    "predictors",
    "benchmarks.part_",
    ("protocol", "fusion", "site", "families", "devices", "online", "explanations"),
    ("envs",),
)


def main() -> None:
    """Measure one part, or all, and write the result."""
    PREDICTORS.main(__doc__)


if __name__ == "__main__":
    launch(main)
