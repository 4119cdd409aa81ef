"""Data larger than the memory: tiles, shelves, and the benchmark of size over them."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from benchmarks import scale_data, tiling
from benchmarks.common import SHARED, PartOptions
from src.config import DataConfig
from src.data import shelf as shelves
from src.data.bank import TraceBank
from src.data.ciciot2023 import read_ciciot2023
from src.data.dataset import Rows, load_dataset
from src.data.shelf import Shelf, blocks, forget
from src.data.splits import among, copies
from src.errors import UserError
from tests.banks import make_bank

REAL = SHARED / "ciciot2023"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"real CICIoT2023 CSVs are not in {REAL}")


@real
def test_tiles_have_the_rows_and_files_asked_for_and_are_read_back(tmp_path: Path) -> None:
    made = tiling.tile(REAL, tmp_path / "raw", 60_001, 15)
    assert len(made) == len(set(made)) == 15
    assert (tmp_path / "raw" / "README.txt").read_text().startswith("These are not CICIoT2023's files")
    rows = [int(pl.scan_csv(path, infer_schema=False).select(pl.len()).collect().item()) for path in made]
    assert sum(rows) == 60_001
    assert max(rows) - min(rows) <= 1
    captures, _, report = read_ciciot2023(tmp_path / "raw")
    assert report["rows read"] == 60_001
    assert {capture.ordered for capture in captures} == {True, False}


@real
def test_copies_of_a_row_differ_in_one_cell_alone(tmp_path: Path) -> None:
    source = REAL / "per_attack" / "Uploading_Attack.pcap.csv"
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(source, one)
    original = pl.read_csv(source)
    (path,) = tiling.tile(one, tmp_path / "raw", 3 * len(original), 1)
    tiled = pl.read_csv(path)
    for copy in range(3):
        part = tiled[copy * len(original) : (copy + 1) * len(original)]
        assert part.drop("AVG").equals(original.drop("AVG"))
        np.testing.assert_allclose(part["AVG"], original["AVG"] * (1 + copy * tiling.STEP), rtol=1e-12)
    values = tiled["AVG"].to_numpy().astype(np.float32).reshape(3, -1)
    assert (np.diff(values, axis=0) != 0).all()


def test_wrong_input_of_tiling_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no CSV to tile"):
        tiling.tile(tmp_path, tmp_path / "raw")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="AVG"):
        tiling.tile(tmp_path, tmp_path / "raw")
    (tmp_path / "x.csv").write_text("a,AVG,b\n1,2.5,\n")
    with pytest.raises(UserError, match="do not fill"):
        tiling.tile(tmp_path, tmp_path / "raw", 1, 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(UserError, match="GB free"):
        tiling.tile(tmp_path, tmp_path / "raw", 10, 2)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("budget", [0, 100, 1 << 20])
def test_a_shelf_gives_back_what_it_was_given(tmp_path: Path, budget: int) -> None:
    shelf = Shelf(tmp_path / "deep", budget)
    wide, flat, none = shelf.column(np.float32, 3), shelf.column(np.int64), shelf.column(np.int16, 2)
    rows = np.arange(300, dtype=np.float64).reshape(-1, 3)
    for here in blocks(100, 7):
        wide.append(rows[here])
        flat.append(np.arange(here.start, here.stop))
    assert (len(wide), len(flat), len(none)) == (100, 100, 0)
    assert shelf.held <= budget
    found = wide.array()
    forget(found[3:])
    np.testing.assert_array_equal(found, rows.astype(np.float32))
    np.testing.assert_array_equal(flat.array(), np.arange(100))
    assert none.array().shape == (0, 2)
    assert not (tmp_path / "deep").exists() or not [*(tmp_path / "deep").iterdir()], "files have no name"


def test_a_shelf_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="make room"):
        Shelf(tmp_path / "file", 0).column(np.int8).append(np.zeros(3))


@real
def test_rows_in_files_are_the_rows_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(root=REAL)
    held = load_dataset(config, 0)
    monkeypatch.setattr(Shelf.__init__, "__defaults__", (None, 0))
    monkeypatch.setattr(shelves, "BLOCK", 1000)
    monkeypatch.setattr(shelves.blocks, "__defaults__", (1000,))
    filed = load_dataset(config, 0, tmp_path)
    assert (filed.data_hash, filed.report, filed.class_names) == (held.data_hash, held.report, held.class_names)
    for side, rows in held.splits.items():
        for field in dataclasses.fields(Rows):
            np.testing.assert_array_equal(getattr(rows, field.name), getattr(filed.splits[side], field.name))


def test_copies_are_those_that_sorting_all_hashes_finds() -> None:
    rng = np.random.default_rng(0)
    side, hashes = rng.integers(-1, 4, 5000).astype(np.int8), rng.integers(0, 3000, 5000).astype(np.uint64)
    last = {value: side[hashes == value].max() for value in np.unique(hashes)}
    expected = (side >= 0) & (side < np.array([last[value] for value in hashes]))
    np.testing.assert_array_equal(copies(side, hashes), expected)
    np.testing.assert_array_equal(among(hashes, np.unique(hashes[:50])), np.isin(hashes, hashes[:50]))
    assert not among(hashes, hashes[:0]).any()


def test_a_bank_altered_at_any_array_is_refused(tmp_path: Path) -> None:
    make_bank(windows=30).save(tmp_path / "bank", {})
    for path in sorted((tmp_path / "bank").glob("*.npy")):
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            raw = bytearray(whole)
            raw[place] ^= 1
            path.write_bytes(raw)
            with pytest.raises(UserError, match=path.name):
                TraceBank.load(tmp_path / "bank")
        path.write_bytes(whole)
    TraceBank.load(tmp_path / "bank")


def test_gates_compare_the_whole_with_the_tenth_before_and_after() -> None:
    def row(size: str, stage: str, rate: float) -> dict[str, object]:
        return {"size": size, "stage": stage, "rows": 1000, "seconds": 0.5, "rows_a_second": rate, "peak_gb": 2.0}

    stages = [row(size, "aggregation", rate) for size, rate in (("1x", 80.0), ("10x", 90.0), ("1x", 120.0))]
    stages += [row("10x", stage, 1.0) for stage in ("encoding", "loading", "trace bank", "opening")]
    gates = scale_data.gates_of(stages)
    assert gates["H3.rate"].value == pytest.approx(0.9)
    assert all(gate.met for gate in gates.values())


def test_no_sensor_to_read_with_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IOTDEF__COMPUTE__ARTIFACTS", str(tmp_path))
    with pytest.raises(UserError, match="no sensor trained"):
        scale_data.trained_sensor()
    for name, meta in {"a": {"source": "synthetic profile", "autoencoder": {}}, "b": {"source": "real", "autoencoder": {}}}.items():
        (tmp_path / "sensors" / name / "predictor").mkdir(parents=True)
        (tmp_path / "sensors" / name / "predictor" / "meta.json").write_text(json.dumps({"created": name, **meta}))
    assert scale_data.trained_sensor() == tmp_path / "sensors" / "b" / "predictor"


@real
@pytest.mark.slow
def test_a_small_size_is_measured_end_to_end(tmp_path: Path) -> None:
    try:
        scale_data.trained_sensor()
    except UserError as error:
        pytest.skip(str(error))
    gates, tables = scale_data.measure(PartOptions(quick=True, root=REAL, shared=SHARED, seeds=1))
    assert gates == {}
    stages = tables["stages, tiled rows"]
    assert [row["stage"] for row in stages] == ["aggregation", "encoding", "loading", "trace bank", "opening"] * 3
    assert all(row["rows"] > 0 and row["peak_gb"] > 0 for row in stages)
