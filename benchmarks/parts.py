"""A benchmark of several parts: each measured apart and kept, and one result file and table from all.

What a part found is kept below `artifacts/benchmarks`, by code, settings, versions, arguments and data, so that a run that was cut off goes on
where it was.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, SHARED, Gate, PartOptions, cache_folder, code_digest, digest, parser, show, write_result
from src.artifacts import new_artifact, open_artifact, versions
from src.config import load_config, nearest
from src.errors import UserError

KIND = "benchmark-part"
ROOMS = ("agents", "benchmarks", "envs", "src")
"""Packages of the checkout."""

Outcome = dict[str, Any]
"""`gates`, `tables` and `seconds` of a part."""


@dataclass(frozen=True)
class PartedBenchmark:
    """A benchmark, and where its parts are."""

    name: str
    """Of the result file."""
    prefix: str
    """Of the parts' modules, each with `measure(options) -> (gates by id, tables by title)`."""
    parts: tuple[str, ...]
    settings: tuple[str, ...] = ()
    """Folders whose YAML and JSON files matter to a part that imports from there."""
    quick_seeds: int = 2
    seeds: int = 5
    """Trainings of each candidate."""

    def outcome(self, part: str, options: PartOptions) -> Outcome:
        """What a part found, measured now unless this code has measured it on these data before."""
        module = self.prefix + part
        settings = load_config().model_dump(mode="json", exclude={"compute": {"artifacts"}})  # environment variables change them
        own = own_code(module)
        places = [place for place in self.settings if any(name.startswith(f"{place}/") for name in own)]
        files = sorted(path for place in places for end in ("yml", "json") for path in (ROOT / place).rglob(f"*.{end}"))
        beside = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}
        code = (code_digest(*own), versions(), beside, settings)
        identity = digest(part, asdict(options), code, data_digest(options.root, options.shared))
        folder = cache_folder() / "parts" / f"{part}-{identity}"
        if folder.exists():
            open_artifact(folder, KIND)
            return json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
        started = time.perf_counter()
        gates, tables = importlib.import_module(module).measure(options)
        found: Outcome = {"gates": {key: asdict(gate) for key, gate in gates.items()}, "tables": tables, "seconds": time.perf_counter() - started}
        with new_artifact(folder, KIND, {"part": part, "options": asdict(options)}) as target:
            (target / "outcome.json").write_text(json.dumps(found), encoding="utf-8")
        return found

    def main(self, description: str | None) -> None:
        """Measure one part, or all, and write the result.

        Raises:
            UserError: for an unknown part.
        """
        words = parser(description, data=True)
        words.add_argument("--shared", type=Path, default=SHARED, help="folder that holds the other data sets")
        words.add_argument("--part", metavar="|".join(self.parts), help="measure this part alone")
        given = words.parse_args()
        if given.part is not None and given.part not in self.parts:
            raise UserError(f"unknown part '{given.part}': {nearest(given.part, self.parts)}")
        options = PartOptions(quick=given.quick, root=given.root, shared=given.shared, seeds=self.quick_seeds if given.quick else self.seeds)
        torch.set_num_threads(options.threads)
        found = {part: self.outcome(part, options) for part in (self.parts if given.part is None else (given.part,))}
        if given.part is not None:
            show(given.part, gates_of(found[given.part]), found[given.part]["tables"])
            print(json.dumps(found[given.part]))
            return
        gates = {key: gate for one in found.values() for key, gate in gates_of(one).items()}
        tables = {f"{part}: {title}": rows for part, one in found.items() for title, rows in one["tables"].items()}
        write_result(self.name, "real", gates, tables, given.quick, sum(one["seconds"] for one in found.values()))


def own_code(module: str) -> tuple[str, ...]:
    """Files below the checkout of a module and of all that it imports from there, and so on."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # a name in a module, not a module
            continue
        path = None if spec is None or spec.origin is None else Path(spec.origin)
        if path is None or not path.is_relative_to(ROOT) or (place := path.relative_to(ROOT).as_posix()) in found or place.startswith("."):
            continue
        found.add(place)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] in ROOMS:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.split(".")[0] in ROOMS]
    return tuple(sorted(found))


def data_digest(*folders: Path) -> str:
    """Of the names, sizes and times of change of all files below these folders."""
    found = []
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        state = path.stat()
        found.append((str(path), state.st_size, state.st_mtime_ns))
    return digest(found)


def gates_of(found: Outcome) -> dict[str, Gate]:
    """The gates of a part as they were decided when they were measured: `by_interval` is not among a gate's fields."""
    gates = {key: Gate(**{name: value for name, value in stored.items() if name != "met"}) for key, stored in found["gates"].items()}
    for key, gate in gates.items():
        object.__setattr__(gate, "met", found["gates"][key]["met"])
    return gates
