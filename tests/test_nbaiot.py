"""N-BaIoT's features: made-up files of the exact names and header in both layouts, and packets of IoT-23 in them where they are at hand."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import main as command_line
from src.config import DataConfig
from src.data.dataset import content_hash, leave_out, load_dataset
from src.data.nbaiot import DEVICES, FEATURES_115, read_nbaiot
from src.data.taxonomy import LABELS
from src.data.windows import window_starts
from src.errors import UserError
from tests.nbaiot import FILES, make_frame, write_named, write_numbered

REAL = Path(__file__).parents[1] / ".." / "shared" / "data" / "nbaiot"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="packets in N-BaIoT's features (../shared/data/nbaiot) are not here")
ROWS = 120
COUNT = FEATURES_115.index("MI_dir_L5_weight")


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbered(tmp_path_factory.mktemp("numbered"), ROWS)


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_named(tmp_path_factory.mktemp("named"), ROWS)


def settings(root: Path, **more: object) -> DataConfig:
    return DataConfig.model_validate({"root": root, "dataset": "nbaiot", **more})


def test_both_layouts_read_alike(numbered: Path, named: Path) -> None:
    one, counts, site = read_nbaiot(numbered)
    other, _, _ = read_nbaiot(named)
    assert site == "N-BaIoT"
    assert (counts["files"], counts["auxiliary files skipped"]) == (11 + 11 + 6, 4)
    assert (counts["rows read"], counts["first rows dropped"], counts["rows with the time of capture"]) == (28 * ROWS, 28, 0)
    by_name = {(capture.domain, capture.label): capture for capture in other}
    assert len(one) == len(by_name) == 28
    for capture in one:
        twin = by_name[capture.domain, capture.label]
        np.testing.assert_array_equal(capture.features, twin.features)
        np.testing.assert_array_equal(capture.features[:, COUNT], np.arange(2, ROWS + 1))  # file order, without the first row
        assert (capture.ordered, capture.features.dtype) == (True, np.float32)
        assert (capture.chunk == 0).all()
        assert np.isnan(capture.start).all()
    assert {capture.domain for capture in one} == set(DEVICES[:3])
    assert not any(capture.label.startswith("Mirai") for capture in one if capture.domain == "Ennio_Doorbell")


def test_labels_stand_in_the_taxonomy(numbered: Path) -> None:
    family = {capture.label: LABELS[capture.label].family for capture in read_nbaiot(numbered)[0]}
    assert family == {
        "BenignTraffic": "Benign",
        **{f"Gafgyt-{name}": "DDoS" for name in ("combo", "junk", "tcp", "udp")},
        **{f"Mirai-{name}": "Mirai" for name in ("ack", "syn", "udp", "udpplain")},
        **{"Gafgyt-scan": "Recon", "Mirai-scan": "Recon"},
    }
    assert LABELS["C&C"].stage == "command and control"


def test_rows_that_carry_the_time_of_capture_or_a_gap_end_a_run(tmp_path: Path) -> None:
    number = pl.int_range(pl.len())
    spoiled = make_frame(1, "benign", "", 40).with_columns(
        pl.when(number == 9).then(6.02e8).otherwise("HH_jit_L0.01_mean").alias("HH_jit_L0.01_mean"),
        pl.when(number == 19).then(None).otherwise("HpHp_L1_pcc").alias("HpHp_L1_pcc"),
        pl.when(number == 29).then(float("inf")).otherwise("H_L5_mean").alias("H_L5_mean"),
        pl.when(number == 34).then(9e5).otherwise("HH_jit_L1_mean").alias("HH_jit_L1_mean"),  # ten days: no gap is known to be that long, but it can be
    )
    spoiled.write_csv(tmp_path / "1.benign.csv")
    (capture,), counts, _ = read_nbaiot(tmp_path)
    assert (counts["rows with the time of capture"], counts["rows incomplete"], counts["first rows dropped"]) == (1, 2, 1)
    kept = capture.features[:, COUNT]
    assert set(range(1, 41)) - set(kept) == {1, 10, 20, 30}
    np.testing.assert_array_equal(kept[1:][np.diff(capture.chunk) > 0], [11, 21, 31])


def test_a_quota_holds_for_each_file_and_labels_can_be_left_out(numbered: Path) -> None:
    captures, counts, _ = read_nbaiot(numbered, ["Mirai-udpplain"], 50)
    assert {len(capture.features) for capture in captures} == {50}
    assert len(captures) == 26
    assert counts["rows kept"] == 26 * 50
    with pytest.raises(UserError, match="no row is left"):
        read_nbaiot(numbered / "1.benign.csv", ["BenignTraffic"])


def test_devices_are_domains_and_captures_are_divided_in_order(numbered: Path) -> None:
    data = load_dataset(settings(numbered), 0)
    assert data.domain_names == DEVICES[:3]
    assert (data.source, data.site, data.assembled, len(data.class_names)) == ("real", "N-BaIoT", (), 11)
    order = []
    for rows in data.splits.values():
        assert set(zip(rows.domain.tolist(), rows.label.tolist(), strict=True)) == {
            (device, label) for device in range(3) for label in range(11) if device != 2 or not data.class_names[label].startswith("Mirai")
        }
        assert len(set(zip(rows.segment.tolist(), rows.domain.tolist(), strict=True))) == len(np.unique(rows.segment)), "a run is of one device"
        order.append(rows.features[(rows.domain == 1) & (rows.label == 0), COUNT])
    for earlier, later in itertools.pairwise(order):
        assert later[0] - earlier[-1] == 11  # ten rows of gap


def test_a_device_left_out_is_the_test_and_nothing_else(numbered: Path) -> None:
    data = load_dataset(settings(numbered), 0)
    fit = data.splits["fit"]
    fit.features[5] = data.splits["agent"].features[data.splits["agent"].domain == 1][3]  # a vector of the device that another one's row repeats
    held = leave_out(data, "Ecobee_Thermostat", 10)
    assert list(held.splits) == ["fit", "calibrate", "agent", "test"]
    assert set(held.splits["test"].domain) == {1}
    assert len(held.splits["test"].label) == sum((rows.domain == 1).sum() for rows in data.splits.values())
    for side in ("fit", "calibrate", "agent"):
        was, now = data.splits[side], held.splits[side]
        keep = was.domain != 1
        keep[5] &= side != "fit"
        for field in dataclasses.fields(now):
            if field.name != "segment":
                np.testing.assert_array_equal(getattr(now, field.name), getattr(was, field.name)[keep])
        edges = np.flatnonzero(np.diff(was.segment[keep]) != 0).tolist()
        assert np.flatnonzero(np.diff(now.segment)).tolist() == ([4, *edges] if side == "fit" else edges)
    runs = [set(rows.segment.tolist()) for rows in held.splits.values()]
    assert len(set.union(*runs)) == sum(map(len, runs))
    assert len(window_starts(held.splits["fit"].segment, 10)) < len(window_starts(fit.segment[fit.domain != 1], 10))
    assert held.data_hash != data.data_hash
    with pytest.raises(UserError, match="did you mean 'Ecobee_Thermostat'"):
        leave_out(data, "Ecobee_Thermostaat", 10)


def test_a_class_of_one_device_alone_cannot_be_held_out(tmp_path: Path) -> None:
    write_numbered(tmp_path, ROWS, (2, 3))
    with pytest.raises(UserError, match=r"without 'Ecobee_Thermostat', class 'Mirai-\w+' has no window of 10 rows on side 'fit'"):
        leave_out(load_dataset(settings(tmp_path), 0), "Ecobee_Thermostat", 10)


def renamed(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.rename({"HH_jit_L5_mean": "HH_jit_L5_men"})


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("1.benign.csv", renamed, r"column 'HH_jit_L5_mean' \(nearest: 'HH_jit_L5_men'\) is missing, and 1 more are wrong"),
        ("1.benign.csv", lambda frame: frame.with_columns(label=pl.lit("x")), "column 'label' is unknown"),
        ("1.benign.csv", lambda frame: frame.head(0), "has a header but no rows"),
        ("1.benign.csv", lambda frame: frame.with_columns(pl.lit("fast").alias("H_L1_mean")), "every feature must be a number"),
        ("1.gafgyt.como.csv", None, r"unknown label 'gafgyt.como': did you mean 'gafgyt.combo'"),
        ("1.benign.tcp.csv", None, r"unknown label 'benign.tcp'"),
        ("Cam/mirai_attacks/udplain.csv", None, r"unknown label 'mirai.udplain': did you mean 'mirai.udpplain'"),
        ("12.benign.csv", None, "devices are 1 to 9, not 12"),
        ("Merged01.csv", None, r"is no file of N-BaIoT: device and label are read from the path, e\.g\. 1\.benign\.csv"),
        ("new.parquet", None, r"column 'label' \(nearest: .*\) is missing|column 'label' is missing"),
        ("new.parquet", lambda frame: frame.with_columns(label=pl.lit("C&D")), r"column 'label': unknown label 'C&D'"),
        ("new.parquet", lambda frame: frame.with_columns(label=pl.lit(None, pl.String)), "column 'label' is empty in some row"),
    ],
)
def test_wrong_files_are_one_clear_line(tmp_path: Path, name: str, change: object, words: str) -> None:
    frame = make_frame(1, "benign", "", 30)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = change(frame) if callable(change) else frame
    frame.write_parquet(path) if path.suffix == ".parquet" else frame.write_csv(path)
    with pytest.raises(UserError, match=words) as caught:
        read_nbaiot(tmp_path)
    assert "\n" not in str(caught.value)


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist: give a folder of N-BaIoT's CSVs"):
        read_nbaiot(tmp_path / "nowhere")
    (tmp_path / "demonstrate_structure.csv").write_text(",".join(FEATURES_115) + "\n")
    with pytest.raises(UserError, match="holds no traffic of N-BaIoT"):
        read_nbaiot(tmp_path)
    (tmp_path / "1.benign.csv").write_text("")
    with pytest.raises(UserError, match=r"1\.benign\.csv' is empty"):
        read_nbaiot(tmp_path)
    write_numbered(tmp_path, 5, (1,))
    write_named(tmp_path, 5, (1,))
    with pytest.raises(UserError, match=r"are both BenignTraffic of Danmini_Doorbell: keep one layout a folder"):
        read_nbaiot(tmp_path)
    with pytest.raises(UserError, match=r"of which no synthetic profile exists: give data\.root"):
        load_dataset(DataConfig(dataset="nbaiot"), 0)


def test_packets_of_other_captures_are_no_rows_of_n_baiot(tmp_path: Path) -> None:
    number = pl.int_range(pl.len())
    frame = make_frame(1, "benign", "", 30).select(reversed(FEATURES_115))
    frame = frame.with_columns(label=pl.when(number < 12).then(pl.lit("benign")).otherwise(pl.lit("C&C")), ts=1e9 + 2.0 * number, proto=pl.lit("tcp"))
    frame.write_parquet(tmp_path / "capture_7.parquet")
    (benign, control), counts, site = read_nbaiot(tmp_path)
    assert site == "no N-BaIoT rows but capture_7 in its features"
    assert (benign.label, control.label, benign.domain) == ("BenignTraffic", "C&C", "capture_7")
    np.testing.assert_array_equal(benign.features[:, COUNT], np.arange(2, 13))
    np.testing.assert_array_equal(control.features[:, COUNT], np.arange(13, 31))
    np.testing.assert_array_equal(control.start, 2.0 * np.arange(18))
    assert counts["rows with the time of capture"] == 1  # of a parquet file too, though no row is dropped unseen
    assert counts["first rows dropped"] == 0


@pytest.mark.slow
def test_phase_lstm_runs_on_n_baiot_and_later_phases_say_what_they_lack(numbered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"data.root={numbered}", "data.dataset=nbaiot", f"compute.artifacts={tmp_path / 'artifacts'}", "mlflow.register_models=false"]
    given += ["lstm.training.epochs=2", "lstm.model.hidden_size=16", "compute.threads=1"]
    sets = [word for item in given for word in ("--set", item)]
    assert command_line.main(["--phase", "lstm", *sets]) == 0
    assert "11 classes" in capsys.readouterr().out
    assert command_line.main(["--phase", "rl", *sets]) == 2
    assert "env.features: this data has no feature 'Header_Length'" in capsys.readouterr().err


@needs_real
def test_names_and_order_are_the_published_ones() -> None:
    header = (REAL / "demonstrate_structure_header_only.csv").read_text(encoding="utf-8").strip().split(",")
    assert tuple(header) == FEATURES_115
    assert len(FILES) == 11


@needs_real
def test_iot_23_packets_are_read_whole() -> None:
    data = load_dataset(settings(REAL, window=50, gap=50), 0)
    assert data.class_names == ("BenignTraffic", "C&C")
    assert data.domain_names == ("iot23_34-1_mirai_cc", "iot23_philips_hue_benign")
    assert data.site == "no N-BaIoT rows but iot23_34-1_mirai_cc, iot23_philips_hue_benign in its features"
    assert (data.report["rows read"], data.report["rows kept"], data.report["auxiliary files skipped"]) == (36_797 + 8_573, 36_797 + 8_573, 1)
    for rows in data.splits.values():
        np.testing.assert_array_equal(rows.domain, 1 - rows.label)  # one device benign, the other infected: no label without a device
        assert (np.diff(rows.start)[np.diff(rows.segment) == 0] >= 0).all()
    raw = pl.read_parquet(REAL / "iot23_philips_hue_benign.parquet").select(FEATURES_115).to_numpy()
    fit = data.splits["fit"]
    hue = fit.features[fit.label == 0]
    np.testing.assert_array_equal(hue, raw[: len(hue)])
    with pytest.raises(UserError, match="class 'C&C' has no window"):
        leave_out(data, "iot23_34-1_mirai_cc", 50)


def test_a_hash_knows_whose_rows_they_are_where_there_are_several_devices(numbered: Path) -> None:
    data = load_dataset(settings(numbered), 0)
    plain = {"names": data.feature_names, "classes": data.class_names}
    swapped = {side: dataclasses.replace(rows, domain=rows.domain[::-1]) for side, rows in data.splits.items()}
    assert data.data_hash == content_hash(data.splits, **plain, domains=data.domain_names)
    others = [content_hash(swapped, **plain, domains=data.domain_names), content_hash(data.splits, **plain, domains=data.domain_names[::-1])]
    assert data.data_hash not in others
    # Of one device, neither its rows' numbers nor its name: such hashes are as they were.
    assert len({content_hash(splits, **plain, domains=(name,)) for splits in (data.splits, swapped) for name in "ab"}) == 1
