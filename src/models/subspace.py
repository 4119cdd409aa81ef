"""The anomaly score that needs no training: the distance from the subspace that benign windows span, as a conformal p-value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.errors import UserError
from src.models.lstm_attack_predictor import Scaler

AT_ONCE = 4096
"""Windows that are projected at once."""
SOURCE = "PCA reconstruction p-value"


@dataclass(frozen=True)
class BenignSubspace:
    """How far a window lies from the subspace that benign windows span (the higher, the more abnormal), and how rare that is.

    The p-value is the conformal one of Vovk et al. 2005: (1 + number of calibration errors at least as large) / (1 + their number).
    On benign windows like the calibration ones, 1 - p is uniform on [0, 1]; calibration windows overlap, so it holds up to that.
    """

    scaler: Scaler
    """Of the network beside it."""
    mean: Tensor
    """(T * F,) float64 mean of scaled benign windows."""
    components: Tensor
    """(K, T * F) float64 orthonormal directions."""
    reference: Tensor
    """(M,) float64 errors of benign calibration windows, ascending."""

    @classmethod
    def fit(cls, scaler: Scaler, fit: Tensor, calibrate: Tensor, kept: float = 0.95) -> BenignSubspace:
        """Span the subspace with raw benign windows (N, T, F), and calibrate it with others (M, T, F).

        Args:
            scaler: of raw features.
            fit: windows of `fit`.
            calibrate: windows of `calibrate`.
            kept: share of variance that the subspace keeps.

        Raises:
            UserError: when there are fewer than two windows to fit or none to calibrate.
        """
        if len(fit) < 2 or len(calibrate) < 1:
            raise UserError(f"{len(fit)} benign windows to fit and {len(calibrate)} to calibrate the anomaly score: too few; read more benign rows")
        flat = scaler(fit.double()).flatten(1)  # (N, T * F)
        mean = flat.mean(dim=0)
        values, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))  # ascending
        share = values.clamp(min=0).flip(0).cumsum(0) / values.clamp(min=0).sum().clamp(min=1e-12)
        count = int((share < kept).sum()) + 1
        empty = cls(scaler, mean, vectors[:, -count:].T.contiguous(), torch.empty(0, dtype=torch.float64))
        return cls(scaler, mean, empty.components, empty.error(calibrate).sort().values)

    def error(self, windows: Tensor) -> Tensor:
        """(N,) squared distance of raw windows (N, T, F), scaled, from the subspace."""
        centred = self.scaler(windows.double()).flatten(1) - self.mean  # (N, T * F)
        return (centred - (centred @ self.components.T) @ self.components).square().sum(dim=1)  # (N,)

    def anomaly(self, windows: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N,) one minus the p-value of raw windows (N, T, F), in [0, 1)."""
        # A window must read the same alone and in a batch: rounding may not move it past a calibration error that equals its own.
        with torch.inference_mode():
            error = torch.cat([self.error(part) for part in torch.from_numpy(windows).split(AT_ONCE)]) * (1 - 1e-9)
        below = torch.searchsorted(self.reference, error)  # (N,) calibration errors that are smaller
        return (below.double() / (len(self.reference) + 1)).numpy()

    def stated(self) -> dict[str, str]:
        """What `meta.json` says of it."""
        return {"anomaly": SOURCE}

    def tensors(self) -> dict[str, Tensor]:
        """The arrays, to be saved."""
        return {"mean": self.mean, "components": self.components, "reference": self.reference}
