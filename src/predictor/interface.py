"""The sensor contract: what reads windows of traffic and says how much risk they carry. numpy only.

Directions, stated once: the higher the `risk`, the more harm is expected; the higher the `uncertainty`, the less
the sensor knows; the higher the `anomaly`, the more abnormal the window. All three lie in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class SensorReading:
    """What a sensor says of N windows."""

    probabilities: FloatArray
    """(N, classes), rows sum to 1; columns follow the sensor's `class_names`."""
    families: FloatArray
    """(N, 8), rows sum to 1; columns follow `src.data.taxonomy.FAMILIES` (benign first)."""
    risk: FloatArray
    """(N,) severity-weighted probability, with whatever else the sensor knows of an attack, in [0, 1]."""
    uncertainty: FloatArray
    """(N,) in [0, 1]."""
    anomaly: FloatArray
    """(N,) in [0, 1]."""

    def table(self) -> FloatArray:
        """(N, 11): the eight families, risk, uncertainty, anomaly; columns follow `sensor_names`."""
        scalars = np.stack([self.risk, self.uncertainty, self.anomaly], axis=1)  # (N, 3)
        return np.concatenate([self.families, scalars], axis=1, dtype=np.float32)  # (N, 11)


def sensor_names(families: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns of `SensorReading.table`."""
    return (*(f"probability:{name}" for name in families), "risk", "uncertainty", "anomaly")


@runtime_checkable
class Sensor(Protocol):
    """Anything that reads batches of windows. Users bring their own by meeting this contract."""

    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    sequence_length: int

    def read(self, windows: FloatArray) -> SensorReading:
        """Read windows (N, T, features) of raw, unscaled features, columns in the order of `feature_names`.

        Raises:
            UserError: when the shape does not fit or a value is not finite.
        """
        ...


@runtime_checkable
class AttackPredictorInterface(Sensor, Protocol):
    """A sensor that also answers for one sequence of named features."""

    def predict_attack_risk(self, network_sequence: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Risk of one sequence, oldest step first, each step a mapping from feature name to value.

        Returns:
            `predicted_attack, attack_category, confidence, risk_score, is_attack, severity_level, all_probabilities,
            uncertainty, anomaly_score`.

        Raises:
            UserError: for an empty sequence, a missing or an unknown feature, or a value that is not finite.
        """
        ...
