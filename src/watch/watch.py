"""The watch: a capture or a pipe goes in, findings and advice come out. Nothing is ever sent to the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from envs.dynamics import Order
from src.data.packets import Frames
from src.watch.advisor import Advice, Advisor
from src.watch.findings import Counters, Finding
from src.watch.observer import Observer, Readings
from src.watch.site import Roster

WATCH = Order.MONITOR.name
REASONS = 3
"""Features that are told of an alert."""


class Watch:
    """Joins observer and advisor. An interval in which no window came is no step: nothing new is known, and nothing in force runs out."""

    def __init__(self, observer: Observer, advisor: Advisor, roster: Roster) -> None:
        """Begin with an empty interval."""
        self.observer, self.advisor, self.roster = observer, advisor, roster
        self.counters = Counters()
        self.newest: list[Finding | None] = [None] * len(roster.names)
        """Of each device."""
        self._interval: int | None = None
        self._pending: dict[int, tuple[Readings, int]] = {}

    def take(self, frames: Frames) -> list[Finding]:
        """The findings of the intervals that a batch of frames closes."""
        readings, mistaken = self.observer.add(frames)
        for device in mistaken:
            self.advisor.forget(device)
            self._pending.pop(device, None)
            self.newest[device] = None
        found: list[tuple[Finding, np.ndarray]] = []
        for index, (interval, device) in enumerate(zip(readings.interval.tolist(), readings.device.tolist(), strict=True)):
            if interval != self._interval:
                found += self._close()
                self._interval = interval
            self._pending[device] = readings, index
        if self._interval is not None and self.observer.interval != self._interval:
            found += self._close()
        return self._explained(found)

    def finish(self) -> list[Finding]:
        """Those of the interval that the end of the capture left open."""
        return self._explained(self._close())

    def _close(self) -> list[tuple[Finding, np.ndarray]]:
        pending, self._pending, self._interval = self._pending, {}, None
        if not pending:
            return []
        advice = self.advisor.step({device: readings.shown[index] for device, (readings, index) in pending.items()})
        self.counters.intervals += 1
        found = [(self._finding(device, readings, index, advice), readings.windows[index]) for device, (readings, index) in sorted(pending.items())]
        now = max(finding.end for finding, _ in found)
        for device in dict.fromkeys([*advice.orders, *advice.rule]):
            if device not in pending and (last := self.newest[device]) is not None:
                # Advice about a device of which nothing came in this interval goes with what was last seen of it.
                orders = {"order": advice.orders.get(device, WATCH), "rule": advice.rule.get(device, WATCH)}
                found.append((_again(last, now, orders, float(advice.held[device])), np.empty(0)))
        return found

    def _finding(self, device: int, readings: Readings, index: int, advice: Advice) -> Finding:
        reading = readings.reading
        chosen = int(reading.probabilities[index].argmax())
        return Finding(
            device=self.roster.names[device], kind=self.roster.network.types[device],
            addresses=tuple(self.roster.addresses().get(self.roster.names[device], ())), time=float(readings.end[index]),
            start=float(readings.start[index]), end=float(readings.end[index]),
            risk=float(reading.risk[index]), uncertainty=float(reading.uncertainty[index]), anomaly=float(reading.anomaly[index]),
            families=tuple(reading.families[index].tolist()), predicted=self.observer.sensor.sensor.class_names[chosen],
            confidence=float(reading.probabilities[index, chosen]), flagged=bool(reading.risk[index] > self.observer.sensor.alarm),
            order=advice.orders.get(device, WATCH), rule=advice.rule.get(device, WATCH),
            held=float(advice.held[device]),
        )  # fmt: skip

    def _explained(self, found: Sequence[tuple[Finding, np.ndarray]]) -> list[Finding]:
        """The findings, with reasons for alerts."""
        alerts = [(finding, window) for finding, window in found if finding.alert and len(window)]
        if alerts:
            for (finding, _), told in zip(alerts, self.observer.sensor.explain(np.stack([window for _, window in alerts])), strict=True):
                finding.reasons = told.reasons(REASONS)
        for finding, _ in found:
            self.newest[self.roster.names.index(finding.device)] = finding
        self.counters.alerts += sum(finding.alert for finding, _ in found)
        self.counters.frames, self.counters.windows = self.observer.frames, self.observer.read
        self.counters.foreign = self.roster.report["frames of no device"]
        return [finding for finding, _ in found]


def _again(last: Finding, time: float, orders: dict[str, str], held: float) -> Finding:
    """Advice without a new window: what was last seen of the device, with what is ordered now."""
    return Finding(**{**vars(last), **orders, "time": time, "held": held})


def findings(watch: Watch, feed: Iterator[Frames], seen: Callable[[], None]) -> Iterator[Finding]:
    """The findings of a whole capture as they come; `seen` is called after each batch.

    Raises:
        UserError: as the reader, after the findings that came before.
    """
    for frames in feed:
        yield from watch.take(frames)
        seen()
    yield from watch.finish()
    seen()
