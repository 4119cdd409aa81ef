"""Memory and speed of the pipeline: each stage in a process of its own, on the Sysmon table as it is and ten times over.

The real table is OTRF's. Ten times over means ten files with the same rows under other names of captures. Then aggregation alone, at the size
of CICIoT2023: its per-attack captures under as many names as give that many rows, beside a tenth of them. Peaks are the kernel's mark of a
process (`VmHWM`), with Python and all imports in it. Training runs for two epochs, as what it holds does not depend on their number.
"""

from __future__ import annotations

import multiprocessing
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks.common import Gate, PartOptions
from src.config import SAETrainingConfig
from src.errors import UserError
from src.sae.aggregation import aggregate, read_schema
from src.sae.encoding import EncodingSettings, encode
from src.sae.evaluation import EvaluationSettings, evaluate
from src.sae.layout import Layout, preset, read_json
from src.sae.training import TrainingSettings, train
from src.sae.visualisation import VisualisationSettings, visualise

WHOLE = 46_686_579
"""Rows of CICIoT2023."""
TIMES = 10
EPOCHS = 2
STAGES = ("aggregation", "encoding", "training", "evaluation", "visualisation")


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Tables of stages and of aggregation at size; the gates stand only for the full size."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        stages = [row for times in (1, TIMES) for row in pipeline(folder / f"sysmon{times}", options, times)]
        sizes = aggregation(folder / "ciciot", options)
    tables = {"stages on the Sysmon table": stages, "aggregation of CICIoT2023's captures": sizes}
    if options.quick:
        return {}, tables
    once = [row for row in stages if row["times"] == 1]
    large = max(sizes, key=lambda row: row["rows"])
    usual = float(np.mean([row["rows_a_second"] for row in sizes if row is not large]))
    return {
        "E.memory": Gate(
            f"peak resident GB of any stage, whole pipeline on the real Sysmon table ({once[0]['rows']:,} rows)", max(row["peak_gb"] for row in once), 2.5, "<"
        ),
        "B2.memory": Gate(f"peak resident GB of aggregation of {large['rows']:,} rows", large["peak_gb"], 3.0, "<"),
        "B2.rate": Gate(
            f"rows a second of aggregation of {large['rows']:,} rows, as a multiple of those of a tenth, mean of before and after",
            large["rows_a_second"] / usual,
            0.9,
        ),
    }, tables


def pipeline(folder: Path, options: PartOptions, times: int) -> list[dict[str, Any]]:
    """A row a stage, for the Sysmon table `times` over."""
    source = next(iter(sorted((options.shared / "sysmon").glob("*.parquet"))), None)
    if source is None:
        raise UserError(f"no Sysmon table (*.parquet) in '{options.shared / 'sysmon'}'; name the folder above with --shared")
    apart(tiled, source, folder / "raw", times, 40_000 if options.quick else None)
    rows = []
    for stage in STAGES:
        found = apart(run_stage, stage, folder / "raw", folder / "out", options.quick)
        rows.append({"times": times, "stage": stage, **found})
    return rows


def aggregation(folder: Path, options: PartOptions) -> list[dict[str, Any]]:
    """Rows a second and peak of aggregation: a tenth, the whole, and the tenth again, as the machine may have other things to do."""
    captures = sorted((options.root / "per_attack").glob("*.csv"))
    if not captures:
        raise UserError(f"no CSV in '{options.root / 'per_attack'}'; name the folder of CICIoT2023 with --root")
    most = 10 if options.quick else -(-WHOLE // count_rows(captures))
    found = []
    for copies in (-(-most // TIMES), most, -(-most // TIMES)):
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            raw = Path(place) / "raw"
            for copy in range(copies):
                (raw / f"{copy:04d}").mkdir(parents=True)
                for capture in captures:
                    (raw / f"{copy:04d}" / capture.name).symlink_to(capture.resolve())
            found.append({"copies": copies, **apart(run_aggregation, "ciciot2023", raw, Path(place) / "out")})
    return found


def count_rows(captures: list[Path]) -> int:
    """Rows of CSVs with a header."""
    return sum(int(pl.scan_csv(path, infer_schema=False).select(pl.len()).collect().item()) for path in captures)


def apart(task: Any, *arguments: Any) -> Any:
    """What a function returns, called in a fresh process that ends with it."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(task, arguments)


def tiled(source: Path, folder: Path, times: int, rows: int | None) -> None:
    """Write the first rows of a table, or all, under as many names; the rows of each copy are of captures of other names."""
    folder.mkdir(parents=True)
    frame = pl.read_parquet(source, n_rows=rows)
    for copy in range(times):
        name = pl.concat_str(pl.lit(f"{copy}-"), pl.col("dataset_file")) if copy else pl.col("dataset_file")
        frame.with_columns(name.alias("dataset_file")).write_parquet(folder / f"sysmon-{copy:02d}.parquet")


def run_aggregation(dataset: str, raw: Path, out: Path) -> dict[str, Any]:
    """Rows, seconds and peak of stage 1 in this process."""
    began = time.perf_counter()
    rows = aggregate(dataset, raw, read_schema(preset(dataset).schema), Layout(out, dataset, "size"), lambda _: None)["rows"]
    return measured(rows, began)


def run_stage(stage: str, raw: Path, out: Path, quick: bool) -> dict[str, Any]:
    """Rows, seconds and peak of a stage in this process; of windows every row counts each time that it is read."""
    torch.set_num_threads(1)
    if stage == "aggregation":
        return run_aggregation("otrf", raw, out)
    layout = Layout(out, "otrf", "size")
    began = time.perf_counter()
    if stage == "encoding":
        settings = EncodingSettings(sample_size=1000) if quick else EncodingSettings()
        rows = encode(layout, read_json(preset("otrf").encoding), settings, lambda _: None)["source"]["rows"]
        return measured(rows, began)
    windows = {part: np.load(layout.encoded / f"X_{part}_sequences.npy", mmap_mode="r").shape[:2] for part in ("train", "val", "test")}
    size = {part: count * length for part, (count, length) in windows.items()}
    began = time.perf_counter()
    if stage == "training":
        train(layout, TrainingSettings(training=SAETrainingConfig(epochs=EPOCHS)), lambda _: None)
        return measured(EPOCHS * (size["train"] + size["val"]), began)
    if stage == "evaluation":
        evaluate(layout, EvaluationSettings(), lambda _: None)
        return measured(size["val"] + size["test"], began)
    visualise(layout, VisualisationSettings(), lambda _: None)
    return measured(size["test"], began)


def measured(rows: int, began: float) -> dict[str, Any]:
    """What a process has done since `began`, and the most memory that it ever held."""
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # `getrusage` hands the parent's mark down
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]
    return {"rows": rows, "seconds": seconds, "rows_a_second": rows / seconds, "peak_gb": peak * 1024 / 1e9}
