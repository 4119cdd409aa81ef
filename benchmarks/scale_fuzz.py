"""Bad input at scale: mutated tables, logs, settings and recordings, and artifacts altered at any byte.

Every reader of files that users bring is called with thousands of damaged inputs (`benchmarks.fuzz_targets`), every kind of artifact is opened after
thousands of alterations (`benchmarks.fuzz_artifacts`). Accepted input must give finite numbers, refused input one clear line, within 20 s and 2 GB.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import Gate, PartOptions
from benchmarks.fuzz_artifacts import check_all
from benchmarks.fuzz_targets import TARGETS
from benchmarks.fuzzing import ACCEPTED, CRASH, HANG, NOT_FINITE, REFUSED, TRACEBACK, UNCLEAR, fuzz

SEED = 1
CASES = 25
"""Of each target in a smaller run."""
ALTERATIONS = 600
"""Of each kind of artifact; 20 in a smaller run."""
SHOWN = 5
"""Defects of a target that are told."""


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """A row a target and a row a kind of artifact; the gates stand only for the full size."""
    os.environ["POLARS_MAX_THREADS"] = "1"  # workers inherit it: many small inputs gain nothing by threads
    shared = options.shared if (options.shared / "iot23").is_dir() else None
    inputs = []
    for target in TARGETS:
        tally = fuzz("benchmarks.fuzz_targets", target, CASES if options.quick else target.cases, SEED, shared)
        found = tally.outcomes
        inputs.append({
            "target": target.name, "cases": tally.cases, "accepted": found[ACCEPTED], "refused": found[REFUSED],
            "tracebacks": found[TRACEBACK] + found[CRASH], "hangs": found[HANG], "not_finite": found[NOT_FINITE], "unclear_messages": found[UNCLEAR],
            "slowest_seconds": tally.slowest, "peak_growth_mb": tally.growth / 1e6,
            "seen": "; ".join(f"case {index}: {outcome}: {detail}" for index, outcome, detail in tally.defects[:SHOWN]),
        })  # fmt: skip
        print(f"{target.name}: {tally.cases} cases, {dict(found)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        artifacts = check_all(Path(folder), 20 if options.quick else ALTERATIONS, SEED, every_byte=not options.quick)
    tables = {"mutated input": inputs, "artifacts altered at any byte": artifacts}
    if options.quick:
        return {}, tables
    kinds = ("tracebacks", "hangs", "not_finite", "unclear_messages")
    defects = sum(row[kind] for row in inputs for kind in kinds) + sum(row["tracebacks"] for row in artifacts)
    return {
        "H5.cases": Gate(f"mutated inputs given to {len(inputs)} readers", sum(row["cases"] for row in inputs), 20_000),
        "H5.defects": Gate("inputs that ended in a traceback, a hang, a number that is not finite, or a message that is not one clear line", defects, 0, "<="),
        "H5.artifacts": Gate(
            f"altered artifacts of {sum(row['alterations'] for row in artifacts):,} that were accepted",
            sum(row["accepted_wrongly"] for row in artifacts),
            0,
            "<=",
        ),
    }, tables
