"""One training in several processes: each takes its share of every batch, gradients are averaged (data parallelism; Li et al. 2020).

Processes are those of torch's process group, where one is open; who opens it (`src.cluster`) does not matter here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

Batch = tuple[Tensor, ...]
Objective = Callable[[Batch], tuple[Tensor, Tensor]]
"""Loss () of a batch, and the model's output."""


class Peers:
    """The processes that train together; alone where there is no process group."""

    def __init__(self) -> None:
        """Look whether a process group is open."""
        together = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if together else 0
        self.count = distributed.get_world_size() if together else 1

    def share(self, batch: Batch) -> Batch:
        """This process's part of a batch; all of it where there is not one window for each, so that nobody's mean is of nothing."""
        return batch if self.count == 1 or len(batch[0]) < self.count else tuple(part[self.rank :: self.count] for part in batch)

    def total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of what each process has; in double precision, in which counts are exact."""
        if self.count == 1:
            return values
        found = torch.from_numpy(np.array(values, np.float64))
        distributed.all_reduce(found)
        return found.numpy()

    def from_first(self, content: bytes) -> bytes:
        """What the first process has, at all of them."""
        if self.count == 1:
            return content
        size = torch.tensor([len(content)])
        distributed.broadcast(size, 0)
        found = torch.frombuffer(bytearray(content), dtype=torch.uint8) if self.rank == 0 and content else torch.empty(int(size), dtype=torch.uint8)
        if len(found):
            distributed.broadcast(found, 0)
        return found.numpy().tobytes()

    def joined(self, model: nn.Module, objective: Objective, partial: bool) -> Objective:
        """An objective whose gradients are averaged over the processes once they are taken. The model's weights become those of the first.

        `partial` says that a batch may leave some of the parameters without a gradient.
        """
        if self.count == 1:
            return objective
        wrapped = nn.parallel.DistributedDataParallel(_Asked(model, objective), find_unused_parameters=partial)
        return lambda batch: wrapped(*batch)


class _Asked(nn.Module):
    """A model that is called through its objective, as torch's wrapper wants a module to call."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Loss () and output."""
        return self.objective(batch)
