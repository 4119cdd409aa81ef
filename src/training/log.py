"""Where the figures of a training go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from matplotlib.figure import Figure


class TrainingLog(Protocol):
    """Where figures of a training go: `src.tracking.Tracker`, or nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers, of an epoch or final."""

    def log_figure(self, figure: Figure, path: str) -> None:
        """Record a figure under a file name."""

    def log_table(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        """Record rows under a file name."""
