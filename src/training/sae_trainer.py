"""What the LSTM autoencoder is trained on: benign windows, which it learns to rebuild."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.config import SAETrainingConfig
from src.models.loop import Batch, Trainer, pick_device
from src.models.lstm_sae import LSTMAutoencoder
from src.models.stopping import create_smart_callbacks


def evenly(chosen: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
    """At most `most` of the indices (N,), evenly spread; all of them for None."""
    return chosen if most is None or len(chosen) <= most else chosen[np.linspace(0, len(chosen) - 1, most).astype(np.int64)]


@dataclass(frozen=True)
class Selection:
    """Some windows of an array (N, T, F), which may be a memory map: what is asked for is read, no more."""

    windows: NDArray[np.float32]
    chosen: NDArray[np.int64]
    """(W,) their indices, ascending."""

    def __len__(self) -> int:
        """How many."""
        return len(self.chosen)

    def __getitem__(self, places: slice | NDArray[np.integer]) -> NDArray[np.float32]:
        """(W', T, F) a copy of some of them."""
        return np.array(self.windows[self.chosen[places]], dtype=np.float32)


class ArrayBatches:
    """Batches of windows from an array or a selection: no more than a batch is copied at once."""

    def __init__(self, windows: NDArray[np.float32] | Selection, batch_size: int, generator: torch.Generator | None = None) -> None:
        """Windows (N, T, F); shuffled when a generator is given."""
        self.windows, self.batch_size, self.generator = windows, batch_size, generator

    def __len__(self) -> int:
        """Number of batches."""
        return (len(self.windows) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Yield windows (B, T, F)."""
        count = len(self.windows)
        order = np.arange(count) if self.generator is None else torch.randperm(count, generator=self.generator).numpy()
        for first in range(0, count, self.batch_size):
            here = np.sort(order[first : first + self.batch_size])  # in the order of the file
            yield (torch.from_numpy(np.array(self.windows[here], dtype=np.float32)),)


class SAETrainer(Trainer[LSTMAutoencoder]):
    """Trains an `LSTMAutoencoder` by the mean squared error of its reconstruction, in scaled units.

    Adam (Kingma and Ba 2015); the rate falls on a plateau of the validation loss, and the strategy that the settings name ends the
    training. A validation loss that is not finite ends it too; what was best before is restored, and `stopping.reason` says so.
    """

    section = "sae.training"
    merit = "loss"

    def __init__(self, model: LSTMAutoencoder, settings: SAETrainingConfig, *, seed: int = 0, device: str = "auto") -> None:
        """Prepare optimiser, schedule and stopping.

        Args:
            model: trained in place.
            settings: of training.
            seed: of shuffling and dropout.
            device: `auto`, `cpu` or `cuda`.
        """
        place = pick_device(device)
        model = model.to(place)
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
        stopping, scheduler = create_smart_callbacks(
            settings.stopping, optimizer=optimizer, min_improvement_pct=settings.min_improvement, patience=settings.patience
        )
        super().__init__(model, settings, optimizer=optimizer, scheduler=scheduler, stopping=stopping, seed=seed, device=place)

    def objective(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean squared error () of a batch on the trainer's device, and its reconstruction (B, T, F), both in scaled units."""
        scaled = self.model.scaler(batch[0])
        with torch.autocast(self.device.type, enabled=self.mixed):
            rebuilt = self.model.rebuild(scaled)
        return (rebuilt.float() - scaled).square().mean(), rebuilt
