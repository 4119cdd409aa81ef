"""From frames to readings: each device's windows, read by the sensor in batches; and frames that come faster than they are read.

A device's window is the sensor's: `length` rows of `FRAMES` frames each. Windows of a device follow one another and do not overlap, as in
the environment. Of the windows that a device finishes in one interval the newest is read, as the environment shows one a step.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.data.bank import FEATURE_BOUND
from src.data.packets import CaptureReader, Frames, decode
from src.data.packets39 import WindowExtractor
from src.data.transplant import AT, Rows
from src.errors import UserError
from src.predictor.interface import SensorReading
from src.watch.sensor import SiteSensor
from src.watch.site import Roster

MOST_WAITING = 64
"""Batches of a live capture that wait to be read; what comes while so many wait is dropped, and counted."""


class Readings(NamedTuple):
    """R windows that were read, in time order."""

    interval: NDArray[np.int64]
    """(R,) in which each was finished."""
    device: NDArray[np.int64]
    """(R,)"""
    start: NDArray[np.float64]
    """(R,) of its first frame, seconds since 1970."""
    end: NDArray[np.float64]
    """(R,) of its last."""
    windows: Rows
    """(R, T, 39) raw."""
    reading: SensorReading
    """Of the windows."""
    shown: NDArray[np.float32]
    """(R, F + 11) scaled window means of the agent's features, and readings: what the environment keeps of a window."""


class Observer:
    """Turns batches of frames into readings; remembers what is unfinished. Intervals are counted by the frames' own clock, wherever it jumps."""

    def __init__(self, sensor: SiteSensor, roster: Roster, features: tuple[str, ...], seconds: float) -> None:
        """Begin with nothing.

        Args:
            sensor: that reads.
            roster: whose frames are whose.
            features: that the agent sees.
            seconds: of an interval.
        """
        self.sensor, self.roster, self.seconds = sensor, roster, seconds
        self.frames = self.finished = self.read = 0
        """Frames taken in, windows finished, and windows read."""
        self.interval = 0
        """That the newest frame is in; it goes back where the clock does."""
        self.began: float | None = None
        """Time of the first frame."""
        self._columns = [AT[name] for name in features]
        devices = len(roster.names)
        self._extractor = WindowExtractor(devices)
        self._rows = np.empty((devices, sensor.length, len(AT)))
        self._times = np.zeros((devices, 2))
        self._count = np.zeros(devices, np.int64)

    def add(self, frames: Frames) -> tuple[Readings, list[int]]:
        """The readings of a batch, and the devices that turned out to be none."""
        headers = decode(frames)
        owners, mistaken = self.roster.owners(headers)
        for device in mistaken:
            self._extractor.forget(device)
            self._count[device] = 0
        rows = self._extractor.add(frames, headers, owners)
        if self.began is None:
            self.began = float(frames.time[0])
        windows: dict[tuple[int, int], tuple[Rows, float, float]] = {}
        for index, device in enumerate(rows.device.tolist()):
            if self._count[device] == 0:
                self._times[device, 0] = rows.start[index]
            self._rows[device, self._count[device]] = rows.features[index]
            self._times[device, 1] = rows.end[index]
            self._count[device] += 1
            if self._count[device] == self.sensor.length:
                windows[self._interval_of(rows.end[index]), device] = self.sensor.finite(self._rows[device]), *self._times[device]
                self._count[device] = 0
                self.finished += 1
        self.frames += len(frames.time)
        self.interval = self._interval_of(float(frames.time[-1]))
        return self._readings(windows), mistaken

    def _interval_of(self, time: float) -> int:
        assert self.began is not None
        return int((time - self.began) // self.seconds)

    def _readings(self, found: dict[tuple[int, int], tuple[Rows, float, float]]) -> Readings:
        self.read += len(found)
        places = np.array(list(found), np.int64).reshape(-1, 2)
        windows = np.array([window for window, _, _ in found.values()], np.float32).reshape(-1, *self._rows.shape[1:])
        times = np.array([times for _, *times in found.values()]).reshape(-1, 2)
        reading = self.sensor.sensor.read(windows)
        means = self.sensor.sensor.scale(windows)[:, :, self._columns].mean(axis=1).clip(-FEATURE_BOUND, FEATURE_BOUND)
        shown = np.concatenate([means, reading.table()], axis=1, dtype=np.float32)
        return Readings(places[:, 0], places[:, 1], times[:, 0], times[:, 1], windows, reading, shown)


class Feed:
    """Batches of frames of a capture. Those of a live one come through a thread, so that it is read while the sensor computes."""

    def __init__(self, reader: CaptureReader, live: bool) -> None:
        """`live` says that frames may be dropped when too many wait; a file waits instead."""
        self.reader, self.live = reader, live
        self.dropped = 0
        """Frames."""
        self._waiting: queue.Queue[Frames | UserError | None] = queue.Queue(MOST_WAITING)
        self._frames = 0
        self._lock = threading.Lock()

    @property
    def backlog(self) -> int:
        """Frames that were captured and wait."""
        return self._frames

    def __iter__(self) -> Iterator[Frames]:
        """Yield batches.

        Raises:
            UserError: as the reader.
        """
        if not self.live:
            yield from self.reader.batches()
            return
        threading.Thread(target=self._fill, name="capture", daemon=True).start()
        while (found := self._waiting.get()) is not None:
            if isinstance(found, UserError):
                raise found
            self._count(-len(found.time))
            yield found

    def _fill(self) -> None:
        end: UserError | None = None
        try:
            for batch in self.reader.batches():
                try:
                    self._waiting.put_nowait(batch)
                    self._count(len(batch.time))
                except queue.Full:
                    self.dropped += len(batch.time)
        except UserError as error:
            end = error
        self._waiting.put(end)
        if end is not None:
            self._waiting.put(None)

    def _count(self, more: int) -> None:
        with self._lock:
            self._frames += more
