"""Crashes: the main job killed with SIGKILL at ten random moments, and what else befalls a run; how each ends.

`benchmarks.faults` does it, to `main.py --phase all` in processes of their own, at tiny sizes on synthetic traffic (whatever `--root` says): what is
measured is how runs end, not what they learn. The first moments fall into one phase each, the others anywhere in the run; a run ends the same
when every policy's return, every agent's number of steps and the content of every artifact are the undisturbed run's, no MLflow run is left RUNNING
and every artifact opens with its checksums.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import faults
from benchmarks.common import Gate, PartOptions
from benchmarks.faults import Fault, Straight

QUICK_MOMENTS = 2
T = TypeVar("T")


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Tables of moments and of faults; the gates stand only for all of them."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = faults.straight(Path(scratch) / "straight")
        count = QUICK_MOMENTS if options.quick else faults.MOMENTS
        moments = [shown(faults.killed(whole, moment, Path(scratch) / f"killed{moment}")) for moment in range(count)]
        phases = [phase for phase in whole.phases if phase != "ppo seed 1"]
        interrupts = [shown(faults.interrupted(phase, Path(scratch) / f"interrupted{i}")) for i, phase in enumerate(phases[:1] if options.quick else phases)]
        others = [faults.no_folder(Path(scratch) / "file")] if options.quick else list(map(shown, disturbed(whole, Path(scratch))))
    tables = {
        f"SIGKILL, then --resume (tiny settings, synthetic traffic; undisturbed: {whole.seconds:.0f} s)": moments,
        "other faults (tiny settings, synthetic traffic)": [one.row() for one in (*interrupts, *others)],
    }
    if options.quick:
        return {}, tables
    return {
        "A6.kills": Gate(
            f"share of {len(moments)} SIGKILL moments after which the run goes on and ends the same", sum(map(faults.same, moments)) / len(moments), 1.0
        ),
        "A6.interrupt": Gate(f"seconds from Ctrl-C to the end, worst of {len(interrupts)} phases", max(one.seconds for one in interrupts), faults.AT_ONCE, "<"),
        "H4.faults": Gate(
            "share of faults that end as expected (Ctrl-C, full disk, read-only, tracking server, clock)",
            sum(not one.wrong for one in (*interrupts, *others)) / len((*interrupts, *others)),
            1.0,
        ),
    }, tables


def shown(found: T) -> T:
    """The same, printed: the whole takes many minutes."""
    print(found, flush=True)
    return found


def disturbed(whole: Straight, scratch: Path) -> Iterator[Fault]:
    """Every fault but Ctrl-C, one after another."""
    for size in faults.SIZES:
        yield faults.full_disk(whole, scratch / f"disk{size}", size)
    yield faults.read_only_from_the_start(scratch / "read_only")
    yield faults.read_only_midway(whole, scratch / "midway")
    yield faults.no_folder(scratch / "file")
    yield faults.server_away(whole, scratch / "killed_server", signal.SIGKILL)
    yield faults.server_away(whole, scratch / "still_server", signal.SIGSTOP)
    yield faults.no_server(scratch / "no_server")
    yield faults.clock_back(whole, scratch / "clock")
