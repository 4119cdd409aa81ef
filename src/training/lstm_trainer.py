"""From a data set to a saved, calibrated sensor: training, calibration, evaluation, figures, artifact."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from src.config import Config
from src.data.dataset import Dataset
from src.data.taxonomy import family_index
from src.data.windows import window_starts
from src.errors import UserError
from src.models.loop import History, WindowBatches
from src.models.lstm_attack_predictor import LSTMConfig, RealDataTrainer, build_model
from src.models.predictor_interface import BenignSubspace, EnhancedAttackPredictor, fit_temperature
from src.models.scores import Evaluation

SUBSPACE_WINDOWS = 20_000
"""Benign windows that the anomaly score is fitted on at most, evenly spread; its covariance settles far below that."""


class TrainingLog(Protocol):
    """Where figures of a training go: `src.tracking.Tracker`, or nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers, of an epoch or final."""

    def log_figure(self, figure: Figure, path: str) -> None:
        """Record a figure under a file name."""

    def log_table(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        """Record rows under a file name."""


@dataclass(frozen=True)
class TrainedSensor:
    """What a training leaves."""

    sensor: EnhancedAttackPredictor
    """Ready to read."""
    evaluation: Evaluation
    """On `test` windows."""
    history: History
    """A row an epoch."""
    metrics: dict[str, float]
    """Final figures on `test`, with seconds and parameters."""
    folder: Path
    """The artifact."""


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class LSTMTrainer:
    """Trains the base attack predictor as the configuration says."""

    def __init__(self, config: Config, dataset: Dataset, log: TrainingLog | None = None) -> None:
        """Prepare.

        Args:
            config: sections `lstm`, `data.window` and `compute` are read.
            dataset: splits `fit`, `calibrate` and `test` are read.
            log: receives figures of each epoch and the final ones.
        """
        self.config, self.dataset, self.log = config, dataset, log
        shape = config.lstm.model
        self.shape = LSTMConfig(
            input_size=len(dataset.feature_names),
            hidden_size=shape.hidden_size,
            num_layers=shape.num_layers,
            num_classes=len(dataset.class_names),
            dropout=shape.dropout,
            bidirectional=shape.bidirectional,
            sequence_length=config.data.window,
        )
        self._benign = np.flatnonzero(family_index(dataset.class_names) == 0)  # classes

    def windows(self, split: str, stride: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First rows (W,) and labels (W,) of the windows of a split.

        Raises:
            UserError: when the split has none.
        """
        rows = self.dataset.splits[split]
        starts = window_starts(rows.segment, self.shape.sequence_length, stride)
        if len(starts) == 0:
            raise UserError(f"split '{split}' holds no window of {self.shape.sequence_length} rows; read more rows or lower data.window")
        return starts, rows.label[starts].astype(np.int64)

    def _batches(self, split: str, stride: int = 1, shuffle: bool = False) -> WindowBatches:
        starts, labels = self.windows(split, stride)
        rows = torch.from_numpy(self.dataset.splits[split].features)
        size = self.config.lstm.training.batch_size if shuffle else 4096
        return WindowBatches(rows, torch.from_numpy(starts), torch.from_numpy(labels), self.shape.sequence_length, size, torch.Generator() if shuffle else None)

    def train(self, folder: Path, resume: bool = False) -> TrainedSensor:
        """Train, calibrate, evaluate on `test` and save to `folder`.

        A checkpoint lies beside `folder` while training runs; it is removed once the artifact is whole.

        Args:
            folder: of the artifact; replaced if it exists.
            resume: go on from the checkpoint that an interrupted run left, if there is one.

        Raises:
            UserError: when a split is empty, training diverges or the checkpoint belongs to another run.
        """
        started = time.perf_counter()
        compute, training = self.config.compute, self.config.lstm.training
        checkpoint = folder.with_name(folder.name + ".checkpoint.pt")
        with torch_threads(compute.threads):
            model = build_model(self.shape, compute.seed)
            model.scaler.fit(self.dataset.splits["fit"].features)
            batches = self._batches("fit", training.stride, shuffle=True)
            counts = np.bincount(batches.labels.numpy(), minlength=self.shape.num_classes)
            trainer = RealDataTrainer(model, training, seed=compute.seed, device=compute.device, class_counts=counts)
            with _progress(training.epochs) as show:

                def on_epoch(row: dict[str, float]) -> None:
                    self._log_epoch(row)
                    show(row)

                history = trainer.train(
                    batches,
                    self._batches("calibrate"),
                    on_epoch=on_epoch,
                    checkpoint=checkpoint,
                    resume=resume,
                    identity=f"{self.dataset.data_hash} {self.dataset.feature_names} {self.dataset.class_names}",
                )
            model.to("cpu")
            self._calibrate(trainer)
            evaluation = trainer.evaluate_detailed(self._batches("test"), tuple(self.dataset.class_names))
            sensor = EnhancedAttackPredictor(model, self._subspace(trainer), self.dataset.feature_names, self.dataset.class_names)
        metrics = {
            **evaluation.metrics(),
            "temperature": float(model.temperature),
            "best_epoch": float(max(history, key=lambda row: row["calibrate/macro_f1"])["epoch"]),
            "parameters": float(model.count_parameters()),
            "seconds": time.perf_counter() - started,
        }
        sensor.save(folder, self._meta(metrics))
        checkpoint.unlink(missing_ok=True)
        self._log_results(evaluation, history, metrics)
        return TrainedSensor(sensor, evaluation, history, metrics, folder)

    def _calibrate(self, trainer: RealDataTrainer) -> None:
        """Fit the temperature on `calibrate`: the split that chose the epoch, never `test`."""
        trainer.model.eval()
        parts = []
        with torch.inference_mode():
            for windows, labels in self._batches("calibrate"):
                parts.append((trainer.model(windows), labels))
        logits, labels = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])  # (N, C), (N,)
        trainer.model.temperature.fill_(fit_temperature(logits, labels))

    def _subspace(self, trainer: RealDataTrainer) -> BenignSubspace:
        def benign(split: str) -> torch.Tensor:
            starts, labels = self.windows(split, 1)
            starts = starts[np.isin(labels, self._benign)]
            if len(starts) > SUBSPACE_WINDOWS:
                starts = starts[np.linspace(0, len(starts) - 1, SUBSPACE_WINDOWS).astype(np.int64)]
            index = starts[:, None] + np.arange(self.shape.sequence_length)
            return trainer.model.scaler(torch.from_numpy(self.dataset.splits[split].features[index].astype(np.float64)))  # (N, T, F)

        with torch.inference_mode():
            return BenignSubspace.fit(benign("fit"), benign("calibrate"))

    def _meta(self, metrics: dict[str, float]) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "seed": self.config.compute.seed,
            "data_hash": self.dataset.data_hash,
            "source": self.dataset.source,
            "site": self.dataset.site,
            "assembled": list(self.dataset.assembled),
            "metrics": metrics,
        }

    def _log_epoch(self, row: dict[str, float]) -> None:
        if self.log is not None:
            self.log.log_metrics({key: value for key, value in row.items() if key != "epoch"}, step=int(row["epoch"]))

    def _log_results(self, evaluation: Evaluation, history: History, metrics: dict[str, float]) -> None:
        if self.log is None:
            return
        self.log.log_metrics({f"test/{key}": value for key, value in metrics.items()})
        self.log.log_table(evaluation.rows(), "lstm_classes.json")
        self.log.log_figure(confusion_figure(evaluation, self.dataset.source), "lstm_confusion.png")
        self.log.log_figure(history_figure(history, self.dataset.source), "lstm_learning.png")


@contextlib.contextmanager
def _progress(epochs: int) -> Iterator[Any]:
    """A bar of epochs on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("lstm"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not (console.is_terminal and sys.stderr.isatty()), transient=True) as bar:
        task = bar.add_task("lstm", total=epochs, note="")
        yield lambda row: bar.update(task, completed=row["epoch"], note=f"macro-F1 {row['calibrate/macro_f1']:.3f}")


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no global pyplot state, no window system
    return figure


def confusion_figure(evaluation: Evaluation, source: str) -> Figure:
    """Confusion matrix in per cent of each true class; cells below half a per cent stay empty."""
    names, counts = evaluation.class_names, evaluation.confusion
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, C)
    side = 4.0 + 0.36 * len(names)
    figure = _new_figure(side + 1, side)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.argwhere(share >= 0.5):
        value = share[row, column]
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if value > 55 else "black")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figures = evaluation.metrics()
    axes.set_title(f"Test windows ({source}): accuracy {figures['accuracy']:.3f}, macro-F1 {figures['macro_f1']:.3f}")
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    return figure


def history_figure(history: History, source: str) -> Figure:
    """Loss and macro-F1 of each epoch, on `fit` while training and on `calibrate`."""
    figure = _new_figure(9, 3.6)
    epochs = [row["epoch"] for row in history]
    for axes, key, title in zip(figure.subplots(1, 2), ("loss", "macro_f1"), ("loss", "macro-F1"), strict=True):
        for side, style in (("train", "--"), ("calibrate", "-")):
            axes.plot(epochs, [row[f"{side}/{key}"] for row in history], style, marker=".", label="fit (dropout on)" if side == "train" else side)
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)
        axes.legend()
    figure.suptitle(f"Base LSTM ({source})")
    return figure
