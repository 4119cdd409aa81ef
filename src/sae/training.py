"""Stage 3: an LSTM autoencoder learns benign windows, and what errors are usual on them.

    python -m src.sae.training --dataset bigbase --version v1

It trains on the windows of `train`, none of which may be an attack; the benign windows of `val` decide when to stop, and are the
reference of the anomaly score. `models/NAME` then holds the weights of the last epoch and of the best one, the history of training, and
the detector made of the best ones, so that nothing is fitted later on.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from src.artifacts import content_digest, new_artifact, open_artifact
from src.config import SAEModelConfig, SAETrainingConfig, explain, nearest
from src.errors import UserError
from src.models.lstm_sae import KIND, AnomalyDetector, SAEConfig, build_autoencoder
from src.sae import encoding
from src.sae.layout import Layout, Say, finish, layout_of, parser, teller
from src.sae.measures import read_array
from src.training.sae_trainer import ArrayBatches, SAETrainer, Selection, evenly

STRATEGIES = ("standard", "smart", "adaptive")
"""Of stopping."""


@dataclass(frozen=True)
class TrainingSettings:
    """How the autoencoder is trained."""

    model: SAEModelConfig = field(default_factory=SAEModelConfig)
    """Its shape."""
    training: SAETrainingConfig = field(default_factory=SAETrainingConfig)
    """Epochs, batches, rate and stopping."""
    max_train: int | None = None
    """Most training windows, evenly spread; None: all."""
    max_val: int | None = None
    """Most benign validation windows that decide when to stop; None: all. The anomaly score's reference is all of them in any case."""
    seed: int = 0
    """Of weights, shuffling and dropout."""
    resume: bool = False
    """Go on from the checkpoint of an interrupted training, if there is one."""


def train(layout: Layout, settings: TrainingSettings, say: Say) -> dict[str, Any]:
    """Write `layout.model` from `layout.encoded`.

    Returns:
        What the metadata file of the artifact holds.

    Raises:
        UserError: when stage 2 is missing or damaged, a training window is an attack, there is no benign validation window, or training diverges.
    """
    began = time.perf_counter()
    open_artifact(layout.encoded, encoding.KIND)
    encoded = content_digest(layout.encoded)
    windows = {part: read_array(layout.encoded / f"X_{part}_sequences.npy") for part in ("train", "val")}
    fit, held, notes = _chosen(layout, windows)
    for note in notes:
        say(f"note: {note}")
    learned, judged = Selection(windows["train"], evenly(fit, settings.max_train)), Selection(windows["val"], evenly(held, settings.max_val))
    _, length, features = windows["train"].shape
    shape = SAEConfig(features, length, settings.model.encoder_units, settings.model.decoder_units, settings.model.dropout)
    model = build_autoencoder(shape, settings.seed)
    trainer = SAETrainer(model, settings.training, seed=settings.seed)
    sizes = " ".join(map(str, shape.encoder_units)), " ".join(map(str, shape.decoder_units))
    say(f"{model.count_parameters():,} parameters (encoder {sizes[0]}, decoder {sizes[1]}) on {trainer.device.type}")
    say(f"{len(learned):,} of {len(fit):,} training and {len(judged):,} of {len(held):,} benign validation windows of {length} rows x {features} features")

    last: dict[str, Tensor] = {}
    show = _Progress(settings.training, say)

    def on_epoch(row: dict[str, float]) -> None:
        last.update((name, value.detach().cpu().clone()) for name, value in model.state_dict().items())
        show(row)

    size, checkpoint = settings.training.batch_size, layout.model.with_name(f"{layout.name}.checkpoint.pt")
    history = trainer.train(
        ArrayBatches(learned, size, torch.Generator()),
        ArrayBatches(judged, 1024),
        on_epoch=on_epoch,
        checkpoint=checkpoint,
        resume=settings.resume,
        identity=f"{encoded} {settings.max_train} {settings.max_val}",
    )
    stopping = trainer.stopping
    say(f"stopped after epoch {len(history)}: {stopping.reason or 'it was the last'}")
    say(f"best validation loss {stopping.best:.6g} of epoch {stopping.best_epoch}, whose weights are kept")

    # the detector slices its windows and never asks for all of them, so that it takes a selection as it takes an array
    fitted, reference = (cast(NDArray[np.float32], part) for part in (learned, Selection(windows["val"], held)))
    detector = AnomalyDetector.fit(model, fitted, reference)
    metadata: dict[str, Any] = {
        "dataset": layout.dataset,
        "version": layout.version,
        "model": asdict(shape),
        "parameters": model.count_parameters(),
        "training": settings.training.model_dump(),
        "seed": settings.seed,
        "windows": {"train": len(learned), "train_available": len(fit), "validation": len(judged), "validation_benign": len(held)},
        "epochs": len(history),
        "best_epoch": stopping.best_epoch,
        "best_validation_loss": stopping.best,
        "stopped": stopping.reason or "last epoch",
        "notes": notes,
        "device": trainer.device.type,
        "encoded": {"folder": layout.encoded.name, "digest": encoded},
        "seconds": round(time.perf_counter() - began, 1),
    }
    rows = [{name: value if math.isfinite(value) else None for name, value in row.items()} for row in history]
    with new_artifact(layout.model, KIND, metadata) as target:
        save_file(last, target / f"{layout.model_name}.safetensors")
        save_file(model.state_dict(), target / f"{layout.model_name}-best.safetensors")
        save_file({name: value.contiguous() for name, value in detector.tensors().items()}, target / "detector.safetensors")
        for kind, tree in (("history", {"epochs": rows, "best_epoch": stopping.best_epoch, "stopped": metadata["stopped"]}), ("metadata", metadata)):
            (target / f"{kind}-{layout.model_name}.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    say(f"done: {layout.model}")
    return metadata


def _chosen(layout: Layout, windows: dict[str, NDArray[np.float32]]) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
    """Indices of training windows, and of benign validation windows; and what is to be known of them.

    Raises:
        UserError: for a training window that is an attack, windows and marks that do not fit, or a part without a window.
    """
    marks = {part: np.asarray(read_array(layout.encoded / f"y_{part}.npy")) for part in windows}
    for part, array in windows.items():
        if array.ndim != 3 or marks[part].shape != array.shape[:1] or array.shape[1:] != windows["train"].shape[1:]:
            raise UserError(f"'{layout.encoded}': windows {array.shape} and marks {marks[part].shape} of {part} do not fit together; run stage 2 again")
    attacks = np.flatnonzero(marks["train"] == 1)
    if len(attacks):
        raise UserError(
            f"'{layout.encoded}': {len(attacks)} training windows are attacks (the first is number {attacks[0]}); "
            "the autoencoder learns benign windows only, run stage 2 again"
        )
    notes = []
    unknown = int((marks["train"] == -1).sum())
    if unknown:
        notes.append(f"{unknown:,} of {len(marks['train']):,} training windows have no label; they are taken as benign")
    held = np.flatnonzero(marks["val"] == 0)
    if not len(held):
        held = np.flatnonzero(marks["val"] == -1)
        notes.append(f"no validation window is known to be benign; {len(held):,} without a label are taken as benign")
    if not len(held) or not len(marks["train"]):
        empty = "training" if len(held) else "benign validation"
        raise UserError(f"'{layout.encoded}' holds no {empty} window; take more rows, shorter windows or another split in stage 2")
    return np.arange(len(marks["train"])), held, notes


class _Progress:
    """Shows epochs 1, 10, 20, ..., and every change of the learning rate."""

    def __init__(self, settings: SAETrainingConfig, say: Say) -> None:
        self.settings, self.say = settings, say
        self.rate, self.began = settings.learning_rate, time.perf_counter()

    def __call__(self, row: dict[str, float]) -> None:
        epoch, rate = int(row["epoch"]), row["learning_rate"]
        if rate != self.rate:
            self.say(f"learning rate {rate:.3g} from epoch {epoch} on")
            self.rate = rate
        if epoch == 1 or epoch % 10 == 0:
            seconds = time.perf_counter() - self.began
            self.say(f"epoch {epoch}/{self.settings.epochs}: loss {row['train/loss']:.6g}, validation {row['calibrate/loss']:.6g}, {seconds:.1f} s")


def add_training_flags(words: argparse.ArgumentParser) -> None:
    """The flags of this stage."""
    model, training = SAEModelConfig(), SAETrainingConfig()
    for name, units in (("encoder", model.encoder_units), ("decoder", model.decoder_units)):
        words.add_argument(
            f"--{name}-units", type=int, nargs="+", default=list(units), metavar="N",
            help=f"units of the {name}'s LSTM layers (default {' '.join(map(str, units))})",
        )  # fmt: skip
    numbers: tuple[tuple[str, type, float, str], ...] = (
        ("--dropout-rate", float, model.dropout, "behind each LSTM layer"),
        ("--learning-rate", float, training.learning_rate, "of Adam at the start"),
        ("--batch-size", int, training.batch_size, "windows a step"),
        ("--epochs", int, training.epochs, "largest number of epochs"),
        ("--min-improvement", float, training.min_improvement, "per cent that the smart strategy wants the validation loss better"),
        ("--patience", int, training.patience, "epochs without that before training stops"),
    )
    for flag, kind, usual, text in numbers:
        words.add_argument(flag, type=kind, default=usual, metavar="N", help=f"{text} (default {usual:g})")
    words.add_argument("--stopping-strategy", default=training.stopping, metavar="|".join(STRATEGIES), help=f"when training ends (default {training.stopping})")
    words.add_argument("--max-train", type=int, metavar="N", help="most training windows")
    words.add_argument("--max-val", type=int, metavar="N", help="most validation windows that decide when to stop")
    words.add_argument("--resume", action="store_true", help="go on with a training that was interrupted")


def training_settings(given: argparse.Namespace) -> TrainingSettings:
    """What the flags say, checked.

    Raises:
        UserError: for a value that is not allowed.
    """
    if given.stopping_strategy not in STRATEGIES:
        raise UserError(f"unknown --stopping-strategy '{given.stopping_strategy}': {nearest(given.stopping_strategy, STRATEGIES)}")
    for flag, most in (("--max-train", given.max_train), ("--max-val", given.max_val)):
        if most is not None and most < 2:
            raise UserError(f"{flag} is {most}; at least 2 windows are needed")
    if not 0 <= given.seed < 2**32:
        raise UserError(f"--seed is {given.seed}; allowed: 0 to {2**32 - 1}")
    try:
        model = SAEModelConfig(encoder_units=tuple(given.encoder_units), decoder_units=tuple(given.decoder_units), dropout=given.dropout_rate)
        training = SAETrainingConfig(
            epochs=given.epochs, batch_size=given.batch_size, learning_rate=given.learning_rate,
            stopping=given.stopping_strategy, min_improvement=given.min_improvement, patience=given.patience,
        )  # fmt: skip
    except ValidationError as error:
        raise UserError(explain(error, "training flags")) from error
    return TrainingSettings(model, training, given.max_train, given.max_val, given.seed, given.resume)


def run(words: list[str] | None) -> None:
    """Train as the command line says.

    Raises:
        UserError: for wrong input.
    """
    flags = parser("src.sae.training", "Train the autoencoder on benign windows (stage 3).")
    add_training_flags(flags)
    flags.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, shuffling and dropout (default 0)")
    given = flags.parse_args(words)
    layout, settings = layout_of(given), training_settings(given)
    train(layout, settings, teller())


if __name__ == "__main__":
    sys.exit(finish(run))
