"""CICIoT2023's 39 features of packets: each column on frames made for it, and equal in every cell to the published extractor where its rows are at hand."""

import io
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from src.data.ciciot2023 import FEATURES_39
from src.data.packets import CaptureReader, decode
from src.data.packets39 import Rows, WindowExtractor
from tests.captures import OUTSIDE, A, B, Timed, arp, ip, pcap, tcp, traffic, udp

REAL = Path(__file__).parents[1] / ".." / "shared" / "data"
AT = {name: index for index, name in enumerate(FEATURES_39)}


def rows_of(content: bytes, frames: int = 10, chunk: int | None = None) -> Rows:
    extractor = WindowExtractor(frames=frames)
    reader = CaptureReader(io.BytesIO(content), "made up")
    if chunk is not None:
        reader._take = lambda size: reader_source.read(chunk)
        reader_source = io.BytesIO(content)
    parts = [extractor.add(batch, decode(batch)) for batch in reader.batches()]
    parts.append(extractor.rest())
    return Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def window(frames: Timed) -> dict[str, float]:
    rows = rows_of(pcap(frames), frames=len(frames))
    assert len(rows.features) == 1
    return dict(zip(FEATURES_39, rows.features[0].tolist(), strict=True))


def test_columns_of_a_window() -> None:
    frames = [tcp(A, OUTSIDE, 0x02, (40000, 80), options=12), tcp(OUTSIDE, A, 0x12, (443, 5)), udp(A, OUTSIDE, 90), arp(A, B), ip(A, B, 1, bytes(50), ttl=10)]
    found = window([(10.0 + i, frame) for i, frame in enumerate(frames)])
    sizes = np.array([66, 54, 90, 60, 84])
    expected = {
        "Header_Length": (32 + 20 + 8) / 5, "Protocol Type": 6, "Time_To_Live": (64 + 64 + 0 + 0 + 10) / 5, "Rate": 5 / 4, "syn_flag_number": 0.4,
        "ack_flag_number": 0.2, "syn_count": 2, "ack_count": 1, "HTTP": 0.2, "HTTPS": 0.2, "DNS": 0.2, "TCP": 0.4, "UDP": 0.2, "ARP": 0.2, "ICMP": 0.2,
        "IPv": 0.8, "LLC": 0.8, "Tot sum": sizes.sum(), "Min": 54, "Max": 90, "AVG": sizes.mean(), "Std": sizes.std(ddof=1), "Tot size": sizes.mean(),
        "IAT": 4 / 5, "Number": 5, "Variance": sizes.var(ddof=1),
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert all(found[name] == 0 for name in FEATURES_39 if name not in expected)


def test_ports_and_flags_have_their_quirks() -> None:
    found = window([(1, tcp(A, B, 0x3F, (21, 6667))), (2, udp(A, B, 60, 443, 5)), (3, tcp(A, B, 0xC0, (53, 25))), (4, udp(A, B, 60, 68, 67))])
    flags = ("fin", "syn", "rst", "psh", "ack", "ece", "cwr")
    assert [found[f"{name}_flag_number"] for name in flags] == [0.25] * 7
    assert (found["IRC"], found["HTTPS"], found["DNS"], found["SMTP"], found["DHCP"]) == (0.25, 0, 0, 0.25, 0.25)
    assert found["Protocol Type"] == 6  # a tie goes to the smaller number


def test_the_clock_goes_on_across_windows_and_over_what_is_no_frame() -> None:
    ipv6 = udp(A, B, 60)[:12] + b"\x86\xdd" + bytes(60)
    broken = udp(A, B, 60)[:20]
    frames = [(10.0, arp(A, B)), (11.0, arp(A, B)), (12.0, ipv6), (15.0, arp(A, B)), (16.0, broken), (18.0, arp(A, B)), (30.0, arp(A, B))]
    rows = rows_of(pcap(frames), frames=2)
    assert rows.features[:, AT["IAT"]].tolist() == [0.5, (4 + 2) / 2, 12]
    assert rows.features[:, AT["Number"]].tolist() == [2, 2, 1]
    assert np.isinf(rows.features[2, AT["Rate"]])
    assert np.isnan(rows.features[2, [AT["Std"], AT["Variance"]]]).all()
    assert rows.start.tolist() == [10, 15, 30]
    assert rows.duration.tolist() == [1, 3, 0]


def test_windows_do_not_depend_on_how_a_capture_comes() -> None:
    content = pcap(traffic(137))
    whole, parts = rows_of(content), rows_of(content, chunk=101)
    np.testing.assert_array_equal(whole.features, parts.features)
    np.testing.assert_array_equal(whole.end, parts.end)


def test_devices_have_windows_of_their_own() -> None:
    frames = [(float(i), udp(A, B, 60 + i) if i % 2 else udp(A, OUTSIDE, 60 + i)) for i in range(8)]
    (batch,) = CaptureReader(io.BytesIO(pcap(frames)), "made up").batches()
    owners = np.array([[0, 1 if i % 2 else -1] for i in range(8)])
    extractor = WindowExtractor(devices=2, frames=4)
    rows = extractor.add(batch, decode(batch), owners)
    assert rows.device.tolist() == [0, 0, 1]
    assert rows.features[:, AT["Tot sum"]].tolist() == [60 + 61 + 62 + 63, 64 + 65 + 66 + 67, 61 + 63 + 65 + 67]
    assert rows.features[2, AT["IAT"]] == 6 / 4  # the second device's own clock


GOLDEN = REAL / "ciciot39"
SENTINEL = REAL / "iot_sentinel" / "iot_sentinel_pcap.tar.gz"


def equal(content: bytes, golden: pl.DataFrame) -> int:
    rows, theirs = rows_of(content), golden.select(FEATURES_39).to_numpy()
    np.testing.assert_array_equal(rows.features, theirs)  # NaN where they are empty
    np.testing.assert_array_equal(rows.start, golden["window_start"])
    return theirs.size


@pytest.mark.skipif(not GOLDEN.exists(), reason="the published extractor's rows (../shared/data/ciciot39) are not here")
def test_equal_to_the_published_extractor_in_every_cell() -> None:
    types = dict.fromkeys((*FEATURES_39, "window_start"), pl.Float64)
    cells = 0
    for path in (GOLDEN / "iot23_34-1_mirai_cc.csv", GOLDEN / "iot23_hue_benign.csv"):
        golden = pl.read_csv(path, schema_overrides=types)
        cells += equal((REAL / "iot23" / "pcap" / golden["pcap"][0]).read_bytes(), golden)
    with tarfile.open(SENTINEL) as opened:
        contents = {Path(one.name).parts[-2:]: opened.extractfile(one).read() for one in opened if one.isfile()}
    for path in sorted((GOLDEN / "iot_sentinel").glob("*.csv")):
        for (name,), golden in pl.read_csv(path, schema_overrides=types).group_by("pcap", maintain_order=True):
            cells += equal(contents[path.stem, name], golden)
    assert cells == 23_786 * 39
