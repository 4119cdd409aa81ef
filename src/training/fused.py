"""From trained networks and a trained anomaly detector to one sensor: joined on `calibrate`, evaluated on `test`, saved whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from src.artifacts import content_digest
from src.config import Config
from src.data.dataset import Dataset
from src.data.taxonomy import family_index
from src.errors import UserError
from src.models.fusion import Fusion, disagreement
from src.models.lstm_attack_predictor import RealDataLSTMPredictor
from src.models.lstm_sae import AnomalyDetector
from src.models.predictor_interface import Detector, EnhancedAttackPredictor, Second, load_networks, temporal_draws
from src.models.scores import Evaluation
from src.models.temporal_lstm import AdvancedLSTMTemporal
from src.training.autoencoder import AutoencoderTrainer
from src.training.log import TrainingLog
from src.training.lstm_trainer import LSTMTrainer, confusion_figure, provenance, torch_threads

LEAST_DISAGREEMENT = 0.01
"""Nats: networks that agree on all calibration windows are not told apart more finely than this."""


@dataclass(frozen=True)
class TrainedSensor:
    """What a training leaves."""

    sensor: EnhancedAttackPredictor
    """Ready to read."""
    evaluation: Evaluation
    """Of the whole sensor on `test` windows."""
    metrics: dict[str, float]
    """Figures on `test`, of the whole and of its parts."""
    folder: Path
    """The artifact."""


def join(config: Config, dataset: Dataset, base: RealDataLSTMPredictor, temporal: AdvancedLSTMTemporal, detector: Detector) -> EnhancedAttackPredictor:
    """One sensor of both networks and the anomaly, its weights and reference values fitted on `calibrate`.

    Benign windows count as much as all attacks together there: a data set of attacks holds few, and what devices show is benign mostly, so that
    a verdict at the data set's own odds would see attacks everywhere.
    """
    batches, attack = LSTMTrainer(config, dataset).batches("calibrate"), family_index(dataset.class_names) != 0
    members, anomaly, apart = [], [], []
    with torch.inference_mode():
        for batch in batches:
            windows = batch[0]
            alone, draws = base.predict_attack_probability(windows), temporal_draws(temporal, windows)
            members.append(np.stack([alone.numpy(), draws.mean(dim=0).numpy()]))
            anomaly.append(detector.anomaly(windows.numpy()))
            apart.append(disagreement([alone[None], draws]))
    labels = batches.labels.numpy()
    hostile, benign = np.flatnonzero(attack[labels]), np.flatnonzero(~attack[labels])
    even = np.concatenate([hostile, np.repeat(benign, max(1, round(len(hostile) / max(1, len(benign)))))])
    fusion = Fusion.fit(np.concatenate(members, axis=1)[:, even].astype(np.float64), np.concatenate(anomaly)[even], labels[even], attack)
    second = Second(temporal, fusion, max(float(torch.cat(apart).mean()), LEAST_DISAGREEMENT))
    return EnhancedAttackPredictor(base, detector, dataset.feature_names, dataset.class_names, second)


def assemble(config: Config, dataset: Dataset, networks: Path, autoencoder: Path, folder: Path, log: TrainingLog | None = None) -> TrainedSensor:
    """Join what two artifacts hold, evaluate the sensor on `test`, and save it.

    Args:
        config: sections `data.window` and `compute` are read; all goes into the artifact.
        dataset: splits `calibrate` and `test` are read.
        networks: artifact of `LSTMTrainer`.
        autoencoder: artifact of `AutoencoderTrainer`.
        folder: of the sensor's artifact; replaced if it exists.
        log: receives the figures.

    Raises:
        UserError: when an artifact is missing or altered, the two read different windows, or a split is empty.
    """
    base, temporal, trained = load_networks(networks)
    detector, apart = AnomalyDetector.load(autoencoder)
    reads = [(tuple(meta.get("feature_names", ())), shape.sequence_length) for meta, shape in ((trained, base.config), (apart, detector.model.config))]
    if reads[0] != reads[1] or "metrics" not in apart:
        raise UserError(f"autoencoder '{autoencoder}' and networks '{networks}' were not trained on windows of the same features and length; train both again")
    with torch_threads(config.compute.threads):
        sensor = join(config, dataset, base, temporal, detector)
        evaluation = LSTMTrainer(config, dataset).evaluate(lambda windows: sensor.read(windows).probabilities)
    parts = {**trained["metrics"], **{f"autoencoder/{key}": value for key, value in apart["metrics"].items()}}
    metrics = {**parts, **evaluation.metrics(), "seconds": parts["seconds"] + parts["autoencoder/seconds"]}
    sensor.save(folder, {**provenance(config, dataset), "metrics": metrics, "made_of": [content_digest(networks), content_digest(autoencoder)]})
    if log is not None:
        log.log_metrics({f"test/{key}": value for key, value in metrics.items()})
        log.log_table(evaluation.rows(), "sensor_classes.json")
        log.log_figure(confusion_figure(evaluation, dataset.source), "sensor_confusion.png")
    return TrainedSensor(sensor, evaluation, metrics, folder)


def train_sensor(config: Config, dataset: Dataset, folder: Path, log: TrainingLog | None = None, resume: bool = False) -> TrainedSensor:
    """Train networks and autoencoder and join them, into `folder`/networks, /autoencoder and /predictor.

    Raises:
        UserError: as the trainers.
    """
    LSTMTrainer(config, dataset, log).train(folder / "networks", resume)
    AutoencoderTrainer(config, dataset, log).train(folder / "autoencoder", resume)
    return assemble(config, dataset, folder / "networks", folder / "autoencoder", folder / "predictor", log)
