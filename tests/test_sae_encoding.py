"""Windows of events: made-up Sysmon and flow tables in stage 1's layout, and connections of IoT-23 where they are at hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from src.artifacts import open_artifact
from src.errors import UserError
from src.sae.aggregation import aggregate, read_schema
from src.sae.encoding import KIND, encode, run
from src.sae.features import GAP, Encoder
from src.sae.layout import Layout, preset, read_json
from src.sae.windows import EncodingSettings, Events, Windows, reduce, split_fault

REAL = Path(__file__).parents[1] / ".." / "shared" / "data" / "iot23"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="connections of IoT-23 (../shared/data/iot23) are not here")

CAMPAIGNS = [f"APT{number}" for number in range(1, 7)]
BY_CAMPAIGN = {"by": "group", "train": CAMPAIGNS[:4], "validation": ["APT5"], "test": ["APT6"]}
BY_TIME = {"by": "time", "shares": [0.55, 0.2, 0.25]}
BY_BLOCKS = {"by": "blocks", "shares": [0.7, 0.15, 0.15]}
LENGTH = 90
HOSTS = 2
SEQ = 10
CONFIG: dict[str, Any] = {
    "tfidf_columns": ["CommandLine", "Image"],
    "categorical_columns": ["EventID"],
    "numeric_columns": ["RunMark", "AttackMark", "Size"],
    "derived_columns": [GAP],
}


def table(seed: int = 0, labelled: bool = True, scrambled: int = 0) -> pl.DataFrame:
    """Six campaigns of two hosts of 90 events; in each session rows 60 to 62 are an attack. `scrambled` alters all that no fit may see.

    Two columns are marks: which session, and whether the row is an attack, so that windows can be read back.
    """
    rng = np.random.default_rng(seed)
    count = len(CAMPAIGNS) * HOSTS * LENGTH
    session = np.repeat(np.arange(len(CAMPAIGNS) * HOSTS), LENGTH)
    place = np.tile(np.arange(LENGTH), len(CAMPAIGNS) * HOSTS)
    attack = (place >= 60) & (place <= 62)
    group = session // HOSTS
    hidden = (attack | (group >= 4)) & (scrambled > 0)
    size = rng.lognormal(3, 1, count)
    image = np.array([rf"C:\Windows\tool{index}.exe" for index in rng.integers(0, 30, count)], dtype=object)
    line = np.array([rf"tool.exe -x{index} {index}" for index in rng.integers(0, 30, count)], dtype=object)
    event = rng.integers(1, 4, count)
    frame = pl.DataFrame({
        "EventID": np.where(hidden, 99, event),
        "CommandLine": pl.Series(np.where(hidden, "other words entirely", line).tolist(), dtype=pl.String),
        "Image": pl.Series(image.tolist(), dtype=pl.String),
        "RunMark": session.astype(np.float64),
        "AttackMark": attack.astype(np.float64),
        "Size": np.where(hidden, 1e9, size),
        "label": np.where(attack, np.where(place == 62, "Exfiltration", "Execution"), "BenignTraffic").tolist(),
        "attack": pl.Series(attack.astype(np.int8) if labelled else [None] * count, dtype=pl.Int8),
        "group": [CAMPAIGNS[index] for index in group],
        "session": [f"dataset-{index // HOSTS}.csv|host{index % HOSTS}" for index in session],
        "time_ms": 1_600_000_000_000 + group * 10_000_000 + place * 1000 + rng.integers(0, 999, count),
        "ordered": [True] * count,
    })  # fmt: skip
    return frame if labelled else frame.with_columns(pl.lit("Unknown").alias("label"))


def write(root: Path, frame: pl.DataFrame, split: dict[str, Any] = BY_CAMPAIGN, dataset: str = "bigbase") -> Layout:
    layout = Layout(root, dataset, "t1")
    layout.parquet.parent.mkdir(parents=True, exist_ok=True)
    layout.metadata.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(layout.parquet, metadata={"digest": "0", "rows": str(len(frame))})
    schema = {
        "core_features": frame.columns[:6],
        "time_column": None if dataset == "nbaiot" else "UtcTime",
        "host_column": "Computer",
        "label_column": "TacticLabel",
        "split": split,
    }
    layout.metadata.write_text(json.dumps({"schema": schema, "digest": "0", "rows": len(frame)}))
    return layout


def settings(**more: Any) -> EncodingSettings:
    return EncodingSettings(**{"seq_len": SEQ, "stride": 1, "max_features": 12, **more})


class Written:
    """An encoded folder, read back."""

    def __init__(self, layout: Layout) -> None:
        self.folder = layout.encoded
        self.meta = json.loads((self.folder / "metadata.json").read_text())
        self.sessions = json.loads((self.folder / "sessions.json").read_text())["sessions"]
        self.names = json.loads((self.folder / "feature_names.json").read_text())

    def load(self, name: str, part: str) -> np.ndarray:
        file = f"X_{part}_sequences.npy" if name == "X" else f"{name}_{part}.npy"
        return np.load(self.folder / file, mmap_mode="r", allow_pickle=False)

    def mark(self, part: str, name: str) -> np.ndarray:
        """(N, T) one feature."""
        return np.asarray(self.load("X", part)[:, :, self.names.index(name)])


@pytest.fixture(scope="module")
def campaigns(tmp_path_factory: pytest.TempPathFactory) -> Written:
    layout = write(tmp_path_factory.mktemp("campaigns"), table())
    said: list[str] = []
    meta = encode(layout, CONFIG, settings(), said.append)
    written = Written(layout)
    assert json.loads(json.dumps(meta)) == written.meta
    assert said[-1].startswith("done: ")
    return written


def test_arrays_are_what_the_next_stages_read(campaigns: Written) -> None:
    open_artifact(campaigns.folder, KIND)
    for part in ("train", "val", "test"):
        X = campaigns.load("X", part)
        assert X.dtype == np.float32
        assert X.shape == (campaigns.meta["windows"][part]["windows"], SEQ, len(campaigns.names))
        assert np.isfinite(X).all()
        for name, dtype in (("y", np.int8), ("label", np.int32), ("session", np.int32), ("group", np.int32), ("time", np.int64)):
            array = campaigns.load(name, part)
            assert (array.dtype, array.shape) == (dtype, X.shape[:1])
    assert campaigns.meta["windows"]["val"]["windows"] == HOSTS * (LENGTH - SEQ + 1)
    # Before the attack at row 60 and behind it at 62 there are windows of benign rows.
    assert campaigns.meta["windows"]["train"]["windows"] == 4 * HOSTS * ((60 - SEQ + 1) + (LENGTH - 63 - SEQ + 1))


def test_hosts_stand_in_a_file_of_their_own(campaigns: Written) -> None:
    assert campaigns.meta["sessions"] == len(campaigns.sessions) == len(CAMPAIGNS) * HOSTS
    for file in campaigns.folder.glob("*.json"):
        assert ("host0" in file.read_text()) == (file.name == "sessions.json"), file.name


def test_every_row_of_every_label_is_accounted_for(campaigns: Written) -> None:
    rows = campaigns.meta["rows_by_label"]
    assert rows["BenignTraffic"] == {"rows": 12 * 87, "train": 8 * 87, "val": 2 * 87, "test": 2 * 87, "in_no_window": 0}
    assert rows["Exfiltration"] == {"rows": 12, "train": 0, "val": 2, "test": 2, "in_no_window": 8}, "attacks of training campaigns are not learned"
    assert not any("nothing is measured" in note for note in campaigns.meta["notes"])


def test_an_attack_that_no_test_window_holds_is_said(tmp_path: Path) -> None:
    early = pl.when((pl.col("label") == "Execution") & (pl.col("group") != "APT6")).then(pl.lit("Impact")).otherwise("label").alias("label")
    said: list[str] = []
    meta = encode(write(tmp_path, table().with_columns(early)), CONFIG, settings(), said.append)
    note = "Impact: none of its 20 rows is in a window of the test part; nothing is measured of it"
    assert note in meta["notes"]
    assert f"note: {note}" in said
    assert meta["rows_by_label"]["Impact"] == {"rows": 20, "train": 0, "val": 4, "test": 0, "in_no_window": 16}


def test_rows_of_no_known_kind_leave_training_where_others_are_known(tmp_path: Path, campaigns: Written) -> None:
    unknown = (pl.int_range(pl.len()) % LENGTH >= 70) & (pl.int_range(pl.len()) % LENGTH < 75)
    frame = table().with_columns(pl.when(~unknown).then("attack").alias("attack"), pl.when(unknown).then(1e12).otherwise("Size").alias("Size"))
    layout = write(tmp_path, frame)
    meta = encode(layout, CONFIG, settings(), lambda _: None)
    assert "60 of 1,080 rows have no label: they leave training" in meta["notes"][0]
    assert meta["windows"]["train"]["unknown"] == 0
    assert meta["windows"]["train"]["windows"] == 4 * HOSTS * ((60 - SEQ + 1) + (LENGTH - 75 - SEQ + 1))
    assert meta["windows"]["test"]["unknown"] > 0
    written = Written(layout)
    assert written.mark("train", "Size").max() < 5, "neither fitted on nor learned"


def test_a_half_written_first_stage_is_refused(tmp_path: Path) -> None:
    layout = write(tmp_path, table())
    meta = json.loads(layout.metadata.read_text())
    for key, other in (("digest", "1"), ("rows", 3)):
        layout.metadata.write_text(json.dumps({**meta, key: other}))
        with pytest.raises(UserError, match="are of two runs; run stage 1 again"):
            encode(layout, CONFIG, settings(), lambda _: None)
    layout.metadata.write_text(json.dumps(meta))
    table().write_parquet(layout.parquet)
    with pytest.raises(UserError, match=r"digest not stated.* run stage 1 again"):
        encode(layout, CONFIG, settings(), lambda _: None)
    layout.parquet.write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        encode(layout, CONFIG, settings(), lambda _: None)
    assert not layout.encoded.exists()


def test_a_split_by_time_wants_times(tmp_path: Path) -> None:
    timeless = table().with_columns(pl.lit(None, dtype=pl.Int64).alias("time_ms"))
    with pytest.raises(UserError, match="splits by time, but no row has one"):
        encode(write(tmp_path, timeless, BY_TIME), CONFIG, settings(), lambda _: None)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("time", "split is 'time'; it must be an object with 'by': group, time, blocks"),
        ({"by": "tme"}, "did you mean 'time'"),
        ({"by": "time", "whithin": "group", "shares": [0.7, 0.2, 0.1]}, "unknown key 'whithin': did you mean 'within'"),
        ({"by": "time", "within": "file", "shares": [0.7, 0.2, 0.1]}, "within is 'file'; allowed: 'group'"),
        ({"by": "blocks", "shares": ["0.7", "0.2", "0.1"]}, "it must be three numbers above 0 that sum to 1"),
        ({"by": "blocks", "shares": [0.7, 0.2]}, "it must be three numbers above 0"),
        ({"by": "blocks", "shares": [0.7, 0.2, 0.2]}, "it must be three numbers above 0"),
        ({"by": "group", "train": "APT1", "validation": ["APT5"], "test": ["APT6"]}, "train is 'APT1'; it must be a list of names"),
        ({"by": "group", "train": ["APT1"], "test": ["APT6"]}, "validation is None; it must be a list of names"),
    ],
)
def test_a_wrong_split_is_one_clear_line(split: Any, message: str) -> None:
    assert message in str(split_fault(split))
    assert split_fault(BY_CAMPAIGN) is split_fault({**BY_TIME, "within": "group"}) is split_fault(BY_BLOCKS) is None


def test_an_endless_memory_limit_is_refused() -> None:
    for limit in (float("inf"), float("nan"), 0.0):
        with pytest.raises(UserError, match="--memory-limit is"):
            settings(memory_limit=limit)


def test_text_reaches_the_features(campaigns: Written) -> None:
    encoder = Encoder.load(campaigns.folder)
    assert "-x3" in encoder.vocabulary["CommandLine"]
    assert ".exe" in encoder.vocabulary["Image"]
    assert campaigns.names[:12] == [f"svd_{index}" for index in range(12)]
    assert np.asarray(campaigns.load("X", "train")[:, :, :12]).std(axis=(0, 1)).min() > 0.01
    assert campaigns.meta["explained_variance"] > 0.2


def test_no_training_window_holds_an_attack_row(campaigns: Written) -> None:
    benign = campaigns.mark("train", "AttackMark")
    assert (benign == benign[0, 0]).all()
    assert (campaigns.load("y", "train") == 0).all()
    for part in ("val", "test"):
        attack = campaigns.mark(part, "AttackMark") != benign[0, 0]
        np.testing.assert_array_equal(attack.any(axis=1), campaigns.load("y", part) == 1)
        middle = attack[:, SEQ // 2] & ~attack[:, [0, -1]].any(axis=1)
        assert middle.any(), "windows with an attack in the middle alone are there"
        assert set(np.unique(campaigns.load("y", part))) == {0, 1}


def test_no_window_crosses_two_hosts_or_files(campaigns: Written) -> None:
    for part, sessions in (("train", 8), ("val", 2), ("test", 2)):
        mark = campaigns.mark(part, "RunMark")
        assert (mark == mark[:, :1]).all()
        assert len(np.unique(campaigns.load("session", part))) == sessions


def test_campaigns_do_not_mix(campaigns: Written) -> None:
    for part, groups in (("train", CAMPAIGNS[:4]), ("val", ["APT5"]), ("test", ["APT6"])):
        assert {campaigns.meta["groups"][index] for index in campaigns.load("group", part)} == set(groups)


def test_a_window_has_the_label_of_its_last_attack_row_and_the_time_of_its_last_row(campaigns: Written) -> None:
    frame = table().filter(pl.col("group") == "APT6")
    start = 0
    labels, times = campaigns.load("label", "test"), campaigns.load("time", "test")
    for _, rows in frame.group_by("session", maintain_order=True):
        for first in range(LENGTH - SEQ + 1):
            window = rows[first : first + SEQ]
            attacks = window.filter(pl.col("attack") == 1)["label"]
            assert campaigns.meta["labels"][labels[start]] == (attacks[-1] if len(attacks) else "BenignTraffic")
            assert times[start] == window["time_ms"][-1]
            start += 1
    assert start == len(labels)


def test_new_rows_are_encoded_as_the_written_ones(campaigns: Written) -> None:
    frame = table().filter(pl.col("session") == "dataset-5.csv|host0")
    gaps = pl.Series(GAP, np.concatenate([[np.nan], np.diff(frame["time_ms"].to_numpy()) / 1000]).astype(np.float32))
    encoded = Encoder.load(campaigns.folder).encode(frame.with_columns(gaps))
    here = np.flatnonzero(campaigns.load("session", "test") == campaigns.sessions.index("dataset-5.csv|host0"))
    for first, window in enumerate(campaigns.load("X", "test")[here]):
        np.testing.assert_allclose(window, encoded[first : first + SEQ], atol=1e-6)


def test_nothing_is_fitted_on_attacks_or_on_the_other_parts(tmp_path: Path, campaigns: Written) -> None:
    layout = write(tmp_path, table(scrambled=1))
    encode(layout, CONFIG, settings(), lambda _: None)
    for file in ("encoder.json", "feature_names.json", "X_train_sequences.npy"):
        assert (layout.encoded / file).read_bytes() == (campaigns.folder / file).read_bytes(), file
    other = Written(layout)
    assert not np.array_equal(other.load("X", "test"), campaigns.load("X", "test"))
    assert np.abs(other.load("X", "test")).max() <= 5


def test_a_campaign_can_be_left_out(tmp_path: Path) -> None:
    layout = write(tmp_path, table())
    meta = encode(layout, CONFIG, settings(leave_out="APT3"), lambda _: None)
    assert list(meta["windows"]["test"]["by_group"]) == ["APT3"]
    assert list(meta["windows"]["val"]["by_group"]) == ["APT4"]
    with pytest.raises(UserError, match="no group 'APT33' to leave out: did you mean 'APT3'"):
        encode(layout, CONFIG, settings(leave_out="APT33"), lambda _: None)


@pytest.mark.parametrize("split", [BY_TIME, BY_BLOCKS], ids=["time", "blocks"])
def test_parts_are_not_interleaved_and_stand_apart(tmp_path: Path, split: dict[str, Any]) -> None:
    frame = table()
    layout = write(tmp_path, frame, split)
    encode(layout, CONFIG, settings(), lambda _: None)
    written = Written(layout)
    if split is BY_TIME:
        assert written.load("time", "train").max() < written.load("time", "val").min()
        assert written.load("time", "val").max() < written.load("time", "test").min()
    apart = 0
    for index, name in enumerate(written.sessions):
        times = frame.filter(pl.col("session") == name)["time_ms"].to_numpy()
        last = {part: np.searchsorted(times, written.load("time", part)[written.load("session", part) == index]) for part in ("train", "val", "test")}
        for before, after in (("train", "val"), ("val", "test"), ("train", "test")):
            if len(last[before]) and len(last[after]):
                assert (last[after].min() - SEQ + 1) - last[before].max() > SEQ, "less than a window of rows between two parts of a session"
                apart += 1
    assert apart >= (1 if split is BY_TIME else 12)


def test_without_labels_all_is_taken_as_benign_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    layout = write(tmp_path, table(labelled=False), BY_BLOCKS, "otrf")
    meta = encode(layout, CONFIG, settings(), said.append)
    written = Written(layout)
    assert all((written.load("y", part) == -1).all() for part in ("train", "val", "test"))
    assert "no label per event" in meta["notes"][0]
    assert "scale and robustness, not detection" in said[0]
    assert meta["windows"]["train"]["unknown"] == meta["windows"]["train"]["windows"] > 0


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, campaigns: Written) -> None:
    layout = write(tmp_path, table())
    encode(layout, CONFIG, settings(), lambda _: None)
    for file in campaigns.folder.glob("*.npy"):
        assert (layout.encoded / file.name).read_bytes() == file.read_bytes(), file.name


def is_safe(part: str, label: str) -> bool:
    """Whether these windows are cut last."""
    return part != "train" and label == "BenignTraffic"


@pytest.mark.parametrize("limit", [{"sample_size": 200}, {"memory_limit": 200 * SEQ * 20 * 4 / 1e9}], ids=["windows", "memory"])
def test_over_the_limit_every_part_and_class_loses_the_same_share_but_benign_windows_to_judge_by(
    tmp_path: Path, limit: dict[str, Any], campaigns: Written
) -> None:
    said: list[str] = []
    layout = write(tmp_path, table())
    meta = encode(layout, CONFIG, settings(**limit), said.append)
    written = Written(layout)
    assert len(written.names) == 19
    whole = sum(meta["windows_before_reduction"].values())
    kept = {part: meta["windows"][part]["windows"] for part in ("train", "val", "test")}
    most = min(meta["settings"]["sample_size"], int(meta["settings"]["memory_limit"] * 1e9 // (SEQ * 19 * 4)))
    assert most - 7 <= sum(kept.values()) <= most
    assert meta["memory"]["written_bytes"] <= meta["memory"]["limit_bytes"]
    assert meta["memory"]["written_bytes"] == sum(kept.values()) * SEQ * 19 * 4
    assert meta["memory"]["estimate_bytes"] == whole * SEQ * 19 * 4
    cells = {(part, label): count for part in kept for label, count in campaigns.meta["windows"][part]["by_label"].items()}
    first = (most - len(cells)) // 4
    others = sum(count for cell, count in cells.items() if not is_safe(*cell))
    for (part, label), count in cells.items():
        now = meta["windows"][part]["by_label"][label]
        assert (
            abs(now - (first if is_safe(part, label) else count * (most - 2 * first) / others)) <= 2
        )  # a class that is lifted to one window takes from the rest
        limiting = "sample-size" if "sample_size" in limit else "memory-limit"
        line = next(line for line in said if line.startswith(f"{part} {label}: {now:,} of {count:,} windows kept, evenly spaced (--{limiting}"))
        assert line.endswith("are cut last)") == is_safe(part, label)
    for part in kept:
        times = list(zip(written.load("session", part), written.load("time", part), strict=True))
        assert times == sorted(times), "order is kept"
        assert len(np.unique(written.load("session", part))) == len(np.unique(campaigns.load("session", part))), "windows are spread over all sessions"


def made_windows(counts: dict[int, int]) -> Windows:
    """So many windows of each label; label 0 is benign."""
    label = np.repeat(np.array(list(counts), np.int32), list(counts.values()))
    return Windows(np.arange(len(label)), np.arange(len(label)), 1, (label > 0).astype(np.int8), label)


def test_few_benign_windows_among_many_attacks_stay_enough_for_a_threshold() -> None:
    events = Events(*(np.zeros(1) for _ in range(6)), ["Benign", "DDoS"], ["g"], ["s"])  # type: ignore[arg-type]
    parts = [made_windows({0: 30_000}), made_windows({0: 1_200, 1: 400_000}), made_windows({0: 700, 1: 400_000})]
    kept, lines = reduce(parts, events, 4, EncodingSettings(sample_size=20_000))
    counts = [[int((part.label == label).sum()) for label in (0, 1)] for part in kept]
    assert counts[1][0] == 1000
    assert counts[2][0] == 700
    assert 19_990 <= sum(map(sum, counts)) <= 20_000
    share = counts[0][0] / 30_000
    assert counts[1][1] == pytest.approx(400_000 * share, abs=20)
    assert "val Benign: 1,000 of 1,200 windows kept, evenly spaced (--sample-size 20,000; benign windows that are judged by are cut last)" in lines
    assert not any(line.startswith("test Benign") for line in lines), "none was cut"
    plenty = [made_windows({0: 30_000}) for _ in range(3)]
    kept, lines = reduce(plenty, events, 4, EncodingSettings(sample_size=9_000))
    assert [len(part.starts) for part in kept] == [3000] * 3
    assert not any("cut last" in line for line in lines)


def test_progress_is_told_at_every_quarter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.sae.encoding.BLOCK", 37)
    said: list[str] = []
    meta = encode(write(tmp_path, table()), CONFIG, settings(), said.append)
    total = sum(part["windows"] for part in meta["windows"].values())
    told = [line.rsplit(",", 1)[0] for line in said if line.startswith("encoded ")]
    assert told == [f"encoded {share} % of {total:,} windows" for share in (25, 50, 75, 100)]


def test_a_limit_below_the_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="5 windows fit the limits"):
        encode(write(tmp_path, table()), CONFIG, settings(sample_size=5), lambda _: None)
    assert not (tmp_path / "encoded").exists()


def flows(seed: int = 0) -> pl.DataFrame:
    """Numbers alone, of three devices; five vectors of the first device's training block stand in its test block too."""
    frame = table(seed).filter(pl.col("group").is_in(CAMPAIGNS[:3])).drop("CommandLine", "Image", "EventID")
    repeated = frame["Size"].to_numpy().copy()
    repeated[175:180] = repeated[5:10]
    return frame.with_columns(pl.Series("Size", repeated))


def test_in_blocks_of_rows_without_a_clock_no_vector_stands_on_two_parts_and_like_events_are_counted(tmp_path: Path) -> None:
    config = {"numeric_columns": ["AttackMark", "Size"]}
    meta = encode(write(tmp_path, flows(), BY_BLOCKS, "nbaiot"), config, settings(seq_len=3), lambda _: None)
    assert meta["duplicates"]["rows_removed"] == 5
    assert meta["duplicates"]["share_of_rows_also_in_train"] == {"validation": 0.0, "test": 0.0}
    written = Written(Layout(tmp_path, "nbaiot", "t1"))
    rows = {part: {row.tobytes() for row in np.asarray(written.load("X", part)).reshape(-1, 2)} for part in ("train", "test")}
    assert not rows["train"] & rows["test"]
    first = written.load("time", "train")[written.load("session", "train") == 0]
    ends = np.searchsorted(flows()["time_ms"][:LENGTH].to_numpy(), first)
    np.testing.assert_array_equal(ends, [2, 3, 4, *range(12, 60), *range(65, LENGTH)])  # no window bridges the hole of rows 5 to 9
    frame = flows()
    size = frame["Size"].to_numpy().copy()
    size[190:195] = size[370:375] = size[5:10]  # of the first device, the second and the third
    left = encode(
        write(tmp_path, frame.with_columns(pl.Series("Size", size)), BY_BLOCKS, "nbaiot"), config, settings(seq_len=3, leave_out="APT2"), lambda _: None
    )
    assert left["windows"]["test"]["by_group"] == {"APT2": 2 * (LENGTH - 2)}
    assert left["duplicates"]["rows_removed"] == 5 + 5 + 5, "from the first device (twice) and from the third"
    assert left["duplicates"]["share_of_rows_also_in_train"] == {"validation": 0.0, "test": 0.0}
    timed = encode(write(tmp_path, flows(), BY_BLOCKS, "iot23"), config, settings(seq_len=3), lambda _: None)
    assert timed["duplicates"]["rows_removed"] == 0
    assert timed["duplicates"]["share_of_rows_also_in_train"]["test"] > 0
    repeated = table().with_columns(pl.lit("same").alias("CommandLine"), pl.lit("same").alias("Image"), pl.lit(1.0).alias("Size"), pl.lit(0.0).alias("RunMark"))
    meta = encode(write(tmp_path, repeated), {**CONFIG, "derived_columns": []}, settings(), lambda _: None)
    assert meta["duplicates"]["rows_removed"] == 0
    assert meta["duplicates"]["share_of_rows_also_in_train"]["test"] > 0.9
    assert "identical events are the norm" in meta["duplicates"]["policy"]


def test_shuffled_rows_close_ranks_have_no_gaps_in_time_and_are_called_assembled(tmp_path: Path) -> None:
    shuffled = table().with_columns(pl.lit(False).alias("ordered"))
    meta = encode(write(tmp_path, shuffled), CONFIG, settings(), lambda _: None)
    assert "their windows are assembled" in meta["notes"][0]
    assert meta["windows"]["train"]["windows"] == 4 * HOSTS * (LENGTH - 3 - SEQ + 1)
    written = Written(Layout(tmp_path, "bigbase", "t1"))
    assert (written.mark("train", GAP) == 0).all()
    assert (written.mark("train", "AttackMark") == written.mark("train", "AttackMark")[0, 0]).all()


def test_windows_of_a_shuffled_file_are_of_one_class(tmp_path: Path) -> None:
    """Four classes in turns: no ten neighbours are alike, and in file order not one benign window would be left."""
    frame = table().with_columns(
        pl.lit("Merged01").alias("group"),
        pl.lit("Merged01.csv|0").alias("session"),
        pl.lit(False).alias("ordered"),
        pl.Series("label", ["BenignTraffic", "DDoS", "Recon", "XSS"] * (6 * HOSTS * LENGTH // 4)),
        (pl.int_range(pl.len()) % 4 > 0).cast(pl.Int8).alias("attack"),
    )
    frame = frame.with_columns(pl.col("attack").cast(pl.Float64).alias("AttackMark"), pl.int_range(pl.len()).cast(pl.Float64).alias("RunMark"))
    layout = write(tmp_path, frame, BY_BLOCKS, "ciciot2023")
    meta = encode(layout, CONFIG, settings(), lambda _: None)
    written = Written(layout)
    for part in ("val", "test"):
        assert set(meta["windows"][part]["by_label"]) == {"BenignTraffic", "DDoS", "Recon", "XSS"}
        marks = written.mark(part, "AttackMark")
        assert (marks == marks[:, :1]).all()
        places = written.mark(part, "RunMark")
        assert (np.diff(places, axis=1) >= 0).all(), "of a label, rows stand as in the file"
        np.testing.assert_array_equal(marks[:, 0] > marks.min(), written.load("y", part) == 1)


def test_without_a_benign_validation_window_nothing_is_written(tmp_path: Path) -> None:
    harmful = pl.when(pl.col("group") == "APT5").then(pl.lit(1, dtype=pl.Int8)).otherwise("attack").alias("attack")
    with pytest.raises(UserError, match=r"validation has no benign window of 10 rows .* choose a smaller --seq-len or another split"):
        encode(write(tmp_path, table().with_columns(harmful)), CONFIG, settings(), lambda _: None)
    assert not (tmp_path / "encoded").exists()


def test_blocks_of_reading_do_not_show(tmp_path: Path, campaigns: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.sae.encoding.BLOCK", 37)
    monkeypatch.setattr("src.sae.encoding.CHUNK", 4096)
    monkeypatch.setattr("src.sae.encoding.BYTES", 20 * 19 * 4)
    most = []
    whole = Encoder.encode

    def counted(encoder: Encoder, rows: pl.DataFrame) -> np.ndarray:
        most.append(len(rows))
        return whole(encoder, rows)

    monkeypatch.setattr(Encoder, "encode", counted)
    layout = write(tmp_path, table())
    encode(layout, CONFIG, settings(), lambda _: None)
    assert SEQ <= max(most) <= 20, "rows encoded at once are bounded by their bytes"
    for part in ("train", "val", "test"):
        np.testing.assert_allclose(np.load(layout.encoded / f"X_{part}_sequences.npy"), campaigns.load("X", part), atol=1e-6)


@pytest.mark.parametrize(
    ("frame", "more", "message"),
    [
        (table(), {"seq_len": 500}, "train has no window of 500 benign rows: its longest run has 60"),
        (table().filter(pl.col("group") != "APT6"), {}, "no group for test"),
        (table().with_columns(pl.lit(1, dtype=pl.Int8).alias("attack")), {}, "none of the 1,080 rows is benign"),
        (table().drop("session"), {}, "lacks column 'session'"),
        (table().sort("Size"), {}, "rows of a session do not stand together"),
        (table().head(0), {}, "holds no row"),
        (table().drop("Image"), {}, "no column 'Image'"),
    ],
    ids=["long", "part", "benign", "column", "sorted", "empty", "feature"],
)
def test_what_does_not_fit_is_one_clear_line_and_nothing_is_written(tmp_path: Path, frame: pl.DataFrame, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        encode(write(tmp_path, frame), CONFIG, settings(**more), lambda _: None)
    assert not (tmp_path / "encoded").exists()


@pytest.mark.parametrize("split", [{}, {"by": "luck"}, {"by": "time", "shares": [0.7, 0.3]}, {"by": "blocks", "shares": [0.9, 0.9, 0.1]}])
def test_a_malformed_split_is_refused(tmp_path: Path, split: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="schema: split"):
        encode(write(tmp_path, table(), split), CONFIG, settings(), lambda _: None)


@pytest.mark.parametrize(
    ("more", "flag"),
    [({"seq_len": 1}, "--seq-len"), ({"stride": 0}, "--stride"), ({"memory_limit": 0.0}, "--memory-limit"), ({"max_features": 1}, "--max-features")],
)
def test_settings_are_checked(more: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        settings(**more)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"run stage 1 first \(python -m src.sae.aggregation\)"):
        run(["--dataset", "bigbase", "--version", "t1", "--config-preset", "basic", "--out", str(tmp_path)])
    write(tmp_path, table())
    config = tmp_path / "encoding.json"
    config.write_text(json.dumps(CONFIG))
    words = [
        "--dataset",
        "bigbase",
        "--version",
        "t1",
        "--out",
        str(tmp_path),
        "--seq-len",
        "5",
        "--stride",
        "2",
        "--sample-size",
        "300",
        "--max-features",
        "4",
    ]
    run([*words, "--encoding-config", str(config), "--memory-limit", "0.5", "--leave-out", "APT2", "--seed", "3"])
    meta = Written(Layout(tmp_path, "bigbase", "t1")).meta
    expected = {"seq_len": 5, "stride": 2, "sample_size": 300, "max_features": 4, "memory_limit": 0.5, "leave_out": "APT2", "seed": 3}
    assert meta["settings"] == expected
    assert "windows kept, evenly spaced" in capsys.readouterr().out
    with pytest.raises(UserError, match="exclude each other"):
        run([*words, "--encoding-config", str(config), "--config-preset", "basic"])


def test_reserved_columns_are_read_as_numbers(tmp_path: Path) -> None:
    frame = table().with_columns(pl.when(pl.int_range(pl.len()) % 3 > 0).then(pl.col("time_ms")).alias("time_ms"), pl.lit(None, dtype=pl.String).alias("label"))
    events = Events.read(write(tmp_path, frame).parquet)
    assert (len(events), events.labels, events.groups) == (len(frame), ["unknown"], CAMPAIGNS)
    assert (events.time[::3] == -1).all()
    np.testing.assert_array_equal(events.time[1::3], frame["time_ms"][1::3])


@needs_real
def test_real_connections_go_through_both_stages(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "iot23", "t1")
    pair = preset("iot23")
    aggregate("iot23", REAL, read_schema(pair.schema), layout, lambda _: None)
    meta = encode(layout, read_json(pair.encoding), settings(stride=2, max_features=100), lambda _: None)
    assert meta["windows"]["train"]["benign"] == meta["windows"]["train"]["windows"] > 1000
    assert meta["windows"]["test"]["attack"] > 1000
    assert not any(word in name for name in meta["labels"] for word in ("nan", "unknown"))
    written = Written(layout)
    assert {"conn_state=S0", "proto=tcp", "duration", GAP, "duration:missing"} <= set(written.names)
    assert np.isfinite(written.load("X", "test")).all()
