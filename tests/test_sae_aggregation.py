"""Stage 1 on made-up files of every data set's exact layout, and on real ones where they are at hand."""

import itertools
import json
import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from src.data import ciciot2023, nbaiot, tables
from src.data.ciciot2023 import FEATURES_39, FEATURES_46, read_ciciot2023, stream_ciciot2023
from src.data.nbaiot import read_nbaiot, stream_nbaiot
from src.errors import UserError
from src.sae import aggregation
from src.sae.aggregation import RESERVED, aggregate, read_schema, run
from src.sae.layout import PRESETS, SCHEMAS, Layout, finish, preset
from tests.flows import make_unraveled
from tests.nbaiot import make_frame, write_numbered
from tests.sysmon import event, make_bigbase, write_bigbase
from tests.test_zeek import row, write_log

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
needs_real = pytest.mark.skipif(not SHARED.exists(), reason="real data (../shared/data) is not here")
NAME = {"bigbase": "basic", "unraveled": "network"}


def quiet(_: str) -> None:
    """Nobody listens."""


def schema_of(dataset: str, name: str | None = None, **more: object) -> dict[str, Any]:
    return {**read_schema(preset(dataset, name or NAME.get(dataset)).schema), **more}


def made(dataset: str, root: Path, out: Path, **more: object) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Stage 1's table and metadata, which are checked for what holds of every data set."""
    layout = Layout(out, dataset, "t")
    schema = schema_of(dataset, **more)
    meta = aggregate(dataset, root, schema, layout, quiet)
    frame = pl.read_parquet(layout.parquet)
    assert frame.columns == [*schema["core_features"], *RESERVED]
    assert {name: frame.schema[name] for name in RESERVED} == RESERVED
    assert json.loads(layout.metadata.read_text()) == meta
    stated = pl.read_parquet_metadata(layout.parquet)
    assert (stated["digest"], stated["rows"]) == (meta["digest"], str(meta["rows"]))
    assert len(frame) == meta["rows"] == sum(meta["rows by label"].values()) == sum(meta["rows by group"].values()) == sum(meta["rows by attack"].values())
    assert pl.read_csv(layout.labels)["rows"].sum() == len(frame)
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == sorted([layout.parquet.name, layout.metadata.name, layout.labels.name])
    runs = frame["session"].rle().struct.field("value")
    assert runs.n_unique() == len(runs) == meta["sessions"], "rows of a session stand together"
    late = frame.filter(pl.col("time_ms").is_not_null()).select((pl.col("time_ms").diff() < 0).over("session").sum()).item()
    assert late == 0, "rows of a session stand in time order"
    assert frame.group_by("session").agg(pl.col("group").n_unique())["group"].max() == 1
    known = frame.drop_nulls("attack")
    assert known["attack"].to_list() == (known["label"] != "BenignTraffic").cast(pl.Int8).to_list()
    return frame, meta


def captures(folder: Path, rows: int = 60, seed: int = 0) -> Path:
    """Two captures in CICIoT2023's 39 features: chunks of 25 rows, gaps as at the source, and one incomplete row."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, name in enumerate(("Benign_Final", "Recon-PortScan")):
        values = np.random.default_rng([seed, kind]).lognormal(size=(rows, len(FEATURES_39))).round(5)
        frame = pl.DataFrame(values, schema=list(FEATURES_39)).with_columns(
            Number=pl.when(pl.int_range(pl.len()) % 25 == 24).then(1.0).otherwise(10.0), SMTP=pl.lit(0.0)
        )
        place = pl.int_range(pl.len())
        frame = frame.with_columns(
            pl.when(place == 24).then(None).otherwise("Std").alias("Std"),
            pl.when(place == 3).then(float("inf")).otherwise("Rate").alias("Rate"),
            pl.when(place == 7).then(None).otherwise("IAT").alias("IAT"),
        )
        frame.write_csv(folder / f"{name}.pcap.csv")
    return folder


# ------------------------------------------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("schema-*.json")), ids=lambda path: path.stem)
def test_schemas_hold_no_time_address_host_or_process_id(path: Path) -> None:
    schema = read_schema(path)
    core = schema["core_features"]
    carried = {schema["time_column"], schema["host_column"], *aggregation._names(schema["label_column"])}
    assert not carried & set(core)
    parts = ("utctime", "seen_ms", "timestamp", "computer", "hostname", "processid", "processguid", "threadid", "uid")
    assert [name for name in core if name.lower().endswith(("ip", "mac", "oui", "_h")) or any(part in name.lower() for part in parts)] == []
    assert schema["split"]["by"] in ("group", "time", "blocks")


def test_every_data_set_has_the_schema_of_its_presets() -> None:
    found = {preset(dataset, name).schema for dataset, names in PRESETS.items() for name in names or [None]}
    assert found == set(SCHEMAS.glob("schema-*.json"))
    basic, extended = (read_schema(preset("bigbase", name).schema)["core_features"] for name in ("basic", "extended"))
    assert set(basic) < set(extended)
    assert {"OriginalFileName", "TargetObject", "TargetFilename", "PipeName"} <= set(extended) - set(basic)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"core_features": []}, "'core_features' must be a list of different names"),
        ({"core_features": ["EventID", "EventID"]}, "'core_features' must be a list of different names"),
        ({"core_features": ["session"]}, "core feature 'session' has the name of a column that every table has: label, attack"),
        ({"core_features": ["TacticLabel"]}, "core feature 'TacticLabel' is the label"),
        ({"time_unit": "mss"}, "time_unit 'mss': did you mean 'ms'"),
        ({"label_column": 5}, "label_column is 5; it must be a name, a list of names, or null"),
        ({"benign_label": {}}, "benign_label is {}; it must be a name, a list of names, or null"),
        ({"host_column": ["Computer"]}, r"host_column is \['Computer'\]; it must be the name of a column, or null"),
        ({"time_column": 3}, "time_column is 3; it must be the name of a column, or null"),
        ({"group": "apt"}, "group is 'apt': "),
        ({"split": "time"}, "split is 'time'; it must be an object"),
        ({"split": {"by": "group", "train": "APT1"}}, "train is 'APT1'; it must be a list of names"),
        ({"session_gap_hours": "24"}, "session_gap_hours is '24'; it must be a number above 0"),
        ({"session_gap_hours": 0}, "session_gap_hours is 0; it must be a number above 0"),
        ({"coreFeatures": []}, "unknown key 'coreFeatures': did you mean 'core_features'"),
    ],
)
def test_wrong_schemas_are_one_clear_line(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema_of("bigbase", **change)))
    with pytest.raises(UserError, match=words):
        read_schema(path)
    tree = schema_of("bigbase")
    path.write_text(json.dumps({key: tree[key] for key in tree if key != "split"}))
    with pytest.raises(UserError, match="key 'split' is missing"):
        read_schema(path)


# --------------------------------------------------------------------------------------------------------------------------------- event tables


def test_bigbase_rows_have_campaign_session_and_time(tmp_path: Path) -> None:
    root = make_bigbase(tmp_path / "raw", [2, 12, 21, 45, 50], 80)
    frame, meta = made("bigbase", root, tmp_path / "out")
    assert meta["rows by group"] == {"APT1": 160, "APT2": 80, "APT5": 80, "APT6": 80}
    assert frame["session"].unique(maintain_order=True)[:4].str.slice(0, 13).to_list() == ["dataset-2.csv"] * 2 + ["dataset-12.cs"] * 2
    assert set(frame["label"]) == {"BenignTraffic", "Execution", "Lateral Movement"}
    assert meta["counts"]["rows without a time"] == frame["time_ms"].null_count() > 0
    first = datetime(2020, 1, 3, tzinfo=UTC).timestamp() * 1000
    assert first < meta["first and last time_ms"][0] < first + 10_000
    assert {"ImageLoaded", "EventType"} <= set(meta["constant columns"])
    assert "CommandLine" not in meta["constant columns"]
    assert [source["name"] for source in meta["sources"]] == [f"dataset-{number}.csv" for number in (2, 12, 21, 45, 50)]
    assert meta["sources"][0]["bytes"] == (root / "dataset-2.csv").stat().st_size


def test_a_row_without_a_time_stays_behind_the_row_it_follows(tmp_path: Path) -> None:
    times = [("A", "3"), ("B", "9"), ("A", ""), ("A", "1"), ("B", ""), ("A", "2"), ("B", "8"), ("", "5")]
    stamp = {second: f"2020-06-10 02:50:0{second}.250" if second else "" for _, second in times}
    rows = [event(Computer=host, UtcTime=stamp[second], CommandLine=str(place), TacticLabel="normal") for place, (host, second) in enumerate(times)]
    write_bigbase(tmp_path / "raw" / "dataset-1.csv", rows, ("TacticLabel",))
    frame, meta = made("bigbase", tmp_path / "raw", tmp_path / "out")
    assert frame["CommandLine"].to_list() == ["3", "5", "0", "2", "6", "1", "4", "7"]
    assert frame["session"].to_list() == ["dataset-1.csv|A"] * 4 + ["dataset-1.csv|B"] * 3 + ["dataset-1.csv|?"]
    assert frame["time_ms"][0] == int(datetime(2020, 6, 10, 2, 50, 1, 250_000, tzinfo=UTC).timestamp() * 1000)
    assert (meta["counts"]["rows put in time order"], meta["counts"]["rows without a time"], meta["counts"]["rows without a host"]) == (2, 2, 1)


def test_an_absent_label_column_is_no_attack(tmp_path: Path) -> None:
    """The pipeline that this one follows marked every row an attack where the configured column was absent."""
    write_bigbase(tmp_path / "raw" / "dataset-1.csv", [event()] * 3, ())
    layout = Layout(tmp_path / "out", "bigbase", "t")
    with pytest.raises(UserError, match=r"no label column \(TacticLabel or Label\); found: EventID, Computer"):
        aggregate("bigbase", tmp_path / "raw", schema_of("bigbase"), layout, quiet)
    with pytest.raises(UserError, match="label_column is null, but every event of bigbase has a label"):
        aggregate("bigbase", tmp_path / "raw", schema_of("bigbase", label_column=None), layout, quiet)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_the_benign_label_is_the_schemas(tmp_path: Path) -> None:
    write_bigbase(tmp_path / "raw" / "dataset-1.csv", [event(TacticLabel="Normal")], ("TacticLabel",))
    with pytest.raises(UserError, match="'Normal' is no benign label of the schema, which are: clean"):
        aggregate("bigbase", tmp_path / "raw", schema_of("bigbase", benign_label="clean"), Layout(tmp_path / "out", "bigbase", "t"), quiet)


@pytest.mark.parametrize(("unit", "scale"), [("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
def test_times_are_milliseconds_whatever_their_unit(unit: str, scale: float) -> None:
    values = pl.Series([1_591_757_454.631 * scale, None])
    assert tables.epoch_ms(Path("x"), "t", values, unit).to_list() == [1_591_757_454_631, None]
    wrong = {"s": "ms", "ms": "us", "us": "ns", "ns": "s"}[unit]
    with pytest.raises(UserError, match=f"column 't' read as '{wrong}' gives the year .* outside 1990 to 2100; state the right time_unit: s, ms, us, ns, text"):
        tables.epoch_ms(Path("x"), "t", values, wrong)


def test_times_as_text_are_utc() -> None:
    text = pl.Series(["2020-06-10 02:50:54.631", "2020-06-10T02:50:54.631Z", "2020-06-10 02:50:54", None, ""])
    assert tables.epoch_ms(Path("x"), "t", text, "text").to_list() == [1_591_757_454_631, 1_591_757_454_631, 1_591_757_454_000, None, None]
    with pytest.raises(UserError, match=r"must hold times like 2020-06-10 02:50:54\.631, found '10/06/2020'"):
        tables.epoch_ms(Path("x"), "t", pl.Series(["10/06/2020"]), "text")
    with pytest.raises(UserError, match="gives the year 1601"):
        tables.epoch_ms(Path("x"), "t", pl.Series(["1601-01-01 00:00:00.000"]), "text")


def test_a_wrong_unit_in_the_schema_stops_the_stage(tmp_path: Path) -> None:
    write_log(tmp_path / "raw" / "x_conn.log.labeled", [row(1.5e9, "h", "Benign   -")])
    with pytest.raises(UserError, match="column 'ts' read as 'ms' gives the year 1970, outside 1990 to 2100"):
        made("iot23", tmp_path / "raw", tmp_path / "out", time_unit="ms")


def test_unraveled_is_read_by_network_and_host(tmp_path: Path) -> None:
    root = make_unraveled(tmp_path / "raw", 120)
    frame, meta = made("unraveled", root / "network-flows", tmp_path / "out")
    assert meta["rows by group"] == {"net1011x": 240, "netgw": 240}
    assert (meta["sessions"], len(meta["sources"])) == (16, 4)
    assert meta["counts"]["rows with commas in texts"] > 0
    assert meta["counts"]["rows put in time order"] > 100
    assert frame["time_ms"].null_count() == 0
    assert {"BenignTraffic", "Cover Up", "Lateral Movement"} <= set(frame["label"]) <= {"BenignTraffic", *aggregation.flows.STAGES}


def test_iot23_captures_are_groups(tmp_path: Path) -> None:
    rows = [row(1.5e9 + 2, "a", "Benign   -"), row(1.5e9, "b", "Malicious   DDoS"), row(1.5e9 + 1, "a", "Benign   -")]
    for name in ("CTU-1", "CTU-2"):
        write_log(tmp_path / "raw" / name / "bro" / "conn.log.labeled", rows)
    frame, meta = made("iot23", tmp_path / "raw", tmp_path / "out")
    assert meta["rows by group"] == {"CTU-1": 3, "CTU-2": 3}
    assert frame["session"].unique(maintain_order=True).to_list() == [f"CTU-{n}/bro/conn.log.labeled|{host}" for n in (1, 2) for host in "ab"]
    assert frame["time_ms"].to_list()[:3] == [1_500_000_001_000, 1_500_000_002_000, 1_500_000_000_000]


def test_a_host_that_was_silent_for_long_begins_a_session(tmp_path: Path) -> None:
    """A subset of IoT-23 has hosts that are silent for 141 days: a window over that is of two captures."""
    day = 86_400
    seconds = [(9 * day, "a"), (0, "a"), (day, "a"), (0, "b"), (3 * day, "b"), (10 * day + 1, "a")]  # a day to the second is no longer than a day
    write_log(tmp_path / "raw" / "x_conn.log.labeled", [row(1.5e9 + second, host, "Benign   -") for second, host in seconds])
    frame, meta = made("iot23", tmp_path / "raw", tmp_path / "out")
    name = "x_conn.log.labeled"
    assert frame["session"].to_list() == [f"{name}|a"] * 2 + [f"{name}|a|1", f"{name}|a|2", f"{name}|b", f"{name}|b|1"]
    assert meta["counts"]["sessions begun after a silence"] == 3
    frame, meta = made("iot23", tmp_path / "raw", tmp_path / "out", session_gap_hours=None)
    assert meta["sessions"] == 2
    assert "sessions begun after a silence" not in meta["counts"]


def test_a_shuffled_sample_is_called_one(tmp_path: Path) -> None:
    times = np.random.default_rng(0).permutation(400)
    write_log(tmp_path / "raw" / "log" / "conn.log.labeled", [row(1.5e9 + second, "a", "Benign   -") for second in range(400)])
    write_log(tmp_path / "raw" / "sample" / "conn.log.labeled", [row(1.5e9 + int(second), "a", "Benign   -") for second in times])
    frame, meta = made("iot23", tmp_path / "raw", tmp_path / "out")
    (note,) = meta["notes"]
    assert note.startswith("sample/conn.log.labeled: ")
    assert "as in a shuffled sample" in note
    assert frame["ordered"].all(), "the clock says the order"


def test_otrf_events_are_of_no_known_kind(tmp_path: Path) -> None:
    core = schema_of("otrf")["core_features"]
    number = pl.int_range(30)
    texts = {name: pl.lit("-") for name in core if name != "EventID"}
    file = pl.when(number < 15).then(pl.lit("a.zip")).otherwise(pl.lit("b.zip"))
    stamp = pl.format("2020-06-10 02:50:{}.000", 59 - number)
    frame = pl.select(dataset_file=file, Computer=pl.format("PC{}", number % 2), UtcTime=stamp, EventID=number, **texts)
    frame.with_columns(DestinationPort=pl.lit(443.0)).write_parquet(tmp_path / "otrf.parquet")
    found, meta = made("otrf", tmp_path / "otrf.parquet", tmp_path / "out")
    assert meta["rows by attack"] == {"unknown": 30}
    assert meta["rows by group"] == {"a.zip": 15, "b.zip": 15}
    assert found["session"].unique(maintain_order=True).to_list() == [
        f"otrf.parquet|{file}|PC{host}" for file, host in (("a.zip", 0), ("a.zip", 1), ("b.zip", 1), ("b.zip", 0))
    ]
    assert found["Image"].null_count() == 30


# ------------------------------------------------------------------------------------------------------------------------------ traffic features


def test_captures_are_streamed_as_they_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = captures(tmp_path / "raw", 400)
    whole, names, counts = read_ciciot2023(root)
    for size in (7, 8, 1000):  # the incomplete row is the first of a batch, the last, and neither
        monkeypatch.setattr(ciciot2023, "_BATCH", size)
        again = read_ciciot2023(root)[0]
        assert all((one.chunk == other.chunk).all() for one, other in zip(whole, again, strict=True))
        report: Counter[str] = Counter()
        found, batches = stream_ciciot2023(root, report)
        streamed = list(batches)
        assert found == names
        assert len(streamed) == 2 * -(-400 // size)
        for capture, path in zip(whole, sorted(root.glob("*.csv")), strict=True):
            own = [batch for batch in streamed if batch.path == path]
            np.testing.assert_array_equal(np.concatenate([batch.features for batch in own]), capture.features)
            np.testing.assert_array_equal(np.concatenate([batch.chunk for batch in own]), capture.chunk)
            assert {(batch.label, batch.ordered) for batch in own} == {(capture.label, True)}
        assert {name: counts[name] for name in report} == dict(report)


def test_ciciot2023_sessions_are_chunks_and_rates_are_finite(tmp_path: Path) -> None:
    frame, meta = made("ciciot2023", captures(tmp_path / "raw"), tmp_path / "out")
    assert meta["rows by group"] == {"Benign_Final": 59, "Recon-PortScan": 59}
    assert frame["session"].unique(maintain_order=True).to_list() == [
        f"{name}.pcap.csv|{run}" for name in ("Benign_Final", "Recon-PortScan") for run in range(4)
    ]
    assert meta["counts"] == {
        "files": 2, "rows read": 120, "inf cells": 2, "NaN cells": 4, "rows incomplete": 2, "infinite rates replaced": 2,
    }  # fmt: skip
    assert frame.select(pl.col(pl.Float32).is_finite().all()).row(0) == (True,) * 30
    assert frame["Rate"].max() == 1e7
    assert frame["time_ms"].null_count() == len(frame), "a rebuilt clock is no time of day"
    assert meta["constant columns"] == ["SMTP"]


def test_the_classic_release_has_a_preset_of_its_own(tmp_path: Path) -> None:
    newer, root = captures(tmp_path / "newer"), tmp_path / "classic"
    root.mkdir()
    for path in newer.glob("*.csv"):
        frame = pl.read_csv(path).rename({"Time_To_Live": "Duration"}).drop("IGMP")
        frame.with_columns(pl.col("AVG").alias(name) for name in FEATURES_46 if name not in frame.columns).write_csv(root / path.name)
    with pytest.raises(UserError, match="release of 46 features, the schema is of the one of 39: give --config-preset classic46"):
        made("ciciot2023", root, tmp_path / "out")
    with pytest.raises(UserError, match="give --config-preset merged39"):
        made("ciciot2023", newer, tmp_path / "out", **schema_of("ciciot2023", "classic46"))
    frame, meta = made("ciciot2023", root, tmp_path / "out", **schema_of("ciciot2023", "classic46"))
    assert meta["rows"] == 118
    assert not {"IAT", "flow_duration", "Number", "Weight", "Tot sum"} & set(frame.columns), "clocks and places of the source's counter"
    assert frame["Rate"].is_finite().all()


def test_mixed_files_are_not_in_order_and_repeat_no_capture(tmp_path: Path) -> None:
    root = captures(tmp_path / "raw")
    scan = pl.read_csv(root / "Recon-PortScan.pcap.csv").head(3)
    other = pl.read_csv(captures(tmp_path / "other", 20, seed=1) / "Benign_Final.pcap.csv").head(6)
    labels = ["RECON-PORTSCAN"] * 3 + ["BENIGN"] * 5 + [None]
    pl.concat([scan, other]).with_columns(Label=pl.Series(labels)).write_csv(root / "Merged01.csv")
    frame, meta = made("ciciot2023", root, tmp_path / "out")
    mixed = frame.filter(pl.col("group") == "Merged01")
    assert (meta["counts"]["rows repeated from a per-attack file"], meta["counts"]["rows without a label"]) == (3, 1)
    assert (len(mixed), set(mixed["label"]), mixed["ordered"].any(), meta["rows not in order"]) == (5, {"BenignTraffic"}, False, 5)
    assert frame.filter(pl.col("group") != "Merged01")["ordered"].all()


def write_site(folder: Path) -> Path:
    """Two devices of three captures each, the latest row first."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, device in enumerate(("Cam", "Plug")):
        values = np.random.default_rng(number).lognormal(size=(30, len(FEATURES_39)))
        frame = pl.DataFrame(values, schema=list(FEATURES_39)).with_columns(
            pcap=pl.Series(np.repeat(["one.pcap", "two.pcap", "three.pcap"], 10)), window_start=pl.Series(1.5e9 + np.arange(30)[::-1] * 2.5)
        )
        frame.write_csv(folder / f"{device}.csv")
    return folder


def test_a_site_has_devices_captures_and_times(tmp_path: Path) -> None:
    frame, meta = made("ciciot2023", write_site(tmp_path / "raw"), tmp_path / "out")
    assert meta["rows by group"] == {"Cam": 30, "Plug": 30}
    assert meta["sessions"] == 6
    assert meta["rows by label"] == {"BenignTraffic": 60}
    assert frame["time_ms"].min() == 1_500_000_000_000


def test_a_site_may_lie_beside_captures(tmp_path: Path) -> None:
    write_site(tmp_path / "raw" / "benign")
    (captures(tmp_path / "raw" / "attacks") / "Benign_Final.pcap.csv").unlink()
    frame, meta = made("ciciot2023", tmp_path / "raw", tmp_path / "out")
    assert meta["rows by group"] == {"Recon-PortScan": 59, "Cam": 30, "Plug": 30}
    assert meta["rows by attack"] == {"0": 60, "1": 59}
    assert [source["name"] for source in meta["sources"]] == ["benign/Cam.csv", "benign/Plug.csv", "attacks/Recon-PortScan.pcap.csv"]
    assert frame["time_ms"].null_count() == 59


def test_nbaiot_devices_are_groups_and_streaming_is_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_numbered(tmp_path / "raw", 40, (1, 3))
    spoiled = make_frame(1, "benign", "", 40).with_columns(HH_L5_mean=pl.when(pl.int_range(40) == 20).then(None).otherwise("HH_L5_mean"))
    spoiled.write_csv(root / "1.benign.csv")
    whole, counts, _ = read_nbaiot(root)
    monkeypatch.setattr(nbaiot, "_BATCH", 7)
    report: Counter[str] = Counter()
    streamed = list(stream_nbaiot(root, report))
    assert dict(report) == {name: count for name, count in counts.items() if name != "rows kept"}
    for capture in whole:
        own = [batch for batch in streamed if (batch.domain, batch.label) == (capture.domain, capture.label)]
        np.testing.assert_array_equal(np.concatenate([batch.features for batch in own]), capture.features)
        np.testing.assert_array_equal(np.concatenate([batch.chunk for batch in own]), capture.chunk)
    frame, meta = made("nbaiot", root, tmp_path / "out")
    assert meta["rows by group"] == {"Danmini_Doorbell": 11 * 39 - 1, "Ennio_Doorbell": 6 * 39}
    assert meta["sessions"] == 18
    assert frame["time_ms"].null_count() == len(frame)


def test_packets_with_a_clock_keep_it(tmp_path: Path) -> None:
    frame = make_frame(1, "benign", "", 30).with_columns(
        label=pl.when(pl.int_range(30) < 20).then(pl.lit("benign")).otherwise(pl.lit("C&C")), ts=1.5e9 + pl.int_range(30)
    )
    (tmp_path / "raw").mkdir()
    frame.write_parquet(tmp_path / "raw" / "hue.parquet")
    found, meta = made("nbaiot", tmp_path / "raw", tmp_path / "out")
    assert meta["rows by label"] == {"BenignTraffic": 19, "C&C": 10}  # the made-up first row carries the time of capture
    assert found["time_ms"][-1] == 1_500_000_029_000


# ------------------------------------------------------------------------------------------------------------------------------------- the whole


def test_the_digest_is_of_the_content_and_not_of_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = captures(tmp_path / "raw", 300)
    digests, tables_read = [], []
    for number, rows in enumerate((1 << 18, 64)):
        monkeypatch.setattr(aggregation, "_ROWS", rows)
        monkeypatch.setattr(ciciot2023, "_BATCH", rows)
        frame, meta = made("ciciot2023", root, tmp_path / f"out{number}")
        digests.append(meta["digest"])
        tables_read.append(frame)
    assert digests[0] == digests[1]
    assert tables_read[0].equals(tables_read[1])
    text = (root / "Benign_Final.pcap.csv").read_text().splitlines()
    text[9], text[10] = text[10], text[9]
    (root / "Benign_Final.pcap.csv").write_text("\n".join(text) + "\n")
    assert made("ciciot2023", root, tmp_path / "out2")[1]["digest"] != digests[0]


def test_what_was_there_stays_when_a_file_is_wrong(tmp_path: Path) -> None:
    root = make_bigbase(tmp_path / "raw", [1], 20)
    made("bigbase", root, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    write_bigbase(root / "dataset-2.csv", [event(TacticLabel="Normale")], ("TacticLabel",))
    with pytest.raises(UserError, match="unknown label 'Normale'"):
        made("bigbase", root, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_row_group_holds_many_files(tmp_path: Path) -> None:
    root = make_bigbase(tmp_path / "raw", range(1, 8), 20)
    made("bigbase", root, tmp_path / "out")
    import pyarrow.parquet as pq

    file = pq.ParquetFile(Layout(tmp_path / "out", "bigbase", "t").parquet)
    assert (file.metadata.num_row_groups, file.metadata.num_rows) == (1, 140)


@pytest.mark.parametrize("dataset", PRESETS)
def test_a_missing_or_empty_folder_is_one_clear_line(tmp_path: Path, dataset: str) -> None:
    for folder, words in ((tmp_path / "none", "does not exist"), (tmp_path, "holds no")):
        with pytest.raises(UserError, match=words):
            aggregate(dataset, folder, schema_of(dataset), Layout(tmp_path / "out", dataset, "t"), quiet)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    root = make_bigbase(tmp_path / "raw", [1], 20)
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(UserError, match="choose a writable folder with --out"):
        made("bigbase", root, tmp_path / "out")


def test_the_command_reads_presets_schemas_and_folders_below(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_unraveled(tmp_path / "raw", 20, 1, ("netgw",))
    words = ["--dataset", "unraveled", "--version", "v1", "--root", str(root), "--subdir", "network-flows", "--out", str(tmp_path / "out")]
    assert finish(run, [*words, "--config-preset", "network"]) == 0
    assert "20 events in" in capsys.readouterr().out
    layout = Layout(tmp_path / "out", "unraveled", "v1")
    assert layout.parquet.exists()
    (tmp_path / "own.json").write_text(json.dumps(schema_of("unraveled", core_features=["bidirectional_packets"])))
    assert finish(run, [*words, "--schema", str(tmp_path / "own.json")]) == 0
    assert pl.read_parquet(layout.parquet).columns == ["bidirectional_packets", *RESERVED]
    for more, fault in (
        (["--config-preset", "basic"], "--config-preset basic does not fit data set 'unraveled': allowed: network"),
        (["--config-preset", "network", "--schema", str(tmp_path / "own.json")], "give one"),
        (["--schema", str(tmp_path / "no.json")], "no.json' is missing"),
    ):
        assert finish(run, [*words, *more]) == 2
        assert fault in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------------------------------- real data


@needs_real
def test_real_traffic_of_three_data_sets(tmp_path: Path) -> None:
    _, meta = made("iot23", SHARED / "iot23", tmp_path / "a")
    assert meta["rows by label"] == {"DDoS": 16_695, "Okiru": 8_711, "BenignTraffic": 7_390, "C&C": 6_722, "Recon-PortScan": 575, "Bot-exploit": 4}
    assert "Malware-Capture-34-1" in max(meta["rows by group"], key=meta["rows by group"].get)
    assert meta["counts"]["sessions begun after a silence"] == 2
    assert [note.split(":")[0] for note in meta["notes"]] == ["IoT23_zeek_conn_16500.csv"]
    _, meta = made("ciciot2023", SHARED / "ciciot2023" / "per_attack", tmp_path / "b")
    whole = read_ciciot2023(SHARED / "ciciot2023" / "per_attack")[0]
    assert meta["rows"] == sum(len(capture.features) for capture in whole)
    assert meta["sessions"] == sum(len(np.unique(capture.chunk)) for capture in whole)
    frame, meta = made("ciciot2023", SHARED / "ciciot39" / "iot_sentinel", tmp_path / "c")
    assert (len(meta["rows by group"]), meta["counts"]["captures that repeat another"]) == (31, 2)
    years = {1970 + time / 31_556_952_000 for time in meta["first and last time_ms"]}
    assert all(2015 < year < 2017 for year in years)
    assert all(
        first <= second for first, second in itertools.pairwise(frame.filter(pl.col("group") == "Aria")["session"].unique(maintain_order=True).to_list()[:9])
    )
