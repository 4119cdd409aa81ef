"""The captures that benchmarks read: IoT-23's two, the archive of IoT Sentinel's, and what is made of them."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.data.nbaiot import FEATURES_115
from src.data.packets import CaptureReader, open_capture
from src.data.packets115 import StreamExtractor

HUE, INFECTED = "CTU-Honeypot-Capture-4-1_Philips-Hue-Bridge", "CTU-IoT-Malware-Capture-34-1_192.168.1.195.irc"
"""Captures of IoT-23: an ordinary bridge, and a device that a botnet commands."""


def iot23(shared: Path, name: str) -> Path:
    """Where a capture of IoT-23 lies."""
    return shared / "iot23" / "pcap" / f"{name}.pcap"


def archive(shared: Path) -> Iterator[tuple[str, str, bytes]]:
    """Device, file name and content of every capture of IoT Sentinel, by name."""
    with tarfile.open(shared / "iot_sentinel" / "iot_sentinel_pcap.tar.gz") as opened:
        for member in sorted((one for one in opened if one.isfile() and one.name.endswith(".pcap")), key=lambda one: one.name):
            content = opened.extractfile(member)
            assert content is not None
            yield Path(member.name).parent.name, Path(member.name).name, content.read()


def packets115(content: bytes, name: str) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Times (n,) and N-BaIoT's features (n, 115) of a capture's frames; it starts with no memory."""
    extractor, times, rows = StreamExtractor(), [np.empty(0)], [np.empty((0, 115), np.float32)]
    for batch in CaptureReader(io.BytesIO(content), name).batches():
        times.append(batch.time)
        rows.append(extractor.add(batch))
    return np.concatenate(times), np.concatenate(rows)


def read_frames(path: Path) -> list[tuple[float, bytes]]:
    """Time and bytes of every frame of a capture."""
    with open_capture(path) as stream:
        return [(float(batch.time[i]), batch.one(i)) for batch in CaptureReader(stream, str(path)).batches() for i in range(len(batch.time))]


def write_pcap(path: Path, frames: Sequence[tuple[float, bytes]]) -> None:
    """A capture with microseconds."""
    with path.open("wb") as stream:
        stream.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))
        for time, frame in frames:
            ticks = round(time * 1e6)
            stream.write(struct.pack("<IIII", *divmod(ticks, 1_000_000), len(frame), len(frame)) + frame)


def tiled(path: Path, out: Path, times: int) -> int:
    """A capture played several times over, each time later; the number of frames."""
    frames = read_frames(path)
    length = frames[-1][0] - frames[0][0] + 1.0
    write_pcap(out, [(time + turn * length, frame) for turn in range(times) for time, frame in frames])
    return times * len(frames)


def incident(shared: Path, out: Path, share: float = 0.5, turns: int = 6) -> tuple[float, float]:
    """An incident to replay: the last part of the Hue bridge's ordinary traffic, and on its network, half-way through, the infected device of 34-1.

    Args:
        shared: folder of the data sets.
        out: capture to write.
        share: of the bridge's frames, its beginning, that are left out (to calibrate on).
        turns: times that the rest is played, for it lasts minutes.

    Returns:
        When the replay begins, and when the infected device joins, seconds since 1970.
    """
    bridge, bot = (read_frames(iot23(shared, name)) for name in (HUE, INFECTED))
    calm = bridge[round(share * len(bridge)) :]
    begins = calm[0][0]
    length = calm[-1][0] - begins + 1.0
    ends, joins = begins + turns * length, begins + turns * length / 2
    later = joins - bot[0][0]
    frames = [(time + turn * length, frame) for turn in range(turns) for time, frame in calm]
    frames += [(time + later, frame) for time, frame in bot if time + later <= ends]
    write_pcap(out, sorted(frames, key=lambda one: one[0]))
    return begins, joins


def first_part(shared: Path, out: Path, share: float = 0.5) -> None:
    """The beginning of the Hue bridge's capture, which `incident` leaves out."""
    frames = read_frames(iot23(shared, HUE))
    write_pcap(out, frames[: round(share * len(frames))])


ROUNDING = 1e-5
"""Share of the mean below which a standard deviation, the root of a difference of nearly equal numbers, has no six digits left to divide by."""


def deviations(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> tuple[NDArray[np.float64], int]:
    """How far rows of N-BaIoT's features (n, 115) are from published ones: relative deviations (n, 115), and how many cells were left out (NaN).

    A deviation is relative to the published number, that of a standard deviation, variance or covariance at least to its stream's mean (squared for the
    latter two): each is a difference of numbers of that size. A correlation is left out where the deviations that it is divided by are rounding alone.
    """
    at = {name: index for index, name in enumerate(FEATURES_115)}
    mine, known = ours.astype(np.float64), theirs.astype(np.float64)
    size, left = np.abs(known), np.zeros(known.shape, np.bool_)
    for name, index in at.items():
        block, statistic = name.rsplit("_", 1)
        if statistic in ("variance", "std", "covariance", "pcc", "magnitude"):
            mean = np.abs(known[:, at[f"{block}_radius" if f"{block}_radius" in at else f"{block}_mean"]])
            if statistic == "pcc":
                own, covariance = known[:, at[f"{block}_std"]], known[:, at[f"{block}_covariance"]]
                with np.errstate(divide="ignore", invalid="ignore"):
                    other = np.abs(covariance / known[:, index] / own)  # the other stream's, which is no column
                left[:, index] = (covariance != 0) & ~((own > ROUNDING * mean) & (other > ROUNDING * mean) & np.isfinite(other))
            size[:, index] = np.maximum(size[:, index], 1.0 if statistic == "pcc" else mean if statistic == "std" else mean**2)
    away = np.where(mine == known, 0.0, np.abs(mine - known) / np.maximum(size, 1e-30))
    return np.where(left, np.nan, away), int(left.sum())
