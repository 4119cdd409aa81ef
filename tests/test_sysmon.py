"""Sysmon tables: made-up files of bigbase's exact 44 columns in both label layouts, and OTRF's captures where they are at hand."""

from pathlib import Path

import polars as pl
import pytest

from src.data.sysmon import COLUMNS_44, UNKNOWN, campaign, read_bigbase, read_otrf
from src.errors import UserError
from tests.sysmon import event, write_bigbase

REAL = Path(__file__).parents[1] / ".." / "shared" / "data" / "sysmon" / "otrf_sysmon_all.parquet"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="OTRF's Sysmon events (../shared/data/sysmon) are not here")
LABELS, BENIGN = ("TacticLabel", "Label"), ("normal", "benign")


def test_the_columns_are_forty_four() -> None:
    assert len(set(COLUMNS_44)) == len(COLUMNS_44) == 44


def test_both_label_layouts_read_alike(tmp_path: Path) -> None:
    texts = [{"CommandLine": 'cmd "a, b"\nnext line'}, {"DestinationPort": "443.0", "User": "-"}, {"Image": ""}]
    early = [event(TacticLabel=label, **text) for label, text in zip(("Normal", "lateral movement", "NORMAL"), texts, strict=True)]
    late = [
        event(Label=label, Tactic=tactic, **text)
        for (label, tactic), text in zip((("benign", ""), ("MALICIOUS", "LateralMovement"), ("Benign", "-")), texts, strict=True)
    ]
    columns = ("EventID", "UtcTime", "Computer", "Image", "User", "DestinationPort", "CommandLine")
    one = read_bigbase(write_bigbase(tmp_path / "dataset-1.csv", early, ("TacticLabel",)), columns, LABELS, BENIGN)
    other = read_bigbase(write_bigbase(tmp_path / "dataset-2.csv", late, ("Label", "Tactic", "Technique")), columns, LABELS, BENIGN)
    assert one.equals(other)
    assert one["label"].to_list() == ["BenignTraffic", "Lateral Movement", "BenignTraffic"]
    assert one["CommandLine"][0] == 'cmd "a, b"\nnext line'
    assert one["DestinationPort"].to_list() == [None, 443, None]
    assert one["User"][1] is None
    assert one["Image"][2] is None
    assert one.schema["EventID"] == pl.Int64


def test_an_attack_of_no_given_tactic_is_malicious(tmp_path: Path) -> None:
    rows = [event(Label="malicious"), event(Label="benign"), event(Label="Malicious", Tactic="Impact")]
    path = write_bigbase(tmp_path / "dataset-1.csv", rows, ("Label", "Tactic", "Technique"))
    assert read_bigbase(path, ("EventID",), LABELS, BENIGN)["label"].to_list() == ["Malicious", "BenignTraffic", "Impact"]


def test_files_tell_the_campaign() -> None:
    found = [campaign(Path(f"dataset-{number}.csv")) for number in range(1, 51)]
    assert {name: found.count(name) for name in dict.fromkeys(found)} == {"APT1": 20, "APT2": 10, "APT3": 8, "APT4": 6, "APT5": 3, "APT6": 3}
    assert campaign(Path("Dataset-07.CSV")) == "APT1"
    for name in ("dataset-0.csv", "dataset-51.csv", "dataset.csv", "events-3.csv"):
        with pytest.raises(UserError, match=r"names dataset-1\.csv to dataset-50\.csv"):
            campaign(Path(name))


@pytest.mark.parametrize(
    ("rows", "label_columns", "words"),
    [
        ([event()], (), r"no label column \(TacticLabel or Label\); found: EventID, Computer, UtcTime"),
        ([event(TacticLabel="")], ("TacticLabel",), "column 'TacticLabel' is empty in 1 of 1 rows"),
        ([event(TacticLabel="Imppact")], ("TacticLabel",), "unknown label 'Imppact': did you mean 'Impact'"),
        ([event(Label="malicious", Tactic="Imppact")], ("Label", "Tactic"), "column 'Tactic': unknown label 'Imppact'"),
        (
            [event(Label="malicious", Tactic="Normal")],
            ("Label", "Tactic"),
            "contradict each other in 1 of 1 rows, first in row 1: Label 'malicious', Tactic 'Normal'",
        ),
        ([event(Label="benign", Tactic="Impact")], ("Label", "Tactic"), "contradict each other in 1 of 1 rows"),
        ([event(TacticLabel="Normal", Label="malicious")], ("TacticLabel", "Label"), "contradict each other .*: TacticLabel 'Normal', Label 'malicious'"),
        ([event(TacticLabel="Normal", EventID="one")], ("TacticLabel",), "column 'EventID' must hold whole numbers, found 'one'"),
        ([], ("TacticLabel",), "has a header but no rows"),
    ],
)
def test_wrong_files_are_one_clear_line(tmp_path: Path, rows: list[dict[str, str]], label_columns: tuple[str, ...], words: str) -> None:
    path = write_bigbase(tmp_path / "dataset-1.csv", rows, label_columns)
    with pytest.raises(UserError, match=words):
        read_bigbase(path, ("EventID", "Image"), LABELS, BENIGN)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dataset-1.csv"
    pl.DataFrame([event(TacticLabel="Normal")]).rename({"Image": "Imag"}).write_csv(path)
    with pytest.raises(UserError, match=r"column 'Image' \(nearest found: 'Imag'\) is missing; found: EventID"):
        read_bigbase(path, ("EventID", "Image"), LABELS, BENIGN)
    path.write_text("")
    with pytest.raises(UserError, match=r"dataset-1\.csv' is empty"):
        read_bigbase(path, ("EventID",), LABELS, BENIGN)
    with pytest.raises(UserError, match="cannot be read as parquet"):
        read_otrf(path, ("EventID",))


@needs_real
def test_otrf_has_events_without_a_label() -> None:
    frame = read_otrf(REAL, ("dataset_file", "Computer", "UtcTime", "EventID", "DestinationPort"))
    assert len(frame) == 810_883
    assert frame["label"].unique().to_list() == [UNKNOWN]
    assert frame.select("dataset_file").n_unique() == 128
    assert (frame["UtcTime"].null_count(), frame.schema["DestinationPort"]) == (487, pl.Int64)
    with pytest.raises(UserError, match=r"column 'CommandLin' \(nearest found: 'CommandLine'\) is missing"):
        read_otrf(REAL, ("CommandLin",))
