"""LSTM autoencoder of windows, and what it makes of them: a calibrated anomaly score that benign traffic alone teaches.

The layout is that of Malhotra et al. 2016 (LSTM-based encoder-decoder for multi-sensor anomaly detection) as the product's document 003
has it: LSTM layers read a window, the last state of the last one is the latent code, the code is repeated at every step, LSTM layers
and a linear layer turn it into the window again. What a network that knows benign windows alone cannot rebuild is abnormal.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from src.artifacts import new_artifact, open_artifact
from src.errors import UserError
from src.models.loop import seeded
from src.models.lstm_attack_predictor import Scaler

KIND = "lstm-sae"
SOURCE = "LSTM autoencoder p-value"
AT_ONCE = 2048
"""Windows that go through the network at once."""
ROUNDING = 1e-9
"""Share of a score by which batching may move it; it may not move it past a calibration score that equals its own."""
FLOOR = 1e-4
"""Mean squared error, in scaled units, that is added before the logarithm: a window that is rebuilt exactly has one."""


@dataclass(frozen=True)
class SAEConfig:
    """Shape of an `LSTMAutoencoder`."""

    input_size: int
    """Features of a row."""
    sequence_length: int
    """Rows of a window."""
    encoder_units: tuple[int, ...]
    """Units of the encoder's LSTM layers; the last one's are the latent code."""
    decoder_units: tuple[int, ...]
    """Units of the decoder's LSTM layers."""
    dropout: float
    """Behind each LSTM layer."""

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> SAEConfig:
        """The shape as JSON holds it.

        Raises:
            KeyError, TypeError, ValueError: when it is not the shape of an autoencoder.
        """
        found = {field.name: stated[field.name] for field in fields(cls)}
        units = {name: tuple(int(size) for size in found[name]) for name in ("encoder_units", "decoder_units")}
        return cls(int(found["input_size"]), int(found["sequence_length"]), **units, dropout=float(found["dropout"]))


class StackedLSTM(nn.Module):
    """LSTM layers, each of its own size, with dropout behind each."""

    def __init__(self, inputs: int, units: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        sizes = (inputs, *units)
        self.layers = nn.ModuleList(nn.LSTM(before, size, batch_first=True) for before, size in zip(sizes, units, strict=False))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """States (B, T, H) of the last layer for inputs (B, T, F)."""
        for layer in self.layers:
            x = self.dropout(layer(x)[0])
        return x


class Encoder(nn.Module):
    """The encoder standing alone: raw windows to their latent code. Shares its weights with the autoencoder it was taken out of."""

    def __init__(self, scaler: nn.Module, layers: StackedLSTM) -> None:
        super().__init__()
        self.scaler, self.layers = scaler, layers

    def forward(self, x: Tensor) -> Tensor:
        """Latent code (B, L) of windows (B, T, F)."""
        return self.layers(self.scaler(x))[:, -1]


class LSTMAutoencoder(nn.Module):
    """Windows to a latent code and back. Takes raw rows; its scaling is saved with it."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        self.config = config
        self.scaler: nn.Module = nn.Identity()
        """`Scaler` of raw rows, or the identity for rows that are scaled already."""
        self.encoder_layers = StackedLSTM(config.input_size, config.encoder_units, config.dropout)
        self.decoder_layers = StackedLSTM(config.encoder_units[-1], config.decoder_units, config.dropout)
        self.output = nn.Linear(config.decoder_units[-1], config.input_size)

    def encode(self, x: Tensor) -> Tensor:
        """Latent code (B, L) of windows (B, T, F)."""
        return self.encoder_layers(self.scaler(x))[:, -1]

    def rebuild(self, scaled: Tensor) -> Tensor:
        """Reconstruction (B, T, F) of scaled windows (B, T, F), in scaled units."""
        code = self.encoder_layers(scaled)[:, -1]  # (B, L)
        return self.output(self.decoder_layers(code[:, None].expand(-1, scaled.shape[1], -1)))

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction (B, T, F) of windows (B, T, F), in scaled units."""
        return self.rebuild(self.scaler(x))

    def loss(self, x: Tensor) -> Tensor:
        """() mean squared error of the reconstruction of windows (B, T, F), in scaled units."""
        scaled = self.scaler(x)
        return (self.rebuild(scaled) - scaled).square().mean()

    def encoder(self) -> nn.Module:
        """The encoder taken out: windows (B, T, F) to latent codes (B, L)."""
        return Encoder(self.scaler, self.encoder_layers)

    def count_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def build_autoencoder(config: SAEConfig, seed: int, rows: NDArray[np.float32] | None = None) -> LSTMAutoencoder:
    """An autoencoder whose initial weights follow from `seed` alone.

    Args:
        config: its shape.
        seed: of the weights.
        rows: raw rows (N, F) of `fit` that its scaling is fitted on; None for rows that are scaled already.
    """
    with seeded(seed, 0):
        model = LSTMAutoencoder(config)
    if rows is not None:
        model.scaler = Scaler(config.input_size).fit(rows)
    return model


@dataclass(frozen=True)
class AnomalyDetector:
    """A trained autoencoder as a calibrated anomaly score: the higher, the more abnormal. Runs on the CPU.

    The score is the squared Mahalanobis distance of a window's marks from those of benign windows. Marks are, of each scaled feature, its
    mean over the window and the mean of what the reconstruction leaves of it, and the logarithm of the window's mean squared error. Means over
    time tell a lasting change from rows that are merely unlike each other; the error tells rows in an order that benign traffic does not have.
    Either way counts: a window that is rebuilt better than benign ones are is abnormal, too. 1 / T, the variance of the mean of T independent
    rows of a scaled feature, is added to each variance (Hoerl and Kennard 1970), lest a mark that hardly varies decides alone.

    The p-value is the conformal one of Vovk et al. 2005: (1 + number of calibration scores at least as large) / (1 + their number). On
    benign windows like the calibration ones, 1 - p is uniform on [0, 1]; calibration windows overlap, so it holds up to that.
    """

    model: LSTMAutoencoder
    centre: Tensor
    """(K,) float64 mean marks of benign windows."""
    whitening: Tensor
    """(K, K) float64; the squared length of a whitened difference from `centre` is the score."""
    reference: Tensor
    """(M,) float64 scores of benign calibration windows, ascending."""
    _precise: LSTMAutoencoder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Take a copy of the model in double precision: single precision would let the batch that a window is read in decide its rank."""
        object.__setattr__(self, "_precise", copy.deepcopy(self.model).cpu().double().eval())

    @classmethod
    def fit(cls, model: LSTMAutoencoder, fit_windows: NDArray[np.float32], calibrate_windows: NDArray[np.float32]) -> AnomalyDetector:
        """Take what marks are usual from benign windows (N, T, F), and what scores are from others (M, T, F).

        Raises:
            UserError: when there are fewer than two windows to fit or none to calibrate.
        """
        if len(fit_windows) < 2 or len(calibrate_windows) < 1:
            raise UserError(
                f"{len(fit_windows)} benign windows to fit and {len(calibrate_windows)} to calibrate the anomaly score: too few; read more benign rows"
            )
        model = model.cpu().eval()
        none, size = torch.empty(0, dtype=torch.float64), 2 * model.config.input_size + 1
        blank = cls(model, torch.zeros(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64), none)
        marks = torch.cat([blank.marks(fit_windows[first : first + AT_ONCE]) for first in range(0, len(fit_windows), AT_ONCE)])  # (N, K)
        centre = marks.mean(dim=0)
        covariance = (marks - centre).T @ (marks - centre) / len(marks)
        covariance.diagonal().add_(1 / model.config.sequence_length)
        part = cls(model, centre, torch.linalg.cholesky(torch.linalg.inv(covariance)), none)
        return replace(part, reference=torch.from_numpy(np.sort(part.score(calibrate_windows))))

    def marks(self, windows: NDArray[np.float32]) -> Tensor:
        """(N, K) float64 of windows (N, T, F), K = 2F + 1: means of scaled features, of their residuals, and the size of the error."""
        with torch.inference_mode():
            scaled = self._precise.scaler(torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float64)))  # (N, T, F)
            residual = scaled - self._precise.rebuild(scaled)
            size = (residual.square().mean(dim=(1, 2)) + FLOOR).log()  # (N,)
            return torch.cat([scaled.mean(dim=1), residual.mean(dim=1), size[:, None]], dim=1)

    def score(self, windows: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N,) squared distance of windows (N, T, F) from benign ones."""
        found = np.empty(len(windows))
        for first in range(0, len(windows), AT_ONCE):
            here = slice(first, first + AT_ONCE)
            found[here] = ((self.marks(windows[here]) - self.centre) @ self.whitening).square().sum(dim=1).numpy()
        return found

    def anomaly(self, windows: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N,) one minus the p-value of windows (N, T, F), in [0, 1)."""
        return self.rarity(self.score(windows))

    def rarity(self, score: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) one minus the p-value of raw scores (N,), in [0, 1)."""
        # A window must read the same alone and in a batch: rounding may not move it past a calibration score that equals its own.
        below = np.searchsorted(self.reference.numpy(), score * (1 - ROUNDING))  # (N,) calibration scores that are smaller
        return below / (len(self.reference) + 1)

    def stated(self) -> dict[str, Any]:
        """What the `meta.json` of a sensor with this detector says of it: `SAEConfig.of` and `from_tensors` open it again."""
        return {"anomaly": SOURCE, "autoencoder": asdict(self.model.config)}

    def tensors(self) -> dict[str, Tensor]:
        """The arrays, to be saved; `from_tensors` needs them and the model's `config`."""
        weights = {f"sae.model.{name}": value for name, value in self.model.state_dict().items()}
        return {**weights, "sae.centre": self.centre, "sae.whitening": self.whitening, "sae.reference": self.reference}

    @classmethod
    def from_tensors(cls, config: SAEConfig, arrays: Mapping[str, Tensor]) -> AnomalyDetector:
        """The detector whose `tensors` these are; others may stand beside them.

        Raises:
            KeyError, RuntimeError: when one is missing or of another shape.
        """
        model = LSTMAutoencoder(config)
        if "sae.model.scaler.centre" in arrays:
            model.scaler = Scaler(config.input_size)
        model.load_state_dict({name.removeprefix("sae.model."): value for name, value in arrays.items() if name.startswith("sae.model.")})
        return cls(model.eval(), *(arrays[f"sae.{name}"] for name in ("centre", "whitening", "reference")))

    def save(self, folder: Path, meta: Mapping[str, Any]) -> None:
        """Write the detector as an artifact folder, atomically."""
        with new_artifact(folder, KIND, {**meta, "model": asdict(self.model.config)}) as target:
            save_file({name: value.detach().contiguous() for name, value in self.tensors().items()}, target / "detector.safetensors")

    @classmethod
    def load(cls, folder: Path) -> tuple[AnomalyDetector, dict[str, Any]]:
        """Open a saved detector; returns it and its `meta.json`.

        Raises:
            UserError: when the folder is missing, altered, or its arrays do not fit each other.
        """
        meta = open_artifact(folder, KIND)
        try:
            detector = cls.from_tensors(SAEConfig.of(meta["model"]), load_file(folder / "detector.safetensors"))
            detector.anomaly(np.zeros((1, detector.model.config.sequence_length, detector.model.config.input_size), dtype=np.float32))
        except (OSError, KeyError, TypeError, RuntimeError, ValueError, SafetensorError) as error:
            raise UserError(f"artifact '{folder}' holds no usable anomaly detector ({' '.join(str(error).split())}); train it again") from error
        return detector, meta
