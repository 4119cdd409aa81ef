"""N-BaIoT's 115 features of packets: on frames written for each case, beside AfterImage written plainly, and equal to published rows where they are at hand."""

import io
import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.captures import HUE, INFECTED, deviations, iot23, packets115
from src.data.nbaiot import FEATURES_115
from src.data.packets import CaptureReader
from src.data.packets115 import StreamExtractor
from tests.captures import A, B, C, Timed, arp, pcap, udp

REAL = Path(__file__).parents[1] / ".." / "shared" / "data"


def of(frames: Timed) -> dict[str, np.ndarray]:
    return dict(zip(FEATURES_115, packets115(pcap(frames), "made up")[1].T, strict=True))


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


class AfterImage:
    """Streams of hosts at one decay, each packet met by every link of its sender at once, as Mirsky et al. 2018 have it."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.streams: dict[int, list[float]] = {}
        self.links: list[dict] = []

    def add(self, time: float, a: int, b: int, size: float) -> tuple[float, float]:
        stream = self.streams.setdefault(a, [time, 1e-20, 0.0])
        self.streams.setdefault(b, [np.nan, 1e-20, 0.0])
        passed = 0.0 if np.isnan(stream[0]) else max(time - stream[0], 0)
        fade = 2.0 ** (-self.decay * passed)
        stream[0], stream[1], stream[2] = time, stream[1] * fade + 1, stream[2] * fade + size
        residual = size - stream[2] / stream[1]
        own = [link for link in self.links for end in link["ends"] if end == a]
        mine = next((link for link in own if b in link["ends"]), None)
        for link in own:
            self.meet(link, a, time, residual)
        if mine is None:
            mine = {"ends": (a, b), "clock": time, "product": 0.0, "weight": 1e-20, "last": [0.0, 0.0]}
            self.links.append(mine)
        self.meet(mine, a, time, residual)
        return stream[1], mine["product"] / mine["weight"]

    def meet(self, link: dict, a: int, time: float, residual: float) -> None:
        side = int(link["ends"][0] != a)
        fade = 2.0 ** (-self.decay * max(time - link["clock"], 0))
        link["clock"] = max(time, link["clock"])
        link["product"] = link["product"] * fade + residual * link["last"][1 - side]
        link["weight"] = link["weight"] * fade + 1
        link["last"][side] = residual


@pytest.mark.parametrize("seed", range(4))
def test_what_is_put_off_is_what_is_done_at_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ends, sizes = rng.integers(0, 7, (400, 2)), rng.integers(60, 1500, 400)  # some send to themselves
    times = 1000 + np.round(np.cumsum(rng.exponential(0.7, 400)), 6)
    hosts = [bytes([10, 0, 0, host]) for host in range(7)]
    frames = []
    for time, (a, b), size in zip(times, ends, sizes, strict=True):
        frame = bytearray(udp(A, B, int(size)))
        frame[26:30], frame[30:34] = hosts[a], hosts[b]
        frames.append((float(time), bytes(frame)))
    found = of(frames)
    for decay in ("L5", "L0.1", "L0.01"):
        plain = AfterImage(float(decay[1:]))
        expected = np.array([plain.add(*one) for one in zip(times, ends[:, 0], ends[:, 1], sizes, strict=True)])
        np.testing.assert_allclose(found[f"HH_{decay}_weight"], expected[:, 0], rtol=1e-6)
        np.testing.assert_allclose(found[f"HH_{decay}_covariance"], expected[:, 1], rtol=1e-5, atol=1e-2)


def test_what_was_idle_is_forgotten_and_what_counts_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = []
    for i in range(6000):
        frame = bytearray(udp(A, B, 100 + i % 50))
        struct.pack_into(">I", frame, 30, 0x0A000000 + (i % 3 if i % 10 == 0 else 100 + i))
        frames.append((1000.0 + 2 * i, bytes(frame)))  # for hours: most partners are met once
    monkeypatch.setattr("src.data.packets115._STEP", 500)
    whole = packets115(pcap(frames), "made up")[1]
    monkeypatch.setattr("src.data.packets115.MOST_STREAMS", 4000)
    extractor = StreamExtractor()
    parts = np.concatenate([extractor.add(batch) for batch in CaptureReader(io.BytesIO(pcap(frames)), "made up").batches()])
    assert extractor.streams < 4 * 4000
    assert extractor.report["streams forgotten"] == 0
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not (REAL / "iot23").exists() or not (REAL / "nbaiot").exists(), reason="IoT-23's pcaps (../shared/data) are not here")
@pytest.mark.parametrize(("name", "published"), [(HUE, "iot23_philips_hue_benign"), (INFECTED, "iot23_34-1_mirai_cc")])
def test_iot_23_is_equal_to_the_published_packets(name: str, published: str) -> None:
    time, ours = packets115(iot23(REAL, name).read_bytes(), name)
    frame = pl.read_parquet(REAL / "nbaiot" / f"{published}.parquet")
    np.testing.assert_array_equal(time, frame["ts"])
    away, left = deviations(ours, frame.select(FEATURES_115).to_numpy())
    assert np.nanmax(away) <= 1e-6
    assert left < 0.01 * away.size
