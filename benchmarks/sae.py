"""The autoencoder pipeline (requirements B2 and E): every part measured, and one result file and table from all.

`python -m benchmarks.sae` measures each part that was not measured by this code on these data before, and writes `results/sae.json`;
`--part NAME` measures one and prints it.
"""

from __future__ import annotations

from benchmarks.common import launch
from benchmarks.parts import PartedBenchmark

SAE = PartedBenchmark(
    "sae",
    "benchmarks.sae_",
    ("detection", "false_alarms", "stopping", "memory", "speed", "return"),
    ("src/sae", "envs"),
)


def main() -> None:
    """Measure one part, or all, and write the result."""
    SAE.main(__doc__)


if __name__ == "__main__":
    launch(main)
