"""Another site's benign traffic, on files written for each case and on the real captures where they are at hand."""

import dataclasses
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from src.config import DataConfig, FractionsConfig, load_config
from src.data.bank import SPLITS, TraceBank
from src.data.ciciot2023 import FEATURES_39, FEATURES_46
from src.data.dataset import Dataset, load_dataset
from src.data.site import COLUMNS, TRACE_SIDES, read_site, with_benign_site
from src.data.synthetic import Profile
from src.data.taxonomy import FAMILIES, family_index, severity
from src.data.windows import gather, window_starts
from src.errors import UserError
from src.pipeline import start
from src.predictor.interface import SensorReading
from src.training.sensors import build_bank

REAL = Path(__file__).parents[1] / ".." / "shared" / "data"
SITE = REAL / "ciciot39" / "iot_sentinel"
needs_real = pytest.mark.skipif(not (REAL / "ciciot2023").exists() or not SITE.exists(), reason="the real captures (../shared/data) are not here")
TINY = [
    "data.synthetic_rows_per_class=400",
    "lstm.training.epochs=1",
    "lstm.training.stride=10",
    "lstm.model.hidden_size=16",
    "temporal.training.epochs=1",
    "temporal.training.stride=10",
    "temporal.model.hidden_size=16",
    "compute.threads=1",
]
T = 10
HOME = load_dataset(DataConfig(synthetic_rows_per_class=400), 0)
SIZES = {"Cam": [12, 25, 9, 14, 10, 30, 11, 16], "Plug 2": [11, 13, 12], "Kettle": [40, 40, 9, 5, 1]}
"""Rows of each capture; Kettle has but two captures that hold a window."""


def capture(device: str, index: int, count: int) -> pl.DataFrame:
    """Rows of one capture, which can be told by `Tot sum`; its rows count up in `Header_Length`."""
    seed = 100 * list(SIZES).index(device) + index
    values = Profile.embedded().draw("BenignTraffic", count, np.random.default_rng(seed)).astype(np.float64)
    frame = pl.DataFrame(values, schema=list(FEATURES_39), orient="row")
    clock = 1e9 + 1e4 * index + np.arange(count)
    return frame.with_columns(
        pl.lit(float(seed)).alias("Tot sum"),
        pl.int_range(pl.len()).alias("Header_Length"),
        pl.lit(f"{index}.pcap").alias("pcap"),
        pl.Series("window_start", clock),
    )


def frames() -> dict[str, pl.DataFrame]:
    return {device: pl.concat([capture(device, index, count) for index, count in enumerate(counts)]) for device, counts in SIZES.items()}


def write(folder: Path, devices: dict[str, pl.DataFrame]) -> DataConfig:
    folder.mkdir(parents=True, exist_ok=True)
    for device, frame in devices.items():
        frame.write_csv(folder / f"{device}.csv")
    return DataConfig(synthetic_rows_per_class=400, benign_root=folder)


def column(rows: np.ndarray, name: str) -> np.ndarray:
    return rows[..., FEATURES_39.index(name)]


def test_without_a_site_nothing_changes() -> None:
    assert with_benign_site(HOME, DataConfig()) is HOME


def test_devices_take_the_place_of_the_benign_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        mixed = with_benign_site(HOME, write(tmp_path / "my_iot_home", frames()))
    assert mixed.class_names == ("Benign:Cam", "Benign:Plug 2", *HOME.class_names[1:])
    assert mixed.site == "benign: My IoT Home (2 devices), attacks: CICIoT2023"
    assert (mixed.report["site: devices left out"], mixed.report["site: captures too short for a window"]) == (1, 4)
    assert "1 of 3 devices have fewer than three captures of 10 rows and are left out: Kettle" in caplog.text
    assert mixed.data_hash != HOME.data_hash
    assert tuple(mixed.splits) == TRACE_SIDES == SPLITS  # nothing can be fitted on it
    np.testing.assert_array_equal(family_index(mixed.class_names)[:3], [0, 0, FAMILIES.index("DDoS")])
    np.testing.assert_array_equal(severity(mixed.class_names)[:2], 0)
    assert HOME.domain_names == ("CICIoT2023",)
    assert mixed.domain_names == ("CICIoT2023", "Cam", "Plug 2")
    for side in SPLITS:
        was, now = HOME.splits[side], mixed.splits[side]
        attack, kept = was.label > 0, now.label > 1
        for field in ("features", "segment", "start", "duration", "domain"):
            np.testing.assert_array_equal(getattr(now, field)[kept], getattr(was, field)[attack])
            assert getattr(now, field).dtype == getattr(was, field).dtype
        np.testing.assert_array_equal(now.label[kept] - 1, was.label[attack])
        np.testing.assert_array_equal(now.domain[~kept], now.label[~kept] + 1)  # a class a device


def test_whole_captures_go_to_a_side_in_time_order_and_no_window_crosses_two(tmp_path: Path) -> None:
    mixed = with_benign_site(HOME, write(tmp_path, frames()))
    held: dict[str, dict[str, list[float]]] = {"Benign:Cam": {}, "Benign:Plug 2": {}}
    segments: set[int] = set()
    for side, rows in mixed.splits.items():
        assert not segments & set(rows.segment.tolist())
        segments |= set(rows.segment.tolist())
        starts = window_starts(rows.segment, T)
        for label, name in enumerate(held):
            windows = gather(rows.features, starts[rows.label[starts] == label], T)
            mark = column(windows, "Tot sum")
            assert (mark == mark[:, :1]).all()
            assert (np.diff(column(windows, "Header_Length")) == 1).all()
            held[name][side] = sorted(set(mark[:, 0].tolist()))
            sizes = [SIZES[name.removeprefix("Benign:")][int(number) % 100] for number in held[name][side]]
            assert len(windows) == sum(size - T + 1 for size in sizes)
        benign = rows.label < 2
        assert (rows.start[benign] == column(rows.features[benign], "Header_Length")).all()  # one row a second, from 0
    # .15, .15 and .2 of seven captures (the third is too short) and of three.
    assert held == {
        "Benign:Cam": {"calibrate": [0, 1], "agent": [3, 4], "test": [5, 6, 7]},
        "Benign:Plug 2": {"calibrate": [100], "agent": [101], "test": [102]},
    }
    fractions = FractionsConfig(fit=0.1, calibrate=0.7, agent=0.1, test=0.1)
    uneven = with_benign_site(HOME, DataConfig(benign_root=tmp_path, fractions=fractions))
    counts = {side: len(set(column(rows.features, "Tot sum")[rows.label == 0])) for side, rows in uneven.splits.items()}
    assert counts == {"calibrate": 5, "agent": 1, "test": 1}


def test_order_in_the_file_does_not_matter_and_content_does(tmp_path: Path) -> None:
    plain = with_benign_site(HOME, write(tmp_path / "a", frames()))
    mixed = {device: frame.sample(fraction=1.0, shuffle=True, seed=1).select(reversed(COLUMNS)) for device, frame in frames().items()}
    assert with_benign_site(HOME, write(tmp_path / "b", mixed)).data_hash == plain.data_hash
    other = frames() | {"Cam": frames()["Cam"].with_columns(Max=pl.col("Max") + 1)}
    assert with_benign_site(HOME, write(tmp_path / "c", other)).data_hash != plain.data_hash


def test_a_capture_that_repeats_another_is_dropped(tmp_path: Path) -> None:
    again = capture("Cam", 1, 25).with_columns(pcap=pl.lit("copy.pcap"))
    repeated = frames() | {"Cam": pl.concat([frames()["Cam"], again])}
    mixed = with_benign_site(HOME, write(tmp_path / "twice", repeated))
    assert mixed.report["site: captures that repeat another"] == 1
    assert mixed.data_hash == with_benign_site(HOME, write(tmp_path / "once", frames())).data_hash


def test_gaps_are_closed_as_in_the_data_set(tmp_path: Path) -> None:
    number = pl.int_range(pl.len())
    first = capture("Cam", 0, 30).with_columns(
        Number=pl.when(number == 3).then(1).otherwise("Number"),
        Std=pl.when(number == 3).then(None).otherwise("Std"),
        Variance=pl.when(number == 3).then(None).otherwise("Variance"),
        Rate=pl.when(number == 3).then(float("inf")).otherwise("Rate"),
        IAT=pl.when(number == 15).then(None).otherwise("IAT"),
    )
    mixed = with_benign_site(HOME, write(tmp_path, {"Cam": pl.concat([first, *(capture("Cam", index, 12) for index in (1, 2))])}))
    rows = mixed.splits["calibrate"]
    benign = rows.label == 0
    features = rows.features[benign]
    assert benign.sum() == 29
    assert np.isfinite(features).all()
    assert column(features, "Std")[3] == column(features, "Variance")[3] == rows.duration[benign][3] == 0
    assert column(features, "Rate")[3] == column(HOME.splits["fit"].features, "Rate").max()
    np.testing.assert_array_equal(np.flatnonzero(np.diff(rows.segment[benign])), [14], err_msg="a run ends where a row is missing")
    np.testing.assert_allclose(rows.duration[benign][5:9], (column(features, "Number") / column(features, "Rate"))[5:9], rtol=1e-6)


def spoiled(name: str, value: object) -> pl.DataFrame:
    return capture("Cam", 0, 30).with_columns(pl.when(pl.int_range(pl.len()) == 4).then(pl.lit(value)).otherwise(pl.col(name).cast(pl.String)).alias(name))


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (capture("Cam", 0, 30).drop("window_start"), r"Cam.csv': column 'window_start' is missing; a device's CSV has"),
        (capture("Cam", 0, 30).drop("pcap", "IGMP"), r"column 'IGMP' \(nearest: 'ICMP'\) is missing, and 1 more are wrong"),
        (capture("Cam", 0, 30).with_columns(Colour=1), "column 'Colour' is unknown"),
        (capture("Cam", 0, 30).rename({"Time_To_Live": "Duration"}), "column 'Time_To_Live' is missing, and 1 more"),
        (spoiled("Rate", "fast"), "every column but 'pcap' must be a number"),
        (spoiled("pcap", None), "column 'pcap' is empty in some row"),
        (spoiled("window_start", None), "column 'window_start' is empty in some row"),
        (spoiled("window_start", "inf"), "column 'window_start' is empty in some row"),
        (capture("Cam", 0, 30).head(0), "has a header but no rows"),
        (pl.concat([capture("Cam", 0, 30), capture("Cam", 1, 30)]), "no device has three captures of 10 rows, one a side; lower data.window"),
    ],
)
def test_wrong_files_are_one_clear_line(tmp_path: Path, frame: pl.DataFrame, words: str) -> None:
    config = write(tmp_path, {"Cam": frame})
    with pytest.raises(UserError, match=words) as caught:
        with_benign_site(HOME, config)
    assert "\n" not in str(caught.value)


def test_wrong_folders_and_releases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.benign_root '.*nowhere' is no folder"):
        with_benign_site(HOME, DataConfig(benign_root=tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"holds no \.csv file"):
        with_benign_site(HOME, DataConfig(benign_root=tmp_path))
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(UserError, match=r"x\.csv' is empty"):
        with_benign_site(HOME, DataConfig(benign_root=tmp_path))
    with pytest.raises(UserError, match=r"data\.root has 46"):
        with_benign_site(dataclasses.replace(HOME, feature_names=FEATURES_46), DataConfig(benign_root=tmp_path))


class Mean:
    """A sensor whose risk is the window's last `Header_Length`, and whose anomaly its first; in thousandths."""

    feature_names = ("Header_Length", "Tot sum")
    class_names = HOME.class_names
    sequence_length = T

    def read(self, windows: np.ndarray) -> SensorReading:
        flat = np.full((len(windows), 8), 1 / 8, dtype=np.float32)
        half = np.full(len(windows), 0.5, dtype=np.float32)
        return SensorReading(flat, flat, windows[:, -1, 0] / 1000, half, windows[:, 0, 0] / 1000)


def test_the_bank_holds_each_device_as_a_class_in_order(tmp_path: Path) -> None:
    mixed = with_benign_site(HOME, write(tmp_path / "iot_sentinel", frames()))
    bank = build_bank(mixed, Mean(), lambda x: np.clip(x / 1000, -5, 5))
    assert bank.site == "benign: IoT Sentinel (2 devices), attacks: CICIoT2023"
    assert bank.class_families[:3] == ("Benign", "Benign", "DDoS")
    assert all((np.diff(bank.ranges(split), axis=1) > 0).all() for split in SPLITS)
    benign = np.flatnonzero(bank.label < 2)
    raw = bank.raw_windows(benign)
    np.testing.assert_array_equal(Mean().read(raw).table(), bank.sensors[benign])
    linked = benign[bank.successor[benign] >= 0]
    assert len(linked) == (25 - 2 * T + 1) + (30 - 2 * T + 1)  # only two captures hold two windows one after the other
    following = bank.raw_windows(bank.successor[linked])
    np.testing.assert_array_equal(following[:, 0, 1], bank.raw_windows(linked)[:, 0, 1])
    np.testing.assert_array_equal(following[:, 0, 0], bank.raw_windows(linked)[:, 0, 0] + T)


def test_one_predictor_serves_every_site_and_each_has_its_bank_and_agents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "iot_home", frames())
    write(tmp_path / "iot_office", frames() | {"Cam": frames()["Cam"].with_columns(Max=pl.col("Max") + 1)})
    places, agents, sensors, sites = set(), set(), set(), []
    for site in ("null", tmp_path / "iot_home", tmp_path / "iot_office", tmp_path / "iot_home"):
        config = load_config(
            overrides=[*TINY, f"compute.artifacts={tmp_path / 'artifacts'}", f"data.benign_root={site}", "mlflow.register_models=false"], environ={}
        )
        with start(config, "eval", None) as run:
            bank = run.bank()
            places.add(run.bank_folder)
            agents.add(run.agents_folder(run.config))
            sensors.add(run.sensor_folder)
            sites.append(bank.site)
            assert bank.raw_windows(np.arange(3)).shape == (3, T, 39)
    assert sites[0] == "CICIoT2023"
    assert [site.split(" (")[0] for site in sites[1:]] == ["benign: IoT Home", "benign: IoT Office", "benign: IoT Home"]
    assert (len(sensors), len(places), len(agents)) == (1, 3, 3)
    said = capsys.readouterr().out
    assert (said.count("training the attack predictor"), said.count("reading the held-back windows")) == (1, 3)
    with pytest.raises(UserError, match="is no folder"), start(load_config(overrides=[*TINY, "data.benign_root=nowhere"], environ={}), "eval", None):
        pass


@needs_real
def test_iot_sentinel_is_read_whole_but_for_what_repeats() -> None:
    report: Counter[str] = Counter()
    captures = Counter(found.label.removeprefix("Benign:") for found in read_site(SITE, report))
    names = {path.stem: pl.read_csv(path, infer_schema=False)["pcap"].n_unique() for path in SITE.glob("*.csv")}
    fewer = {device: names[device] - captures[device] for device in names if names[device] != captures[device]}
    assert fewer == {"D-LinkDayCam": 1, "D-LinkWaterSensor": 1}
    assert report["rows read"] == 19_298 - 7 - 61
    assert report["rows incomplete"] == 0


@needs_real
@pytest.mark.parametrize(("window", "devices"), [(10, 18), (5, 27)])
def test_iot_sentinel_divides_by_capture(window: int, devices: int) -> None:
    config = DataConfig(root=REAL / "ciciot2023", benign_root=SITE, window=window, max_rows_per_class=1000)
    mixed = with_benign_site(load_dataset(config, 0), config)
    assert mixed.site == f"benign: IoT Sentinel ({devices} devices), attacks: CICIoT2023"
    sides: dict[bytes, str] = {}
    for side, rows in mixed.splits.items():
        starts = window_starts(rows.segment, window)
        counts = np.bincount(rows.label[starts], minlength=len(mixed.class_names))
        assert counts.min() > 0
        benign = rows.label < devices
        assert (np.diff(rows.start)[benign[1:] & (np.diff(rows.segment) == 0)] >= 0).all()
        for vector in rows.features[benign]:
            assert sides.setdefault(vector.tobytes(), side) == side, "a vector stands on two sides"
    hue = pl.read_csv(SITE / "HueBridge.csv", infer_schema_length=None).select(FEATURES_39).to_numpy().astype(np.float32)
    label = mixed.class_names.index("Benign:HueBridge")
    found = np.concatenate([rows.features[rows.label == label] for rows in mixed.splits.values()])
    finite = np.isfinite(hue).all(axis=1)
    assert len(found) == len(hue)
    np.testing.assert_array_equal(found[finite], hue[finite])
    assert "BenignTraffic" not in mixed.class_names


def test_a_bank_of_a_site_survives_saving(tmp_path: Path) -> None:
    mixed: Dataset = with_benign_site(HOME, write(tmp_path / "site", frames()))
    bank = build_bank(mixed, Mean(), lambda x: np.clip(x / 1000, -5, 5))
    bank.save(tmp_path / "bank", {})
    opened = TraceBank.load(tmp_path / "bank")
    assert (opened.class_names, opened.site) == (bank.class_names, bank.site)
    np.testing.assert_array_equal(opened.raw_windows(np.arange(50)), bank.raw_windows(np.arange(50)))
