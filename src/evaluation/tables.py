"""Result tables on the terminal, and result files."""

from __future__ import annotations

import json
import operator
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from src.artifacts import command, git_commit, versions, write_text


def print_table(title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], console: Console) -> None:
    """Print rows below a title; `columns` maps a key to its heading, numbers are rounded and set to the right."""
    table = Table(box=box.SIMPLE_HEAD)
    for i, heading in enumerate(columns.values()):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns))
    console.print(f"\n[bold]{title}[/bold]", highlight=False)
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}"
    return "" if value is None else str(value)


@dataclass(frozen=True)
class Gate:
    """One measured claim. A gate that was not measured is left out, never written."""

    what: str
    """What was measured, in words."""
    value: float
    target: float
    op: Literal[">=", "<=", ">", "<"] = ">="
    """How `value` must stand to `target`."""
    low: float | None = None
    """Lower end of the 95 % interval, where there is one."""
    high: float | None = None
    """Upper end."""
    met: bool = field(init=False)
    by_interval: InitVar[bool] = False
    """Whether the unfavourable end of the interval must meet the target too (a difference whose interval excludes 0)."""

    beyond: InitVar[float | None] = None
    """A milder value than `target` that the unfavourable end must clear (a score whose interval lies above 0, whatever is asked of the value)."""

    def __post_init__(self, by_interval: bool, beyond: float | None) -> None:
        """Decide."""
        holds = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}[self.op]
        strictly, bound = (operator.gt, self.low) if self.op in (">=", ">") else (operator.lt, self.high)
        met = holds(self.value, self.target)
        if bound is not None:
            met = met and (not by_interval or holds(bound, self.target)) and (beyond is None or strictly(bound, beyond))
        object.__setattr__(self, "met", bool(met))


def result(name: str, data: str, seconds: float, threads: int, gates: Mapping[str, Gate], tables: Mapping[str, Any]) -> dict[str, Any]:
    """A result file's content: who measured what, where, on which data (`real` or `synthetic`)."""
    found = versions()
    machine = {"cpus": _cpus(), "threads": threads, "python": platform.python_version(), "torch": found.get("torch", "")}
    return {
        "name": name, "command": command(), "commit": git_commit(), "data": data, "seconds": round(seconds, 1),
        "machine": machine, "gates": {key: asdict(one) for key, one in gates.items()}, "tables": dict(tables),
    }  # fmt: skip


def save_result(path: Path, found: Mapping[str, Any]) -> None:
    """Write a result file, whole or not at all; numbers are rounded to six digits."""
    write_text(path, json.dumps(_rounded(found), indent=1) + "\n")


def _rounded(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _rounded(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_rounded(value) for value in node]
    return float(f"{node:.6g}") if isinstance(node, float) else node


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
