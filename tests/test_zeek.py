"""Zeek's connection log: made-up files of IoT-23's layouts, and IoT-23 itself where it is at hand."""

from pathlib import Path

import polars as pl
import pytest

from src.data.taxonomy import LABELS
from src.data.zeek import capture_name, read_zeek
from src.errors import UserError

REAL = Path(__file__).parents[1] / ".." / "shared" / "data" / "iot23"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="IoT-23's logs (../shared/data/iot23) are not here")

FIELDS = ("ts", "uid", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto", "service", "duration", "orig_bytes", "resp_bytes", "conn_state")
FIELDS += ("local_orig", "local_resp", "missed_bytes", "history", "orig_pkts", "orig_ip_bytes", "resp_pkts", "resp_ip_bytes")
LABEL_COLUMNS, BENIGN = ("detailed-label", "label"), ("Benign", "BenignTraffic")
COLUMNS = ("ts", "id.orig_h", "id.resp_p", "service", "duration", "orig_bytes", "history")


def row(ts: float, host: str, label: str, **more: str) -> str:
    """One line of a log; `label` is what follows the tunnels."""
    cells = {"id.orig_p": "4000", "id.resp_h": "10.0.0.1", "id.resp_p": "80", "proto": "tcp", "conn_state": "S0", "history": "S", **more}
    cells |= {"ts": f"{ts:.6f}", "uid": f"C{ts}", "id.orig_h": host}
    return "\t".join([*(cells.get(name, "-") for name in FIELDS), f"-   {label}"])


def write_log(path: Path, rows: list[str], fields: str | None = None) -> Path:
    head = ["#separator \\x09", "#path\tconn", "\t".join(["#fields", *FIELDS, "tunnel_parents   label   detailed-label"]) if fields is None else fields]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*head, "#types\ttime\tstring", *rows, "#close\t2019-03-15", ""]))
    return path


def test_the_last_field_holds_three_and_unset_is_empty(tmp_path: Path) -> None:
    rows = [
        row(1545403816.962094, "10.0.0.2", "Benign   -", service="http", duration="3.139211", orig_bytes="149"),
        row(1545403824.18, "10.0.0.2", "benign   -"),
        row(1545403824.19, "10.0.0.3", "Malicious   C&C-HeartBeat", service="(empty)"),
        row(1545403824.20, "10.0.0.3", "malicious   PartOfAHorizontalPortScan", history='"'),
    ]
    frame = read_zeek(write_log(tmp_path / "a_conn.log.labeled", rows), COLUMNS, LABEL_COLUMNS, BENIGN)
    assert frame["label"].to_list() == ["BenignTraffic", "BenignTraffic", "C&C", "Recon-PortScan"]
    assert frame["ts"].to_list() == [1545403816.962094, 1545403824.18, 1545403824.19, 1545403824.20]
    assert frame["service"].to_list() == ["http", None, None, None]
    assert frame["orig_bytes"].to_list() == [149, None, None, None]
    assert frame["history"][3] == '"', "a quotation mark is a character like any other"
    assert frame.schema["duration"] == pl.Float64
    assert frame.schema["id.resp_p"] == pl.Int64


def test_labels_in_fields_of_their_own_read_alike(tmp_path: Path) -> None:
    joined = [row(1e9, "h", "Malicious   Okiru"), row(1e9, "h", "Benign   -")]
    apart = "\t".join(["#fields", *FIELDS, "tunnel_parents", "label", "detailed-label"])
    one = write_log(tmp_path / "one", joined)
    other = write_log(tmp_path / "other", [line.replace("   ", "\t") for line in joined], apart)
    assert read_zeek(one, COLUMNS, LABEL_COLUMNS, BENIGN).equals(read_zeek(other, COLUMNS, LABEL_COLUMNS, BENIGN))


def test_a_csv_with_readable_names_reads_as_zeeks(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(
        "timestamp,orig_host,resp_port,service,duration,orig_bytes,history,Label,Sub_Label\n"
        "1545454126.7,10.0.0.2,80,-,-,5,S,Malicious,DDoS\n1545454126.8,10.0.0.2,80,http,1.5,-,S,BenignTraffic,BenignTraffic\n"
    )
    frame = read_zeek(tmp_path / "x.csv", COLUMNS, LABEL_COLUMNS, BENIGN)
    assert frame.rows() == [
        (1545454126.7, "10.0.0.2", 80, None, None, 5, "S", "DDoS"),
        (1545454126.8, "10.0.0.2", 80, "http", 1.5, None, "S", "BenignTraffic"),
    ]


@pytest.mark.parametrize(
    ("label", "name", "stage"),
    [
        ("C&C", "C&C", "command and control"),
        ("C&C-Torii", "C&C", "command and control"),
        ("C&C-HeartBeat-FileDownload", "FileDownload", "installation"),
        ("Attack", "Bot-exploit", "exploitation"),
        ("Okiru-Attack", "Okiru", "exploitation"),
        ("PartOfAHorizontalPortScan-Attack", "Bot-exploit", "exploitation"),
        ("DDoS", "DDoS", "actions on objectives"),
    ],
)
def test_labels_stand_in_the_taxonomy(tmp_path: Path, label: str, name: str, stage: str) -> None:
    frame = read_zeek(write_log(tmp_path / "log", [row(1e9, "h", f"Malicious   {label}")]), COLUMNS, LABEL_COLUMNS, BENIGN)
    assert frame["label"].to_list() == [name]
    assert LABELS[name].stage == stage


def test_a_capture_is_named_by_its_folder_where_the_log_has_zeeks_name() -> None:
    assert capture_name(Path("/d/CTU-IoT-Malware-Capture-1-1/bro/conn.log.labeled")) == "CTU-IoT-Malware-Capture-1-1"
    assert capture_name(Path("/d/CTU-Honeypot-Capture-4-1_conn.log.labeled")) == "CTU-Honeypot-Capture-4-1"
    assert capture_name(Path("/d/some.csv")) == "some"


@pytest.mark.parametrize(
    ("rows", "fields", "words"),
    [
        ([row(1e9, "h", "Malicious   Okirru")], None, r"column 'detailed-label / label': unknown label 'Okirru': .*Okiru"),
        ([row(1e9, "h", "Malicious   -")], None, "unknown label 'Malicious'"),
        (
            [row(1e9, "h", "Benign   -"), row(1e9, "h", "Malicious   Benign")],
            None,
            "contradict each other in 1 of 2 rows, first in row 2: detailed-label 'Benign', label",
        ),
        ([row(1e9, "h", "Benign   DDoS")], None, "contradict each other in 1 of 1 rows"),
        ([row(1e9, "h", "-   -")], None, r"column 'detailed-label / label' is empty in 1 of 1 rows, first in row 1"),
        ([row(1e9, "h", "Benign   -"), "1e9\tC1\th"], None, r"is empty in 1 of 2 rows, first in row 2"),
        ([row(1e9, "h", "Benign   -", duration="long")], None, "column 'duration' must hold numbers, found 'long'"),
        ([row(1e9, "h", "Benign   -", orig_bytes="1.5")], None, "column 'orig_bytes' must hold whole numbers, found '1.5'"),
        ([], None, "has a header but no rows"),
        ([row(1e9, "h", "Benign   -")], "#path\tconn", "is no Zeek log"),
        ([row(1e9, "h", "Benign   -")], "\t".join(["#fields", *FIELDS, "tunnel_parents"]), r"column 'detailed-label' is missing, and 1 more; found: ts, uid"),
        ([row(1e9, "h", "Benign   -")], "#fields\tts\tlabel   detailed-label", "names 2 fields, the rows have 21"),
    ],
)
def test_wrong_logs_are_one_clear_line(tmp_path: Path, rows: list[str], fields: str | None, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_zeek(write_log(tmp_path / "conn.log.labeled", rows, fields), COLUMNS, LABEL_COLUMNS, BENIGN)
    assert "\n" not in str(caught.value)


@needs_real
def test_iot_23_is_read_whole() -> None:
    counts = {"DDoS": 14_394, "C&C": 6_706, "BenignTraffic": 1_923, "Recon-PortScan": 122}
    frame = read_zeek(REAL / "CTU-IoT-Malware-Capture-34-1_conn.log.labeled", COLUMNS, LABEL_COLUMNS, BENIGN)
    assert dict(frame["label"].value_counts().iter_rows()) == counts
    hue = read_zeek(REAL / "CTU-Honeypot-Capture-4-1_conn.log.labeled", COLUMNS, LABEL_COLUMNS, BENIGN)
    assert (len(hue), set(hue["label"])) == (452, {"BenignTraffic"})
    subset = read_zeek(REAL / "IoT23_zeek_conn_16500.csv", COLUMNS, LABEL_COLUMNS, BENIGN)
    wanted = {"Okiru": 8_711, "BenignTraffic": 5_015, "DDoS": 2_301, "Recon-PortScan": 453, "C&C": 16, "Bot-exploit": 4}
    assert dict(subset["label"].value_counts().iter_rows()) == wanted
