"""N-BaIoT's 115 features of packets, a row a packet (Meidan et al. 2018; the statistics are AfterImage's, Mirsky et al. 2018, NDSS).

Statistics of streams, damped by 2^(-decay x seconds), in the order in which N-BaIoT's header names them. Equal to the published packets of
IoT-23 in these features, with their quirks: `magnitude` holds the root of the squared variances and `radius` that of the squared means; a
stream's own packet counts twice in the covariance of the link that it is sent over; `H` and `HH` follow the sender alone; ARP is followed
by hardware address under `HpHp`, and what is neither IP nor ARP by hardware address throughout.

Streams are told apart by their whole addresses, not by a hash of them. Memory is bounded: when a table of streams is full, all streams are
forgotten that sent and received nothing for `IDLE` seconds (at the slowest decay less than a billionth of a packet is left of such a one), and, if that
is too few, the half that was idle longest. A stream keeps what it has in common with its `MOST_LINKS` newest partners. What was forgotten
though it still counted is told in `report`.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from src.data.nbaiot import DECAYS, FEATURES_115
from src.data.packets import Frames

IDLE = 3000.0
"""Seconds; 2^(-0.01 x 3000) is a billionth."""
MOST_STREAMS = 1 << 17
"""Streams of each kind that are remembered at once."""
MOST_LINKS = 1 << 12
"""Partners of a stream."""

_RATES = np.array([float(decay.removeprefix("L")) for decay in DECAYS])
_COUNT = len(DECAYS)
_EMPTY = 1e-20
"""Weight of a stream without packets."""
_STEP = 4096
"""Frames between two looks at whether the tables have room."""
_MAC, _V4, _V6 = 1, 4, 6
"""What kind of address a key holds."""
_PORT, _ICMP = 1, 2
"""What follows the address in the key of a socket."""


class _Streams(NamedTuple):
    """Streams of one kind, by their place; n of them have room."""

    slots: NDArray[np.int64]
    """(2^k,) open addressing: the stream whose key led here, or -1."""
    keys: NDArray[np.uint64]
    """(n, 3)"""
    seen: NDArray[np.float64]
    """(n,) when it last sent; NaN before."""
    heard: NDArray[np.float64]
    """(n,) when it last sent or received."""
    sums: NDArray[np.float64]
    """(n, 5, 3) damped count, sum and sum of squares."""


class _Links(NamedTuple):
    """What pairs of streams have in common; n links have room, and a chain runs through those of each stream, oldest first."""

    ends: NDArray[np.int64]
    """(n, 2) the two streams; -1 where the link was given up."""
    clock: NDArray[np.float64]
    """(n,)"""
    common: NDArray[np.float64]
    """(n, 5, 4) damped sum of products of residuals, damped count, last residual of each end."""
    chain: NDArray[np.int64]
    """(streams, 3) first and last node of each stream's chain, and how many it has."""
    after: NDArray[np.int64]
    """(2 n,) next node in the chain, or -1; node 2 l + e is link l in the chain of its end e."""


def _streams(room: int) -> _Streams:
    sums = np.zeros((room, _COUNT, 3))
    sums[:, :, 0] = _EMPTY
    return _Streams(np.full(4 * room, -1), np.zeros((room, 3), np.uint64), np.full(room, np.nan), np.zeros(room), sums)


def _links(room: int, streams: int) -> _Links:
    common = np.zeros((room, _COUNT, 4))
    common[:, :, 1] = _EMPTY
    chain = np.full((streams, 3), -1)
    chain[:, 2] = 0
    return _Links(np.full((room, 2), -1), np.zeros(room), common, chain, np.full(2 * room, -1))


class StreamExtractor:
    """Turns batches of frames into rows of 115 features; remembers streams from one batch to the next."""

    def __init__(self) -> None:
        """Begin with no memory."""
        self.report: Counter[str] = Counter()
        """`streams forgotten` and `links forgotten` before they had faded."""
        room = 2 * _STEP
        self._one = [_streams(room) for _ in range(2)]  # of senders, and of gaps in channels
        self._two = [(_streams(room), _links(room, room)) for _ in range(2)]  # of hosts, and of sockets
        self._used = np.zeros(6, np.int64)  # senders, channels, hosts, sockets, links of hosts, links of sockets
        self._forgotten = np.zeros(1, np.int64)
        self._now = -np.inf

    def add(self, frames: Frames) -> NDArray[np.float32]:
        """(n, 115) of a batch of n frames of any kind, columns as `FEATURES_115`."""
        found = np.empty((len(frames.time), len(FEATURES_115)), np.float32)
        keys = np.zeros((len(found), 5, 3), np.uint64)
        _identify(frames.data, frames.place, frames.captured, keys)
        for first in range(0, len(found), _STEP):
            part = slice(first, first + _STEP)
            self._make_room()
            (senders, channels), ((hosts, of_hosts), (sockets, of_sockets)) = self._one, self._two
            _follow(
                frames.time[part], frames.size[part].astype(np.float64), keys[part], _RATES, senders, channels, hosts, of_hosts, sockets, of_sockets,
                self._used, self._forgotten, found[part],
            )  # fmt: skip
            self._now = max(self._now, float(frames.time[part].max()))
        self.report["links forgotten"] = int(self._forgotten[0])
        return found

    @property
    def streams(self) -> int:
        """Streams remembered now, of all kinds."""
        return int(self._used[:4].sum())

    def _make_room(self) -> None:
        """Let every table have room for what `_STEP` frames can bring."""
        tables = [*self._one, *(streams for streams, _ in self._two)]
        need = self._used + np.array([_STEP, _STEP, 2 * _STEP, 2 * _STEP, _STEP, _STEP])
        links = [links for _, links in self._two]
        if all(need[i] <= len(one.seen) for i, one in enumerate(tables)) and all(need[4 + i] <= len(one.clock) for i, one in enumerate(links)):
            return
        cutoff = -np.inf
        if need[:4].max() > MOST_STREAMS:
            heard = [one.heard[: self._used[i]] for i, one in enumerate(tables)]
            cutoff = self._now - IDLE
            if max(int((part >= cutoff).sum()) for part in heard) > MOST_STREAMS // 2:
                fullest = max(heard, key=len)
                middle = float(np.partition(fullest, len(fullest) // 2)[len(fullest) // 2])
                cutoff = float(np.nextafter(middle, np.inf)) if (fullest >= middle).sum() > MOST_STREAMS // 2 else middle
                self.report["streams forgotten"] += sum(int(((part < cutoff) & (part >= self._now - IDLE)).sum()) for part in heard)
        self._rebuild(cutoff)

    def _rebuild(self, cutoff: float) -> None:
        """Tables without the streams that were last heard of before `cutoff`, and without what was given up, each with room for as much again."""
        (senders, channels), ((hosts, of_hosts), (sockets, of_sockets)) = self._one, self._two
        used = self._used
        kept = [np.flatnonzero(one.heard[: used[i]] >= cutoff) for i, one in enumerate((senders, channels, hosts, sockets))]
        moved = np.full(len(hosts.seen), -1)
        moved[kept[2]] = np.arange(len(kept[2]))
        channel_keys = channels.keys.copy()  # of hosts, by their place
        channel_keys[: used[1], :2] = moved[channels.keys[: used[1], :2].astype(np.int64)].astype(np.uint64)
        kept[1] = kept[1][(moved[channels.keys[kept[1], :2].astype(np.int64)] >= 0).all(axis=1)]
        self._one = [self._moved(senders, kept[0], _STEP), self._moved(channels._replace(keys=channel_keys), kept[1], _STEP)]
        two = []
        for place, (streams, links) in enumerate(((hosts, of_hosts), (sockets, of_sockets)), start=2):
            fresh = self._moved(streams, kept[place], 2 * _STEP)
            where = np.full(len(streams.seen), -1)
            where[kept[place]] = np.arange(len(kept[place]))
            ends = links.ends[: used[2 + place]]
            alive = np.flatnonzero((ends[:, 0] >= 0) & (where[ends] >= 0).all(axis=1))
            room = 2 * (len(alive) + _STEP)
            after = _links(room, len(fresh.seen))
            after.ends[: len(alive)], after.clock[: len(alive)], after.common[: len(alive)] = where[ends[alive]], links.clock[alive], links.common[alive]
            _chain(after, len(alive))
            used[2 + place] = len(alive)
            two.append((fresh, after))
        self._two = two
        used[:4] = [len(part) for part in kept]

    @staticmethod
    def _moved(streams: _Streams, kept: NDArray[np.int64], need: int) -> _Streams:
        """The streams `kept`, in a table with room for as many more, and `need`."""
        room = 1 << int(2 * (len(kept) + need) - 1).bit_length()
        fresh, count = _streams(room), len(kept)
        for to, of in zip(fresh[1:], streams[1:], strict=True):
            to[:count] = of[kept]
        _hash_again(fresh, count)
        return fresh


@njit(cache=True)
def _identify(data, place, captured, keys):  # type: ignore[no-untyped-def]
    """Write the keys of each frame's sender (0), hosts (1, 2) and sockets (3, 4); what was cut off reads as zeros."""
    frame = np.zeros(14 + 60 + 4, np.uint8)
    for i in range(len(place)):
        kept = min(captured[i], len(frame))
        frame[:] = 0
        frame[:kept] = data[place[i] : place[i] + kept]
        key = keys[i]
        kind, port, rest, fits = (np.int64(frame[12]) << 8) | np.int64(frame[13]), 0, 0, True
        if kind == 0x0806:
            for end in range(2):
                key[1 + end, 1], key[1 + end, 2] = _big(frame, 28 + 10 * end, 4), _V4
                key[3 + end, 1], key[3 + end, 2] = _big(frame, 6 - 6 * end, 6), _MAC
        elif kind == 0x0800:
            for end in range(2):
                key[1 + end, 1], key[1 + end, 2] = _big(frame, 26 + 4 * end, 4), _V4
            rest = 14 + 4 * np.int64(frame[14] & 15)
            fits = (frame[20] & 31) == 0 and frame[21] == 0  # a later fragment has no ports
            port = _PORT if (frame[23] == 6 or frame[23] == 17) and fits else _ICMP if frame[23] == 1 else 0
        elif kind == 0x86DD:
            for end in range(2):
                key[1 + end, 0], key[1 + end, 1], key[1 + end, 2] = _big(frame, 22 + 16 * end, 8), _big(frame, 30 + 16 * end, 8), _V6
            rest = 54
            port = _PORT if frame[20] == 6 or frame[20] == 17 else _ICMP if frame[20] == 1 else 0
        else:
            for end in range(2):
                key[1 + end, 1], key[1 + end, 2] = _big(frame, 6 - 6 * end, 6), _MAC
        if kind != 0x0806:
            for end in range(2):
                key[3 + end] = key[1 + end]
                key[3 + end, 2] |= np.uint64(port) << np.uint64(8)
                if port == _PORT:
                    key[3 + end, 2] |= _big(frame, rest + 2 * end, 2) << np.uint64(16)
        key[0] = key[1]
        key[0, 2] |= _big(frame, 6, 6) << np.uint64(8)


@njit(cache=True)
def _big(data, at, count):  # type: ignore[no-untyped-def]
    """An unsigned number of `count` bytes, the highest first."""
    found = np.uint64(0)
    for i in range(count):
        found = (found << np.uint64(8)) | np.uint64(data[at + i])
    return found


@njit(cache=True)
def _slot(slots, keys, a, b, c):  # type: ignore[no-untyped-def]
    """Where a key is, or could be put."""
    mixed = (a ^ (b * np.uint64(0x9E3779B97F4A7C15)) ^ (c * np.uint64(0xC2B2AE3D27D4EB4F))) * np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> np.uint64(33)
    mixed *= np.uint64(0xC4CEB9FE1A85EC53)
    mixed ^= mixed >> np.uint64(29)
    at = np.int64(mixed & np.uint64(len(slots) - 1))
    while slots[at] >= 0:
        one = slots[at]
        if keys[one, 0] == a and keys[one, 1] == b and keys[one, 2] == c:
            break
        at = (at + 1) & (len(slots) - 1)
    return at


@njit(cache=True)
def _find(streams, used, which, a, b, c, now):  # type: ignore[no-untyped-def]
    """The stream of a key, a new one where it is not known."""
    at = _slot(streams.slots, streams.keys, a, b, c)
    one = streams.slots[at]
    if one < 0:
        one = used[which]
        used[which] += 1
        streams.slots[at] = one
        streams.keys[one, 0], streams.keys[one, 1], streams.keys[one, 2] = a, b, c
        streams.heard[one] = now
    streams.heard[one] = max(streams.heard[one], now)
    return one


@njit(cache=True)
def _hash_again(streams, count):  # type: ignore[no-untyped-def]
    for one in range(count):
        key = streams.keys[one]
        streams.slots[_slot(streams.slots, streams.keys, key[0], key[1], key[2])] = one


@njit(cache=True)
def _chain(links, count):  # type: ignore[no-untyped-def]
    for link in range(count):
        for end in range(2):
            _append(links, links.ends[link, end], 2 * link + end)


@njit(cache=True)
def _append(links, stream, node):  # type: ignore[no-untyped-def]
    """Put a node at the end of a stream's chain."""
    chain = links.chain[stream]
    links.after[node] = -1
    if chain[0] < 0:
        chain[0] = node
    else:
        links.after[chain[1]] = node
    chain[1] = node
    chain[2] += 1


@njit(cache=True)
def _follow(time, size, keys, rates, senders, channels, hosts, of_hosts, sockets, of_sockets, used, forgotten, out):  # type: ignore[no-untyped-def]
    """Write the features of each packet."""
    R = len(rates)
    H, HH, JIT, HPHP = 3 * R, 6 * R, 13 * R, 16 * R
    found = np.empty((R, 7))
    for i in range(len(time)):
        now, key = time[i], keys[i]
        _send(senders, _find(senders, used, 0, key[0, 0], key[0, 1], key[0, 2], now), now, size[i], rates, False, found)
        for k in range(R):
            out[i, 3 * k], out[i, 3 * k + 1], out[i, 3 * k + 2] = found[k, 0], found[k, 1], found[k, 2]
        a = _find(hosts, used, 2, key[1, 0], key[1, 1], key[1, 2], now)
        b = _find(hosts, used, 2, key[2, 0], key[2, 1], key[2, 2], now)
        _exchange(hosts, of_hosts, a, b, now, size[i], rates, used, 4, forgotten, found)
        for k in range(R):
            out[i, H + 3 * k], out[i, H + 3 * k + 1], out[i, H + 3 * k + 2] = found[k, 0], found[k, 1], found[k, 2] * found[k, 2]
            for s in range(7):
                out[i, HH + 7 * k + s] = found[k, s]
        _send(channels, _find(channels, used, 1, np.uint64(a), np.uint64(b), np.uint64(0), now), now, 0.0, rates, True, found)
        for k in range(R):
            out[i, JIT + 3 * k], out[i, JIT + 3 * k + 1], out[i, JIT + 3 * k + 2] = found[k, 0], found[k, 1], found[k, 2]
        a = _find(sockets, used, 3, key[3, 0], key[3, 1], key[3, 2], now)
        b = _find(sockets, used, 3, key[4, 0], key[4, 1], key[4, 2], now)
        _exchange(sockets, of_sockets, a, b, now, size[i], rates, used, 5, forgotten, found)
        for k in range(R):
            for s in range(7):
                out[i, HPHP + 7 * k + s] = found[k, s]


@njit(cache=True)
def _send(streams, s, now, size, rates, gaps, found):  # type: ignore[no-untyped-def]
    """Count a packet in a stream: its size, or the gap before it; and write the stream's weight, mean and variance."""
    passed = 0.0 if np.isnan(streams.seen[s]) else max(now - streams.seen[s], 0.0)
    streams.seen[s] = now if np.isnan(streams.seen[s]) else max(streams.seen[s], now)
    value = passed if gaps else size
    for k in range(len(rates)):
        fade, sums = 2.0 ** (-rates[k] * passed), streams.sums[s, k]
        sums[0] = sums[0] * fade + 1
        sums[1] = sums[1] * fade + value
        sums[2] = sums[2] * fade + value * value
        mean = sums[1] / sums[0]
        found[k, 0], found[k, 1], found[k, 2] = sums[0], mean, abs(sums[2] / sums[0] - mean * mean)


@njit(cache=True)
def _exchange(streams, links, a, b, now, size, rates, used, which, forgotten, found):  # type: ignore[no-untyped-def]
    """Count a packet from a to b; write a's weight, mean and deviation, and what both have in common."""
    _send(streams, a, now, size, rates, False, found)
    residual, fades = np.empty(len(rates)), np.empty(len(rates))
    for k in range(len(rates)):
        residual[k] = size - found[k, 1]
    mine, node, before, known = -1, links.chain[a, 0], -1, -1.0
    while node >= 0:
        link, following = node >> 1, links.after[node]
        if links.ends[link, 0] < 0:  # given up by the other end
            if before < 0:
                links.chain[a, 0] = following
            else:
                links.after[before] = following
            if following < 0:
                links.chain[a, 1] = before
            links.chain[a, 2] -= 1
        else:
            if mine < 0 and (links.ends[link, 0] == b or links.ends[link, 1] == b):
                mine = link
            known = _meet(links, link, int(links.ends[link, 0] != a), now, residual, rates, fades, known)
            before = node
        node = following
    if mine < 0:
        mine = used[which]
        used[which] += 1
        links.ends[mine, 0], links.ends[mine, 1], links.clock[mine] = a, b, now
        for end in range(2):
            stream = links.ends[mine, end]
            if links.chain[stream, 2] >= MOST_LINKS:
                _give_up(links, stream)
                forgotten[0] += 1
            _append(links, stream, 2 * mine + end)
    _meet(links, mine, int(links.ends[mine, 0] != a), now, residual, rates, fades, known)
    partner = links.ends[mine, 1] if links.ends[mine, 0] == a else links.ends[mine, 0]  # not b where a sends to itself, as published
    for k in range(len(rates)):
        own, other = streams.sums[a, k], streams.sums[partner, k]
        mean, mean_other = own[1] / own[0], other[1] / other[0]
        variance, variance_other = abs(own[2] / own[0] - mean * mean), abs(other[2] / other[0] - mean_other * mean_other)
        common = links.common[mine, k, 0] / links.common[mine, k, 1]
        spread = np.sqrt(variance) * np.sqrt(variance_other)
        found[k, 2] = np.sqrt(variance)
        found[k, 3], found[k, 4] = np.sqrt(variance * variance + variance_other * variance_other), np.sqrt(mean * mean + mean_other * mean_other)
        found[k, 5], found[k, 6] = common, common / spread if spread > 0 else 0.0


@njit(cache=True)
def _give_up(links, stream):  # type: ignore[no-untyped-def]
    """Forget a stream's oldest link; its other end finds out when it comes by."""
    node = links.chain[stream, 0]
    links.ends[node >> 1] = -1
    links.chain[stream, 0] = links.after[node]
    if links.after[node] < 0:
        links.chain[stream, 1] = -1
    links.chain[stream, 2] -= 1


@njit(cache=True)
def _meet(links, link, mine, now, residual, rates, fades, known):  # type: ignore[no-untyped-def]
    """Count a packet's residual against the other end's last one; `fades` are those of the time `known`, which is given back."""
    passed = max(now - links.clock[link], 0.0)
    links.clock[link] = max(links.clock[link], now)
    if passed != known:
        for k in range(len(rates)):
            fades[k] = 2.0 ** (-rates[k] * passed)
    for k in range(len(rates)):
        common = links.common[link, k]
        common[0] = common[0] * fades[k] + residual[k] * common[3 - mine]
        common[1] = common[1] * fades[k] + 1
        common[2 + mine] = residual[k]
    return passed
