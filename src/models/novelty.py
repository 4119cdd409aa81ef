"""How unlike everything that a network was trained on a window is: the part of its doubt that more of the same traffic would not remove.

A network is sure of itself on attacks that it has never seen, so its probabilities do not tell them. Two distances do: of what its output
layer reads, and of what the rows hold, each to the nearest class that it knows. `benchmarks/part_families.py` measures both, their sum
and their peers on families that were left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from src.errors import UserError

AT_ONCE = 2048
"""Windows that go through a network at once."""
ROUNDING = 1e-4
"""Share of a score by which batching may move it; it may not move it past a calibration score that equals its own."""


class Embedder(Protocol):
    """A network with its scaling: raw windows (B, T, F) to what its output layer reads (B, E)."""

    training: bool

    @property
    def scaler(self) -> Any:
        """Scaling of raw features."""
        ...

    def embed(self, x: Tensor) -> Tensor:
        """(B, E)."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Set the mode."""
        ...


@dataclass(frozen=True)
class ClassDistance:
    """Squared Mahalanobis distance to the nearest class mean, under one covariance for all classes (Lee et al. 2018, NeurIPS).

    The covariance is shrunk towards a multiple of the identity (Ledoit and Wolf 2004). Values that never vary are left out.
    """

    centres: Tensor
    """(C, E) float64 class means, whitened."""
    whitening: Tensor
    """(E, E) float64; the squared length of a whitened difference is its distance."""

    @classmethod
    def fit(cls, values: Tensor, labels: Tensor) -> ClassDistance:
        """Take means and covariance from values (N, E) with labels (N,) of `fit`; classes without a value are passed over.

        Raises:
            UserError: when values vary too little inside the classes for a covariance that can be inverted.
        """
        values, labels = values.double(), labels.long()
        means = torch.stack([values[labels == label].mean(dim=0) for label in labels.unique()])  # (C, E)
        spread = (values - means[torch.searchsorted(labels.unique(), labels)]).numpy()  # (N, E)
        varies = np.flatnonzero(values.std(dim=0).numpy() > 1e-6)
        whitening = torch.zeros(values.shape[1], values.shape[1], dtype=torch.float64)
        if len(varies):
            try:
                inverse = np.linalg.inv(ledoit_wolf(spread[:, varies], assume_centered=True)[0])
                whitening[np.ix_(varies, varies)] = torch.from_numpy(np.linalg.cholesky(inverse))
            except np.linalg.LinAlgError as error:
                raise UserError("the novelty score cannot be fitted: the windows of each class are all but equal; read more rows of each class") from error
        return cls(means @ whitening, whitening)

    def __call__(self, values: Tensor) -> Tensor:
        """(N,) distance of values (N, E)."""
        return torch.cdist(values.double() @ self.whitening, self.centres, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1).square()


@dataclass(frozen=True)
class Novelty:
    """Both distances of a window in one score in [0, 1): the higher, the less like anything seen.

    Each distance becomes a conformal p-value among windows of `calibrate` (Vovk et al. 2005); minus the sum of their logarithms (Fisher 1932)
    is turned into one more. The score is one minus that: on traffic like that of `calibrate` it is uniform, up to the overlap of windows.
    """

    embedding: ClassDistance
    """Of what the output layer reads."""
    rows: ClassDistance
    """Of mean and deviation over time of each scaled feature."""
    embedding_reference: Tensor
    """(M,) float64 distances of calibration windows, ascending."""
    rows_reference: Tensor
    """(M,) float64 distances of calibration windows, ascending."""
    reference: Tensor
    """(M,) float64 sums of calibration windows, ascending."""

    @classmethod
    def fit(cls, model: Embedder, windows: Tensor, labels: Tensor, calibrate: Tensor) -> Novelty:
        """Take the classes from raw windows (N, T, F) of `fit` with labels (N,), and what is usual from raw windows (M, T, F) of `calibrate`.

        Raises:
            UserError: when there are fewer than two windows to fit or none to calibrate, or as `ClassDistance.fit`.
        """
        if len(windows) < 2 or len(calibrate) < 1:
            raise UserError(f"{len(windows)} windows to fit and {len(calibrate)} to calibrate the novelty score: too few; read more rows")
        embedded, spread = views(model, windows)
        embedding, rows = ClassDistance.fit(embedded, labels), ClassDistance.fit(spread, labels)
        embedded, spread = views(model, calibrate)
        empty = torch.empty(0, dtype=torch.float64)
        part = cls(embedding, rows, embedding(embedded).sort().values, rows(spread).sort().values, empty)
        return cls(embedding, rows, part.embedding_reference, part.rows_reference, part.surprise(embedded, spread).sort().values)

    def surprise(self, embedded: Tensor, spread: Tensor) -> Tensor:
        """(N,) minus the sum of both p-values' logarithms, of both `views` of N windows."""
        return -(_tail(self.embedding_reference, self.embedding(embedded)).log() + _tail(self.rows_reference, self.rows(spread)).log())

    def score(self, model: Embedder, windows: Tensor) -> Tensor:
        """(N,) float64 of raw windows (N, T, F), in [0, 1), read with the network that it was fitted with."""
        return 1 - _tail(self.reference, self.surprise(*views(model, windows)))

    def tensors(self) -> dict[str, Tensor]:
        """The arrays, to be saved."""
        return {
            "novelty.embedding.centres": self.embedding.centres,
            "novelty.embedding.whitening": self.embedding.whitening,
            "novelty.rows.centres": self.rows.centres,
            "novelty.rows.whitening": self.rows.whitening,
            "novelty.embedding_reference": self.embedding_reference,
            "novelty.rows_reference": self.rows_reference,
            "novelty.reference": self.reference,
        }

    @classmethod
    def from_tensors(cls, arrays: Mapping[str, Tensor]) -> Novelty:
        """The score whose `tensors` these are.

        Raises:
            KeyError: when one is missing.
        """
        embedding, rows = (ClassDistance(arrays[f"novelty.{part}.centres"], arrays[f"novelty.{part}.whitening"]) for part in ("embedding", "rows"))
        return cls(embedding, rows, *(arrays[f"novelty.{name}"] for name in ("embedding_reference", "rows_reference", "reference")))


def views(model: Embedder, windows: Tensor) -> tuple[Tensor, Tensor]:
    """What the output layer reads (N, E) of raw windows (N, T, F), and mean and deviation over time of each scaled feature (N, 2F)."""
    training = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            embedded, spread = zip(*_views(model, windows), strict=True)
    finally:
        model.train(training)
    return torch.cat(embedded), torch.cat(spread)


def _views(model: Embedder, windows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for part in windows.split(AT_ONCE):
        scaled = model.scaler(part.double())  # (B, T, F)
        yield model.embed(part).double(), torch.cat([scaled.mean(dim=1), scaled.std(dim=1, correction=0)], dim=1)


def _tail(reference: Tensor, values: Tensor) -> Tensor:
    """(N,) conformal p-value of each value (N,) among reference values (M,): the share at least as large, itself included."""
    below = torch.searchsorted(reference, values - ROUNDING * values.abs())  # (N,) reference values that are smaller
    return (len(reference) + 1 - below).double() / (len(reference) + 1)
