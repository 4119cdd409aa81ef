"""CICIoT2023's 39 features of packets, a row a window of n frames (Neto et al. 2023, Sensors 23(13):5941).

Equal in every cell to the published extractor on the captures of IoT-23 and IoT Sentinel, with its quirks: only IPv4 and ARP are frames at
all; `IAT` goes on across windows, so that the gap before a window counts in it; `Rate` is n over the time from a window's first frame to
its last, infinite where there is none; `IRC` is port 21; `Std` and `Variance` are those of a sample, and missing (NaN) for a single frame.

The extractor mixes all frames of a capture. Here windows can also be kept apart by device: a frame then counts in the windows of the devices
that sent it and received it, each with a clock of its own. A sensor trained on mixed windows sees other traffic then, and must be
calibrated to the site.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from src.data.ciciot2023 import FEATURES_39
from src.data.packets import ARP, BROKEN, DROPPED, IPV4, TCP, UDP, Frames, Headers

FRAMES = 10
"""Frames in a window: 10 for all but CICIoT2023's floods, which were cut into windows of 100."""

_AT = {name: index for index, name in enumerate(FEATURES_39)}
_FIRST_FLAG, _FIRST_COUNT, _FIRST_SHARE = _AT["fin_flag_number"], _AT["ack_count"], _AT["HTTP"]
_IAT, _NUMBER = _AT["IAT"], _AT["Number"]
_BITS = np.array([0x01, 0x02, 0x04, 0x08, 0x10, 0x40, 0x80], np.uint8)
"""FIN, SYN, RST, PSH, ACK, ECE and CWR, as the columns name them."""
_COUNTED = np.array([4, 1, 0, 2])
"""Which of these `ack_count`, `syn_count`, `fin_count` and `rst_count` count."""
_PORTS = np.array([80, 443, 53, 23, 25, 22, 21], np.uint16)
"""Of HTTP, HTTPS, DNS, Telnet, SMTP, SSH, and what the columns call IRC."""
_OF_DNS = 2

_FIELDS = 36
_HEADER, _TTL, _CLOCK, _FIRST, _LAST, _EARLIEST, _LATEST = range(7)
_FLAG, _SHARE = 7, 14  # 7 flags, then 16 shares up to LLC
_BEGUN = 30


class Rows(NamedTuple):
    """Finished windows, in the order in which their last frames came."""

    features: NDArray[np.float64]
    """(R, 39) columns as `FEATURES_39`."""
    device: NDArray[np.int64]
    """(R,) whose window it is; 0 where windows are of the whole capture."""
    start: NDArray[np.float64]
    """(R,) time of the first frame, seconds since 1970."""
    end: NDArray[np.float64]
    """(R,) time of the last frame."""

    @property
    def duration(self) -> NDArray[np.float64]:
        """(R,) seconds from the first frame to the last."""
        return self.end - self.start


class WindowExtractor:
    """Turns batches of frames into windows; what has not filled a window waits for the next batch."""

    def __init__(self, devices: int = 1, frames: int = FRAMES) -> None:
        """Begin with nothing.

        Args:
            devices: whose windows are kept apart; 1 for those of the whole capture.
            frames: n of a window, 1 at least.
        """
        self.frames = frames
        self._sums = np.zeros((devices, _FIELDS))
        self._count = np.zeros(devices, np.int64)
        self._sizes, self._gaps = np.zeros((devices, frames)), np.zeros((devices, frames))
        self._protocols = np.zeros((devices, frames), np.uint8)

    def add(self, frames: Frames, headers: Headers, owners: NDArray[np.int64] | None = None) -> Rows:
        """The windows that a batch finishes.

        Args:
            frames: of the batch.
            headers: `src.data.packets.decode` of them.
            owners: (n, 2) devices that sent and received each frame, -1 for none; None for windows of the whole capture.
        """
        n = len(frames.time)
        whose = np.column_stack([np.zeros(n, np.int64), np.full(n, -1)]) if owners is None else owners
        rows = (2 if owners is not None else 1) * n // self.frames + len(self._count)
        features, device, times = np.empty((rows, len(FEATURES_39))), np.empty(rows, np.int64), np.empty((rows, 2))
        state = (self._sums, self._count, self._sizes, self._gaps, self._protocols)
        read = (headers.kind, headers.carries, headers.protocol, headers.ttl, headers.length, headers.flags, headers.ports)
        found = _windows(frames.time, frames.captured, *read, whose, *state, features, device, times)
        return Rows(features[:found], device[:found], times[:found, 0], times[:found, 1])

    def rest(self) -> Rows:
        """The windows that are not full, one a device that has any frame in it; they begin anew after that. For the end of a capture."""
        waiting = np.flatnonzero(self._count)
        features, times = np.empty((len(waiting), len(FEATURES_39))), np.empty((len(waiting), 2))
        for row, device in enumerate(waiting):
            _finish(device, self._sums, self._count, self._sizes, self._gaps, self._protocols, features[row], times[row])
        return Rows(features, waiting, times[:, 0], times[:, 1])

    def forget(self, device: int) -> None:
        """Let a device's windows and clock begin anew."""
        self._sums[device], self._count[device] = 0.0, 0


@njit(cache=True)
def _windows(time, captured, kind, carries, protocol, ttl, length, flags, ports, whose, sums, count, sizes, gaps, protocols, features, device, times):  # type: ignore[no-untyped-def]
    """Take in frames; the number of windows that they finished."""
    found, n = 0, sizes.shape[1]
    for i in range(len(time)):
        if kind[i] == DROPPED:
            continue
        for side in range(2):
            d = whose[i, side]
            if d < 0 or (side == 1 and d == whose[i, 0]):
                continue
            mine = sums[d]
            gap = time[i] - mine[_CLOCK] if mine[_BEGUN] != 0.0 else 0.0
            mine[_CLOCK], mine[_BEGUN] = time[i], 1.0
            if kind[i] == BROKEN:
                continue
            k = count[d]
            if k == 0:
                mine[_FIRST] = mine[_EARLIEST] = mine[_LATEST] = time[i]
            mine[_LAST], mine[_EARLIEST], mine[_LATEST] = time[i], min(mine[_EARLIEST], time[i]), max(mine[_LATEST], time[i])
            sizes[d, k], gaps[d, k], protocols[d, k] = captured[i], gap, protocol[i]
            mine[_HEADER] += length[i]
            mine[_TTL] += ttl[i]
            tcp, udp = carries[i] == TCP, carries[i] == UDP
            if tcp:
                for b in range(len(_BITS)):
                    mine[_FLAG + b] += (flags[i] & _BITS[b]) != 0
            for p in range(len(_PORTS)):
                if (udp if p == _OF_DNS else tcp) and (ports[i, 0] == _PORTS[p] or ports[i, 1] == _PORTS[p]):
                    mine[_SHARE + p] += 1
            low, high = min(ports[i, 0], ports[i, 1]), max(ports[i, 0], ports[i, 1])
            mine[_SHARE + 7] += tcp
            mine[_SHARE + 8] += udp
            mine[_SHARE + 9] += udp and low == 67 and high == 68
            mine[_SHARE + 10] += kind[i] == ARP
            mine[_SHARE + 11] += kind[i] == IPV4 and protocol[i] == 1
            mine[_SHARE + 12] += kind[i] == IPV4 and protocol[i] == 2
            mine[_SHARE + 13] += kind[i] == IPV4
            mine[_SHARE + 14] += kind[i] == IPV4
            count[d] = k + 1
            if k + 1 == n:
                device[found] = d
                _finish(d, sums, count, sizes, gaps, protocols, features[found], times[found])
                found += 1
    return found


@njit(cache=True)
def _sum(values):  # type: ignore[no-untyped-def]
    """As numpy adds up at most 128 numbers, eight side by side: with another order the last digit would differ from the published one."""
    n, total = len(values), 0.0
    eights = n - n % 8
    if eights:
        part = values[:8].copy()
        for k in range(8, eights):
            part[k % 8] += values[k]
        total = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]))
    for k in range(eights, n):
        total += values[k]
    return total


@njit(cache=True)
def _finish(d, sums, count, sizes, gaps, protocols, row, times):  # type: ignore[no-untyped-def]
    """Write a device's window, and begin the next one; the clock goes on."""
    mine, n = sums[d], count[d]
    seen = np.zeros(256, np.int64)
    for k in range(n):
        seen[protocols[d, k]] += 1
    mode = 0
    for p in range(256):
        if seen[p] > seen[mode]:
            mode = p
    passed = mine[_LATEST] - mine[_EARLIEST]
    row[0], row[1], row[2], row[3] = mine[_HEADER] / n, mode, mine[_TTL] / n, n / passed if passed > 0 else np.inf
    for b in range(len(_BITS)):
        row[_FIRST_FLAG + b] = mine[_FLAG + b] / n
    for c in range(len(_COUNTED)):
        row[_FIRST_COUNT + c] = mine[_FLAG + _COUNTED[c]]
    for s in range(15):
        row[_FIRST_SHARE + s] = mine[_SHARE + s] / n
    total, least, most, gap = 0.0, sizes[d, 0], sizes[d, 0], 0.0
    for k in range(n):
        total += sizes[d, k]
        gap += gaps[d, k]
        least, most = min(least, sizes[d, k]), max(most, sizes[d, k])
    mean = total / n
    variance = _sum((sizes[d, :n] - mean) ** 2) / (n - 1) if n > 1 else np.nan
    at = _IAT - 6
    row[at], row[at + 1], row[at + 2], row[at + 3], row[at + 4], row[at + 5] = total, least, most, mean, np.sqrt(variance), mean
    row[_IAT], row[_NUMBER], row[_NUMBER + 1] = gap / n, n, variance
    times[0], times[1] = mine[_FIRST], mine[_LAST]
    for f in range(_FIELDS):
        if f != _CLOCK and f != _BEGUN:
            mine[f] = 0.0
    count[d] = 0
