"""Artifacts: whole or not at all, and refused when altered."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.artifacts import content_digest, new_artifact, open_artifact, write_text
from src.data.bank import TraceBank
from src.errors import UserError
from tests.banks import make_bank


def make(folder: Path) -> None:
    with new_artifact(folder, "test", {"seed": 3}) as target:
        (target / "a.txt").write_text("payload")
        (target / "sub").mkdir()
        (target / "sub" / "b.txt").write_text("more")


def test_round_trip_and_replacement(tmp_path: Path) -> None:
    for _ in range(2):
        make(tmp_path / "x")
        meta = open_artifact(tmp_path / "x", "test")
        assert meta["seed"] == 3
        assert {"kind", "created", "command", "commit", "versions"} <= set(meta)
    assert os.listdir(tmp_path) == ["x"]


def test_failure_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path / "x")

    def interrupted() -> None:
        with new_artifact(tmp_path / "x", "test", {}) as target:
            (target / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert os.listdir(tmp_path) == ["x"]
    open_artifact(tmp_path / "x", "test")


def test_a_replacement_that_was_killed_halfway_is_undone(tmp_path: Path) -> None:
    make(tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / ".x.abc.old")  # what is left by a kill between the two renames
    assert open_artifact(tmp_path / "x", "test")["seed"] == 3
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("name", ["a.txt", "sub/b.txt", "meta.json"])
def test_every_altered_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    make(tmp_path / "x")
    file = tmp_path / "x" / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(UserError, match=Path(name).name):
        open_artifact(tmp_path / "x", "test")


def test_missing_added_and_foreign(tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(UserError, match="is a test, not a bank"):
        open_artifact(tmp_path / "x", "bank")
    (tmp_path / "x" / "new.txt").write_text("")
    with pytest.raises(UserError, match=r"new\.txt"):
        open_artifact(tmp_path / "x", "test")
    (tmp_path / "x" / "new.txt").unlink()
    (tmp_path / "x" / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a\.txt"):
        open_artifact(tmp_path / "x", "test")
    with pytest.raises(UserError, match="missing"):
        open_artifact(tmp_path / "nowhere", "test")
    (tmp_path / "x" / "checksums.json").write_text("[")
    with pytest.raises(UserError, match="cannot be read"):
        open_artifact(tmp_path / "x", "test")


def test_the_digest_is_of_the_content_and_not_of_when_it_was_made(tmp_path: Path) -> None:
    for name, payload, seed in (("a", "same", 1), ("b", "same", 2), ("c", "other", 1)):
        with new_artifact(tmp_path / name, "thing", {"seed": seed}) as target:
            (target / "payload.txt").write_text(payload)
    same, again, other = (content_digest(tmp_path / name) for name in "abc")
    assert same == again != other
    with pytest.raises(UserError, match="no complete artifact"):
        content_digest(tmp_path / "d")


def test_a_file_in_the_way_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"choose a writable folder \(--out, or --set compute.artifacts=FOLDER\)"):
        make(tmp_path / "file" / "x")
    with pytest.raises(UserError, match="writable folder"):
        write_text(tmp_path / "file" / "x.json", "{}")


def test_write_text_replaces_whole_files(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "x.json", "1")
    write_text(tmp_path / "deep" / "x.json", json.dumps([2]))
    assert (tmp_path / "deep" / "x.json").read_text() == "[2]"
    assert os.listdir(tmp_path / "deep") == ["x.json"]


def test_bank_round_trips_memory_mapped_and_bundled(tmp_path: Path) -> None:
    bank = make_bank(windows=30)
    bank.save(tmp_path / "bank", {"seed": 1})
    opened = TraceBank.load(tmp_path / "bank")
    assert isinstance(opened.features, np.memmap)
    np.testing.assert_array_equal(opened.sensors, bank.sensors)
    assert opened.class_names == bank.class_names
    assert opened.source == bank.source


def with_rows(bank: TraceBank) -> TraceBank:
    """Windows of three numbered rows, each overlapping the next by two."""
    count = len(bank.label)
    rows = np.arange(2.0 * (count + 2), dtype=np.float32).reshape(-1, 2)
    return dataclasses.replace(bank, rows=rows, start=np.arange(count), row_names=("a", "b"), length=3)


def test_raw_rows_travel_with_the_bank_that_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make_bank(windows=30)
    bank = with_rows(plain)
    bank.save(tmp_path / "bank", {})
    opened = TraceBank.load(tmp_path / "bank")
    assert isinstance(opened.rows, np.memmap)
    assert (opened.row_names, opened.length) == (("a", "b"), 3)
    chosen = np.array([7, 0, 7])
    windows = opened.raw_windows(chosen)
    assert (windows.dtype, type(windows)) == (np.float32, np.ndarray)
    np.testing.assert_array_equal(windows[:, :, 0], 2 * (chosen[:, None] + np.arange(3)))
    (tmp_path / "bank" / "rows.npy").write_bytes(b"x")
    with pytest.raises(UserError, match=r"rows\.npy"):
        TraceBank.load(tmp_path / "bank")
    plain.save(tmp_path / "plain", {})
    bank.bundle(tmp_path / "small.npz")
    monkeypatch.setattr("src.data.bank.BUNDLED", tmp_path / "small.npz")
    for without in (TraceBank.load(tmp_path / "plain"), TraceBank.bundled(), bank.with_sensors(bank.sensors)):
        assert (without.rows, without.start, without.row_names, without.length) == (None, None, (), 0)
        with pytest.raises(UserError, match="holds no raw rows"):
            without.raw_windows(chosen)


def test_a_bank_saved_before_there_were_rows_opens(tmp_path: Path) -> None:
    bank = make_bank(windows=30)
    with new_artifact(
        tmp_path / "old", "trace-bank", {"bank": {key: value for key, value in bank._words().items() if key not in ("row_names", "length")}}
    ) as target:
        for name in ("features", "sensors", "successor", "label", "split"):
            np.save(target / f"{name}.npy", getattr(bank, name))
    assert TraceBank.load(tmp_path / "old").rows is None
    assert TraceBank.bundled().rows is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"start": None}, "all or none"),
        ({"rows": None}, "all or none"),
        ({"row_names": ("a",)}, "'rows'"),
        ({"length": 0}, "'rows'"),
        ({"length": 4}, "'start'"),
        ({"start": np.full(810, -1)}, "'start'"),
        ({"start": np.zeros(809, dtype=np.int64)}, "'start'"),
    ],
)
def test_raw_rows_that_do_not_fit_are_refused(change: dict[str, Any], words: str) -> None:
    bank = with_rows(make_bank(windows=30))
    assert len(bank.label) == 810
    with pytest.raises(UserError, match=words):
        dataclasses.replace(bank, **change)


def test_bank_refuses_what_does_not_fit() -> None:
    bank = make_bank(windows=30)
    with pytest.raises(UserError, match="within"):
        bank.with_sensors(bank.sensors * 2)
    with pytest.raises(UserError, match="finite"):
        bank.with_sensors(bank.sensors * np.nan)
    with pytest.raises(UserError, match="'sensors'"):
        bank.with_sensors(bank.sensors[:-1])
    with pytest.raises(UserError, match="no feature 'x'"):
        bank.select_features(["x"])


def test_the_bundled_bank_is_small_and_says_that_it_is_synthetic() -> None:
    from src.data.bank import BUNDLED

    bank = TraceBank.bundled()
    assert bank.source == "synthetic profile"
    assert BUNDLED.stat().st_size < 2_000_000


def test_a_text_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
