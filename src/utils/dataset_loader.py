"""The torch-facing view of `src.data`: windows of raw features with labels, batch by batch.

Features are neither scaled nor clipped here: the scaler belongs to the model, which carries it wherever it goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from src.config import nearest
from src.data.dataset import Dataset, Rows
from src.data.windows import window_starts
from src.errors import UserError


@dataclass(frozen=True)
class LoaderConfig:
    """How rows become batches."""

    batch_size: int = 256
    """Windows a batch."""
    length: int = 10
    """Rows a window."""
    stride: int = 3
    """Rows between the starts of two windows of `fit`."""
    ordered_stride: int = 1
    """The same for the sides that are read in order."""
    seed: int = 0
    """Of the shuffling, where no generator is passed."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            UserError: naming the first setting below its least value.
        """
        for name, least in (("batch_size", 1), ("length", 1), ("stride", 1), ("ordered_stride", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"LoaderConfig.{name} is {getattr(self, name)}: it must be at least {least}")


class CICIoTDataset(TorchDataset[tuple[Tensor, Tensor]]):
    """Windows of the rows of one side, cut when they are asked for; rows are held once."""

    def __init__(self, rows: Rows, length: int, stride: int) -> None:
        self.features = torch.from_numpy(np.ascontiguousarray(rows.features, dtype=np.float32))  # (N, F)
        self.starts = torch.from_numpy(window_starts(rows.segment, length, stride))  # (W,)
        self.labels = torch.from_numpy(rows.label.astype(np.int64))[self.starts]  # (W,) a segment has one label
        self._steps = torch.arange(length)

    def __len__(self) -> int:
        """Windows."""
        return len(self.starts)

    def __getitem__(self, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """One window (T, F) and its label (), or for (B,) indices a batch (B, T, F) and (B,) labels, float32 and int64."""
        return self.features[self.starts[index].unsqueeze(-1) + self._steps], self.labels[index]


class _Batches(Sampler[Tensor]):
    """Index tensors of a batch each, in order or shuffled anew at each pass."""

    def __init__(self, count: int, batch_size: int, generator: torch.Generator | None) -> None:
        self.count, self.batch_size, self.generator = count, batch_size, generator

    def __len__(self) -> int:
        return (self.count + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.arange(self.count) if self.generator is None else torch.randperm(self.count, generator=self.generator)
        return iter(order.split(self.batch_size))


class CICIoTDataLoader:
    """Torch data loaders over the sides of a data set."""

    def __init__(self, dataset: Dataset, config: LoaderConfig) -> None:
        self.dataset, self.config = dataset, config

    def windows(self, side: str) -> CICIoTDataset:
        """Windows of one side, `fit` at `stride` and the others at `ordered_stride`.

        Raises:
            UserError: for an unknown side, or one without a complete window.
        """
        if side not in self.dataset.splits:
            raise UserError(f"unknown side '{side}': {nearest(side, self.dataset.splits)}")
        stride = self.config.stride if side == "fit" else self.config.ordered_stride
        windows = CICIoTDataset(self.dataset.splits[side], self.config.length, stride)
        if len(windows) == 0:
            raise UserError(f"side '{side}' has no run of {self.config.length} rows; lower the window length or give more rows")
        return windows

    def fit(self, generator: torch.Generator | None = None) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of `fit`, shuffled anew at each pass by `generator` (or one seeded with `config.seed`)."""
        windows = self.windows("fit")
        shuffle = generator if generator is not None else torch.Generator().manual_seed(self.config.seed)
        return DataLoader(windows, sampler=_Batches(len(windows), self.config.batch_size, shuffle), batch_size=None)

    def ordered(self, side: str) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of `side` in file order."""
        windows = self.windows(side)
        return DataLoader(windows, sampler=_Batches(len(windows), self.config.batch_size, None), batch_size=None)
