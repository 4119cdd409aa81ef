"""Flows: made-up files of Unraveled's exact layout, commas without quotes included, and NFStream's own export where it is at hand."""

from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from src.data import flows
from src.data.flows import LABEL_COLUMNS, network, read_flows
from src.errors import UserError
from tests.flows import COLUMNS_89, flow, write_unraveled

REAL = Path(__file__).parents[1] / ".." / "shared" / "data" / "flows"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="NFStream's flows (../shared/data/flows) are not here")
COLUMNS = ("src_ip", "dst_port", "bidirectional_first_seen_ms", "bidirectional_mean_ps", "application_name", "user_agent")
STAGE, BENIGN = ("Stage",), ("Benign",)


def read(path: Path, report: Counter[str] | None = None, columns: tuple[str, ...] = COLUMNS) -> pl.DataFrame:
    return read_flows(path, columns, STAGE, BENIGN, Counter() if report is None else report)


def test_the_layout_is_unraveleds() -> None:
    assert len(set(COLUMNS_89)) == len(COLUMNS_89) == 89
    assert COLUMNS_89.index("dst2src_fin_packets") == 76, "columns 0 to 76 hold no text"


@pytest.mark.parametrize("size", [2, 20_000])
def test_commas_with_and_without_quotes(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "_BATCH", size)
    rows = [
        flow(dst_port="443", user_agent="curl", Stage="Benign"),
        flow(dst_port="80", user_agent='"Mozilla (KHTML, like Gecko)"', Stage="Establish Foothold"),
        flow(dst_port="8080", user_agent="Mozilla (KHTML, like Gecko)", Stage="lateral movement", Signature="ET POLICY"),
        flow(dst_port="53", splt_ps='"[1, 2, 3]"', Stage="BENIGN", DefenderResponse="Blocked"),
        flow(dst_port="54", splt_ps="[1, 2, 3]", requested_server_name="a,b", Stage="Cover Up", DefenderResponse="Benign"),
    ]
    report: Counter[str] = Counter()
    frame = read(write_unraveled(tmp_path / "net1011x_Flow_labeled.csv", rows), report)
    assert frame["label"].to_list() == ["BenignTraffic", "Establish Foothold", "Lateral Movement", "BenignTraffic", "Cover Up"]
    assert frame["dst_port"].to_list() == [443, 80, 8080, 53, 54], "file order"
    assert frame["user_agent"].to_list() == ["curl", "Mozilla (KHTML, like Gecko)", None, None, None]
    assert frame["application_name"].to_list() == ["TLS", "TLS", None, "TLS", None]
    assert frame.schema["bidirectional_mean_ps"] == pl.Float64
    assert report == {"rows with commas in texts": 2}


def test_a_benign_response_is_no_benign_label(tmp_path: Path) -> None:
    rows = [flow(Stage="Data Exfiltration", DefenderResponse="Benign", Activity="Benign")]
    assert read(write_unraveled(tmp_path / "a.csv", rows))["label"].to_list() == ["Data Exfiltration"]


def test_texts_need_not_be_there_and_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    path = write_unraveled(tmp_path / "a.csv", [flow(), flow(user_agent="a,b")])
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read(path, columns=("src_ip", "dst2src_fin_packets")).rows() == [("10.1.1.1", 0.0, "BenignTraffic")] * 2


def test_a_file_is_named_by_its_network() -> None:
    assert network(Path("week1/netgw_Flow_labeled.csv")) == "netgw"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([flow(Stage="Cover Upp")], "column 'Stage': unknown label 'Cover Upp': did you mean 'Cover Up'"),
        ([flow(), flow(Stage="")], "column 'Stage' is empty in 1 of 2 rows, first in row 2"),
        ([flow(bidirectional_mean_ps="many")], "column 'bidirectional_mean_ps' must hold numbers, found 'many'"),
        ([], "has a header but no rows"),
    ],
)
def test_wrong_files_are_one_clear_line(tmp_path: Path, rows: list[dict[str, str]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(write_unraveled(tmp_path / "a.csv", rows))


def test_broken_rows_and_missing_columns_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_unraveled(tmp_path / "a.csv", [flow()])
    whole = path.read_text()
    path.write_text(whole + "1,2,3\n")
    for size in (1, 20_000):
        monkeypatch.setattr(flows, "_BATCH", size)
        with pytest.raises(UserError, match="row 2 has 3 fields, the header 93"):
            read(path)
    path.write_text(whole.replace("Stage", "Phase"))
    with pytest.raises(UserError, match="column 'Stage' is missing; found: id, expiration_id"):
        read(path)
    path.write_text(whole + whole.splitlines()[1].replace("TLS", '"TLS') + "\n" + whole.splitlines()[1] + "\n")
    with pytest.raises(UserError, match=r"quotation mark|has \d+ fields"):
        read(path)
    path.write_text("")
    with pytest.raises(UserError, match=r"a\.csv' is empty"):
        read(path)


@needs_real
def test_nfstreams_own_files_read_as_a_csv_reader_reads_them() -> None:
    path = REAL / "nfstream_iot23.csv"
    columns = [name for name in COLUMNS_89 if not name.startswith("splt")]
    report: Counter[str] = Counter()
    frame = read_flows(path, columns, ("label_from_conn_log",), BENIGN, report)
    plain = pl.read_csv(path, infer_schema=False)
    assert report == {}
    assert dict(frame["label"].value_counts().iter_rows()) == dict(plain["label_from_conn_log"].replace("Benign", "BenignTraffic").value_counts().iter_rows())
    for name in columns:
        kind = frame.schema[name]
        assert frame[name].equals(plain[name].cast(kind) if kind == pl.Float64 else plain[name].replace("", None)), name
    assert not set(LABEL_COLUMNS) & set(frame.columns)
