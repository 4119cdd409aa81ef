"""The training loop of every network: batches of windows, early stopping, checkpoints. What is learned and judged, each network's trainer says."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from src.artifacts import check_seal, seal
from src.config import LSTMTrainingConfig, SAETrainingConfig
from src.errors import UserError
from src.models.parallel import Batch, Objective, Peers
from src.models.stopping import Stopping

Model = TypeVar("Model", bound=nn.Module)
Batches = Iterable[Batch]
"""A `WindowBatches`, or a torch `DataLoader`. Shuffling is drawn from its `generator`.

A batch is windows (B, T, F); for a classifier labels (B,) too and, where a model asks for them, domains (B,); last, where teachers have spoken, their
probabilities (B, C).
"""
History = list[dict[str, float]]


class WindowBatches:
    """Batches of windows gathered from rows by index: rows are held once, however much their windows overlap."""

    def __init__(
        self,
        rows: Tensor,
        starts: Tensor,
        labels: Tensor,
        length: int,
        batch_size: int,
        generator: torch.Generator | None = None,
        domains: Tensor | None = None,
    ) -> None:
        """Windows of `length` rows from raw rows (N, F) that begin at `starts` (W,), with labels (W,); shuffled when a generator is given.

        With `domains` (W,) each batch carries those too.
        """
        self.rows, self.starts, self.labels, self.domains = rows, starts, labels, domains
        self.length, self.batch_size, self.generator = length, batch_size, generator
        self.taught: Tensor | None = None
        """(W, C) probabilities that teachers give each window; they come last in a batch."""

    def in_order(self) -> WindowBatches:
        """The same windows, not shuffled."""
        return WindowBatches(self.rows, self.starts, self.labels, self.length, self.batch_size, None, self.domains)

    def __len__(self) -> int:
        """Number of batches."""
        return (len(self.starts) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Yield windows (B, T, F), labels (B,) and, where they are known, domains (B,) and the probabilities (B, C) of teachers."""
        count, device = len(self.starts), self.rows.device
        order = torch.arange(count) if self.generator is None else torch.randperm(count, generator=self.generator)
        steps = torch.arange(self.length, device=device)
        for chosen in order.to(device).split(self.batch_size):
            known = [part[chosen] for part in (self.labels, self.domains, self.taught) if part is not None]
            yield self.rows[self.starts[chosen, None] + steps], *known  # (B, T, F), (B,), ...


@contextlib.contextmanager
def seeded(seed: int, stream: int) -> Iterator[int]:
    """Draw torch's random numbers from (seed, stream) inside the block, and leave the global generators as they were."""
    state = int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(state)
        yield state


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device.

    Raises:
        UserError: when a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("compute.device is 'cuda' but torch sees no GPU; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class Trainer(ABC, Generic[Model]):
    """Trains a model whose `config` is a dataclass: epochs until a strategy says stop, best weights restored.

    Random numbers of epoch e follow from (seed, e) alone. Hence the same seed gives the same weights, and a run that was interrupted
    and resumed ends with the weights of one that was not. Where torch's process group is open, all its processes train together, each on its share
    of every batch (`src.models.parallel`); the first one writes and reads checkpoints.
    """

    section: str
    """Where the settings stand in the configuration, for messages."""
    partial = False
    """Whether a batch may leave some of the parameters without a gradient."""
    merit: str
    """Figure of `validate_epoch` that stopping and schedule judge by."""

    def __init__(
        self,
        model: Model,
        settings: LSTMTrainingConfig | SAETrainingConfig,
        *,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        stopping: Stopping,
        seed: int,
        device: torch.device,
    ) -> None:
        """Prepare.

        Args:
            model: trained in place; on `device`.
            settings: of training.
            optimizer: of the model's parameters.
            scheduler: of the learning rate, moved once an epoch.
            stopping: judges `merit`.
            seed: of shuffling and dropout.
            device: where it trains.
        """
        self.model, self.settings, self.seed, self.device = model, settings, seed, device
        self.shape: Any = model.config
        self.optimizer, self.scheduler, self.stopping, self.peers = optimizer, scheduler, stopping, Peers()
        self._asked: Objective = self.objective
        self.mixed = settings.mixed_precision and device.type == "cuda"
        self.gradient_scaler = torch.amp.GradScaler(device.type, enabled=self.mixed)

    @abstractmethod
    def objective(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss () of a batch on the trainer's device, and the model's output."""

    def train_epoch(self, batches: Batches) -> dict[str, float]:
        """One pass with updates; returns its figures (measured while training, dropout on)."""
        self.model.train()
        # Anew each epoch: a model that grows has other parameters than before.
        self._asked = self.peers.joined(self.model, self.objective, self.partial)
        return self._measure(batches, self._update)

    def validate_epoch(self, batches: Batches) -> dict[str, float]:
        """One pass without updates; returns its figures, as `train_epoch` does."""
        self.model.eval()
        self._asked = self.objective
        with torch.inference_mode():
            return self._measure(batches, lambda _: None)

    def _measure(self, batches: Batches, after: Callable[[Tensor], None]) -> dict[str, float]:
        """Figures of one pass; `after` is called with the loss of each batch."""
        return {"loss": self._pass(batches, after)}

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.gradient_scaler.scale(loss).backward()
        self.gradient_scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.gradient_scaler.step(self.optimizer)
        self.gradient_scaler.update()

    def _pass(self, batches: Batches, after: Callable[[Tensor], None], see: Callable[[Batch, Tensor], None] = lambda _, __: None) -> float:
        """Mean loss a window of one pass; `see` is called with each batch and the model's output.

        Raises:
            UserError: when there is no window.
        """
        total, count = 0.0, 0
        for batch in batches:
            batch = tuple(part.to(self.device) for part in self.peers.share(batch))
            loss, output = self._asked(batch)
            after(loss)
            total += float(loss.detach()) * len(batch[0])
            count += len(batch[0])
            see(batch, output.detach())
        total, count = self.peers.total(np.array([total, count]))
        if count == 0:
            raise UserError("no window to train or evaluate on; take shorter windows or read more rows")
        return float(total / count)

    def diverged(self) -> UserError:
        """What to say when a loss is no longer finite."""
        rate = f"{self.section}.learning_rate (now {self.settings.learning_rate:g})"
        return UserError(f"the loss is no longer finite; lower {rate}, or look for values in the data that are not finite")

    def train(
        self,
        train_batches: Batches,
        calibrate_batches: Batches,
        *,
        on_epoch: Callable[[dict[str, float]], None] = lambda _: None,
        checkpoint: Path | None = None,
        resume: bool = False,
        identity: str = "",
    ) -> History:
        """Train until the last epoch or until `stopping` ends it, whose `reason` then says why; restore the best weights.

        Args:
            train_batches: windows of `fit`; shuffled ones have a `generator`.
            calibrate_batches: windows of `calibrate`.
            on_epoch: called with the figures of each epoch, and on resumption with those of the epochs already done.
            checkpoint: file written after each epoch, whole or not at all.
            resume: go on from `checkpoint` if it exists.
            identity: of data and model; a checkpoint of another identity or other settings is refused.

        Returns:
            A row an epoch: `epoch, learning_rate` and the figures of both passes under `train/` and `calibrate/`.

        Raises:
            UserError: when training diverges before any epoch was sound (a classifier: at any), or the checkpoint belongs to another run or is damaged.
        """
        identity = hashlib.sha256(json.dumps([identity, self.seed, asdict(self.shape), self.settings.model_dump()]).encode()).hexdigest()
        self.stopping.reset()
        state: dict[str, Any] = {"identity": identity, "epoch": 0, "history": [], **self._snapshot()}
        stored = self.peers.from_first(_sealed(checkpoint) if resume and checkpoint is not None and checkpoint.exists() else b"")
        if stored:
            state = self._restore(stored, str(checkpoint), identity)
        for row in state["history"]:
            on_epoch(row)
        try:
            while state["epoch"] < self.settings.epochs and not self.stopping.reason:
                self._step(state, train_batches, calibrate_batches)
                if checkpoint is not None and self.peers.rank == 0:
                    _write(checkpoint, {**state, **self._moving()})
                on_epoch(state["history"][-1])
        finally:
            self._give_back(state)
        if self.stopping.best_epoch == 0:
            raise self.diverged()
        return state["history"]

    def _snapshot(self) -> dict[str, Any]:
        """What `_give_back` needs to bring back the model as it is now."""
        return {"best_weights": {name: value.detach().clone() for name, value in self.model.state_dict().items()}}

    def _give_back(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["best_weights"])

    def _step(self, state: dict[str, Any], train_batches: Batches, calibrate_batches: Batches) -> None:
        """One epoch: train, validate, keep the best, move the schedule."""
        rate = float(self.optimizer.param_groups[0]["lr"])
        with seeded(self.seed, 1 + state["epoch"]) as number:
            if (generator := getattr(train_batches, "generator", None)) is not None:
                generator.manual_seed(number)
            if self.peers.rank > 0:  # who shuffles alike, but drops out and draws apart
                torch.manual_seed(number + self.peers.rank)
            trained = self.train_epoch(train_batches)
        checked = self.validate_epoch(calibrate_batches)
        state["epoch"] += 1
        self.stopping.update(state["epoch"], checked[self.merit], rate)
        if self.stopping.improved:
            state |= self._snapshot()
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(checked[self.merit])
        else:
            self.scheduler.step()
        figures = {**{f"train/{key}": value for key, value in trained.items()}, **{f"calibrate/{key}": value for key, value in checked.items()}}
        state["history"] = [*state["history"], {"epoch": state["epoch"], "learning_rate": rate, **figures}]

    def _moving(self) -> dict[str, Any]:
        """What changes while training, apart from the bookkeeping of `train`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "gradient_scaler": self.gradient_scaler.state_dict(),
            "stopping": self.stopping.state(),
        }

    def _go_on(self, stored: dict[str, Any]) -> None:
        """Take what `_moving` gave out of a checkpoint."""
        for name in ("model", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(stored.pop(name))
        if scaling := stored.pop("gradient_scaler"):  # empty where it was written without mixed precision
            self.gradient_scaler.load_state_dict(scaling)
        self.stopping.restore(stored.pop("stopping"))

    def _restore(self, content: bytes, checkpoint: str, identity: str) -> dict[str, Any]:
        try:
            stored = torch.load(io.BytesIO(content), map_location=self.device, weights_only=True)
            if stored["identity"] != identity:
                raise UserError(f"checkpoint '{checkpoint}' was made with other settings or data; start without --resume, or restore those settings")
            self._go_on(stored)
        except UserError:
            raise
        except Exception as error:  # torch raises many kinds for a damaged file; each means the same to the user
            raise UserError(f"checkpoint '{checkpoint}' cannot be read ({error.__class__.__name__}); delete it and train again") from error
        return stored


def _sealed(checkpoint: Path) -> bytes:
    check_seal(checkpoint, "delete it and train again")
    return checkpoint.read_bytes()


def _write(path: Path, state: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        torch.save(state, partial)
        seal(partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cannot write checkpoint '{path}': {error}; choose a writable folder (--set compute.artifacts=FOLDER, or --out where a command has it)"
        ) from error
