"""Predictors that hold up (requirements B4, C and D): every part measured, and one result file and table from all.

`python -m benchmarks.predictors` measures each part that was not measured by this code on these data before, and writes
`results/predictors.json`; `--part NAME` measures one and prints it. What a part found is kept below `artifacts/benchmarks`, by code,
settings, versions, arguments and data, so that a run that was cut off goes on where it was.
"""

from __future__ import annotations

import importlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, SHARED, Gate, PartOptions, cache_folder, code_digest, digest, launch, parser, show, write_result
from src.artifacts import new_artifact, open_artifact, versions
from src.config import load_config, nearest
from src.errors import UserError

KIND = "benchmark-part"
PARTS = ("protocol", "fusion", "site", "families", "devices", "online", "explanations")
"""Modules `benchmarks.part_NAME`, each with `measure(options) -> (gates by id, tables by title)`."""

Outcome = dict[str, Any]
"""`gates`, `tables` and `seconds` of a part."""


def data_digest(*folders: Path) -> str:
    """Of the names, sizes and times of change of all files below these folders."""
    found = []
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        state = path.stat()
        found.append((str(path), state.st_size, state.st_mtime_ns))
    return digest(found)


def outcome(part: str, options: PartOptions) -> Outcome:
    """What a part found, measured now unless this code has measured it on these data before."""
    scenarios = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "envs").rglob("*.yml"))}
    settings = load_config().model_dump(mode="json", exclude={"compute": {"artifacts"}})  # environment variables change them
    code = (code_digest("src", "envs", "agents", "benchmarks"), versions(), scenarios, settings)
    identity = digest(part, asdict(options), code, data_digest(options.root, options.shared))
    folder = cache_folder() / "parts" / f"{part}-{identity}"
    if folder.exists():
        open_artifact(folder, KIND)
        return json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    started = time.perf_counter()
    gates, tables = importlib.import_module(f"benchmarks.part_{part}").measure(options)
    found: Outcome = {"gates": {key: asdict(gate) for key, gate in gates.items()}, "tables": tables, "seconds": time.perf_counter() - started}
    with new_artifact(folder, KIND, {"part": part, "options": asdict(options)}) as target:
        (target / "outcome.json").write_text(json.dumps(found), encoding="utf-8")
    return found


def gates_of(found: Outcome) -> dict[str, Gate]:
    """The gates of a part as they were decided when they were measured: `by_interval` is not among a gate's fields."""
    gates = {key: Gate(**{name: value for name, value in stored.items() if name != "met"}) for key, stored in found["gates"].items()}
    for key, gate in gates.items():
        object.__setattr__(gate, "met", found["gates"][key]["met"])
    return gates


def main() -> None:
    """Measure one part, or all, and write the result."""
    words = parser(__doc__, data=True)
    words.add_argument("--shared", type=Path, default=SHARED, help="folder that holds the other data sets")
    words.add_argument("--part", metavar="|".join(PARTS), help="measure this part alone")
    given = words.parse_args()
    if given.part is not None and given.part not in PARTS:
        raise UserError(f"unknown part '{given.part}': {nearest(given.part, PARTS)}")
    options = PartOptions(quick=given.quick, root=given.root, shared=given.shared, seeds=2 if given.quick else 5)
    torch.set_num_threads(options.threads)
    found = {part: outcome(part, options) for part in (PARTS if given.part is None else (given.part,))}
    if given.part is not None:
        show(given.part, gates_of(found[given.part]), found[given.part]["tables"])
        print(json.dumps(found[given.part]))
        return
    gates = {key: gate for one in found.values() for key, gate in gates_of(one).items()}
    tables = {f"{part}: {title}": rows for part, one in found.items() for title, rows in one["tables"].items()}
    write_result("predictors", "real", gates, tables, given.quick, sum(one["seconds"] for one in found.values()))


if __name__ == "__main__":
    launch(main)
