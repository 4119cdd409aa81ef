"""CICIoT2023 at its published size (46,686,579 rows in 169 CSVs): memory and speed of all that reads it, and of opening what is made of it.

The files are tiled from the real rows that are at hand (`benchmarks.tiling`) into a folder that is removed again: a tenth, three tenths, the whole and the
tenth again (its first two stages), since the machine may have other things to do. At each size these stages run, each in a process of its own, with as many
threads of polars as there are processors, and one of torch:

* `aggregation` and `encoding`: the first two stages of the autoencoder's pipeline, with its preset.
* `loading`: `load_dataset` with the default configuration: four sides of rows, copies removed, its digest taken.
* `trace bank`: in the process that loaded, a trained sensor of the default configuration reads the windows that a bank keeps (of each class and side the
  first 5,000, so that a bank does not grow with the data beyond that), and the bank is saved.
* `opening`: in a fresh process that has done its imports, the bank is opened and checked, an environment built over it, reset and stepped; the median of
  five. Machine code of the environment is compiled before, as it is once a machine.

`peak_gb` is the kernel's mark of a process (`VmHWM`), with Python, all imports and every page of a mapped file that is resident in it; that of the trace
bank includes loading. Rows are those of the CSVs for aggregation and loading, those of the table for encoding, windows for the trace bank and opening.
Beside them pandas reads the tenth at once, cleans it as the reader does, and writes the same table: the whole would take ten times its peak.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Gate, PartOptions
from benchmarks.sae_memory import apart, measured
from benchmarks.tiling import FILES, ROWS, require_space, tile
from envs import IoTEnv, TraceBank
from src.artifacts import content_digest
from src.config import load_config
from src.data.ciciot2023 import FEATURES_39
from src.data.dataset import load_dataset
from src.data.taxonomy import canonical
from src.errors import UserError
from src.models.predictor_interface import EnhancedAttackPredictor
from src.sae.aggregation import aggregate, read_schema
from src.sae.encoding import EncodingSettings, encode
from src.sae.layout import Layout, preset, read_json
from src.training.sensors import build_bank

PRESET = "ciciot2023"
SIZES = {"1x": 10, "3x": 10 / 3, "10x": 1}
"""What the whole is divided by."""
ORDER = ("1x", "3x", "10x", "1x")
OPENINGS = 5
SPILLED = 2 * (len(FEATURES_39) * 4 + 26)
"""Bytes of a row in the files that loading makes: once as read, once divided."""


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Tables of stages by size and of pandas; the gates stand only for the full size."""
    sensor = trained_sensor()
    shrink = 12 if options.quick else 1  # each file of labelled rows still holds all of its source's
    stages: list[dict[str, Any]] = []
    peers: list[dict[str, Any]] = []
    for turn, size in enumerate(ORDER[:-1] if options.quick else ORDER):
        with tempfile.TemporaryDirectory() as place:
            scratch = Path(place)
            rows = round(ROWS / SIZES[size] / shrink)
            files = max(round(FILES / SIZES[size]), 1)
            raw = scratch / "raw"
            written = apart(write, options.root, raw, rows, files)
            require_space(scratch, rows * SPILLED)
            found = apart_stages(raw, scratch, sensor if turn < len(SIZES) else None)
            stages += [{"size": size, "files": files, "gb_of_csv": written["bytes"] / 1e9, **row} for row in found]
            if turn == 0:
                peers = [
                    {"size": size, "reader": "this, aggregation", **{key: value for key, value in found[0].items() if key != "stage"}},
                    {"size": size, "reader": "pandas", **apart(in_pandas, raw, scratch / "pandas.parquet")},
                ]
    tables = {"stages, tiled rows": stages, "beside pandas, tiled rows": peers}
    if options.quick:
        return {}, tables
    return gates_of(stages), tables


def apart_stages(raw: Path, scratch: Path, sensor: Path | None) -> list[dict[str, Any]]:
    """A row a stage over the CSVs in `raw`; without a sensor, the first two."""
    out, bank = scratch / "out", scratch / "bank"
    rows = [{"stage": stage.__name__, **apart(stage, raw, out)} for stage in (aggregation, encoding)]
    if sensor is None:
        return rows
    rows += apart(trace_bank, raw, sensor, bank, scratch)
    apart(opening, bank)
    opened = sorted((apart(opening, bank) for _ in range(OPENINGS)), key=lambda row: row["seconds"])
    return [*rows, {"stage": "opening", **opened[OPENINGS // 2]}]


def gates_of(stages: list[dict[str, Any]]) -> dict[str, Gate]:
    """What must hold at the full size."""
    whole = {row["stage"]: row for row in stages if row["size"] == "10x"}
    usual = float(np.mean([row["rows_a_second"] for row in stages if row["size"] == "1x" and row["stage"] == "aggregation"]))
    total = whole["aggregation"]["rows"]

    def memory(stage: str, words: str) -> Gate:
        return Gate(f"peak resident GB of {words}, {total:,} tiled rows in {FILES} CSVs", whole[stage]["peak_gb"], 3.0, "<")

    return {
        "H3.aggregation_memory": memory("aggregation", "aggregation"),
        "H3.encoding_memory": memory("encoding", "encoding"),
        "H3.load_memory": memory("loading", "loading and dividing"),
        "H3.bank_memory": memory("trace bank", "loading and building the trace bank with a trained sensor"),
        "H3.rate": Gate(
            f"rows a second of aggregation of {total:,} tiled rows, as a multiple of those of a tenth, mean of before and after",
            whole["aggregation"]["rows_a_second"] / usual,
            0.9,
        ),
        "H3.open": Gate(
            f"seconds to open and check a trace bank of {whole['opening']['rows']:,} windows, build, reset and step an environment (median of {OPENINGS})",
            whole["opening"]["seconds"],
            1.0,
            "<",
        ),
    }


def trained_sensor() -> Path:
    """The newest sensor trained on real traffic that a run of the main job, or a benchmark, has left.

    Raises:
        UserError: when there is none.
    """
    found = []
    for path in load_config().compute.artifacts.glob("sensors/*/predictor/meta.json"):
        meta = json.loads(path.read_text(encoding="utf-8"))
        if meta.get("source") == "real" and "autoencoder" in meta:
            found.append((meta["created"], path.parent.resolve()))
    if not found:
        raise UserError("no sensor trained on real traffic; train one: python main.py --phase lstm --set data.root=FOLDER")
    return max(found)[1]


def write(root: Path, raw: Path, rows: int, files: int) -> dict[str, Any]:
    """Tile, and how many bytes that made."""
    return {"bytes": sum(path.stat().st_size for path in tile(root, raw, rows, files))}


def aggregation(raw: Path, out: Path) -> dict[str, Any]:
    """Rows, seconds and peak of stage 1 in this process."""
    began = time.perf_counter()
    counted = aggregate(PRESET, raw, read_schema(preset(PRESET).schema), Layout(out, PRESET, "size"), lambda _: None)["counts"]
    return measured(counted["rows read"], began)


def encoding(_raw: Path, out: Path) -> dict[str, Any]:
    """Rows, seconds and peak of stage 2 in this process."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows = encode(Layout(out, PRESET, "size"), read_json(preset(PRESET).encoding), EncodingSettings(), lambda _: None)["source"]["rows"]
    return measured(rows, began)


def trace_bank(raw: Path, sensor: Path, bank: Path, scratch: Path) -> list[dict[str, Any]]:
    """Rows, seconds and peak of loading; windows, seconds and peak of building and saving the bank in the same process."""
    torch.set_num_threads(1)
    config = load_config(overrides=[f"data.root={raw}"], environ={})
    predictor = EnhancedAttackPredictor.load(sensor)
    began = time.perf_counter()
    dataset = load_dataset(config.data, config.compute.seed, scratch)
    loading = measured(int(dataset.report["rows read"]), began)
    began = time.perf_counter()
    made = build_bank(dataset, predictor, predictor.scale)
    made.save(bank, {"data_hash": dataset.data_hash, "seed": config.compute.seed, "predictor": content_digest(sensor)})
    return [{"stage": "loading", **loading}, {"stage": "trace bank", **measured(len(made.label), began)}]


def opening(bank: Path) -> dict[str, Any]:
    """Windows, seconds and peak of opening a bank and stepping an environment over it."""
    began = time.perf_counter()
    opened = TraceBank.load(bank)
    env = IoTEnv(bank=opened)
    env.reset(seed=0)
    env.step(0)
    return measured(len(opened.label), began)


def in_pandas(raw: Path, out: Path) -> dict[str, Any]:
    """Rows, seconds and peak of the usual way: all CSVs in one frame, cleaned, copies of captures' rows dropped, counted by label, written."""
    import pandas as pd

    began = time.perf_counter()
    frames = []
    for path in sorted(raw.glob("*.csv")):
        frame = pd.read_csv(path)
        mixed = "label_multiclass" in frame
        frame["label"] = frame["label_multiclass"].map(functools.cache(canonical)) if mixed else canonical(path.name)
        frames.append(frame[[*FEATURES_39, "label"]].assign(file=path.name, mixed=mixed))
    table: Any = pd.concat(frames, ignore_index=True)
    rows = len(table)
    table[["Std", "Variance"]] = table[["Std", "Variance"]].fillna(0.0)
    table["Rate"] = table["Rate"].fillna(np.inf).replace(np.inf, table["Number"].max() * 1e6)
    table = table[np.isfinite(table[[*FEATURES_39]]).all(axis=1)]
    table = table[~(table["mixed"] & table.duplicated([*FEATURES_39], keep="first"))]
    table.groupby(["label", "file"]).size()
    table.to_parquet(out, compression="zstd")
    return measured(rows, began)
