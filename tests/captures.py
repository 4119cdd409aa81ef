"""Small captures made by hand, for tests of reading them."""

import struct

A, B, C, OUTSIDE = b"\xc0\xa8\x00\x01", b"\xc0\xa8\x00\x02", b"\xc0\xa8\x00\x03", b"\x08\x08\x08\x08"
MAC = {A: b"\x02aaaaa", B: b"\x02bbbbb", C: b"\x02ccccc", OUTSIDE: b"\x02ggggg"}
Timed = list[tuple[float, bytes]]


def ip(source: bytes, target: bytes, protocol: int, payload: bytes, *, ttl: int = 64, offset: int = 0, said: int | None = None) -> bytes:
    length = 20 + len(payload) if said is None else said
    header = b"\x45\x00" + struct.pack(">HHHBBH", length, 0, offset, ttl, protocol, 0) + source + target
    return MAC[target] + MAC[source] + b"\x08\x00" + header + payload


def udp(source: bytes, target: bytes, size: int, source_port: int = 1000, target_port: int = 53) -> bytes:
    return ip(source, target, 17, struct.pack(">HHHH", source_port, target_port, size - 34, 0).ljust(size - 34, b"\0"), ttl=0)


def tcp(source: bytes, target: bytes, flags: int = 0x10, ports: tuple[int, int] = (40000, 443), options: int = 0, size: int = 0) -> bytes:
    header = struct.pack(">HHIIBBHHH", *ports, 1, 2, (5 + options // 4) << 4, flags, 100, 0, 0) + bytes(options)
    return ip(source, target, 6, header + bytes(size))


def arp(source: bytes, target: bytes) -> bytes:
    return (MAC[target] + MAC[source] + b"\x08\x06" + bytes(8) + MAC[source] + source + bytes(6) + target).ljust(60, b"\0")


def pcap(frames: Timed, *, big: bool = False, nano: bool = False, link: int = 1, snap: int = 65535, version: int = 2) -> bytes:
    order, ticks = (">" if big else "<"), (10**9 if nano else 10**6)
    head = struct.pack(f"{order}IHHiIII", 0xA1B23C4D if nano else 0xA1B2C3D4, version, 4, 0, 0, snap, link)
    return head + b"".join(
        struct.pack(f"{order}IIII", *divmod(round(at * ticks), ticks), len(frame), len(frame)) + frame for at, frame in frames
    )  # fmt: skip


def block(kind: int, content: bytes, big: bool = False) -> bytes:
    padded = content + bytes(-len(content) % 4)
    length = struct.pack(">I" if big else "<I", len(padded) + 12)
    return struct.pack(">I" if big else "<I", kind) + length + padded + length


def section(big: bool = False) -> bytes:
    order = ">" if big else "<"
    return block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), big)


def interface(link: int = 1, options: bytes = b"", big: bool = False) -> bytes:
    return block(1, struct.pack(f"{'>' if big else '<'}HHI", link, 0, 0) + options, big)


def packet(at: float, frame: bytes, *, ticks: int = 10**6, which: int = 0, big: bool = False) -> bytes:
    passed, order = round(at * ticks), ">" if big else "<"
    return block(6, struct.pack(f"{order}IIIII", which, passed >> 32, passed & 0xFFFFFFFF, len(frame), len(frame)) + frame, big)


def pcapng(frames: Timed, big: bool = False) -> bytes:
    return section(big) + interface(big=big) + b"".join(packet(at, frame, big=big) for at, frame in frames)


def traffic(count: int, begin: float = 1_600_000_000.0, source: bytes = A) -> Timed:
    """Frames of several kinds between one device and the outside, a tenth of a second apart."""
    kinds = (
        tcp(source, OUTSIDE, 0x02, options=8), tcp(OUTSIDE, source, 0x12, (443, 40000)), tcp(source, OUTSIDE, 0x18, size=300),
        udp(source, OUTSIDE, 80), udp(OUTSIDE, source, 200, 53, 1000), arp(source, B), ip(source, B, 1, bytes(40)),
    )  # fmt: skip
    return [(begin + 0.1 * i, kinds[i % len(kinds)]) for i in range(count)]
