"""From a data set to two trained, calibrated networks: training, calibration, evaluation, figures, artifact."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from src.config import Config, LSTMTrainingConfig
from src.data.dataset import Dataset
from src.data.windows import window_starts
from src.errors import UserError
from src.models.loop import History, Trainer, WindowBatches, seeded
from src.models.lstm_attack_predictor import LSTMConfig, RealDataLSTMPredictor, RealDataTrainer, TaughtTrainer, build_model, save_predictor
from src.models.scores import Evaluation, confusion_matrix
from src.models.temperature import fit_temperature
from src.models.temporal_lstm import AdvancedLSTMTemporal, create_model, get_config
from src.training.explanation_figures import canvas, log_explanations
from src.training.log import TrainingLog
from src.training.temporal_trainer import TemporalTrainer


@dataclass(frozen=True)
class TrainedNetworks:
    """What a training leaves."""

    base: RealDataLSTMPredictor
    temporal: AdvancedLSTMTemporal
    histories: Mapping[str, History]
    """Of `lstm` and `temporal`, a row an epoch."""
    metrics: dict[str, float]
    """Figures of each on `test`, with seconds and parameters."""
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


def teacher_seed(seed: int, number: int) -> int:
    """Seed of a teacher of the network that is trained with `seed`: no two networks of a series of seeds share theirs."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def remove_checkpoints(checkpoint: Path) -> None:
    """Remove the checkpoint of a network and those of its teachers."""
    for file in (checkpoint, *checkpoint.parent.glob(f"{checkpoint.stem}.teacher*.pt")):
        file.unlink(missing_ok=True)


class LSTMTrainer:
    """Trains the base attack predictor and the temporal LSTM as the configuration says."""

    def __init__(self, config: Config, dataset: Dataset, log: TrainingLog | None = None) -> None:
        """Prepare.

        Args:
            config: sections `lstm`, `temporal`, `data.window` and `compute` are read.
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
            pooling=shape.pooling,
        )
        temporal = config.temporal.model
        chosen = {name: getattr(temporal, name) for name in type(temporal).model_fields if name != "preset"}
        self.temporal_shape = get_config(
            temporal.preset,
            **{name: value for name, value in chosen.items() if value is not None},
            input_size=len(dataset.feature_names),
            num_classes=len(dataset.class_names),
            num_domains=len(dataset.domain_names),
            sequence_length=config.data.window,
        )

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

    def batches(self, split: str, settings: LSTMTrainingConfig | None = None) -> WindowBatches:
        """Windows of a split with labels and domains: every one in order, or, as training settings say, at their stride and shuffled."""
        starts, labels = self.windows(split, 1 if settings is None else settings.stride)
        rows = self.dataset.splits[split]
        size, generator = (4096, None) if settings is None else (settings.batch_size, torch.Generator())
        features, first, label, domain = (torch.from_numpy(part) for part in (rows.features, starts, labels, rows.domain[starts].astype(np.int64)))
        return WindowBatches(features, first, label, self.shape.sequence_length, size, generator, domain)

    def train_base(self, checkpoint: Path | None = None, resume: bool = False) -> tuple[RealDataLSTMPredictor, History]:
        """Train and calibrate the base LSTM, after its teachers; returns it on the CPU, with a row an epoch.

        Args:
            checkpoint: file written after each epoch; those of the teachers lie beside it (`remove_checkpoints`).
            resume: go on from them, if they are there.
        """
        settings, seed = self.config.lstm.training, self.config.compute.seed
        batches = self.batches("fit", settings)
        if settings.teachers == 0:
            return self._train_base(RealDataTrainer, seed, batches, "lstm", checkpoint, resume)
        total = torch.zeros(len(batches.starts), self.shape.num_classes)
        for number in range(settings.teachers):
            file = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.stem}.teacher{number}.pt")
            teacher, _ = self._train_base(RealDataTrainer, teacher_seed(seed, number), batches, f"teacher {number + 1}", file, resume)
            with torch.inference_mode(), torch_threads(self.config.compute.threads):
                logits = torch.cat([teacher.eval()(batch[0]) for batch in batches.in_order()]) / teacher.temperature  # (W, C)
            total += torch.softmax(logits / settings.teacher_softening, dim=-1)
        batches.taught = total / settings.teachers
        return self._train_base(TaughtTrainer, seed, batches, "lstm", checkpoint, resume)

    def _train_base(
        self, kind: type[RealDataTrainer], seed: int, batches: WindowBatches, name: str, checkpoint: Path | None, resume: bool
    ) -> tuple[RealDataLSTMPredictor, History]:
        """Train and calibrate one network of the base LSTM's shape."""
        model = build_model(self.shape, seed)
        model.scaler.fit(self.dataset.splits["fit"].features)
        trainer = kind(model, self.config.lstm.training, seed=seed, device=self.config.compute.device, class_counts=self._counts(batches))
        history = self._train(trainer, batches, name, checkpoint, resume)
        model.to("cpu").temperature.fill_(fit_temperature(*self._collect(lambda windows: model.eval()(windows)[None])))
        return model, history

    def train_temporal(self, checkpoint: Path | None = None, resume: bool = False, target: WindowBatches | None = None) -> tuple[AdvancedLSTMTemporal, History]:
        """Train and calibrate the temporal LSTM; returns it on the CPU, with a row an epoch.

        Args:
            checkpoint: file written after each epoch.
            resume: go on from it, if it is there.
            target: unlabelled windows of another site, for the discriminator.
        """
        compute, settings = self.config.compute, self.config.temporal.training
        with seeded(compute.seed, 0):
            model = create_model(self.temporal_shape)
        model.scaler.fit(self.dataset.splits["fit"].features)
        batches = self.batches("fit", settings)
        trainer = TemporalTrainer(model, settings, seed=compute.seed, device=compute.device, class_counts=self._counts(batches), target=target)
        history = self._train(trainer, batches, "temporal", checkpoint, resume)
        model.to("cpu").temperature.fill_(fit_temperature(*self._collect(model.sample_logits)))
        return model, history

    def _counts(self, batches: WindowBatches) -> NDArray[np.int64]:
        return np.bincount(batches.labels.numpy(), minlength=self.shape.num_classes)

    def _train(self, trainer: Trainer[Any], batches: WindowBatches, name: str, checkpoint: Path | None, resume: bool) -> History:
        with torch_threads(self.config.compute.threads), training_bar(name, trainer.settings.epochs) as show:

            def on_epoch(row: dict[str, float]) -> None:
                if self.log is not None and name in TITLES:  # teachers are only on the way
                    figures = {f"{name}/{key}": value for key, value in row.items() if key != "epoch"}
                    self.log.log_metrics(figures, step=int(row["epoch"]))
                show(row)

            identity = f"{self.dataset.data_hash} {self.dataset.feature_names} {self.dataset.class_names}"
            return trainer.train(batches, self.batches("calibrate"), on_epoch=on_epoch, checkpoint=checkpoint, resume=resume, identity=identity)

    def _collect(self, read: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (S, N, C) of `calibrate`, the split that chose the epoch, never `test`; and labels (N,)."""
        with torch.inference_mode(), torch_threads(self.config.compute.threads):
            parts = [(read(batch[0]), batch[1]) for batch in self.batches("calibrate")]
        return torch.cat([part[0] for part in parts], dim=1), torch.cat([part[1] for part in parts])

    def train(self, folder: Path, resume: bool = False) -> TrainedNetworks:
        """Train and calibrate both networks, evaluate each on `test` and save them to `folder`.

        Checkpoints lie beside `folder` while training runs; they are removed once the artifact is whole.

        Args:
            folder: of the artifact; replaced if it exists.
            resume: go on from the checkpoints that an interrupted run left, if there are any.

        Raises:
            UserError: when a split is empty, training diverges or a checkpoint belongs to another run.
        """
        started = time.perf_counter()
        checkpoints = {name: folder.with_name(f"{folder.name}.{name}.checkpoint.pt") for name in ("lstm", "temporal")}
        base, history = self.train_base(checkpoints["lstm"], resume)
        temporal, temporal_history = self.train_temporal(checkpoints["temporal"], resume)
        with torch_threads(self.config.compute.threads):
            evaluations = {
                "lstm": self.evaluate(lambda windows: base.predict_attack_probability(torch.from_numpy(windows)).numpy()),
                "temporal": self.evaluate(lambda windows: temporal.predict_attack_probability(torch.from_numpy(windows)).numpy()),
            }
        metrics = {
            **{f"{name}/{key}": found.metrics()[key] for name, found in evaluations.items() for key in ("accuracy", "macro_f1")},
            "lstm/temperature": float(base.temperature),
            "temporal/temperature": float(temporal.temperature),
            "lstm/best_epoch": _best_epoch(history),
            "temporal/best_epoch": _best_epoch(temporal_history),
            "lstm/parameters": float(base.count_parameters()),
            "temporal/parameters": float(temporal.count_parameters()["total"]),
            "seconds": time.perf_counter() - started,
        }
        names = {"feature_names": self.dataset.feature_names, "class_names": self.dataset.class_names, "temporal": asdict(temporal.config)}
        save_predictor(folder, base, {**provenance(self.config, self.dataset), **names, "metrics": metrics}, {"temporal": temporal.state_dict()})
        for checkpoint in checkpoints.values():
            remove_checkpoints(checkpoint)
        histories = {"lstm": history, "temporal": temporal_history}
        if self.log is not None:
            self.log.log_metrics({f"test/{key}": value for key, value in metrics.items()})
            for name, rows in histories.items():
                self.log.log_figure(history_figure(rows, TITLES[name], self.dataset.source), f"{name}_learning.png")
                self.log.log_figure(confusion_figure(evaluations[name], self.dataset.source), f"{name}_confusion.png")
                self.log.log_table(evaluations[name].rows(), f"{name}_classes.json")
            log_explanations(self.log, temporal, self.dataset, self.shape.sequence_length)
        return TrainedNetworks(base, temporal, histories, metrics, folder)

    def follow(self) -> None:
        """Take part in another process's `train`, which keeps checkpoints, evaluates and saves; the resumption is its matter too.

        Raises:
            UserError: as `train` does.
        """
        self.train_base(resume=True)
        self.train_temporal(resume=True)

    def evaluate(self, read: Callable[[NDArray[np.float32]], NDArray[np.floating]]) -> Evaluation:
        """What probabilities (N, C) of raw windows make of `test`."""
        classes, total = self.shape.num_classes, 0.0
        confusion = np.zeros((classes, classes), dtype=np.int64)
        for batch in self.batches("test"):
            labels = batch[1].numpy()
            found = read(batch[0].numpy())
            confusion += confusion_matrix(labels, found.argmax(axis=1), classes)
            total -= float(np.log(np.maximum(found[np.arange(len(labels)), labels], 1e-12)).sum())
        return Evaluation(tuple(self.dataset.class_names), confusion, total / int(confusion.sum()))


def provenance(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What the `meta.json` of every trained sensor says of its settings and data."""
    return {
        "config": config.model_dump(mode="json"),
        "seed": config.compute.seed,
        "data_hash": dataset.data_hash,
        "source": dataset.source,
        "site": dataset.site,
        "assembled": list(dataset.assembled),
    }


TITLES = {"lstm": "Base LSTM", "temporal": "Temporal LSTM"}


def _best_epoch(history: History) -> float:
    return float(max(history, key=lambda row: row["calibrate/macro_f1"])["epoch"])


@contextlib.contextmanager
def training_bar(name: str, epochs: int, key: str = "macro_f1") -> Iterator[Any]:
    """A bar of epochs on a terminal, nothing elsewhere; beside it the figure `key` on `calibrate`."""
    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not (console.is_terminal and sys.stderr.isatty()), transient=True) as bar:
        task = bar.add_task(name, total=epochs, note="")
        yield lambda row: bar.update(task, completed=row["epoch"], note=f"{key.replace('macro_f1', 'macro-F1')} {row[f'calibrate/{key}']:.3f}")


def confusion_figure(evaluation: Evaluation, source: str) -> Figure:
    """Confusion matrix in per cent of each true class; cells below half a per cent stay empty."""
    names, counts = evaluation.class_names, evaluation.confusion
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, C)
    side = 4.0 + 0.36 * len(names)
    figure = canvas(side + 1, side)
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


def history_figure(history: History, title: str, source: str) -> Figure:
    """Loss and macro-F1 of each epoch, on `fit` while training and on `calibrate`."""
    figure = canvas(9, 3.6)
    epochs = [row["epoch"] for row in history]
    for axes, key, heading in zip(figure.subplots(1, 2), ("loss", "macro_f1"), ("loss", "macro-F1"), strict=True):
        for side, style in (("train", "--"), ("calibrate", "-")):
            axes.plot(epochs, [row[f"{side}/{key}"] for row in history], style, marker=".", label="fit (dropout on)" if side == "train" else side)
        axes.set_xlabel("epoch")
        axes.set_ylabel(heading)
        axes.legend()
    figure.suptitle(f"{title} ({source})")
    return figure
