"""N-BaIoT's 115 features of the packets of a capture, for benchmarks that need devices which the data set does not hold.

The statistics are AfterImage's (Mirsky et al. 2018, NDSS), damped by 2^(-decay x seconds), in the order in which N-BaIoT's header names them.
Equal to the published packets of IoT-23 in these features up to rounding, with their quirks: `magnitude` holds the root of the squared
variances and `radius` that of the squared means; a stream's own packet counts twice in the covariance of the link that it is sent over;
`H` and `HH` follow the sender alone, and ARP is followed by hardware address under `HpHp`.
"""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from src.data.nbaiot import DECAYS, FEATURES_115
from src.errors import UserError

_RATES = np.array([float(decay.removeprefix("L")) for decay in DECAYS])
_EMPTY = 1e-20
"""Weight of a stream without packets."""


@dataclass(frozen=True)
class Packets:
    """n frames of a capture, in order; ends are numbered from 0 within each array."""

    time: NDArray[np.float64]
    """(n,) seconds."""
    size: NDArray[np.float64]
    """(n,) bytes of the frame."""
    sender: NDArray[np.int64]
    """(n,) hardware and network address of the sender."""
    hosts: NDArray[np.int64]
    """(n, 2) network addresses."""
    sockets: NDArray[np.int64]
    """(n, 2) network addresses with ports; hardware addresses of ARP frames."""


def read_pcap(content: bytes, name: str) -> Packets:
    """Frames of a little-endian pcap of Ethernet.

    Raises:
        UserError: for another format.
    """
    if content[:4] != b"\xd4\xc3\xb2\xa1" or content[20:24] != b"\x01\x00\x00\x00":
        raise UserError(f"'{name}' is no pcap of Ethernet frames with microseconds")
    times, sizes, senders, hosts, sockets = [], [], [], [], []
    place = 24
    while place + 16 <= len(content):
        second, micro, captured, original = struct.unpack_from("<IIII", content, place)
        source, target, source_port, target_port = _ends(content[place + 16 : place + 16 + captured])
        hardware = content[place + 16 : place + 28]
        place += 16 + captured
        times.append(second + micro * 1e-6)
        sizes.append(original)
        senders.append(hardware[6:] + source)
        hosts += [source, target]
        sockets += [hardware[6:], hardware[:6]] if source_port == b"arp" else [source + source_port, target + target_port]
    return Packets(np.array(times), np.array(sizes, dtype=np.float64), _numbered(senders), _numbered(hosts).reshape(-1, 2), _numbered(sockets).reshape(-1, 2))


def _numbered(keys: list[bytes]) -> NDArray[np.int64]:
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def _ends(frame: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Network addresses and ports; hardware addresses of what is neither IP nor ARP."""
    kind = frame[12:14]
    if kind == b"\x08\x06":
        return frame[28:32], frame[38:42], b"arp", b"arp"
    if kind == b"\x08\x00":
        protocol, source, target, rest = frame[23], frame[26:30], frame[30:34], 14 + 4 * (frame[14] & 15)
        whole = not (frame[20] & 31 or frame[21])  # a later fragment has no ports
    elif kind == b"\x86\xdd":
        protocol, source, target, rest, whole = frame[20], frame[22:38], frame[38:54], 54, True
    else:
        return frame[6:12], frame[:6], b"", b""
    if protocol in (6, 17) and whole:
        return source, target, b":" + frame[rest : rest + 2], b":" + frame[rest + 2 : rest + 4]
    port = b"icmp" if protocol == 1 else b""
    return source, target, port, port


def features(packets: Packets) -> NDArray[np.float32]:
    """(n, 115) as `FEATURES_115` names them; a capture starts with no memory."""
    channel = packets.hosts[:, 0] * (packets.hosts.max(initial=0) + 1) + packets.hosts[:, 1]
    _, channel = np.unique(channel, return_inverse=True)
    time, size, empty = packets.time, packets.size, len(packets.time) == 0
    if empty:
        return np.empty((0, len(FEATURES_115)), dtype=np.float32)
    address = _one_way(time, size, packets.sender, False)
    hosts, sockets = _two_way(time, size, packets.hosts), _two_way(time, size, packets.sockets)
    sent = hosts[:, :, :3] ** np.array([1, 1, 2])  # weight, mean, variance
    jitter = _one_way(time, size, channel, True)
    return np.concatenate([block.reshape(len(time), -1) for block in (address, sent, hosts, jitter, sockets)], axis=1).astype(np.float32)


@njit(cache=True)
def _one_way(time: NDArray[np.float64], size: NDArray[np.float64], stream: NDArray[np.int64], gaps: bool) -> NDArray[np.float64]:
    """(n, 5, 3) weight, mean and variance of each packet's stream, of sizes or of gaps between its packets."""
    count = stream.max() + 1
    weight, first, second = np.full((count, len(_RATES)), _EMPTY), np.zeros((count, len(_RATES))), np.zeros((count, len(_RATES)))
    seen = np.full(count, np.nan)
    found = np.empty((len(time), len(_RATES), 3))
    for i in range(len(time)):
        s, passed = stream[i], 0.0
        if not np.isnan(seen[s]):
            passed = max(time[i] - seen[s], 0.0)
        seen[s] = time[i] if np.isnan(seen[s]) else max(seen[s], time[i])
        value = passed if gaps else size[i]
        for k in range(len(_RATES)):
            fade = 2.0 ** (-_RATES[k] * passed)
            weight[s, k] = weight[s, k] * fade + 1
            first[s, k] = first[s, k] * fade + value
            second[s, k] = second[s, k] * fade + value * value
            mean = first[s, k] / weight[s, k]
            found[i, k, 0], found[i, k, 1], found[i, k, 2] = weight[s, k], mean, abs(second[s, k] / weight[s, k] - mean * mean)
    return found


@njit(cache=True)
def _two_way(time: NDArray[np.float64], size: NDArray[np.float64], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, 5, 7) weight, mean, deviation of the sender's stream, and what it has in common with the receiver's."""
    count, rates = ends.max() + 1, len(_RATES)
    weight, first, second = np.full((count, rates), _EMPTY), np.zeros((count, rates)), np.zeros((count, rates))
    seen = np.full(count, np.nan)
    links = len(time)
    side, product, pairs = np.full((links, 2), -1), np.zeros((links, rates)), np.full((links, rates), _EMPTY)
    clock, last = np.zeros(links), np.zeros((links, 2, rates))
    # Links of each stream as a chain of nodes, oldest first.
    head, tail, after, node_link = np.full(count, -1), np.full(count, -1), np.full(2 * links, -1), np.full(2 * links, -1)
    made, nodes = 0, 0
    found = np.empty((len(time), rates, 7))
    residual = np.empty(rates)
    for i in range(len(time)):
        a, b, passed = ends[i, 0], ends[i, 1], 0.0
        if not np.isnan(seen[a]):
            passed = max(time[i] - seen[a], 0.0)
        seen[a] = time[i] if np.isnan(seen[a]) else max(seen[a], time[i])
        for k in range(rates):
            fade = 2.0 ** (-_RATES[k] * passed)
            weight[a, k] = weight[a, k] * fade + 1
            first[a, k] = first[a, k] * fade + size[i]
            second[a, k] = second[a, k] * fade + size[i] * size[i]
            residual[k] = size[i] - first[a, k] / weight[a, k]
        mine, node = -1, head[a]
        while node >= 0:
            one = node_link[node]
            if mine < 0 and (side[one, 0] == b or side[one, 1] == b):
                mine = one
            _meet(one, int(side[one, 0] != a), time[i], residual, product, pairs, clock, last)
            node = after[node]
        if mine < 0:
            mine, made = made, made + 1
            side[mine, 0], side[mine, 1], clock[mine] = a, b, time[i]
            for end in (a, b):
                node_link[nodes] = mine
                if head[end] < 0:
                    head[end] = nodes
                else:
                    after[tail[end]] = nodes
                tail[end], nodes = nodes, nodes + 1
        _meet(mine, int(side[mine, 0] != a), time[i], residual, product, pairs, clock, last)
        other = side[mine, 1] if side[mine, 0] == a else side[mine, 0]
        for k in range(rates):
            mean, mean_other = first[a, k] / weight[a, k], first[other, k] / weight[other, k]
            variance, variance_other = abs(second[a, k] / weight[a, k] - mean**2), abs(second[other, k] / weight[other, k] - mean_other**2)
            common = product[mine, k] / pairs[mine, k]
            spread = np.sqrt(variance) * np.sqrt(variance_other)
            found[i, k, 0], found[i, k, 1], found[i, k, 2] = weight[a, k], mean, np.sqrt(variance)
            found[i, k, 3], found[i, k, 4] = np.sqrt(variance**2 + variance_other**2), np.sqrt(mean**2 + mean_other**2)
            found[i, k, 5], found[i, k, 6] = common, common / spread if spread > 0 else 0.0
    return found


@njit(cache=True)
def _meet(link, mine, time, residual, product, pairs, clock, last):  # type: ignore[no-untyped-def]
    """Count a packet's residual against the other stream's last one."""
    passed = max(time - clock[link], 0.0)
    clock[link] = max(clock[link], time)
    for k in range(len(_RATES)):
        fade = 2.0 ** (-_RATES[k] * passed)
        product[link, k] = product[link, k] * fade + residual[k] * last[link, 1 - mine, k]
        pairs[link, k] = pairs[link, k] * fade + 1
        last[link, mine, k] = residual[k]


def archive(path: Path) -> Iterator[tuple[str, str, Packets]]:
    """Device (its folder), name and packets of every pcap of a tar archive, by name."""
    with tarfile.open(path) as opened:
        for member in sorted((one for one in opened if one.isfile() and one.name.endswith(".pcap")), key=lambda one: one.name):
            content = opened.extractfile(member)
            assert content is not None
            yield Path(member.name).parent.name, member.name, read_pcap(content.read(), member.name)
