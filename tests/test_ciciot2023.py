"""The reader and the facade, on files written for each case and on the real captures where they are at hand."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from src.config import DataConfig
from src.data.ciciot2023 import FEATURES_39, FEATURES_46, read_ciciot2023, row_hashes
from src.data.dataset import Dataset, load_dataset
from src.data.synthetic import Profile
from src.data.windows import window_starts
from src.errors import UserError

REAL = Path(__file__).parents[1] / ".." / "shared" / "data" / "ciciot2023"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="the real captures (../shared/data/ciciot2023) are not here")
LIKE = {"BENIGN": "BenignTraffic", "XSS": "XSS", "DDOS-ACK_FRAGMENTATION": "DDoS-ACK_Fragmentation", "DICTIONARYBRUTEFORCE": "DictionaryBruteForce"}


def rows(name: str, count: int = 300, seed: int = 0) -> pl.DataFrame:
    """Rows as the newer release writes them."""
    values = Profile.embedded().draw(name, count, np.random.default_rng(seed))
    return pl.DataFrame(values.astype(np.float64), schema=list(FEATURES_39), orient="row")


def merged(seed: int = 0) -> pl.DataFrame:
    """A shuffled file of the newer release."""
    return pl.concat([rows(like, seed=seed).with_columns(Label=pl.lit(label)) for label, like in LIKE.items()]).sample(fraction=1.0, shuffle=True, seed=1)


def classic(frame: pl.DataFrame) -> pl.DataFrame:
    """The classic release's columns; values of its own columns do not matter here."""
    frame = frame.rename({"Time_To_Live": "Duration"}).drop("IGMP")
    extra = [name for name in FEATURES_46 if name not in frame.columns]
    return frame.with_columns([(pl.col("AVG") * (index + 1)).alias(name) for index, name in enumerate(extra)])


def write(folder: Path, files: dict[str, pl.DataFrame]) -> Path:
    for name, frame in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_csv(path)
    return folder


def test_per_attack_files_keep_their_order_and_split_at_short_rows(tmp_path: Path) -> None:
    frame = rows("XSS").with_columns(Number=pl.when(pl.int_range(pl.len()).is_in([99, 180])).then(4).otherwise(10))
    write(tmp_path, {"web/XSS.pcap.csv": frame, "BenignTraffic2.pcap.csv": rows("BenignTraffic"), "BenignTraffic12.pcap.csv": rows("BenignTraffic", 50, 1)})
    captures, names, report = read_ciciot2023(tmp_path)
    assert names == FEATURES_39
    assert [(capture.label, len(capture.features), capture.ordered) for capture in captures] == [
        ("BenignTraffic", 300, True),
        ("BenignTraffic", 50, True),
        ("XSS", 300, True),
    ]
    xss = captures[2]
    np.testing.assert_array_equal(xss.features, frame.to_numpy().astype(np.float32))
    np.testing.assert_array_equal(xss.chunk, np.repeat([0, 1, 2], [100, 81, 119]))
    assert (xss.start[[0, 100, 181]] < xss.duration[[0, 100, 181]].max()).all()
    assert (np.diff(xss.start)[xss.chunk[1:] == xss.chunk[:-1]] >= 0).all()
    assert report["rows read"] == report["rows kept"] == 650


def test_merged_file_of_either_release(tmp_path: Path) -> None:
    write(tmp_path / "new", {"Merged01.csv": merged(), "Merged02.csv": merged(1)})
    captures, names, _ = read_ciciot2023(tmp_path / "new")
    assert names == FEATURES_39
    assert {capture.label: (len(capture.features), capture.ordered) for capture in captures} == dict.fromkeys(LIKE.values(), (600, False))
    assert all(np.isnan(capture.start).all() and np.isfinite(capture.duration).all() for capture in captures)

    old = classic(merged()).rename({"Label": "label"}).with_columns(pl.col("label").replace(LIKE))
    write(tmp_path / "old", {"part-00000-363d1ba3.csv": old})
    captures, names, _ = read_ciciot2023(tmp_path / "old")
    assert names == FEATURES_46
    assert len(captures) == 4
    assert all(np.isnan(capture.duration).all() for capture in captures)

    one, _, _ = read_ciciot2023(tmp_path / "new" / "Merged01.csv")
    assert sum(len(capture.features) for capture in one) == 1200


def test_columns_in_any_order_with_strangers_among_them(tmp_path: Path) -> None:
    frame = rows("XSS").select(reversed(FEATURES_39)).with_columns(pcap=pl.lit("a")).rename({"Rate": " rate"})
    captures, names, _ = read_ciciot2023(write(tmp_path, {"XSS.csv": frame}))
    assert names == FEATURES_39
    np.testing.assert_array_equal(captures[0].features, rows("XSS").to_numpy().astype(np.float32))


def test_gaps_follow_the_policy_and_are_counted(tmp_path: Path) -> None:
    number = pl.int_range(pl.len())
    frame = rows("XSS").with_columns(
        Number=pl.when(number == 5).then(1).otherwise("Number"),
        Std=pl.when(number == 5).then(None).otherwise("Std"),
        Variance=pl.when(number == 5).then(None).otherwise("Variance"),
        Rate=pl.when(number == 5).then(float("inf")).when(number == 7).then(None).otherwise("Rate"),
        AVG=pl.when(number == 50).then(None).otherwise("AVG"),
    )
    captures, _, report = read_ciciot2023(write(tmp_path, {"XSS.csv": frame}))
    features, column = captures[0].features, FEATURES_39.index
    assert report["inf cells"] == 1
    assert report["NaN cells"] == 4
    assert report["rows incomplete"] == 1
    assert len(features) == 299
    assert features[5, column("Std")] == features[5, column("Variance")] == 0
    assert np.isinf(features[[5, 7], column("Rate")]).all()
    np.testing.assert_array_equal(np.flatnonzero(np.diff(captures[0].chunk)), [5, 49], err_msg="a chunk ends at the short row and at the dropped one")

    data = load_dataset(DataConfig(root=tmp_path), 0)
    largest = np.sort(np.delete(features[:, column("Rate")], [5, 7])[: int(0.5 * (299 - 30)) - 2])[-1]
    assert data.report["infinite Rate replaced"] == 2
    assert data.report["Rate in their place"] == largest
    np.testing.assert_array_equal(data.splits["fit"].features[[5, 7], column("Rate")], largest)


def test_quota_takes_the_first_rows_of_each_class(tmp_path: Path) -> None:
    write(tmp_path, {"XSS.csv": rows("XSS"), "XSS2.csv": rows("XSS", seed=1), "Merged01.csv": merged(2)})
    captures, _, _ = read_ciciot2023(tmp_path, ["BENIGN"], 350)
    assert [(capture.label, len(capture.features)) for capture in captures[:2]] == [("XSS", 300), ("XSS", 50)]
    assert {capture.label: len(capture.features) for capture in captures[2:]} == {"DDoS-ACK_Fragmentation": 300, "DictionaryBruteForce": 300}


def test_sample_rows_that_repeat_a_capture_are_dropped_even_when_rounded(tmp_path: Path) -> None:
    capture, other = rows("XSS"), rows("DictionaryBruteForce")
    exact = capture.with_columns(Rate=pl.col("Rate") * (1 + 1e-10), IAT=pl.col("IAT") * (1 - 1e-10))
    sample = pl.concat([
        exact.head(200).with_columns(label_multiclass=pl.lit("WebAttack"), label_binary=1),
        other.with_columns(label_multiclass=pl.lit("Spoofing"), label_binary=1),
    ])  # fmt: skip
    write(tmp_path, {"XSS.pcap.csv": exact, "sample.csv": sample.with_columns(pl.col(FEATURES_39).cast(pl.Float32))})
    captures, _, report = read_ciciot2023(tmp_path)
    assert report["rows repeated from a per-attack file"] == 200
    assert {capture.label: len(capture.features) for capture in captures} == {"XSS": 300, "Spoofing": 300}
    alone, _, _ = read_ciciot2023(tmp_path / "sample.csv")
    assert {capture.label: len(capture.features) for capture in alone} == {"Web": 200, "Spoofing": 300}


def without(name: str) -> pl.DataFrame:
    return rows("XSS").drop(name)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no .csv file"),
        ({"XSS.csv": without("Tot size")}, r"XSS.csv': column 'Tot size' \(nearest found: '.*'\) of .* 39-feature release is missing; found: Header_Length"),
        ({"things.csv": rows("XSS")}, "things.csv' has no label column .* unknown label 'things.csv'"),
        ({"a.csv": rows("XSS").with_columns(label=pl.lit("XXS"))}, "a.csv', column 'label': unknown label 'XXS': did you mean 'XSS'"),
        ({"XSS.csv": rows("XSS").head(0)}, "XSS.csv' has a header but no rows"),
        ({"XSS.csv": rows("XSS").with_columns(IAT=pl.lit("soon"))}, "XSS.csv': could not parse `soon`.*'IAT'.*must be a number"),
        ({"XSS.csv": rows("XSS").with_columns(Std=pl.lit(None))}, "column 'Std' has no value in any of 300 rows"),
        ({"a/XSS.csv": rows("XSS"), "b/XSS.csv": classic(rows("XSS"))}, "mixes releases: 'XSS.csv' has 39 features, 'XSS.csv' has 46"),
        ({"XSS.csv": rows("XSS", 60)}, "class 'XSS' has no window of 10 rows on side 'calibrate'"),
    ],
    ids=["empty folder", "missing column", "no label", "unknown label", "no rows", "no number", "empty column", "releases", "too few"],
)  # fmt: skip
def test_wrong_input_is_one_line_that_names_it(tmp_path: Path, files: dict[str, pl.DataFrame], message: str) -> None:
    write(tmp_path, files)
    with pytest.raises(UserError, match=message) as caught:
        load_dataset(DataConfig(root=tmp_path), 0)
    assert "\n" not in str(caught.value)


def test_missing_root_empty_file_and_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_dataset(DataConfig(root=tmp_path / "nowhere"), 0)
    (tmp_path / "XSS.csv").write_text("")
    with pytest.raises(UserError, match=r"XSS.csv' is empty"):
        load_dataset(DataConfig(root=tmp_path), 0)
    write(tmp_path, {"XSS.csv": rows("XSS")})
    with pytest.raises(UserError, match=r"no row is left; data\.exclude_labels drops XSS"):
        load_dataset(DataConfig(root=tmp_path, exclude_labels=["XSS"]), 0)
    with pytest.raises(UserError, match="unknown label 'XYZ'"):
        load_dataset(DataConfig(root=tmp_path, exclude_labels=["XYZ"]), 0)


def test_truncated_last_line_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, {"Merged01.csv": merged()})
    path = tmp_path / "Merged01.csv"
    path.write_text(path.read_text()[:-150])
    captures, _, report = read_ciciot2023(tmp_path)
    assert sum(len(capture.features) for capture in captures) == 1199
    assert report["rows without a label"] == 1


def check(data: Dataset, window: int) -> None:
    """What every data set promises."""
    seen: dict[int, str] = {}
    used: set[int] = set()
    for side, part in data.splits.items():
        assert part.features.dtype == np.float32
        assert np.isfinite(part.features).all()
        assert set(np.unique(part.label)) == set(range(len(data.class_names)))
        for vector in set(row_hashes(part.features).tolist()):
            assert seen.setdefault(vector, side) == side, "a vector stands on two sides"
        assert not used & set(part.segment.tolist()), "a run stands on two sides"
        used |= set(part.segment.tolist())
        change = np.diff(part.segment) != 0
        assert len(np.unique(part.segment)) == change.sum() + 1, "rows of a run stand together"
        assert not (change[part.label[1:] != part.label[:-1]] == 0).any(), "a run has one class"
        starts = window_starts(part.segment, window)
        assert (part.segment[starts] == part.segment[starts + window - 1]).all()
        clocked = np.isfinite(part.start[1:]) & ~change
        assert (np.diff(part.start)[clocked] > -1e-6).all(), "time runs forward inside a run"


def test_promises_on_drawn_and_on_written_data(tmp_path: Path) -> None:
    check(load_dataset(DataConfig(synthetic_rows_per_class=500), 3), 10)
    # A capture full of copies: the later side keeps them.
    frame = rows("DDoS-ACK_Fragmentation")
    write(tmp_path, {"DDoS-ACK_Fragmentation.csv": pl.concat([frame, frame.gather_every(40), frame]), "Merged01.csv": merged(5)})
    data = load_dataset(DataConfig(root=tmp_path), 0)
    check(data, 10)
    assert data.report["rows dropped as copies of a later side"] > 100
    assert data.assembled == ("BenignTraffic", "DDoS-ACK_Fragmentation", "XSS", "DictionaryBruteForce")


def test_seed_decides_drawn_data_and_only_it() -> None:
    config = DataConfig(synthetic_rows_per_class=400)
    first, again, other = load_dataset(config, 1), load_dataset(config, 1), load_dataset(config, 2)
    assert first.data_hash == again.data_hash != other.data_hash
    assert first.source == "synthetic profile"
    fewer = load_dataset(DataConfig(synthetic_rows_per_class=400, exclude_labels=["BENIGN"]), 1)
    assert "BenignTraffic" not in fewer.class_names
    last = lambda data: data.splits["test"].features[data.splits["test"].label == len(data.class_names) - 1]  # noqa: E731
    np.testing.assert_array_equal(last(first), last(fewer), err_msg="leaving a class out changes no other")


@needs_real
def test_real_data_is_the_reference_split() -> None:
    data = load_dataset(DataConfig(root=REAL), 0)
    check(data, 10)
    assert len(data.class_names) == 17
    assert set(data.assembled) == {"BenignTraffic", "DDoS", "DoS", "Recon", "Spoofing"}
    assert data.source == "real"
    assert data.report["rows read"] == 92_250 + 19_252
    # BruteForce, Malware, Uploading and WebAttack of the sample, and what repeats of its other groups.
    assert 7_252 <= data.report["rows repeated from a per-attack file"] <= 7_252 + 135
    assert sum(len(part.label) for part in data.splits.values()) > 0.99 * data.report["rows kept"]
    assert load_dataset(DataConfig(root=REAL), 1).data_hash == data.data_hash, "real data do not depend on the seed"
    coarse = load_dataset(DataConfig(root=REAL, exclude_labels=[]), 0)
    assert set(coarse.class_names) - set(data.class_names) == {"Mirai"}
    assert load_dataset(DataConfig(root=REAL, max_rows_per_class=400), 0).class_names == data.class_names
