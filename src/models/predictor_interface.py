"""Trained networks behind the sensor contract: probabilities, risk, uncertainty and anomaly of windows of raw traffic.

Where the readings come from, stated once (and in each artifact's `meta.json`): `probabilities` are those of the base LSTM and of the
temporal LSTM, pooled (`src.models.fusion`); `risk` is the severity-weighted probability of both and of what the anomaly adds to the odds of
an attack; `uncertainty` is how far the networks and the draws from the temporal LSTM's posterior disagree, against what is usual on
calibration windows; `anomaly` is one minus a conformal p-value of how far the window, and what an LSTM autoencoder cannot rebuild of it, lie
from benign ones (`src.models.lstm_sae`), or of its distance from their subspace (`src.models.subspace`) where none was trained. A base LSTM alone gives
its own probabilities, and their entropy as the uncertainty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from src.data.taxonomy import FAMILIES, family_index, severity
from src.errors import UserError
from src.models.fusion import Fusion, disagreement
from src.models.lstm_attack_predictor import RealDataLSTMPredictor, Scaler, load_predictor, save_predictor
from src.models.lstm_sae import AnomalyDetector, SAEConfig
from src.models.subspace import BenignSubspace
from src.models.temporal_lstm import AdvancedLSTMTemporal, create_model
from src.predictor.interface import SensorReading

ALONE = {"probabilities": "base LSTM", "uncertainty": "predictive entropy"}
FUSED = {**ALONE, "probabilities": "base LSTM and temporal LSTM, pooled", "risk": "both and the anomaly", "uncertainty": "disagreement of networks and draws"}
"""Where the readings come from; written into each artifact."""

LEVELS = ((0.2, "none"), (0.4, "low"), (0.6, "medium"), (0.8, "high"), (float("inf"), "critical"))
"""Upper bounds (exclusive) of the risk score, each with the severity level below it."""

LARGEST = float(np.finfo(np.float32).max)
"""Largest value of a feature that single precision holds."""


class Detector(Protocol):
    """What scores how abnormal a window is."""

    def anomaly(self, windows: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N,) one minus a conformal p-value of raw windows (N, T, F), in [0, 1): the higher, the more abnormal."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The arrays, to be saved."""
        ...

    def stated(self) -> dict[str, Any]:
        """What `meta.json` says of it: `anomaly`, where the reading comes from, and its shape."""
        ...


@dataclass(frozen=True)
class Second:
    """What a temporal LSTM adds to the base predictor."""

    model: AdvancedLSTMTemporal
    fusion: Fusion
    usual: float
    """Mean disagreement on calibration windows, nats."""

    def uncertainty(self, disagreement: Tensor) -> Tensor:
        """(N,) 1 - exp(-disagreement / usual), in [0, 1): 0.63 at what is usual. Smooth, for a rank would jump at the rounding of a batch."""
        return 1 - torch.exp(-disagreement / self.usual)


class EnhancedAttackPredictor:
    """Trained networks as a sensor (`src.predictor.interface.AttackPredictorInterface`). Runs on the CPU."""

    def __init__(
        self,
        model: RealDataLSTMPredictor,
        detector: Detector,
        feature_names: Sequence[str],
        class_names: Sequence[str],
        second: Second | None = None,
    ) -> None:
        self.model, self.detector, self.second = model.cpu().eval(), detector, second
        if second is not None:
            second.model.cpu().eval()
        self.feature_names, self.class_names = tuple(feature_names), tuple(class_names)
        self.sequence_length = model.config.sequence_length
        self._severity = severity(self.class_names)  # (C,)
        self._member = np.eye(len(FAMILIES), dtype=np.float32)[family_index(self.class_names)]  # (C, 8)

    @property
    def scaler(self) -> Scaler:
        """Scaling of raw features, fitted on `fit` rows."""
        return self.model.scaler

    def scale(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw features (..., F) as the model sees them, in [-5, 5]."""
        with torch.inference_mode():
            return self.scaler(torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))).numpy()

    def read(self, windows: NDArray[np.float32], batch_size: int = 512) -> SensorReading:
        """Read raw windows (N, T, F) in batches.

        Raises:
            UserError: when the shape is not (N, `sequence_length`, features) or a value is not finite (its feature is named).
        """
        expected = (self.sequence_length, len(self.feature_names))
        if windows.ndim != 3 or windows.shape[1:] != expected:
            raise UserError(f"windows have shape {windows.shape}; this sensor reads (N, {expected[0]}, {expected[1]})")
        finite = np.isfinite(windows)
        if not finite.all():
            name = self.feature_names[int(np.argwhere(~finite)[0, 2])]
            raise UserError(f"feature '{name}' holds a value that is not finite; clean the rows first")
        probabilities = np.empty((len(windows), len(self.class_names)), dtype=np.float32)  # (N, C)
        anomaly, uncertainty, risk = (np.empty(len(windows), dtype=np.float32) for _ in range(3))  # (N,)
        with torch.inference_mode():
            for first in range(0, len(windows), batch_size):
                here = slice(first, first + batch_size)
                batch = torch.from_numpy(np.ascontiguousarray(windows[here], dtype=np.float32))  # (B, T, F)
                anomaly[here] = self.detector.anomaly(batch.numpy())
                probabilities[here], uncertainty[here], risk[here] = self._verdict(batch, anomaly[here])
        return SensorReading(
            probabilities=probabilities,
            families=np.clip(probabilities @ self._member, 0, 1),  # (N, 8)
            risk=np.clip(risk, 0, 1),
            uncertainty=uncertainty,
            anomaly=anomaly,
        )

    def _verdict(self, batch: Tensor, anomaly: NDArray[np.float32]) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]:
        """Probabilities (B, C), uncertainty (B,) and risk (B,) of raw windows (B, T, F)."""
        alone = self.model.predict_attack_probability(batch)  # (B, C)
        if self.second is None:
            entropy = -(alone * alone.clamp(min=1e-12).log()).sum(dim=1)  # (B,)
            doubt = (entropy / max(np.log(len(self.class_names)), 1e-12)).clamp(0, 1)
            return alone.numpy(), doubt.numpy(), alone.numpy() @ self._severity
        draws = temporal_draws(self.second.model, batch)  # (S, B, C) float64
        members = np.stack([alone.numpy(), draws.mean(dim=0).numpy()])
        # The anomaly stands beside the probabilities in every reading: in them it would be told twice. The risk is the verdict of all.
        risk = self.second.fusion.combine(members, anomaly) @ self._severity
        return self.second.fusion.combine(members), self.second.uncertainty(disagreement([alone[None], draws])).numpy(), risk

    def predict_attack_risk(self, network_sequence: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Risk of one sequence of named raw features, oldest step first.

        A sequence shorter than `sequence_length` is filled up on the left by repeating its oldest step, so that the newest step
        stays the last one that the model reads; of a longer one the newest `sequence_length` steps are read. Order of keys is free.

        Returns:
            `predicted_attack` (class), `attack_category` (its family), `confidence` (its probability), `risk_score` (severity-weighted probability, raised
            by the anomaly where the sensor is a fused one), `is_attack` (the class is not benign), `severity_level` (none, low, medium, high, critical:
            fifths of the risk score), `all_probabilities` (by class), `uncertainty`, `anomaly_score`.

        Raises:
            UserError: for an empty sequence, a missing or unknown feature, or a value that is no finite number.
        """
        if len(network_sequence) == 0:
            raise UserError("the sequence is empty; give at least one step")
        steps = [self._row(index, step) for index, step in enumerate(network_sequence)][-self.sequence_length :]
        steps = [steps[0]] * (self.sequence_length - len(steps)) + steps
        reading = self.read(np.array([steps], dtype=np.float32))
        chosen = int(reading.probabilities[0].argmax())
        category = FAMILIES[int(self._member[chosen].argmax())]
        risk = float(reading.risk[0])
        return {
            "predicted_attack": self.class_names[chosen],
            "attack_category": category,
            "confidence": float(reading.probabilities[0, chosen]),
            "risk_score": risk,
            "is_attack": category != FAMILIES[0],
            "severity_level": next(level for bound, level in LEVELS if risk < bound),
            "all_probabilities": {name: float(value) for name, value in zip(self.class_names, reading.probabilities[0], strict=True)},
            "uncertainty": float(reading.uncertainty[0]),
            "anomaly_score": float(reading.anomaly[0]),
        }

    def _row(self, index: int, step: Mapping[str, float]) -> list[float]:
        unknown = sorted(set(step) - set(self.feature_names))
        if unknown:
            raise UserError(f"step {index}: unknown feature '{unknown[0]}'; known: {', '.join(self.feature_names)}")
        row: list[float] = []
        for name in self.feature_names:
            if name not in step:
                raise UserError(f"step {index}: feature '{name}' is missing")
            try:
                row.append(float(step[name]))
            except (TypeError, ValueError) as error:
                raise UserError(f"step {index}: feature '{name}' is {step[name]!r}, not a number") from error
            if not abs(row[-1]) <= LARGEST:
                raise UserError(f"step {index}: feature '{name}' is {step[name]!r}, not a finite number of single precision")
        return row

    def save(self, folder: Path, meta: Mapping[str, Any]) -> None:
        """Write the sensor as an artifact folder, atomically."""
        stated = {"feature_names": self.feature_names, "class_names": self.class_names, **ALONE, **self.detector.stated()}
        arrays: dict[str, Mapping[str, Tensor]] = {"anomaly": self.detector.tensors()}
        if self.second is not None:
            stated |= {**FUSED, "temporal": asdict(self.second.model.config)}
            fusion = {**self.second.fusion.tensors(), "usual_disagreement": torch.tensor(self.second.usual, dtype=torch.float64)}
            arrays |= {"temporal": self.second.model.state_dict(), "fusion": fusion}
        save_predictor(folder, self.model, {**meta, **stated}, arrays)

    @classmethod
    def load(cls, folder: Path) -> EnhancedAttackPredictor:
        """Open a saved sensor.

        Raises:
            UserError: when the folder is missing, altered, or its arrays do not fit each other.
        """
        model, meta = load_predictor(folder)
        try:
            arrays = load_file(folder / "anomaly.safetensors")
            detector = _open_detector(meta, arrays, model.scaler)
            second = None
            if "temporal" in meta:
                temporal, fusion = _open_temporal(folder, meta), load_file(folder / "fusion.safetensors")
                second = Second(temporal, Fusion.from_tensors(fusion), float(fusion["usual_disagreement"]))
            sensor = cls(model, detector, meta["feature_names"], meta["class_names"], second)
            sensor.read(np.zeros((1, model.config.sequence_length, model.config.input_size), dtype=np.float32))
        except (OSError, KeyError, TypeError, RuntimeError, ValueError, SafetensorError) as error:
            raise UserError(f"artifact '{folder}' holds no usable sensor ({' '.join(str(error).split())}); train it again") from error
        return sensor


def load_networks(folder: Path) -> tuple[RealDataLSTMPredictor, AdvancedLSTMTemporal, dict[str, Any]]:
    """Base LSTM, temporal LSTM and `meta.json` of an artifact that holds both: trained networks, or a whole sensor.

    Raises:
        UserError: when the folder is missing, altered, or holds no temporal LSTM.
    """
    model, meta = load_predictor(folder)
    try:
        return model, _open_temporal(folder, meta), meta
    except (OSError, KeyError, TypeError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"artifact '{folder}' holds no usable temporal LSTM ({' '.join(str(error).split())}); train it again") from error


def _open_temporal(folder: Path, meta: Mapping[str, Any]) -> AdvancedLSTMTemporal:
    temporal = create_model(meta["temporal"])
    temporal.load_state_dict(load_file(folder / "temporal.safetensors"))
    return temporal.eval()


def _open_detector(meta: Mapping[str, Any], arrays: Mapping[str, Tensor], scaler: Scaler) -> Detector:
    """The detector that an artifact states."""
    if "autoencoder" in meta:
        return AnomalyDetector.from_tensors(SAEConfig.of(meta["autoencoder"]), arrays)
    return BenignSubspace(scaler, arrays["mean"], arrays["components"], arrays["reference"])


def temporal_draws(model: AdvancedLSTMTemporal, windows: Tensor) -> Tensor:
    """(S, B, C) calibrated probabilities of raw windows (B, T, F) under each draw from the posterior."""
    return torch.softmax(model.sample_logits(windows).double() / model.temperature, dim=-1)


def _load_pyfunc(path: str) -> _Served:
    """Entry point of MLflow's model format: opens the artifact that was stored with the run; nothing is unpickled."""
    return _Served(EnhancedAttackPredictor.load(Path(path)))


class _Served:
    """A sensor that answers arrays with arrays, as model servers want it."""

    def __init__(self, sensor: EnhancedAttackPredictor) -> None:
        self.sensor = sensor

    def predict(self, model_input: NDArray[np.float32], params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """Readings (N, 11) of raw windows (N, T, F); columns follow `src.predictor.interface.sensor_names`."""
        return self.sensor.read(np.asarray(model_input, dtype=np.float32)).table()
