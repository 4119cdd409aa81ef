"""What is said of a window that was read: as a line of JSON for other systems, and as a table for people.

Lines are Detection Findings of the Open Cybersecurity Schema Framework (OCSF 1.3, class 2004). What it has no field for stands under `unmapped`:
uncertainty, anomaly, the probability of each family, what the agent and the comparison rule would order, and what a foothold is given.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.table import Table

from src.data.taxonomy import FAMILIES, LABELS
from src.models.predictor_interface import LEVELS

PRODUCT = {"name": "iot-defense", "vendor_name": "iot-defense", "version": "0.1.0"}
SCHEMA = "1.3.0"
_SPACE = uuid.UUID("6f6f9b8e-8f0f-5a55-9f0d-0d3c1d6f2b61")
"""Of the identifiers of findings, which are the same for the same advice on the same window."""
_SEVERITIES = {"none": (1, "Informational"), "low": (2, "Low"), "medium": (3, "Medium"), "high": (4, "High"), "critical": (5, "Critical")}


@dataclass
class Finding:
    """One window of one device, and what would be done."""

    device: str
    kind: str
    """Of the device, e.g. `camera`."""
    addresses: tuple[str, ...]
    """By which it is known."""
    time: float
    """Of the advice, seconds since 1970: the end of the window, or later where it was advised again without a new one."""
    start: float
    """Of the window."""
    end: float
    risk: float
    uncertainty: float
    anomaly: float
    families: tuple[float, ...]
    """(8,) probabilities."""
    predicted: str
    """Most probable class."""
    confidence: float
    flagged: bool
    """Whether the risk is above the site's threshold."""
    order: str
    """What the agent would order for this device in this interval; `MONITOR` where that is nothing."""
    rule: str
    """The same of the comparison rule."""
    held: float
    """Probability of a foothold on the device, by the belief."""
    reasons: list[str] = field(default_factory=list)
    """Features that spoke most for the verdict; of alerts alone."""

    @property
    def alert(self) -> bool:
        """Whether it is flagged, or the agent would do something."""
        return self.flagged or self.order != "MONITOR"

    @property
    def again(self) -> bool:
        """Whether it repeats the last window, for advice that came without a new one."""
        return self.time > self.end

    @property
    def family(self) -> str:
        """Most probable family."""
        return FAMILIES[max(range(len(FAMILIES)), key=self.families.__getitem__)]

    def ocsf(self, rule: str) -> dict[str, Any]:
        """The finding as OCSF; `rule` is what the comparison rule is called."""
        severity = _SEVERITIES[next(level for bound, level in LEVELS if self.risk < bound)]
        if self.alert:
            severity = max(severity, _SEVERITIES["low"])
        label, uid = (
            LABELS[self.predicted if self.predicted in LABELS else "BenignTraffic"],
            str(uuid.uuid5(_SPACE, f"{self.device} {self.time!r} {self.end!r}")),
        )
        doing = "" if self.order == "MONITOR" else f"; recommended: {self.order}"
        return {
            "category_uid": 2, "category_name": "Findings", "class_uid": 2004, "class_name": "Detection Finding",
            "activity_id": 1, "activity_name": "Create", "type_uid": 200401, "type_name": "Detection Finding: Create",
            "time": _milliseconds(self.time), "start_time": _milliseconds(self.start), "end_time": _milliseconds(self.end),
            "severity_id": severity[0], "severity": severity[1], "status_id": 1, "status": "New", "is_alert": self.alert,
            "confidence_score": round(100 * self.confidence), "risk_score": round(100 * self.risk),
            "message": f"{self.device}: {self.predicted}, risk {self.risk:.2f}{doing}",
            "metadata": {"version": SCHEMA, "product": PRODUCT},
            "finding_info": {
                "uid": uid, "title": f"{self.predicted} on {self.device}", "types": [self.family],
                "analytic": {"type_id": 4, "type": "Learning (ML/DL)", "name": "fused risk sensor"},
                **({"attacks": [{"tactic": {"name": label.tactic}}]} if self.alert and label.family != FAMILIES[0] else {}),
            },
            "resources": [{"name": self.device, "type": self.kind, "uid": self.addresses[0] if self.addresses else self.device}],
            **({"remediation": {"desc": self.order}} if self.order != "MONITOR" else {}),
            "unmapped": {
                "uncertainty": round(self.uncertainty, 4), "anomaly": round(self.anomaly, 4), "risk": round(self.risk, 4), "flagged": self.flagged,
                "families": {name: round(value, 4) for name, value in zip(FAMILIES, self.families, strict=True)},
                "order": self.order, "order_of_comparison": {"rule": rule, "order": self.rule}, "foothold": round(self.held, 4), "because": self.reasons,
            },
        }  # fmt: skip


def _milliseconds(time: float) -> int:
    return round(1000 * time)


@dataclass
class Counters:
    """How the watch itself is doing."""

    frames: int = 0
    """Taken in."""
    backlog: int = 0
    """Captured, and waiting."""
    dropped: int = 0
    """Captured, and never taken in."""
    foreign: int = 0
    """Of no device of the site."""
    windows: int = 0
    """Read."""
    alerts: int = 0
    intervals: int = 0
    """Decided."""

    def words(self) -> str:
        """One line."""
        return (
            f"{self.frames:,} frames ({self.backlog:,} waiting, {self.dropped:,} dropped, {self.foreign:,} of no device), {self.windows:,} windows read, "
            f"{self.intervals:,} intervals decided, {self.alerts:,} alerts"
        )


def live_table(newest: Sequence[Finding | None], names: Sequence[str], counters: Counters, rule: str) -> Table:
    """The newest finding of each device."""
    table = Table(title=counters.words(), box=box.SIMPLE_HEAD, title_style="", expand=True)
    for heading in ("device", "last window (UTC)", "risk", "doubt", "anomaly", "looks like", "foothold", "agent", rule, "because"):
        table.add_column(heading, no_wrap=heading != "because", overflow="fold" if heading == "because" else "ellipsis")
    for name, one in zip(names, newest, strict=True):
        if one is None:
            table.add_row(name, "[dim]none yet[/dim]", *[""] * 8)
            continue
        marked = "bold red" if one.flagged else ""
        acting = "" if one.order == "MONITOR" else "bold yellow"
        table.add_row(
            name, clock(one.end), f"{one.risk:.2f}", f"{one.uncertainty:.2f}", f"{one.anomaly:.2f}", f"{one.predicted} {one.confidence:.2f}",
            f"{one.held:.2f}", f"[{acting}]{one.order.split()[0]}[/]" if acting else "MONITOR", one.rule.split()[0], "; ".join(one.reasons), style=marked,
        )  # fmt: skip
    return table


def clock(time: float) -> str:
    """A time of day; the number of seconds where no calendar holds it."""
    try:
        return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, OSError, ValueError):
        return f"{time:.0f} s"
