"""Past one machine and past one crash (requirements H, B2, A6, A7): size, cluster, crashes and bad input, each measured, and one result file from all.

`python -m benchmarks.scale` measures each part that was not measured by this code on these data before, and writes `results/scale.json`;
`--part NAME` measures one and prints it.
"""

from __future__ import annotations

from benchmarks.common import launch
from benchmarks.parts import PartedBenchmark

SCALE = PartedBenchmark("scale", "benchmarks.scale_", ("data", "cluster", "crashes", "fuzz"))
"""`data`: CICIoT2023 at full size; `cluster`: Ray, with a node killed; `crashes`: SIGKILL, disks, servers; `fuzz`: mutated input and artifacts."""


def main() -> None:
    """Measure one part, or all, and write the result."""
    SCALE.main(__doc__)


if __name__ == "__main__":
    launch(main)
