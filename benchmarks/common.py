"""What every benchmark script shares: its command line, where real traffic lies, and its result file."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from src.config import load_config
from src.errors import UserError
from src.evaluation.tables import Gate, print_table, result, save_result

__all__ = ["RESULTS", "ROOT", "SHARED", "Gate", "PartOptions", "cache_folder", "code_digest", "digest", "launch", "parser", "show", "write_result"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHARED = ROOT.parent / "shared" / "data"
_STARTED = time.perf_counter()


@dataclass(frozen=True)
class PartOptions:
    """How a part of a benchmark is to be measured."""

    quick: bool
    """A smaller run."""
    root: Path
    """Folder of CICIoT2023 CSVs."""
    shared: Path
    """Folder that holds `ciciot39`, `nbaiot` and the other data sets."""
    seeds: int
    """Trainings of each candidate."""
    threads: int = 1
    """Threads of torch."""


@functools.cache
def code_digest(*places: str) -> str:
    """SHA-256 of these Python files, and those below these folders, of the checkout: what a kept result hangs on, committed or not."""
    found = hashlib.sha256()
    for path in sorted(path for place in places for path in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))):
        found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def digest(*parts: Any) -> str:
    """Sixteen hexadecimal digits of what can be written as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Where models and outcomes are kept, so that a benchmark that was cut off goes on."""
    return load_config().compute.artifacts / "benchmarks"


def parser(description: str | None, data: bool = False) -> argparse.ArgumentParser:
    """The command line of a benchmark: `--quick`, and `--root` where it reads real data."""
    words = argparse.ArgumentParser(description=(description or "").strip().splitlines()[0])
    words.add_argument("--quick", action="store_true", help="a smaller run, written to NAME.quick.json")
    if data:
        words.add_argument("--root", type=Path, default=SHARED / "ciciot2023", help="folder of CICIoT2023 CSVs")
    return words


def launch(main: Callable[[], None]) -> None:
    """Run a script; wrong input ends in one line."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")


def write_result(
    name: str,
    data: Literal["real", "synthetic"],
    gates: Mapping[str, Gate],
    tables: Mapping[str, list[dict[str, Any]]],
    quick: bool,
    seconds: float | None = None,
) -> Path:
    """Print gates and tables, write `results/NAME.json` (`NAME.quick.json`), and end with the same JSON on one line.

    Args:
        name: of the benchmark.
        data: what it was measured on.
        gates: by id, e.g. `A3.fidelity`.
        tables: by title, rows as dictionaries with equal keys.
        quick: whether this was the smaller run.
        seconds: that the measurement took; None: since the script was started.

    Returns:
        The file written.
    """
    found = result(name, data, time.perf_counter() - _STARTED if seconds is None else seconds, torch.get_num_threads(), gates, tables)
    show(name, gates, tables)
    path = RESULTS / f"{name}{'.quick' if quick else ''}.json"
    save_result(path, found)
    print(json.dumps(json.loads(path.read_text(encoding="utf-8"))))
    return path


def show(name: str, gates: Mapping[str, Gate], tables: Mapping[str, list[dict[str, Any]]]) -> None:
    """Print gates and tables."""
    console = Console(width=200)
    for title, rows in {"gates": [{"id": key, **asdict(gate)} for key, gate in gates.items()], **tables}.items():
        if rows:
            print_table(f"{name}: {title}", rows, {key: key.replace("_", " ") for key in rows[0]}, console)
