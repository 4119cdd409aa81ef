"""Frames of a capture, batch by batch, and what their headers say: pcap and pcapng, from a file or from a pipe that is still being written.

Formats: pcap with micro- or nanoseconds in either byte order, and pcapng (Enhanced Packet Blocks, and the Packet Blocks that came before
them; resolution and offset of each interface are minded), of Ethernet. A batch is a structure of arrays; what is done a packet, is compiled.
Memory grows neither with the capture nor with what a header claims: a frame or block that says it is longer than any capture program writes
ends the reading with an error that names its place. A capture that was cut off ends with its last whole frame, and the rest is counted.

Headers are decoded as dpkt 1.9.8 decodes them, which CICIoT2023's extractor used: the outer type of the frame alone decides what it is, a
header that was cut off is no header, and a fragment that is not the first has no ports.
"""

from __future__ import annotations

import logging
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from src.errors import UserError

log = logging.getLogger(__name__)

ETHERNET = 1
"""Link type of Ethernet frames."""

LINK_TYPES = {
    0: "BSD loopback", 6: "token ring", 9: "PPP", 101: "raw IP", 105: "Wi-Fi", 113: "Linux cooked ('any' interface)", 127: "Wi-Fi with radiotap",
    195: "IEEE 802.15.4", 230: "IEEE 802.15.4", 251: "Bluetooth", 272: "Bluetooth", 276: "Linux cooked ('any' interface)",
}  # fmt: skip
"""Names of other link types that people come with."""

LARGEST_FRAME = 262_144
"""Bytes; tcpdump and Wireshark capture no longer one."""
LARGEST_BLOCK = 16 << 20
"""Bytes of a pcapng block."""
MOST_INTERFACES = 1024
"""Interfaces of a pcapng section."""
CHUNK = 1 << 20
"""Bytes read at once."""

_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _PACKET = 0x0A0D0D0A, 1, 2, 3, 6
_PCAP = {0xA1B2C3D4: 1e6, 0xA1B23C4D: 1e9}
"""Ticks a second by magic number."""

WHOLE, TOO_LONG, OTHER_BLOCK, NO_TIME, NO_INTERFACE, BAD_BLOCK = range(6)
"""Why a kernel stopped: it needs more bytes; a frame is longer than any; a block that changes how packets are read; ..."""

DROPPED, IPV4, ARP, BROKEN = range(4)
"""Kind of a frame: not counted at all; IPv4; ARP; IPv4 whose header cannot be decoded, which only advances the clock."""
OTHER, TCP, UDP = range(3)
"""What an IPv4 packet carries that was decoded."""


class Source(Protocol):
    """What bytes come from: an open file, or a pipe."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


class Frames(NamedTuple):
    """n frames in the order in which they were captured."""

    data: NDArray[np.uint8]
    """Bytes that hold them."""
    place: NDArray[np.int64]
    """(n,) where each begins in `data`."""
    captured: NDArray[np.int64]
    """(n,) bytes of each that were kept, from the Ethernet header on."""
    size: NDArray[np.int64]
    """(n,) bytes that each had on the wire."""
    time: NDArray[np.float64]
    """(n,) seconds since 1970."""

    def one(self, index: int) -> bytes:
        """The bytes of a frame."""
        return self.data[self.place[index] : self.place[index] + self.captured[index]].tobytes()


class Headers(NamedTuple):
    """What the headers of n frames say; everything is 0 where there is no such header."""

    kind: NDArray[np.uint8]
    """(n,) DROPPED, IPV4, ARP or BROKEN."""
    carries: NDArray[np.uint8]
    """(n,) OTHER, TCP or UDP."""
    protocol: NDArray[np.uint8]
    """(n,) of IPv4."""
    ttl: NDArray[np.uint8]
    """(n,) hops."""
    length: NDArray[np.int64]
    """(n,) bytes of the TCP or UDP header, options included."""
    flags: NDArray[np.uint8]
    """(n,) of TCP, FIN in the lowest bit."""
    ports: NDArray[np.uint16]
    """(n, 2) of sender and receiver."""
    hardware: NDArray[np.uint64]
    """(n, 2) MAC addresses of sender and receiver, as numbers; of dropped frames too."""
    address: NDArray[np.uint32]
    """(n, 2) IPv4 addresses of sender and receiver, as numbers; those that ARP tells too."""


@dataclass(frozen=True)
class _Interface:
    """An interface of a pcapng section."""

    ticks: float
    """A second."""
    offset: int
    """Seconds to add."""


class CaptureReader:
    """Reads a capture front to back, once."""

    def __init__(self, source: Source, name: str) -> None:
        """Take an open source, and what to call it in messages.

        Nothing is read before `batches`.
        """
        self.name = name
        self.report: Counter[str] = Counter()
        """`frames`, `bytes` of the whole capture read so far, and `bytes cut off` at its end."""
        self._take: Any = getattr(source, "read1", source.read)  # what has come, of a pipe; it must not wait for more
        self._rest = np.empty(0, np.uint8)
        self._big, self._ended = False, False
        self._interfaces: list[_Interface] = []
        self._arrays = _arrays(0)

    def batches(self) -> Iterator[Frames]:
        """Yield frames as they come, at most about `CHUNK` bytes at a time.

        Raises:
            UserError: for what is no capture of Ethernet frames, or a damaged one; frames before the damage were yielded. When the source cannot be read.
        """
        self._need(4)
        if len(self._rest) == 0:
            raise UserError(f"'{self.name}' is empty: give a capture in pcap or pcapng format")
        magic = self._rest[:4].tobytes()
        if len(magic) == 4 and int.from_bytes(magic, "little") == _SECTION:
            yield from self._blocks()
            return
        for order in ("<", ">"):
            ticks = _PCAP.get(struct.unpack(f"{order}I", magic.ljust(4, b"\0"))[0])
            if ticks is not None:
                yield from self._records(order == ">", ticks)
                return
        raise UserError(f"'{self.name}' is no capture: it begins with {magic.hex(' ')}, and neither pcap nor pcapng does")

    def _need(self, count: int) -> bool:
        """Read until `count` bytes are at hand; False where the source ends before."""
        while len(self._rest) < count and self._more():
            pass
        return len(self._rest) >= count

    def _more(self) -> bool:
        if self._ended:
            return False
        try:
            found = self._take(CHUNK)
        except OSError as error:
            raise UserError(f"'{self.name}' cannot be read: {error.strerror or error}") from error
        self._ended = not found
        self.report["bytes"] += len(found)
        self._rest = np.concatenate([self._rest, np.frombuffer(found, np.uint8)])
        return not self._ended

    def _records(self, big: bool, ticks: float) -> Iterator[Frames]:
        """Frames of a pcap."""
        if not self._need(24):
            raise UserError(f"'{self.name}' ends inside its own header ({len(self._rest)} of 24 bytes)")
        major, minor, *_, link = struct.unpack(f"{'>' if big else '<'}HHiIII", self._rest[4:24].tobytes())
        if major != 2:
            raise UserError(f"'{self.name}' is a pcap of version {major}.{minor}; allowed: 2")
        self._check_link(link & 0xFFFF)
        at = 24
        while True:
            buffer = self._rest
            arrays = self._room(len(buffer) // 16)
            count, at, stop = _find_records(buffer, at, big, ticks, LARGEST_FRAME, *arrays)
            yield from self._frames(buffer, count)
            if stop == TOO_LONG:
                raise self._damaged(at, f"a frame that claims {_number(buffer[at + 8 : at + 12], big):,} bytes")
            self._rest, at = buffer[at:], 0
            if not self._more():
                self._cut_off()
                return

    def _blocks(self) -> Iterator[Frames]:
        """Frames of a pcapng."""
        at = 0
        while True:
            buffer = self._rest
            arrays = self._room(len(buffer) // 28)
            ticks = np.array([one.ticks for one in self._interfaces])
            offset = np.array([one.offset for one in self._interfaces], np.float64)
            count, at, stop = _find_blocks(buffer, at, self._big, ticks, offset, LARGEST_FRAME, LARGEST_BLOCK, *arrays)
            yield from self._frames(buffer, count)
            if stop == OTHER_BLOCK:
                at += self._settle(buffer[at:], at)
                continue
            if stop != WHOLE:
                words = {
                    TOO_LONG: "a frame longer than its block, or than any", BAD_BLOCK: "a block of an impossible length",
                    NO_TIME: "a Simple Packet Block, which has no time; capture with Enhanced Packet Blocks",
                    NO_INTERFACE: "a packet of an interface that was not described",
                }  # fmt: skip
                raise self._damaged(at, words[stop])
            self._rest, at = buffer[at:], 0
            if not self._more():
                self._cut_off()
                return

    def _settle(self, block: NDArray[np.uint8], at: int) -> int:
        """Take in the header of a section, or an interface's description; its length."""
        content = block[:28].tobytes()
        if content[:4] == b"\x0a\x0d\x0d\x0a":
            if content[8:12] not in (b"\x1a\x2b\x3c\x4d", b"\x4d\x3c\x2b\x1a"):
                raise self._damaged(at, "a section without its byte order")
            self._big, self._interfaces = content[8:12] == b"\x1a\x2b\x3c\x4d", []
        length = _number(block[4:8], self._big)
        if length < 12 or length % 4 or length > len(block):
            raise self._damaged(at, "a block of an impossible length")
        if content[:4] == b"\x0a\x0d\x0d\x0a":
            return length
        if length < 20 or len(self._interfaces) == MOST_INTERFACES:
            raise self._damaged(at, f"an interface's description that is too short, or one of more than {MOST_INTERFACES}")
        self._check_link(_number(block[8:10], self._big))
        self._interfaces.append(_interface(block[16 : length - 4].tobytes(), ">" if self._big else "<"))
        return length

    def _room(self, records: int) -> tuple[NDArray[Any], ...]:
        """Arrays for so many frames."""
        if len(self._arrays[0]) < records + 1:
            self._arrays = _arrays(records + 1)
        return self._arrays

    def _frames(self, buffer: NDArray[np.uint8], count: int) -> Iterator[Frames]:
        self.report["frames"] += count
        if count:
            place, captured, size, time = (array[:count].copy() for array in self._arrays)
            yield Frames(buffer, place, captured, size, time)

    def _check_link(self, link: int) -> None:
        if link != ETHERNET:
            named = f" ({LINK_TYPES[link]})" if link in LINK_TYPES else ""
            raise UserError(f"'{self.name}' holds frames of link type {link}{named}; allowed: {ETHERNET} (Ethernet), e.g. of `tcpdump -i eth0`")

    def _cut_off(self) -> None:
        self.report["bytes cut off"] = len(self._rest)
        if len(self._rest):
            log.warning("'%s' ends inside a frame: its last %d bytes are left out", self.name, len(self._rest))

    def _damaged(self, at: int, what: str) -> UserError:
        place = self.report["bytes"] - len(self._rest) + at
        return UserError(f"'{self.name}' is damaged at byte {place:,}, after {self.report['frames']:,} frames: {what}")


def _arrays(count: int) -> tuple[NDArray[Any], ...]:
    """Room for place, captured, size and time of so many frames."""
    return (*(np.empty(count, np.int64) for _ in range(3)), np.empty(count, np.float64))


def _number(content: NDArray[np.uint8], big: bool) -> int:
    return int.from_bytes(content.tobytes(), "big" if big else "little")


def _interface(options: bytes, order: str) -> _Interface:
    """An interface from the options of its description."""
    ticks, offset, at = 1e6, 0, 0
    while at + 4 <= len(options):
        code, length = struct.unpack_from(f"{order}HH", options, at)
        value = options[at + 4 : at + 4 + length]
        if code == 0:
            break
        if code == 9 and len(value) == 1:
            ticks = float(2 ** (value[0] & 0x7F)) if value[0] & 0x80 else 10.0 ** min(value[0], 300)
        elif code == 14 and len(value) == 8:
            offset = int(struct.unpack(f"{order}q", value)[0])
        at += 4 + (length + 3) // 4 * 4
    return _Interface(ticks, offset)


@njit(cache=True)
def _u32(data, at, big):  # type: ignore[no-untyped-def]
    a, b, c, d = np.int64(data[at]), np.int64(data[at + 1]), np.int64(data[at + 2]), np.int64(data[at + 3])
    return (a << 24) | (b << 16) | (c << 8) | d if big else (d << 24) | (c << 16) | (b << 8) | a


@njit(cache=True)
def _find_records(data, at, big, ticks, largest, place, captured, size, time):  # type: ignore[no-untyped-def]
    """Frames of a pcap from `at` on: their count, where the first that is not whole begins, and why that was the end."""
    count = 0
    while at + 16 <= len(data):
        kept = _u32(data, at + 8, big)
        if kept > largest:
            return count, at, TOO_LONG
        if at + 16 + kept > len(data):
            break
        place[count], captured[count], size[count] = at + 16, kept, _u32(data, at + 12, big)
        time[count] = _u32(data, at, big) + _u32(data, at + 4, big) / ticks
        count += 1
        at += 16 + kept
    return count, at, WHOLE


@njit(cache=True)
def _find_blocks(data, at, big, ticks, offset, largest, longest, place, captured, size, time):  # type: ignore[no-untyped-def]
    """The same of a pcapng; `ticks` and `offset` are those of the section's interfaces."""
    count = 0
    while at + 12 <= len(data):
        kind, length = _u32(data, at, big), _u32(data, at + 4, big)
        if kind == _SECTION:
            if at + 28 > len(data):
                break
            return count, at, OTHER_BLOCK
        if length < 12 or length % 4 != 0 or length > longest:
            return count, at, BAD_BLOCK
        if at + length > len(data):
            break
        if kind == _INTERFACE:
            return count, at, OTHER_BLOCK
        if kind == _SIMPLE_PACKET:
            return count, at, NO_TIME
        if kind in (_PACKET, _OLD_PACKET):
            if length < 32:
                return count, at, BAD_BLOCK
            one = _u32(data, at + 8, big)
            if kind == _OLD_PACKET:
                one = one >> 16 if big else one & 0xFFFF
            if one >= len(ticks):
                return count, at, NO_INTERFACE
            kept = _u32(data, at + 20, big)
            if kept > largest or kept > length - 32:
                return count, at, TOO_LONG
            passed = (_u32(data, at + 12, big) << 32) | _u32(data, at + 16, big)
            place[count], captured[count], size[count] = at + 28, kept, _u32(data, at + 24, big)
            whole = np.uint64(passed) // np.uint64(ticks[one]) if ticks[one] <= 1e18 and ticks[one] >= 1.0 else np.uint64(0)
            time[count] = offset[one] + np.float64(whole) + np.float64(np.uint64(passed) - whole * np.uint64(ticks[one])) / ticks[one]
            count += 1
        at += length
    return count, at, WHOLE


def decode(frames: Frames) -> Headers:
    """What the headers of a batch say, as dpkt would say it."""
    n = len(frames.time)
    found = Headers(
        np.zeros(n, np.uint8), np.zeros(n, np.uint8), np.zeros(n, np.uint8), np.zeros(n, np.uint8), np.zeros(n, np.int64), np.zeros(n, np.uint8),
        np.zeros((n, 2), np.uint16), np.zeros((n, 2), np.uint64), np.zeros((n, 2), np.uint32),
    )  # fmt: skip
    _decode(frames.data, frames.place, frames.captured, *found)
    return found


@njit(cache=True)
def _big(data, at, count):  # type: ignore[no-untyped-def]
    """An unsigned number of `count` bytes, the highest first."""
    found = np.uint64(0)
    for i in range(count):
        found = (found << np.uint64(8)) | np.uint64(data[at + i])
    return found


@njit(cache=True)
def _decode(data, place, captured, kind, carries, protocol, ttl, length, flags, ports, hardware, address):  # type: ignore[no-untyped-def]
    for i in range(len(place)):
        at, end = place[i], place[i] + captured[i]
        if captured[i] < 14:
            continue
        hardware[i, 0], hardware[i, 1] = _big(data, at + 6, 6), _big(data, at, 6)
        outer = (np.int64(data[at + 12]) << 8) | np.int64(data[at + 13])
        at += 14
        if outer == 0x0806:
            kind[i] = ARP
            if end - at >= 28:
                address[i, 0], address[i, 1] = _big(data, at + 14, 4), _big(data, at + 24, 4)
            continue
        if outer != 0x0800:
            continue
        rest = at + 4 * np.int64(data[at] & 15) if end > at else at
        if end - at < 20 or rest < at + 20:
            kind[i] = BROKEN
            continue
        kind[i], protocol[i], ttl[i] = IPV4, data[at + 9], data[at + 8]
        address[i, 0], address[i, 1] = _big(data, at + 12, 4), _big(data, at + 16, 4)
        if (data[at + 6] & 31) != 0 or data[at + 7] != 0:
            continue
        said = (np.int64(data[at + 2]) << 8) | np.int64(data[at + 3])
        if said != 0:  # 0 where the sender's network card was to cut it up
            end = min(end, at + said)
        if protocol[i] == 6 and end - rest >= 20 and data[rest + 12] >> 4 >= 5:
            options = 4 * np.int64(data[rest + 12] >> 4) - 20
            carries[i], flags[i], length[i] = TCP, data[rest + 13], 20 + min(options, end - rest - 20)
        elif protocol[i] == 17 and end - rest >= 8:
            carries[i], length[i] = UDP, 8
        else:
            continue
        ports[i, 0], ports[i, 1] = _big(data, rest, 2), _big(data, rest + 2, 2)


def open_capture(path: Any) -> Any:
    """A capture's file, opened to read bytes.

    Raises:
        UserError: when it cannot be.
    """
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"capture '{path}' cannot be opened: {error.strerror}; give a file in pcap or pcapng format") from error
