"""What every benchmark script shares: its command line, where real traffic lies, and its result file."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from src.errors import UserError
from src.evaluation.tables import Gate, print_table, result, save_result

__all__ = ["RESULTS", "ROOT", "Gate", "launch", "parser", "write_result"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_STARTED = time.perf_counter()


def parser(description: str | None, data: bool = False) -> argparse.ArgumentParser:
    """The command line of a benchmark: `--quick`, and `--root` where it reads real data."""
    words = argparse.ArgumentParser(description=(description or "").strip().splitlines()[0])
    words.add_argument("--quick", action="store_true", help="a smaller run, written to NAME.quick.json")
    if data:
        words.add_argument("--root", type=Path, default=ROOT.parent / "shared" / "data" / "ciciot2023", help="folder of CICIoT2023 CSVs")
    return words


def launch(main: Callable[[], None]) -> None:
    """Run a script; wrong input ends in one line."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")


def write_result(name: str, data: Literal["real", "synthetic"], gates: Mapping[str, Gate], tables: Mapping[str, list[dict[str, Any]]], quick: bool) -> Path:
    """Print gates and tables, write `results/NAME.json` (`NAME.quick.json`), and end with the same JSON on one line.

    Args:
        name: of the benchmark.
        data: what it was measured on.
        gates: by id, e.g. `A3.fidelity`.
        tables: by title, rows as dictionaries with equal keys.
        quick: whether this was the smaller run.

    Returns:
        The file written.
    """
    found = result(name, data, time.perf_counter() - _STARTED, torch.get_num_threads(), gates, tables)
    console = Console(width=200)
    for title, rows in {"gates": [{"id": key, **gate} for key, gate in found["gates"].items()], **tables}.items():
        if rows:
            print_table(f"{name}: {title}", rows, {key: key.replace("_", " ") for key in rows[0]}, console)
    path = RESULTS / f"{name}{'.quick' if quick else ''}.json"
    save_result(path, found)
    print(json.dumps(json.loads(path.read_text(encoding="utf-8"))))
    return path
