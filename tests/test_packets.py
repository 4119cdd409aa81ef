"""Captures: every container read alike, headers decoded as dpkt does, damage told in one line, memory bounded."""

import io
import os
import resource
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dpkt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.packets import ARP, BROKEN, DROPPED, IPV4, TCP, UDP, CaptureReader, Frames, decode, open_capture
from src.data.packets39 import WindowExtractor
from src.data.packets115 import StreamExtractor
from src.errors import UserError
from tests.captures import OUTSIDE, A, B, arp, block, interface, ip, packet, pcap, pcapng, section, tcp, traffic, udp

REAL = Path(__file__).parents[1] / ".." / "shared" / "data"
SENTINEL = REAL / "iot_sentinel" / "iot_sentinel_pcap.tar.gz"


def read(content: bytes) -> list[tuple[float, bytes]]:
    return [(float(batch.time[i]), batch.one(i)) for batch in CaptureReader(io.BytesIO(content), "made up").batches() for i in range(len(batch.time))]


def of(*frames: bytes) -> Frames:
    (batch,) = CaptureReader(io.BytesIO(pcap([(1.0, frame) for frame in frames])), "made up").batches()
    return batch


@pytest.mark.parametrize(
    "write",
    [
        pcap,
        lambda frames: pcap(frames, big=True),
        lambda frames: pcap(frames, nano=True),
        lambda frames: pcap(frames, nano=True, big=True),
        lambda frames: pcap(frames, snap=0xFFFFFFFF),
        pcapng,
        lambda frames: pcapng(frames, big=True),
    ],
    ids=["micro", "micro, big", "nano", "nano, big", "giant snap length", "pcapng", "pcapng, big"],
)
def test_every_container_holds_the_same_frames(write: Callable[[Any], bytes]) -> None:
    frames = traffic(30, begin=1_600_000_000.25)
    found = read(write(frames))
    assert [frame for _, frame in found] == [frame for _, frame in frames]
    np.testing.assert_allclose([at for at, _ in found], [at for at, _ in frames], atol=1e-6)


def test_sections_interfaces_and_blocks_of_a_pcapng() -> None:
    nano, shifted = struct.pack("<HHB3x", 9, 1, 9), struct.pack("<HHq", 14, 8, 100)
    frame = udp(A, B, 60)
    first = section() + interface(options=nano) + interface(options=shifted) + block(5, bytes(16)) + block(4, b"names")
    first += packet(7.000000001, frame, ticks=10**9) + packet(7.5, frame, which=1)
    old = block(2, struct.pack("<HHIIII", 0, 0, 0, 9_000_000, 60, 60) + frame)
    again = section(big=True) + interface(big=True) + packet(8.0, frame, big=True) + section() + interface() + old
    assert [at for at, _ in read(first + again)] == pytest.approx([7.000000001, 107.5, 8.0, 9.0], abs=1e-9)


def test_a_pipe_is_read_as_it_fills() -> None:
    out, into = os.pipe()
    content, seen = pcap(traffic(50)), []
    with os.fdopen(out, "rb") as source:

        def write() -> None:
            with os.fdopen(into, "wb", buffering=0) as target:
                for place in range(0, len(content), 37):
                    target.write(content[place : place + 37])

        thread = threading.Thread(target=write)
        thread.start()
        for batch in CaptureReader(source, "pipe").batches():
            seen += [batch.one(i) for i in range(len(batch.time))]
        thread.join()
    assert seen == [frame for _, frame in traffic(50)]


def by_dpkt(frame: bytes) -> tuple[int, ...] | None:
    """Kind, what it carries, protocol, TTL, header length, flags and ports as CICIoT2023's extractor gets them; None where dpkt fails otherwise."""
    try:
        eth = dpkt.ethernet.Ethernet(frame)
    except dpkt.UnpackError:
        outer = int.from_bytes(frame[12:14], "big") if len(frame) >= 14 else 0
        return None if outer in (0x0800, 0x0806) else (DROPPED,) + (0,) * 7
    except Exception:  # dpkt stumbles over some payloads that carry no ports
        return None
    if eth.type == 0x0806:
        return (ARP, *[0] * 7)
    if eth.type != 0x0800:
        return (DROPPED, *[0] * 7)
    if not isinstance(eth.data, dpkt.ip.IP):
        return (BROKEN, *[0] * 7)
    inner = eth.data.data
    if isinstance(inner, dpkt.tcp.TCP):
        return IPV4, TCP, eth.data.p, eth.data.ttl, 20 + len(inner.opts), inner.flags & 0xFF, inner.sport, inner.dport
    if isinstance(inner, dpkt.udp.UDP):
        return IPV4, UDP, eth.data.p, eth.data.ttl, 8, 0, inner.sport, inner.dport
    return IPV4, 0, eth.data.p, eth.data.ttl, 0, 0, 0, 0


def as_dpkt(batch: Frames) -> int:
    """Compare a batch frame by frame; how many could be."""
    headers, count = decode(batch), 0
    for i in range(len(batch.time)):
        theirs = by_dpkt(batch.one(i))
        if theirs is None:
            continue
        ours = (*(int(column[i]) for column in headers[:6]), *headers.ports[i].tolist())
        assert ours == theirs, batch.one(i).hex()
        count += 1
    return count


ODD = (
    b"", bytes(13), bytes(14), tcp(A, B)[:30], tcp(A, B, options=40)[:60], tcp(A, B)[:50], udp(A, B, 60)[:41], arp(A, B)[:20],
    ip(A, B, 6, bytes(40), offset=1), ip(A, B, 17, bytes(8), offset=0x2000), ip(A, B, 6, b"\0" * 12 + b"\x40" + bytes(7)), ip(A, B, 17, bytes(30), said=0),
    ip(A, B, 17, bytes(30), said=24), ip(A, B, 6, bytes(30), said=10), ip(A, B, 47, bytes(30)), ip(A, B, 2, bytes(8)),
    udp(A, B, 60)[:12] + b"\x81\x00\x00\x01\x08\x00" + udp(A, B, 60)[14:], udp(A, B, 60)[:12] + b"\x86\xdd" + bytes(60),
    udp(A, B, 60)[:12] + b"\x00\x26" + bytes(60), udp(A, B, 60)[:14] + b"\x4f" + udp(A, B, 60)[15:], udp(A, B, 60)[:14] + b"\x41" + udp(A, B, 60)[15:],
)  # fmt: skip


def test_headers_are_those_of_dpkt_on_odd_frames() -> None:
    assert as_dpkt(of(*ODD, *(frame for _, frame in traffic(7)))) == len(ODD) + 7


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_headers_are_those_of_dpkt_on_mutated_frames(data: st.DataObject) -> None:
    frames = []
    for _ in range(8):
        frame = bytearray(data.draw(st.sampled_from([frame for _, frame in traffic(7)])))
        for _ in range(data.draw(st.integers(0, 4))):
            frame[data.draw(st.integers(12, len(frame) - 1))] = data.draw(st.integers(0, 255))
        frames.append(bytes(frame[: data.draw(st.integers(0, len(frame)))]))
    as_dpkt(of(*frames))


@pytest.mark.skipif(not REAL.exists(), reason="IoT-23's pcaps (../shared/data) are not here")
def test_headers_are_those_of_dpkt_on_a_real_capture() -> None:
    path = REAL / "iot23" / "pcap" / "CTU-Honeypot-Capture-4-1_Philips-Hue-Bridge.pcap"
    with open_capture(path) as stream:
        assert sum(as_dpkt(batch) for batch in CaptureReader(stream, "hue").batches()) > 8500
    with open_capture(path) as stream, path.open("rb") as other:
        ours = [(time, batch.one(i)) for batch in CaptureReader(stream, "hue").batches() for i, time in enumerate(batch.time.tolist())]
        assert ours == [(time, frame) for time, frame in dpkt.pcap.Reader(other)]


WRONG = {
    "nothing": (b"", "is empty"),
    "text": (b"time,size\n1,2\n", "is no capture: it begins with 74 69 6d 65"),
    "two bytes": (b"\xd4\xc3", "is no capture"),
    "half a header": (pcap([])[:20], "ends inside its own header"),
    "raw IP": (pcap([], link=101), r"link type 101 \(raw IP\); allowed: 1 \(Ethernet\)"),
    "any interface": (section() + interface(link=276), "Linux cooked"),
    "another version": (pcap([], version=3), "version 3.4"),
    "a frame of gigabytes": (pcap([(1, arp(A, B))]) + struct.pack("<IIII", 2, 0, 4_000_000_000, 60), "at byte 100, after 1 frames: a frame that claims 4,"),
    "a section without order": (block(0x0A0D0D0A, bytes(16)), "without its byte order"),
    "a block of nothing": (section() + struct.pack("<III", 1, 0, 0), "impossible length"),
    "a block of gigabytes": (section() + struct.pack("<III", 5, 0xFFFFFFFC, 0), "impossible length"),
    "a simple packet": (section() + interface() + block(3, bytes(20)), "has no time"),
    "no interface": (section() + packet(1, arp(A, B)), "was not described"),
    "a frame longer than its block": (section() + interface() + block(6, struct.pack("<IIIII", 0, 0, 0, 500, 500)), "longer than its block"),
    "too many interfaces": (section() + interface() * 1025, "one of more than 1024"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_capture_ends_in_one_line(case: str) -> None:
    content, message = WRONG[case]
    with pytest.raises(UserError, match=message) as caught:
        read(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [pcap, pcapng])
def test_a_capture_that_was_cut_off_ends_with_its_last_whole_frame(write: Callable[[Any], bytes]) -> None:
    content = write(traffic(3))
    reader = CaptureReader(io.BytesIO(content[:-5]), "cut")
    assert sum(len(batch.time) for batch in reader.batches()) == 2
    assert reader.report["bytes cut off"] > 0
    assert not list(CaptureReader(io.BytesIO(write([])), "none").batches())


def digest(content: bytes) -> None:
    """Everything that is done with a capture; a damaged one may end in a `UserError` and nothing else."""
    windows, streams, told = WindowExtractor(), StreamExtractor(), ""
    try:
        for batch in CaptureReader(io.BytesIO(content), "mutated").batches():
            rows = windows.add(batch, decode(batch))
            assert np.isfinite(np.delete(rows.features, 3, axis=1)).all()
            assert not np.isnan(streams.add(batch)).any()
    except UserError as error:
        told = str(error)
    assert "\n" not in told


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    found = bytearray(content)
    for _ in range(int(rng.integers(1, 8))):
        place = int(rng.integers(0, len(found)))
        kind = rng.integers(0, 4)
        if kind == 0:
            found[place] = rng.integers(0, 256)
        elif kind == 1:
            found[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\x80"]).ljust(4, b"\0")
        elif kind == 2:
            del found[place : place + int(rng.integers(1, 40))]
        else:
            found[place:place] = bytes(rng.integers(0, 256, int(rng.integers(1, 40)), dtype=np.uint8))
        if not found:
            return b""
    return bytes(found)


def fuzz(cases: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    seeds = [pcap(traffic(25)), pcap(traffic(25), big=True, nano=True), pcapng(traffic(25)), pcapng(traffic(25), big=True), pcap([(1.0, one) for one in ODD])]
    for _ in range(cases):
        digest(mutate(seeds[int(rng.integers(len(seeds)))], rng))


def test_mutated_captures_neither_crash_nor_hang() -> None:
    fuzz(300, seed=0)


@pytest.mark.slow
def test_thousands_of_mutated_captures_neither_crash_nor_hang() -> None:
    fuzz(6000, seed=1)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_behind_a_header_are_survived(content: bytes) -> None:
    digest(pcap([]) + content)
    digest(section() + interface() + content)


def test_time_that_goes_back_is_survived() -> None:
    frames = [(at, frame) for (_, frame), at in zip(traffic(40), [*range(2000, 2020), *range(1000, 1020)], strict=True)]
    digest(pcap(frames))
    (batch,) = CaptureReader(io.BytesIO(pcap(frames)), "back").batches()
    rows = WindowExtractor().add(batch, decode(batch))
    assert rows.features.shape == (4, 39)
    assert rows.features[2, 36] < 0  # the mean gap over the step back, as the extractor has it


def test_a_flood_of_flows_is_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.data.packets115.MOST_STREAMS", 1 << 15)
    extractor = StreamExtractor()
    content = scan(60_000)
    for batch in CaptureReader(io.BytesIO(content), "scan").batches():
        extractor.add(batch)
    assert extractor.streams <= 4 * (1 << 15) + 4 * 8192
    assert extractor.report["streams forgotten"] > 0


def scan(flows: int) -> bytes:
    """One device that speaks to a new address in each frame."""
    base, head, frame = pcap([]), bytearray(16), bytearray(udp(A, OUTSIDE, 60))
    parts = [base]
    for i in range(flows):
        struct.pack_into("<IIII", head, 0, 1_600_000_000 + i // 20_000, i % 20_000 * 50, len(frame), len(frame))
        struct.pack_into(">I", frame, 30, 0x0B000000 + i)
        parts.append(bytes(head) + bytes(frame))
    return b"".join(parts)


@pytest.mark.slow
def test_a_million_flows_fit_into_memory() -> None:
    extractor, before = StreamExtractor(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = scan(1_000_000)
    for batch in CaptureReader(io.BytesIO(content), "scan").batches():
        rows = extractor.add(batch)
        assert np.isfinite(rows).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # KiB, the capture itself included
