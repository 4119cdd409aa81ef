"""The LSTM autoencoder of a data set's benign windows: training, calibration, evaluation, figures, artifact."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from src.config import Config
from src.data.dataset import Dataset
from src.data.taxonomy import FAMILIES, family_index
from src.data.windows import gather, window_starts
from src.errors import UserError
from src.models.loop import History, WindowBatches
from src.models.lstm_sae import AnomalyDetector, LSTMAutoencoder, SAEConfig, build_autoencoder
from src.training.explanation_figures import canvas
from src.training.log import TrainingLog
from src.training.lstm_trainer import provenance, torch_threads, training_bar
from src.training.sae_trainer import SAETrainer, evenly

WINDOWS = 20_000
"""Benign windows of a split that are used at most, evenly spread: what is usual settles far below that."""
LEVELS = {"alarms_01": 0.99, "alarms_05": 0.95}
"""Anomaly scores above which a window alarms, by the name of the share of windows that do."""


@dataclass(frozen=True)
class TrainedDetector:
    """What a training leaves."""

    detector: AnomalyDetector
    """Ready to read."""
    rows: list[dict[str, Any]]
    """Of each family on `test`: windows, AUROC against benign ones (null for benign itself) and the shares that alarm."""
    history: History
    """A row an epoch."""
    metrics: dict[str, float]
    """Figures on `test`, with seconds and parameters."""
    folder: Path
    """The artifact."""


class AutoencoderTrainer:
    """Trains the LSTM autoencoder as the configuration says."""

    def __init__(self, config: Config, dataset: Dataset, log: TrainingLog | None = None) -> None:
        """Prepare.

        Args:
            config: sections `sae`, `data.window` and `compute` are read.
            dataset: benign windows of `fit` and `calibrate`, and all of `test`, are read.
            log: receives figures of each epoch and the final ones.
        """
        self.config, self.dataset, self.log = config, dataset, log
        model = config.sae.model
        self.shape = SAEConfig(len(dataset.feature_names), config.data.window, model.encoder_units, model.decoder_units, model.dropout)
        self._benign = np.flatnonzero(family_index(dataset.class_names) == 0)  # classes

    def benign(self, split: str) -> NDArray[np.int64]:
        """(W,) first rows of the benign windows of a split, evenly chosen where there are more than `WINDOWS`.

        Raises:
            UserError: when the split has none.
        """
        rows = self.dataset.splits[split]
        starts = window_starts(rows.segment, self.config.data.window)
        starts = starts[np.isin(rows.label[starts], self._benign)]
        if len(starts) == 0:
            raise UserError(f"split '{split}' holds no benign window of {self.config.data.window} rows; read more benign rows or lower data.window")
        return evenly(starts, WINDOWS)

    def windows(self, split: str) -> NDArray[np.float32]:
        """(W, T, F) raw benign windows of a split."""
        return gather(self.dataset.splits[split].features, self.benign(split), self.config.data.window)

    def _batches(self, split: str, shuffled: bool) -> WindowBatches:
        rows, starts = self.dataset.splits[split], self.benign(split)
        size, generator = (self.config.sae.training.batch_size, torch.Generator()) if shuffled else (1024, None)
        labels = torch.zeros(len(starts), dtype=torch.int64)
        return WindowBatches(torch.from_numpy(rows.features), torch.from_numpy(starts), labels, self.config.data.window, size, generator)

    def train(self, folder: Path, resume: bool = False) -> TrainedDetector:
        """Train on benign windows of `fit`, calibrate on those of `calibrate`, evaluate on `test` and save to `folder`.

        A checkpoint lies beside `folder` while training runs; it is removed once the artifact is whole.

        Args:
            folder: of the artifact; replaced if it exists.
            resume: go on from the checkpoint that an interrupted run left, if there is one.

        Raises:
            UserError: when a split holds no benign window, training diverges or a checkpoint belongs to another run.
        """
        started = time.perf_counter()
        checkpoint = folder.with_name(f"{folder.name}.checkpoint.pt")
        model, trainer, history = self._fit(checkpoint, resume)
        with torch_threads(self.config.compute.threads):
            detector = AnomalyDetector.fit(model, self.windows("fit"), self.windows("calibrate"))
            rows, metrics = self._evaluate(detector)
        metrics |= {
            "best_epoch": float(trainer.stopping.best_epoch),
            "epochs": float(len(history)),
            **{f"windows_{split}": float(len(self.benign(split))) for split in ("fit", "calibrate")},
            "parameters": float(model.count_parameters()),
            "seconds": time.perf_counter() - started,
        }
        names = {"feature_names": self.dataset.feature_names, "class_names": self.dataset.class_names, "stopped": trainer.stopping.reason}
        detector.save(folder, {**provenance(self.config, self.dataset), **names, "metrics": metrics, "families": rows})
        checkpoint.unlink(missing_ok=True)
        if self.log is not None:
            self.log.log_metrics({f"test/{key}": value for key, value in metrics.items()})
            self.log.log_table(rows, "anomaly_families.json")
            self.log.log_figure(loss_figure(history, self.dataset.source), "autoencoder_learning.png")
        return TrainedDetector(detector, rows, history, metrics, folder)

    def follow(self) -> None:
        """Take part in another process's `train`, which keeps checkpoints, evaluates and saves; the resumption is its matter too.

        Raises:
            UserError: as `train` does.
        """
        self._fit(None, resume=True)

    def _fit(self, checkpoint: Path | None, resume: bool) -> tuple[LSTMAutoencoder, SAETrainer, History]:
        """Train the network."""
        known, compute = self.dataset.splits["fit"], self.config.compute
        model = build_autoencoder(self.shape, compute.seed, known.features[np.isin(known.label, self._benign)])
        trainer = SAETrainer(model, self.config.sae.training, seed=compute.seed, device=compute.device)
        identity = f"{self.dataset.data_hash} {self.dataset.feature_names} {self.dataset.class_names}"
        with torch_threads(compute.threads), training_bar("autoencoder", self.config.sae.training.epochs, "loss") as show:

            def on_epoch(row: dict[str, float]) -> None:
                if self.log is not None:
                    self.log.log_metrics({f"sae/{key}": value for key, value in row.items() if key != "epoch"}, step=int(row["epoch"]))
                show(row)

            batches = self._batches("fit", True), self._batches("calibrate", False)
            history = trainer.train(*batches, on_epoch=on_epoch, checkpoint=checkpoint, resume=resume, identity=identity)
        return model, trainer, history

    def _evaluate(self, detector: AnomalyDetector) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Rows of the families on `test`, and the figures over all attacks."""
        rows, length = self.dataset.splits["test"], self.config.data.window
        starts = window_starts(rows.segment, length)
        if len(starts) == 0:
            raise UserError(f"split 'test' holds no window of {length} rows; read more rows or lower data.window")
        score = np.concatenate([detector.score(gather(rows.features, part, length)) for part in np.array_split(starts, -(-len(starts) // 4096))])
        anomaly, family = detector.rarity(score), family_index(self.dataset.class_names)[rows.label[starts]]
        ordinary = family == 0
        found: list[dict[str, Any]] = []
        for index in np.unique(family):
            mine = family == index
            both = mine | ordinary
            told = None if index == 0 or not ordinary.any() else float(roc_auc_score(mine[both], score[both]))
            shares = {name: float((anomaly[mine] > level).mean()) for name, level in LEVELS.items()}
            found.append({"family": FAMILIES[index], "windows": int(mine.sum()), "auroc": told, **shares})
        told = [row["auroc"] for row in found if row["auroc"] is not None]
        metrics = {f"benign_{name}": float((anomaly[ordinary] > level).mean()) for name, level in LEVELS.items() if ordinary.any()}
        return found, metrics | ({"auroc": float(np.mean(told))} if told else {})


def loss_figure(history: History, source: str) -> Figure:
    """Reconstruction loss of each epoch, on `fit` while training and on `calibrate`."""
    figure = canvas(5.5, 3.6)
    axes, epochs = figure.subplots(), [row["epoch"] for row in history]
    for side, style in (("train", "--"), ("calibrate", "-")):
        axes.plot(epochs, [row[f"{side}/loss"] for row in history], style, marker=".", label="fit (dropout on)" if side == "train" else side)
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean squared error, scaled units")
    axes.legend()
    axes.set_title(f"LSTM autoencoder ({source})")
    return figure
