"""The training loop of every sensor: batches of windows, early stopping, checkpoints. What a loss is, each network's trainer says."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from src.config import LSTMTrainingConfig
from src.errors import UserError
from src.models.scores import Evaluation, confusion_matrix, summary

Model = TypeVar("Model", bound=nn.Module)
Batch = tuple[Tensor, ...]
"""Raw windows (B, T, F), labels (B,) and, where a model asks for them, domains (B,); last, where teachers have spoken, their probabilities (B, C)."""
Batches = Iterable[Batch]
"""A `WindowBatches`, or a torch `DataLoader`. Shuffling is drawn from its `generator`."""
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


class Trainer(Generic[Model]):
    """Trains a model whose `config` is a dataclass that names `num_classes`.

    AdamW (Loshchilov and Hutter 2019), early stopping on macro-F1, best weights restored.

    Random numbers of epoch e follow from (seed, e) alone. Hence the same seed gives the same weights, and a run that was interrupted
    and resumed ends with the weights of one that was not.
    """

    section = "lstm.training"
    """Where the settings stand in the configuration, for messages."""

    def __init__(
        self,
        model: Model,
        settings: LSTMTrainingConfig,
        *,
        seed: int = 0,
        device: str = "auto",
        class_counts: NDArray[np.int64] | None = None,
    ) -> None:
        """Prepare optimiser, schedule and loss.

        Args:
            model: trained in place.
            settings: the section `lstm.training`.
            seed: of shuffling and dropout.
            device: `auto`, `cpu` or `cuda`.
            class_counts: (C,) training windows of each class, for class weights; without it classes weigh the same.
        """
        self.device = pick_device(device)
        self.model, self.settings, self.seed = model.to(self.device), settings, seed
        self.shape: Any = model.config
        self.class_weights = self._weights(class_counts)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.scheduler = self._schedule()
        self.mixed = settings.mixed_precision and self.device.type == "cuda"
        self.gradient_scaler = torch.amp.GradScaler(self.device.type, enabled=self.mixed)

    def _weights(self, counts: NDArray[np.int64] | None) -> Tensor | None:
        power = {"none": 0.0, "sqrt": -0.5, "balanced": -1.0}[self.settings.class_weights]
        if counts is None or power == 0.0:
            return None
        seen = counts > 0
        weights = np.where(seen, np.maximum(counts, 1).astype(np.float64) ** power, 0.0)
        return torch.tensor(weights / weights[seen].mean(), dtype=torch.float32, device=self.device)  # (C,)

    def _schedule(self) -> torch.optim.lr_scheduler.LRScheduler:
        if self.settings.schedule == "plateau":
            return torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, mode="max", factor=0.5, patience=max(1, self.settings.patience // 2))
        if self.settings.schedule == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=self.settings.epochs)
        return torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=1.0)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted mean of -(1 - p)^gamma log p over a batch (Lin et al. 2017); gamma is 0 for cross-entropy.

        Args:
            logits: (B, C).
            labels: (B,).
        """
        if self.settings.loss == "cross_entropy":
            return functional.cross_entropy(logits, labels, weight=self.class_weights)
        log_p = functional.log_softmax(logits, dim=-1).gather(1, labels[:, None])[:, 0]  # (B,)
        weight = torch.ones_like(log_p) if self.class_weights is None else self.class_weights[labels]  # (B,)
        return (weight * (1 - log_p.exp()) ** self.settings.focal_gamma * -log_p).sum() / weight.sum()

    def train_epoch(self, batches: Batches) -> dict[str, float]:
        """One pass with updates; returns `loss, accuracy, macro_f1, weighted_f1` (measured while training, dropout on).

        Raises:
            UserError: when the loss is no longer finite.
        """
        self.model.train()
        return self._pass(batches, self._update)[0]

    def validate_epoch(self, batches: Batches) -> dict[str, float]:
        """One pass without updates; returns `loss, accuracy, macro_f1, weighted_f1`."""
        self.model.eval()
        with torch.inference_mode():
            return self._pass(batches, lambda _: None)[0]

    def objective(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss () of a batch on the trainer's device, and its logits (B, C)."""
        with torch.autocast(self.device.type, enabled=self.mixed):
            logits = self.model(batch[0])  # (B, C)
        return self.loss(logits.float(), batch[1]), logits

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.gradient_scaler.scale(loss).backward()
        self.gradient_scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.gradient_scaler.step(self.optimizer)
        self.gradient_scaler.update()

    def _pass(self, batches: Batches, after: Callable[[Tensor], None]) -> tuple[dict[str, float], NDArray[np.int64]]:
        classes, total = int(self.shape.num_classes), 0.0
        confusion = np.zeros((classes, classes), dtype=np.int64)
        for batch in batches:
            batch = tuple(part.to(self.device) for part in batch)
            labels = batch[1]
            loss, logits = self.objective(batch)
            after(loss)
            total += float(loss.detach()) * len(labels)
            confusion += confusion_matrix(labels.cpu().numpy(), logits.detach().argmax(dim=-1).cpu().numpy(), classes)
        count = int(confusion.sum())
        if count == 0:
            raise UserError("no window to train or evaluate on; lower data.window or read more rows")
        if not np.isfinite(total):
            raise UserError(f"the loss is no longer finite; lower {self.section}.learning_rate (now {self.settings.learning_rate:g})")
        return {"loss": total / count, **summary(confusion)}, confusion

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
        """Train until the last epoch or until `patience` epochs brought no better macro-F1; restore the best weights.

        Args:
            train_batches: windows of `fit`.
            calibrate_batches: windows of `calibrate`.
            on_epoch: called with the figures of each epoch, and on resumption with those of the epochs already done.
            checkpoint: file written after each epoch, whole or not at all.
            resume: go on from `checkpoint` if it exists.
            identity: of data and model; a checkpoint of another identity or other settings is refused.

        Returns:
            A row an epoch: `epoch, learning_rate` and the figures of both passes under `train/` and `calibrate/`.

        Raises:
            UserError: when training diverges, or the checkpoint belongs to another run or is damaged.
        """
        identity = hashlib.sha256(json.dumps([identity, self.seed, asdict(self.shape), self.settings.model_dump()]).encode()).hexdigest()
        state: dict[str, Any] = {"identity": identity, "epoch": 0, "best": -1.0, "best_epoch": 0, "history": [], **self._snapshot()}
        if resume and checkpoint is not None and checkpoint.exists():
            state = self._restore(checkpoint, identity)
        for row in state["history"]:
            on_epoch(row)
        try:
            while state["epoch"] < self.settings.epochs and state["epoch"] - state["best_epoch"] < self.settings.patience:
                self._step(state, train_batches, calibrate_batches)
                if checkpoint is not None:
                    _write(checkpoint, {**state, **self._moving()})
                on_epoch(state["history"][-1])
        finally:
            self._give_back(state)
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
            trained = self.train_epoch(train_batches)
        checked = self.validate_epoch(calibrate_batches)
        state["epoch"] += 1
        if checked["macro_f1"] > state["best"]:
            state |= {"best": checked["macro_f1"], "best_epoch": state["epoch"], **self._snapshot()}
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(checked["macro_f1"])
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
        }

    def _go_on(self, stored: dict[str, Any]) -> None:
        """Take what `_moving` gave out of a checkpoint."""
        for name in ("model", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(stored.pop(name))
        if scaling := stored.pop("gradient_scaler"):  # empty where it was written without mixed precision
            self.gradient_scaler.load_state_dict(scaling)

    def _restore(self, checkpoint: Path, identity: str) -> dict[str, Any]:
        try:
            stored = torch.load(checkpoint, map_location=self.device, weights_only=True)
            if stored["identity"] != identity:
                raise UserError(f"checkpoint '{checkpoint}' was made with other settings or data; start without --resume, or restore those settings")
            self._go_on(stored)
        except UserError:
            raise
        except Exception as error:  # torch raises many kinds for a damaged file; each means the same to the user
            raise UserError(f"checkpoint '{checkpoint}' cannot be read ({error.__class__.__name__}); delete it and train again") from error
        return stored

    def evaluate_detailed(self, batches: Batches, class_names: tuple[str, ...]) -> Evaluation:
        """Confusion matrix and all that follows from it, for the model as it stands."""
        self.model.eval()
        with torch.inference_mode():
            figures, confusion = self._pass(batches, lambda _: None)
        return Evaluation(class_names, confusion, figures["loss"])


def _write(path: Path, state: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        torch.save(state, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write checkpoint '{path}': {error}; choose a writable folder with --set compute.artifacts=FOLDER") from error
