"""Peers of the LSTM autoencoder: anomaly scores that learn from the same benign windows, under the same scaling.

Each is fitted on windows of `fit`, those that are trained stop on windows of `calibrate`, and each says how abnormal raw windows are: the
higher, the more. None sees an attack.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from torch import nn

from src.config import SAEModelConfig
from src.models.loop import seeded
from src.models.lstm_attack_predictor import Scaler
from src.models.lstm_sae import AnomalyDetector, SAEConfig, build_autoencoder
from src.models.subspace import BenignSubspace

Windows = NDArray[np.float32]
Score = Callable[[Windows], NDArray[np.float64]]
"""Raw windows (N, T, F) to scores (N,)."""
Fit = Callable[[NDArray[np.float32], Windows, Windows, int], Score]
"""Raw rows (N, F) that the scaling is fitted on, windows of `fit`, windows of `calibrate` and a seed to a score."""

TREES = 200
"""Trees of the forest."""
HIDDEN, CODE = 64, 32
"""Units of the dense autoencoder: those of the LSTM autoencoder by default."""
EPOCHS, PATIENCE, BATCH, LEARNING_RATE = 100, 8, 64, 1e-3
"""Of the dense autoencoder's training."""
RIDGE = 0.03
"""Of the distance of means; the best of .001 to .1 on CICIoT2023's `agent`. Ledoit and Wolf's shrinkage does far worse there."""
AT_ONCE = 4096
"""Windows that are read at once."""


def pca(rows: NDArray[np.float32], fit: Windows, calibrate: Windows, seed: int) -> Score:
    """Squared distance from the subspace that holds 95 % of the variance of benign windows (`src.models.subspace`)."""
    subspace = BenignSubspace.fit(Scaler(rows.shape[1]).fit(rows), torch.from_numpy(fit), torch.from_numpy(calibrate))
    return _batched(lambda windows: subspace.error(torch.from_numpy(windows)).numpy())


def isolation_forest(rows: NDArray[np.float32], fit: Windows, calibrate: Windows, seed: int) -> Score:
    """How few random cuts set a window apart (Liu, Ting and Zhou 2008, ICDM)."""
    scaler = Scaler(rows.shape[1]).fit(rows)
    forest = IsolationForest(n_estimators=TREES, random_state=seed).fit(_flat(scaler, fit))
    return _batched(lambda windows: -forest.score_samples(_flat(scaler, windows)))


def window_mean(rows: NDArray[np.float32], fit: Windows, calibrate: Windows, seed: int) -> Score:
    """Squared Mahalanobis distance of the mean over time, with `RIDGE` added to each variance."""
    scaler = Scaler(rows.shape[1]).fit(rows)

    def mean(windows: Windows) -> NDArray[np.float64]:
        return _scaled(scaler, windows).mean(axis=1)

    known = mean(fit)
    centre = known.mean(axis=0)
    whitening = np.linalg.cholesky(np.linalg.inv(np.cov(known.T) + RIDGE * np.eye(len(centre))))
    return _batched(lambda windows: np.square((mean(windows) - centre) @ whitening).sum(axis=1))


def dense_autoencoder(rows: NDArray[np.float32], fit: Windows, calibrate: Windows, seed: int) -> Score:
    """Mean squared error of an autoencoder of fully connected layers on the window laid flat (Sakurada and Yairi 2014)."""
    scaler = Scaler(rows.shape[1]).fit(rows)
    train, check = (torch.from_numpy(_flat(scaler, windows)).float() for windows in (fit, calibrate))
    size = train.shape[1]
    with seeded(seed, 0):
        model = nn.Sequential(
            nn.Linear(size, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CODE), nn.ReLU(), nn.Linear(CODE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, size)
        )
    optimizer, generator = torch.optim.Adam(model.parameters(), LEARNING_RATE), torch.Generator().manual_seed(seed)
    best, weights, stale = np.inf, model.state_dict(), 0
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(train), generator=generator).split(BATCH):
            loss = (model(train[chosen]) - train[chosen]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.inference_mode():
            found = float((model(check) - check).square().mean())
        stale += 1
        if found < best:
            best, weights, stale = found, {name: value.clone() for name, value in model.state_dict().items()}, 0
        if stale == PATIENCE:
            break
    model.load_state_dict(weights)

    def error(windows: Windows) -> NDArray[np.float64]:
        flat = torch.from_numpy(_flat(scaler, windows)).float()
        with torch.inference_mode():
            return (model(flat) - flat).square().mean(dim=1).double().numpy()

    return _batched(error)


def untrained(rows: NDArray[np.float32], fit: Windows, calibrate: Windows, seed: int) -> Score:
    """The LSTM autoencoder and its score as they are without training: what the rest of the detector is worth."""
    shape = SAEModelConfig()
    config = SAEConfig(rows.shape[1], fit.shape[1], shape.encoder_units, shape.decoder_units, shape.dropout)
    return AnomalyDetector.fit(build_autoencoder(config, seed, rows), fit, calibrate).score


PEERS: dict[str, Fit] = {
    "PCA reconstruction": pca,
    "Isolation Forest": isolation_forest,
    "dense autoencoder": dense_autoencoder,
    "Mahalanobis of window means": window_mean,
    "untrained LSTM autoencoder": untrained,
}
"""Every peer by the name that tables show."""


def _scaled(scaler: Scaler, windows: Windows) -> NDArray[np.float64]:
    return scaler(torch.from_numpy(windows).double()).numpy()


def _flat(scaler: Scaler, windows: Windows) -> NDArray[np.float64]:
    return _scaled(scaler, windows).reshape(len(windows), -1)


def _batched(score: Callable[[Windows], NDArray[np.float64]]) -> Score:
    def read(windows: Windows) -> NDArray[np.float64]:
        parts = [score(np.ascontiguousarray(windows[first : first + AT_ONCE])) for first in range(0, len(windows), AT_ONCE)]
        return np.concatenate(parts) if parts else np.empty(0)

    return read
