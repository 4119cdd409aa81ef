"""N-BaIoT's 115 features of packets, a row a packet (Meidan et al. 2018; the statistics are AfterImage's, Mirsky et al. 2018, NDSS).

Statistics of streams, damped by 2^(-decay x seconds), in the order in which N-BaIoT's header names them. Equal to the published packets of
IoT-23 in these features, with their quirks: `magnitude` holds the root of the squared variances and `radius` that of the squared means; a
stream's own packet counts twice in the covariance of the link that it is sent over; `H` and `HH` follow the sender alone; ARP is followed
by hardware address under `HpHp`, and what is neither IP nor ARP by hardware address throughout.

A packet changes what its sender has in common with all its partners, of which there can be thousands. That is put off: a link is brought up to
date when its other end sends, from damped sums that each stream keeps of its own residuals, so that the work for a packet does not grow with
the number of silent partners.

Streams are told apart by their whole addresses, not by a hash of them. Memory is bounded: when a table of streams is full, all streams are
forgotten that sent and received nothing for `IDLE` seconds (at the slowest decay less than a billionth of a packet is left of such a one),
and, if that is too few, the half that was idle longest; of links, the half that met longest ago. What was forgotten though it still counted is told in
`report`.
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
MOST_LINKS = 1 << 18
"""Pairs of streams of each kind that are remembered at once."""

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
    sent: NDArray[np.int64]
    """(n,) packets."""
    sums: NDArray[np.float64]
    """(n, 5, 3) damped count, sum and sum of squares."""
    residuals: NDArray[np.float64]
    """(n, 5, 2) damped sum of residuals, and the last one."""


class _Links(NamedTuple):
    """What pairs of streams have in common; n links have room. Each waits in a list of that end which did not send last."""

    slots: NDArray[np.int64]
    """(2^k,) open addressing by both ends, the smaller first."""
    ends: NDArray[np.int64]
    """(n, 2) the two streams."""
    born: NDArray[np.int64]
    """(n, 2) packets that each end had sent before the link was made: what it sent then does not count here."""
    last: NDArray[np.int64]
    """(n,) which end sent last, 0 or 1."""
    clock: NDArray[np.float64]
    """(n,) time that `common` and `before` are of."""
    met: NDArray[np.float64]
    """(n,) when a packet last went from one end to the other."""
    common: NDArray[np.float64]
    """(n, 5, 2) damped sum of products of residuals, and damped count."""
    before: NDArray[np.float64]
    """(n, 5, 2) damped residuals and count of the end that sent last, as they were at `clock`; what came since is to be taken in yet."""
    after: NDArray[np.int64]
    """(n,) next in the list, or -1."""
    waiting: NDArray[np.int64]
    """(streams,) first link in each stream's list, or -1."""
    oldest: NDArray[np.int64]
    """(streams,) first link that each stream got, or -1."""


def _streams(room: int) -> _Streams:
    sums = np.zeros((room, _COUNT, 3))
    sums[:, :, 0] = _EMPTY
    keys, sent = np.zeros((room, 3), np.uint64), np.zeros(room, np.int64)
    return _Streams(np.full(4 * room, -1), keys, np.full(room, np.nan), np.zeros(room), sent, sums, np.zeros((room, _COUNT, 2)))


def _links(room: int, streams: int) -> _Links:
    common = np.zeros((room, _COUNT, 2))
    common[:, :, 1] = _EMPTY
    whole = np.zeros((room, 2), np.int64), np.zeros((room, 2), np.int64), np.zeros(room, np.int64)
    slots = np.full(1 << int(2 * room - 1).bit_length(), -1)
    return _Links(
        slots, *whole, np.zeros(room), np.zeros(room), common, np.zeros((room, _COUNT, 2)), np.full(room, -1), np.full(streams, -1), np.full(streams, -1)
    )


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
                self._used, found[part],
            )  # fmt: skip
            self._now = max(self._now, float(frames.time[part].max()))
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
            alive = (where[ends] >= 0).all(axis=1)
            if alive.sum() + _STEP > MOST_LINKS:
                met = links.met[: len(ends)]
                newer = met > np.partition(met[alive], MOST_LINKS // 2)[MOST_LINKS // 2]
                self.report["links forgotten"] += int((alive & ~newer).sum())
                alive &= newer
            chosen = np.flatnonzero(alive)
            after = _links(2 * (len(chosen) + _STEP), len(fresh.seen))
            for to, of in zip(after[2:8], links[2:8], strict=True):
                to[: len(chosen)] = of[chosen]
            after.ends[: len(chosen)] = where[ends[chosen]]
            _link_again(after, len(chosen))
            used[2 + place] = len(chosen)
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
def _link_again(links, count):  # type: ignore[no-untyped-def]
    for link in range(count):
        a, b = links.ends[link]
        links.slots[_link_slot(links, a, b)] = link
        for end in range(2):
            if links.oldest[links.ends[link, end]] < 0:
                links.oldest[links.ends[link, end]] = link
        _wait(links, link)


@njit(cache=True)
def _link_slot(links, a, b):  # type: ignore[no-untyped-def]
    """Where a link is, or could be put."""
    low, high = min(a, b), max(a, b)
    mixed = (np.uint64(low) * np.uint64(0x9E3779B97F4A7C15)) ^ (np.uint64(high) * np.uint64(0xC2B2AE3D27D4EB4F))
    mixed ^= mixed >> np.uint64(31)
    at = np.int64(mixed & np.uint64(len(links.slots) - 1))
    while links.slots[at] >= 0:
        x, y = links.ends[links.slots[at]]
        if min(x, y) == low and max(x, y) == high:
            break
        at = (at + 1) & (len(links.slots) - 1)
    return at


@njit(cache=True)
def _wait(links, link):  # type: ignore[no-untyped-def]
    """Let a link wait for that end to send which did not send last; one with itself waits for nobody."""
    other = links.ends[link, 1 - links.last[link]]
    if other != links.ends[link, links.last[link]]:
        links.after[link] = links.waiting[other]
        links.waiting[other] = link


@njit(cache=True)
def _follow(time, size, keys, rates, senders, channels, hosts, of_hosts, sockets, of_sockets, used, out):  # type: ignore[no-untyped-def]
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
        _exchange(hosts, of_hosts, a, b, now, size[i], rates, used, 4, found)
        for k in range(R):
            out[i, H + 3 * k], out[i, H + 3 * k + 1], out[i, H + 3 * k + 2] = found[k, 0], found[k, 1], found[k, 2] * found[k, 2]
            for s in range(7):
                out[i, HH + 7 * k + s] = found[k, s]
        _send(channels, _find(channels, used, 1, np.uint64(a), np.uint64(b), np.uint64(0), now), now, 0.0, rates, True, found)
        for k in range(R):
            out[i, JIT + 3 * k], out[i, JIT + 3 * k + 1], out[i, JIT + 3 * k + 2] = found[k, 0], found[k, 1], found[k, 2]
        a = _find(sockets, used, 3, key[3, 0], key[3, 1], key[3, 2], now)
        b = _find(sockets, used, 3, key[4, 0], key[4, 1], key[4, 2], now)
        _exchange(sockets, of_sockets, a, b, now, size[i], rates, used, 5, found)
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
def _exchange(streams, links, a, b, now, size, rates, used, which, found):  # type: ignore[no-untyped-def]
    """Count a packet from a to b; write a's weight, mean and deviation, and what both have in common."""
    passed = 0.0 if np.isnan(streams.seen[a]) else max(now - streams.seen[a], 0.0)
    at = now if np.isnan(streams.seen[a]) else max(now, streams.seen[a])
    link = links.waiting[a]
    links.waiting[a] = -1
    while link >= 0:  # partners that sent since a did: a's last residual, which is about to change, meets theirs
        following, mine = links.after[link], 1 - links.last[link]
        _take_in(streams, links, link, rates)
        other_passed = max(at - links.clock[link], 0.0)
        for k in range(len(rates)):
            fade, own_fade = 2.0 ** (-rates[k] * other_passed), 2.0 ** (-rates[k] * passed)
            links.common[link, k, 0] *= fade
            links.common[link, k, 1] *= fade
            links.before[link, k, 0], links.before[link, k, 1] = streams.residuals[a, k, 0] * own_fade, streams.sums[a, k, 0] * own_fade
        links.last[link], links.clock[link] = mine, at
        _wait(links, link)
        link = following
    _send(streams, a, now, size, rates, False, found)
    streams.sent[a] += 1
    for k in range(len(rates)):
        residual = size - found[k, 1]
        streams.residuals[a, k, 0] = streams.residuals[a, k, 0] * 2.0 ** (-rates[k] * passed) + residual
        streams.residuals[a, k, 1] = residual
    mine = links.oldest[a] if a == b else -1  # as published: what a stream sends to itself counts in its first link
    if mine < 0:
        place = _link_slot(links, a, b)
        mine = links.slots[place]
        if mine < 0:
            mine = used[which]
            used[which] += 1
            links.slots[place] = mine
            links.ends[mine, 0], links.ends[mine, 1], links.last[mine] = a, b, 0
            links.born[mine, 0], links.born[mine, 1] = streams.sent[a] - 1, streams.sent[b]
            for end in range(2):
                if links.oldest[links.ends[mine, end]] < 0:
                    links.oldest[links.ends[mine, end]] = mine
            links.clock[mine] = at
            for k in range(len(rates)):
                links.before[mine, k, 0], links.before[mine, k, 1] = streams.residuals[a, k, 0], streams.sums[a, k, 0]
            _wait(links, mine)
    _take_in(streams, links, mine, rates)
    links.met[mine] = max(now, links.met[mine])
    partner = links.ends[mine, 1 - links.last[mine]]
    heeded = partner != a and streams.sent[partner] > links.born[mine, 1 - links.last[mine]]
    for k in range(len(rates)):
        if heeded:
            links.common[mine, k, 0] += streams.residuals[a, k, 1] * streams.residuals[partner, k, 1]
        links.common[mine, k, 1] += 1
        own, other = streams.sums[a, k], streams.sums[partner, k]
        mean, mean_other = own[1] / own[0], other[1] / other[0]
        variance, variance_other = abs(own[2] / own[0] - mean * mean), abs(other[2] / other[0] - mean_other * mean_other)
        common = links.common[mine, k, 0] / links.common[mine, k, 1]
        spread = np.sqrt(variance) * np.sqrt(variance_other)
        found[k, 2] = np.sqrt(variance)
        found[k, 3], found[k, 4] = np.sqrt(variance * variance + variance_other * variance_other), np.sqrt(mean * mean + mean_other * mean_other)
        found[k, 5], found[k, 6] = common, common / spread if spread > 0 else 0.0


@njit(cache=True)
def _take_in(streams, links, link, rates):  # type: ignore[no-untyped-def]
    """Bring a link up to the time at which the end that sent last did so."""
    end = links.last[link]
    sender, other = links.ends[link, end], links.ends[link, 1 - end]
    passed = max(streams.seen[sender] - links.clock[link], 0.0)
    heeded = sender != other and streams.sent[other] > links.born[link, 1 - end]
    times = 2.0 if sender == other else 1.0  # as published: it stands twice among its own links
    for k in range(len(rates)):
        fade, common, before = 2.0 ** (-rates[k] * passed), links.common[link, k], links.before[link, k]
        residuals, count = streams.residuals[sender, k, 0], streams.sums[sender, k, 0]
        common[0] *= fade
        if heeded:
            common[0] += (residuals - before[0] * fade) * streams.residuals[other, k, 1]
        common[1] = common[1] * fade + times * (count - before[1] * fade)
        before[0], before[1] = residuals, count
    links.clock[link] = max(links.clock[link], streams.seen[sender])
