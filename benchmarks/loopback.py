"""A Ray cluster of several nodes on this machine's loopback addresses, which the caller can lose nodes of."""
# pyright: reportMissingImports=false
# (Ray is no part of requirements.txt)

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT

STORE = 120 * 2**20
"""Bytes of each node's object store."""
PATIENCE = 900.0
"""Seconds after which a run counts as hanging."""


class Nodes:
    """The nodes, the first of which is the head. Ray takes 127.0.0.1 for the machine's own address, so they have the next ones."""

    def __init__(self, count: int, cores: int = 1) -> None:
        """Start so many, of so many cores each."""
        from ray.cluster_utils import Cluster

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self._cores, self._added = cores, 0
        self._cluster = Cluster()
        self._nodes = [self.add() for _ in range(count)]

    def add(self) -> Any:
        """Start one more."""
        self._added += 1
        more = {"include_dashboard": False} if self._added == 1 else {}
        return self._cluster.add_node(num_cpus=self._cores, object_store_memory=STORE, node_ip_address=f"127.0.0.{1 + self._added}", **more)

    @property
    def address(self) -> str:
        """Of the head, as `compute.address` takes it."""
        return self._cluster.address

    def kill(self) -> None:
        """Kill the last node without a word, and all that works on it."""
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def stop(self) -> None:
        """Stop all."""
        self._cluster.shutdown()


@contextlib.contextmanager
def nodes(count: int, cores: int = 1) -> Iterator[Nodes]:
    """Some nodes inside the block."""
    found = Nodes(count, cores)
    try:
        yield found
    finally:
        found.stop()


def run(words: Sequence[str], while_it_runs: Callable[[], None] = lambda: None) -> tuple[str, float]:
    """What `main.py` prints, and its seconds.

    Args:
        words: of its command line.
        while_it_runs: called once it is started.

    Raises:
        RuntimeError: when it fails.
        TimeoutError: when it hangs.
    """
    began = time.monotonic()
    with subprocess.Popen([sys.executable, str(ROOT / "main.py"), *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while_it_runs()
            out, said = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"main.py {' '.join(words)} has not ended after {PATIENCE:g} s") from error
        finally:
            process.kill()
    if process.returncode:
        raise RuntimeError(f"main.py {' '.join(words)} ended with status {process.returncode}: {said[-2000:]}")
    return out, time.monotonic() - began


def wait_for(folder: Path, pattern: str, count: int) -> None:
    """Wait until so many files of a pattern lie below a folder.

    Raises:
        TimeoutError: when they do not come.
    """
    until = time.monotonic() + PATIENCE
    while len(list(folder.glob(pattern))) < count:
        if time.monotonic() > until:
            raise TimeoutError(f"no {count} files {pattern} below '{folder}' after {PATIENCE:g} s")
        time.sleep(0.05)
