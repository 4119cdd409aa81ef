"""The training loop of classifiers: weighted or focal loss, AdamW, early stopping on macro-F1, confusion matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from src.config import LSTMTrainingConfig
from src.models.loop import Batch, Batches, Model, Trainer, pick_device
from src.models.scores import Evaluation, confusion_matrix, summary
from src.models.stopping import StandardEarlyStopping


class ClassifierTrainer(Trainer[Model]):
    """Trains a model whose `config` names `num_classes`.

    AdamW (Loshchilov and Hutter 2019), early stopping on macro-F1, best weights restored.
    """

    section = "lstm.training"
    merit = "macro_f1"
    settings: LSTMTrainingConfig

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
        place = pick_device(device)
        model = model.to(place)
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        stopping = StandardEarlyStopping(settings.patience, "max")
        super().__init__(model, settings, optimizer=optimizer, scheduler=_schedule(settings, optimizer), stopping=stopping, seed=seed, device=place)
        self.class_weights = self._weights(class_counts)

    def _weights(self, counts: NDArray[np.int64] | None) -> Tensor | None:
        power = {"none": 0.0, "sqrt": -0.5, "balanced": -1.0}[self.settings.class_weights]
        if counts is None or power == 0.0:
            return None
        seen = counts > 0
        weights = np.where(seen, np.maximum(counts, 1).astype(np.float64) ** power, 0.0)
        return torch.tensor(weights / weights[seen].mean(), dtype=torch.float32, device=self.device)  # (C,)

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

    def objective(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss () of a batch on the trainer's device, and its logits (B, C)."""
        with torch.autocast(self.device.type, enabled=self.mixed):
            logits = self.model(batch[0])  # (B, C)
        return self.loss(logits.float(), batch[1]), logits

    def _measure(self, batches: Batches, after: Callable[[Tensor], None]) -> dict[str, float]:
        loss, confusion = self._confusion(batches, after)
        return {"loss": loss, **summary(confusion)}

    def _confusion(self, batches: Batches, after: Callable[[Tensor], None]) -> tuple[float, NDArray[np.int64]]:
        """Mean loss of one pass, and its confusion matrix (C, C).

        Raises:
            UserError: when there is no window, or the loss is no longer finite.
        """
        classes = int(self.shape.num_classes)
        confusion = np.zeros((classes, classes), dtype=np.int64)

        def see(batch: Batch, logits: Tensor) -> None:
            nonlocal confusion
            confusion += confusion_matrix(batch[1].cpu().numpy(), logits.argmax(dim=-1).cpu().numpy(), classes)

        loss = self._pass(batches, after, see)
        if not np.isfinite(loss):
            raise self.diverged()
        return loss, self.peers.total(confusion.astype(np.float64)).astype(np.int64)

    def evaluate_detailed(self, batches: Batches, class_names: tuple[str, ...]) -> Evaluation:
        """Confusion matrix and all that follows from it, for the model as it stands."""
        self.model.eval()
        self._asked = self.objective
        with torch.inference_mode():
            loss, confusion = self._confusion(batches, lambda _: None)
        return Evaluation(class_names, confusion, loss)


def _schedule(settings: LSTMTrainingConfig, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    if settings.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=max(1, settings.patience // 2))
    if settings.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=settings.epochs)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
