"""N-BaIoT's features of packets: on frames written for each case, and equal to the published packets of IoT-23 in them where they are at hand."""

import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from benchmarks.packets import features, read_pcap

from src.data.nbaiot import FEATURES_115
from src.errors import UserError

REAL = Path(__file__).parents[1] / ".." / "shared" / "data"
A, B, C = b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02", b"\x0a\x00\x00\x03"
MAC = {A: b"\x02aaaaa", B: b"\x02bbbbb", C: b"\x02ccccc"}


def udp(source: bytes, target: bytes, size: int, source_port: int = 1000, target_port: int = 53) -> bytes:
    header = b"\x45\x00" + struct.pack(">H", size - 14) + bytes(5) + b"\x11" + bytes(2) + source + target
    return (MAC[target] + MAC[source] + b"\x08\x00" + header + struct.pack(">HH", source_port, target_port)).ljust(size, b"\0")


def arp(source: bytes, target: bytes) -> bytes:
    return (MAC[target] + MAC[source] + b"\x08\x06" + bytes(8) + MAC[source] + source + bytes(6) + target).ljust(60, b"\0")


def pcap(frames: list[tuple[float, bytes]]) -> bytes:
    head = struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    return head + b"".join(struct.pack("<IIII", int(at), round(at % 1 * 1e6), len(frame), len(frame)) + frame for at, frame in frames)


def of(frames: list[tuple[float, bytes]]) -> dict[str, np.ndarray]:
    return dict(zip(FEATURES_115, features(read_pcap(pcap(frames), "made up")).T, strict=True))


def test_a_stream_fades_with_its_own_packets() -> None:
    found = of([(100, udp(A, B, 100)), (102, udp(B, A, 60)), (102, udp(A, B, 200)), (103, udp(A, C, 400))])
    weight = np.array([1, 1, 1 + 2**-2, 1 + 2**-1 + 2**-3])
    total = np.array([100, 60, 200 + 100 / 4, 400 + 100 + 100 / 8])
    square = np.array([100**2, 60**2, 200**2 + 100**2 / 4, 400**2 + 200**2 / 2 + 100**2 / 8])
    for block in ("MI_dir", "H", "HH"):
        np.testing.assert_allclose(found[f"{block}_L1_weight"], weight, rtol=1e-6)
        np.testing.assert_allclose(found[f"{block}_L1_mean"], total / weight, rtol=1e-6)
    variance = square / weight - (total / weight) ** 2
    np.testing.assert_allclose(found["H_L1_variance"], variance, rtol=1e-5)
    np.testing.assert_allclose(found["HH_L1_std"], np.sqrt(variance), rtol=1e-5)
    np.testing.assert_allclose(found["HH_jit_L1_mean"], [0, 0, 2 / 1.25, 0], rtol=1e-6)  # gaps of the channel A to B; A to C is another
    np.testing.assert_allclose(found["HpHp_L0.1_weight"], found["HH_L0.1_weight"], rtol=1e-6)


def test_what_two_streams_have_in_common() -> None:
    found = of([(100, udp(A, B, 100)), (101, udp(B, A, 60)), (101, udp(A, B, 200))])
    mean = (200 + 50) / 1.5
    # As published: `magnitude` holds the variances and `radius` the means.
    np.testing.assert_allclose(found["HH_L1_radius"], [100, np.hypot(60, 100), np.hypot(mean, 60)], rtol=1e-6)
    np.testing.assert_allclose(found["HH_L1_magnitude"][2], (200**2 + 100**2 / 2) / 1.5 - mean**2, rtol=1e-5)
    np.testing.assert_array_equal(found["HH_L1_covariance"], 0)  # a first packet of a stream has no residual to meet


def test_ports_part_sockets_and_arp_goes_by_hardware_address() -> None:
    found = of([(1, udp(A, B, 80)), (1, udp(A, B, 90, 1001)), (1, arp(A, B)), (1, arp(C, B)), (1, udp(A, B, 80))])
    np.testing.assert_allclose(found["H_L5_weight"], [1, 2, 3, 1, 4])
    np.testing.assert_allclose(found["HpHp_L5_weight"], [1, 1, 1, 1, 2])


def test_what_is_no_pcap_is_refused() -> None:
    with pytest.raises(UserError, match="'x' is no pcap of Ethernet frames"):
        read_pcap(b"nonsense" * 10, "x")
    assert features(read_pcap(pcap([]), "empty")).shape == (0, 115)


@pytest.mark.skipif(not (REAL / "iot23").exists() or not (REAL / "nbaiot").exists(), reason="IoT-23's pcaps (../shared/data) are not here")
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("CTU-Honeypot-Capture-4-1_Philips-Hue-Bridge", "iot23_philips_hue_benign"),
        ("CTU-IoT-Malware-Capture-34-1_192.168.1.195.irc", "iot23_34-1_mirai_cc"),
    ],
)
def test_iot_23_is_equal_to_the_published_packets(name: str, published: str) -> None:
    packets = read_pcap((REAL / "iot23" / "pcap" / f"{name}.pcap").read_bytes(), name)
    frame = pl.read_parquet(REAL / "nbaiot" / f"{published}.parquet")
    np.testing.assert_array_equal(packets.time, frame["ts"])
    theirs, ours = frame.select(FEATURES_115).to_numpy(), features(packets)
    away = np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1.0)
    for index, feature in enumerate(FEATURES_115):
        if feature.endswith("_pcc"):  # where a deviation is rounding alone, so is what is divided by it
            known = (theirs[:, FEATURES_115.index(feature.replace("_pcc", "_magnitude"))] > 0.1) & (np.abs(theirs[:, index]) < 10)
            assert np.quantile(away[known, index], 0.99) < 1e-5, feature
        else:
            assert away[:, index].max() < 5e-6, feature
