"""The base attack predictor: an LSTM over windows of traffic features, saved with its scaling and temperature.

The model takes raw features. Its scaling (fitted on `fit` rows only) and its temperature (fitted on `calibrate` windows)
are buffers of the model: they are saved with it, cannot be forgotten at inference, and are no trainable parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from src.artifacts import new_artifact, open_artifact
from src.config import TaughtTrainingConfig
from src.data.bank import FEATURE_BOUND
from src.errors import UserError
from src.models.classifier import ClassifierTrainer
from src.models.loop import Batch, seeded

KIND = "lstm-predictor"


@dataclass(frozen=True)
class LSTMConfig:
    """Shape of a `RealDataLSTMPredictor`."""

    input_size: int
    hidden_size: int = 128
    num_layers: int = 2
    num_classes: int = 34
    dropout: float = 0.2
    bidirectional: bool = False
    sequence_length: int = 10
    pooling: Literal["last", "last_mean"] = "last"


class Scaler(nn.Module):
    """Signed logarithm, then standardisation, clipped to +-5: traffic features span nine decades and have long tails.

    sign(x) log(1 + |x|) keeps the sign and order of every value, and 0 at 0. A column that is constant in the rows that the scaler
    was fitted on becomes 0, whatever it holds later.
    """

    centre: Tensor
    inverse: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("inverse", torch.ones(features))

    def fit(self, rows: NDArray[np.float32]) -> Scaler:
        """Take mean and deviation from raw rows (N, F); these must be `fit` rows."""
        values = rows.astype(np.float64)
        squashed = np.sign(values) * np.log1p(np.abs(values))  # (N, F)
        deviation = squashed.std(axis=0)
        constant = deviation < 1e-6
        self.centre.copy_(torch.from_numpy(squashed.mean(axis=0)))
        self.inverse.copy_(torch.from_numpy(np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation))))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Scale raw features (..., F); the precision of `x` is kept."""
        return ((torch.sign(x) * torch.log1p(x.abs()) - self.centre) * self.inverse).clamp(-FEATURE_BOUND, FEATURE_BOUND)


class RealDataLSTMPredictor(nn.Module):
    """LSTM, dropout, dense, ReLU, dropout, dense: logits of attack classes for a window of raw features.

    Source: Hochreiter and Schmidhuber 1997 for the cell; the layout and its sizes (128 units, 2 layers) are the product's document 001.
    A bidirectional model reads the last forward state beside the first backward one: each has seen the whole window. With `last_mean`
    pooling the mean of all states stands beside the last: what a window shows on average is then not for the cell to carry.
    """

    temperature: Tensor

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.scaler = Scaler(config.input_size)
        self.lstm = nn.LSTM(
            config.input_size,
            config.hidden_size,
            config.num_layers,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
            bidirectional=config.bidirectional,
            batch_first=True,
        )
        self.dropout_layer = nn.Dropout(config.dropout)
        middle = max(1, config.hidden_size // 2)
        width = config.hidden_size * (2 if config.bidirectional else 1) * (2 if config.pooling == "last_mean" else 1)
        self.classifier = nn.Sequential(
            nn.Linear(width, middle),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(middle, config.num_classes),
        )
        self.register_buffer("temperature", torch.ones(()))

    def embed(self, x: Tensor) -> Tensor:
        """What the output layer reads (B, E) of raw windows (B, T, F): the classifier's hidden layer."""
        states, _ = self.lstm(self.scaler(x))  # (B, T, H), or (B, T, 2H) with forward states first
        hidden = self.config.hidden_size
        last = states[:, -1, :hidden]  # (B, H)
        if self.config.bidirectional:
            last = torch.cat([last, states[:, 0, hidden:]], dim=1)  # (B, 2H)
        if self.config.pooling == "last_mean":
            last = torch.cat([last, states.mean(dim=1)], dim=1)  # (B, 2H), or (B, 4H)
        return self.classifier[:2](self.dropout_layer(last))  # (B, E)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of raw windows (B, T, F), before temperature and softmax."""
        return self.classifier[2:](self.embed(x))  # (B, C)

    def predict_attack_probability(self, x: Tensor) -> Tensor:
        """Calibrated probabilities (B, C) of raw windows (B, T, F); deterministic, whatever mode the model is in."""
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                return torch.softmax(self(x) / self.temperature, dim=-1)  # (B, C)
        finally:
            self.train(training)

    def predict_attack_type(self, x: Tensor) -> Tensor:
        """Most probable class (B,) of raw windows (B, T, F)."""
        return self.predict_attack_probability(x).argmax(dim=-1)  # (B,)

    def grow_classes(self, count: int) -> None:
        """Append `count` classes. Logits of the others stay as they are; a new one starts at their mean, below any class that is likely."""
        old = self.classifier[-1]
        assert isinstance(old, nn.Linear)
        new = nn.utils.skip_init(nn.Linear, old.in_features, old.out_features + count, device=old.weight.device, dtype=old.weight.dtype)
        assert isinstance(new, nn.Linear)
        with torch.no_grad():
            new.weight.copy_(torch.cat([old.weight, old.weight.mean(dim=0, keepdim=True).expand(count, -1)]))
            new.bias.copy_(torch.cat([old.bias, old.bias.mean().expand(count)]))
        self.classifier[-1] = new
        self.config = replace(self.config, num_classes=new.out_features)

    def count_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def build_model(config: LSTMConfig, seed: int) -> RealDataLSTMPredictor:
    """A model whose initial weights follow from `seed` alone."""
    with seeded(seed, 0):
        return RealDataLSTMPredictor(config)


class RealDataTrainer(ClassifierTrainer[RealDataLSTMPredictor]):
    """Trains a `RealDataLSTMPredictor`, saves it and takes a saved one over."""

    def save_model(self, folder: Path, meta: Mapping[str, Any]) -> None:
        """Write the model as an artifact folder; `meta` must name `class_names` and `feature_names`."""
        save_predictor(folder, self.model, meta)

    def load_model(self, folder: Path) -> dict[str, Any]:
        """Take over the weights of a saved model of the same shape; returns its `meta.json`.

        Raises:
            UserError: when the folder is missing, altered, or holds a model of another shape.
        """
        model, meta = load_predictor(folder)
        if model.config != self.shape:
            raise UserError(f"artifact '{folder}' holds {model.config}, not {self.shape}; train again or restore those settings")
        self.model.load_state_dict(model.state_dict())
        return meta


class TaughtTrainer(RealDataTrainer):
    """Trains a `RealDataLSTMPredictor` on labels and on what teachers say of the same windows: knowledge distillation.

    Loss of a batch: (1 - share) x labelled loss + share x softening^2 x cross-entropy with the teachers' probabilities, both read at the temperature
    `softening` (Hinton et al. 2015); windows weigh by their class as in the labelled loss. Teachers of the same shape lift it too (Furlanello et al. 2018).
    """

    def __init__(self, model: RealDataLSTMPredictor, settings: TaughtTrainingConfig, **options: Any) -> None:
        """As `Trainer`; batches to train on must carry the teachers' probabilities (`WindowBatches.taught`), read at `teacher_softening`."""
        super().__init__(model, settings, **options)
        self.share, self.softening = settings.teacher_share, settings.teacher_softening

    def objective(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss () of a batch on the trainer's device, and its logits (B, C); in evaluation the labelled loss alone."""
        loss, logits = super().objective(batch)
        if not self.model.training:
            return loss, logits
        labels, taught = batch[1], batch[-1]
        missed = -(taught * functional.log_softmax(logits.float() / self.softening, dim=-1)).sum(dim=-1)  # (B,)
        weight = torch.ones_like(missed) if self.class_weights is None else self.class_weights[labels]  # (B,)
        apart = self.softening**2 * (weight * missed).sum() / weight.sum()
        return (1 - self.share) * loss + self.share * apart, logits


def save_predictor(folder: Path, model: RealDataLSTMPredictor, meta: Mapping[str, Any], beside: Mapping[str, Mapping[str, Tensor]] | None = None) -> None:
    """Write weights, scaling and temperature as an artifact folder, atomically.

    Args:
        folder: replaced if it exists.
        model: goes to `model.safetensors`.
        meta: for `meta.json`; must name `class_names` and `feature_names`.
        beside: arrays of what is built on the model, by the name of their file.
    """
    with new_artifact(folder, KIND, {**meta, "model": asdict(model.config), "sequence_length": model.config.sequence_length}) as target:
        for name, arrays in {"model": model.state_dict(), **(beside or {})}.items():
            save_file({key: value.detach().cpu().contiguous() for key, value in arrays.items()}, target / f"{name}.safetensors")


def load_predictor(folder: Path) -> tuple[RealDataLSTMPredictor, dict[str, Any]]:
    """Read a saved model, ready for inference on the CPU, and its `meta.json`.

    Raises:
        UserError: when the folder is missing, altered, or its weights do not have the shapes that `meta.json` states.
    """
    meta = open_artifact(folder, KIND)
    try:
        stated = meta["model"]
        config = LSTMConfig(**{field.name: stated[field.name] for field in fields(LSTMConfig)})
        if (config.num_classes, config.input_size) != (len(meta["class_names"]), len(meta["feature_names"])):
            raise UserError(f"artifact '{folder}' names {len(meta['class_names'])} classes and {len(meta['feature_names'])} features for {config}")
        model = RealDataLSTMPredictor(config)
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"artifact '{folder}' does not fit this version's model: {reason}; delete it and train again") from error
    return model.eval(), meta
