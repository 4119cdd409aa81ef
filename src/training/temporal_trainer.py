"""What the temporal LSTM is trained on: the labelled loss, the posterior's divergence, and a discriminator to be deceived."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from src.config import TemporalTrainingConfig
from src.errors import UserError
from src.models.loop import Batch, Batches, Trainer, WindowBatches
from src.models.temporal_lstm import AdvancedLSTMTemporal

IGNORED = -1
"""Domain of a window that the discriminator does not see."""


def domain_strength(progress: float) -> float:
    """Strength of the reversed gradient at `progress` (0 to 1) of the training: 2 / (1 + exp(-10 p)) - 1 (Ganin et al. 2016)."""
    return 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0


class TemporalTrainer(Trainer[AdvancedLSTMTemporal]):
    """Trains an `AdvancedLSTMTemporal` by the evidence lower bound, and against its discriminator where it has one.

    Loss of a batch: labelled loss + `kl_weight` x divergence / training windows + `domain_weight` x cross-entropy of the
    discriminator, whose gradient reaches the embedding reversed and times `domain_strength` (Ganin et al. 2016). The discriminator
    reads the batch's own domains, and as many windows of `target`, another site's traffic without labels, as the batch has.
    """

    def __init__(
        self,
        model: AdvancedLSTMTemporal,
        settings: TemporalTrainingConfig,
        *,
        class_counts: NDArray[np.int64],
        seed: int = 0,
        device: str = "auto",
        target: WindowBatches | None = None,
    ) -> None:
        """Prepare optimiser, schedule and loss.

        Args:
            model: trained in place.
            settings: the section `temporal.training`.
            class_counts: (C,) training windows of each class, for class weights and for the divergence's share.
            seed: of shuffling, dropout, draws and augmentation.
            device: `auto`, `cpu` or `cuda`.
            target: windows whose labels are not read, with their domains; shown to the discriminator only.

        Raises:
            UserError: for a target without domains, or a model without a discriminator to show it to.
        """
        if target is not None and (target.domains is None or model.discriminator is None):
            raise UserError("windows of another site need their domains, and a model with num_domains of at least 2")
        super().__init__(model, settings, seed=seed, device=device, class_counts=class_counts)
        self.temporal, self.target, self.windows = settings, target, int(class_counts.sum())
        self._epoch, self._read = 0, 0

    def _step(self, state: dict[str, Any], train_batches: Batches, calibrate_batches: Batches) -> None:
        self._epoch, self._read = state["epoch"], 0
        super()._step(state, train_batches, calibrate_batches)

    def objective(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss () of a batch on the trainer's device, and its logits (B, C); in evaluation the labelled loss alone."""
        windows, labels, *domains = batch
        learns = self.model.training
        adversarial = learns and self.model.discriminator is not None and (bool(domains) or self.target is not None)
        strength = domain_strength((self._epoch + self._read / max(self.windows, 1)) / self.settings.epochs) if adversarial else None
        with torch.autocast(self.device.type, enabled=self.mixed):
            found = self.model(windows, domain_lambda=strength)
        logits = found["logits"].float()
        loss = self.loss(logits, labels)
        if not learns:
            return loss, logits
        self._read += len(labels)
        loss = loss + self.temporal.kl_weight * found["kl"] / self.windows
        if strength is not None:
            loss = loss + self.temporal.domain_weight * self._domain_loss(found["discriminator_output"], domains, len(labels), strength)
        return loss, logits

    def _domain_loss(self, guesses: Tensor, domains: list[Tensor], count: int, strength: float) -> Tensor:
        """Mean cross-entropy () of the discriminator on the batch's own windows and on as many of the target."""
        told = [guesses.float()] if domains else []
        truth = list(domains)
        if self.target is not None and self.target.domains is not None:
            chosen = torch.randint(len(self.target.starts), (count,))  # the loop has seeded the global generator
            windows = self.target.rows[self.target.starts[chosen, None] + torch.arange(self.target.length)]  # (B, T, F)
            with torch.autocast(self.device.type, enabled=self.mixed):
                found = self.model(windows.to(self.device), domain_lambda=strength)
            told.append(found["discriminator_output"].float())
            truth.append(self.target.domains[chosen].to(self.device))
        answers = torch.cat(truth)
        if not bool((answers != IGNORED).any()):
            return torch.cat(told).sum() * 0.0
        return functional.cross_entropy(torch.cat(told), answers, ignore_index=IGNORED)
