"""Who is faster: contestants timed in rounds, some of them in processes and virtual environments of their own.

Each round times every contestant once, in an order drawn anew, so that whatever else the machine does meets all of them alike. Figures are
medians over rounds, ratios are taken within a round, and their intervals come from resampling rounds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Gate
from src.errors import UserError
from src.evaluation.statistics import interval

Rates = NDArray[np.float64]
Run = Callable[[int], tuple[int, float]]
"""Plays at least so many steps; returns how many they were and the seconds that they took."""

CONFIDENCE = 0.95


class Worker:
    """A process that answers lines of JSON with lines of JSON, on one thread. It imports nothing of this product."""

    def __init__(self, name: str, command: Sequence[str | Path]) -> None:
        """Start it; its first line is read with `answer`."""
        one_thread = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")}
        self.name, self.command = name, command
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=one_thread)

    def answer(self) -> dict[str, Any]:
        """Its next line.

        Raises:
            UserError: when it has ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            by_hand = " ".join(f"'{word}'" for word in self.command)
            raise UserError(f"the process of peer '{self.name}' ended (status {self.process.wait()}); run {by_hand} by hand to see why")
        return json.loads(line)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Its answer to a line.

        Raises:
            UserError: when it has ended.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        """Close its input, which it takes as the end, and wait."""
        self.process.communicate()


def own_python(folder: Path, requirements: Path, install: bool) -> Path | None:
    """The interpreter of a virtual environment with these requirements, made or made anew where it is not complete; None where that is not asked for."""
    python, mark, wanted = folder / "bin" / "python", folder / "installed.txt", requirements.read_text(encoding="utf-8")
    if mark.exists() and mark.read_text(encoding="utf-8") == wanted:
        return python
    if not install:
        return None
    print(f"installing the peers into '{folder}', once ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
    if subprocess.run([*pip, "-r", requirements], check=False).returncode == 0:
        mark.write_text(wanted, encoding="utf-8")
        return python
    # One that cannot be had must not take the others with it. Without the mark, the next run tries again.
    for line in wanted.splitlines():
        package = line.partition("#")[0].strip()
        if package and subprocess.run([*pip, package], check=False).returncode != 0:
            print(f"{package} did not install")
    return python


def compete(runs: dict[str, tuple[Run, int]], rounds: int, seconds: float, rng: np.random.Generator) -> dict[str, Rates]:
    """Time everybody in every round, each for about `seconds`: (rounds,) steps a second. Each comes with the multiple that its steps must be."""
    lengths = {}
    for name, (run, whole) in runs.items():
        steps, spent = run(whole)
        while spent < seconds / 2:  # also warms up
            steps, spent = run(2 * steps)
        lengths[name] = max(1, round(steps * seconds / spent / whole)) * whole
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in rng.permutation(list(runs)):
            steps, spent = runs[name][0](lengths[name])
            rates[name].append(steps / spent)
    return {name: np.array(values) for name, values in rates.items()}


def estimate(values: Rates, rng: np.random.Generator) -> tuple[float, float, float]:
    """Median over rounds, and its interval from resampled rounds."""
    samples = np.median(values[rng.integers(0, len(values), (2000, len(values)))], axis=1)
    return float(np.median(values)), *interval(samples, CONFIDENCE)


def gate(what: str, values: Rates, target: float, rng: np.random.Generator) -> Gate:
    """At least `target`, in the median round."""
    value, low, high = estimate(values, rng)
    return Gate(what, value, target, ">=", low, high)
