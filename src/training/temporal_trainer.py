"""What the temporal LSTM is trained on: the labelled loss, the posterior's divergence, and a discriminator to be deceived."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from src.config import TemporalTrainingConfig
from src.errors import UserError
from src.models.classifier import ClassifierTrainer
from src.models.explanations import AttentionTracker
from src.models.loop import Batch, Batches, WindowBatches
from src.models.temporal_lstm import AdvancedLSTMTemporal, ArchitectureController, Augmentation, ModelConfig, domain_schedule

IGNORED = -1
"""Domain of a window that the discriminator does not see."""
PROBE = 512
"""Windows of `calibrate` by which the architecture is judged."""
TRACKED = 64
"""Windows of `calibrate` on which attention is followed from epoch to epoch."""


class TemporalTrainer(ClassifierTrainer[AdvancedLSTMTemporal]):
    """Trains an `AdvancedLSTMTemporal` by the evidence lower bound, and against its discriminator where it has one.

    Loss of a batch: labelled loss + `kl_weight` x divergence / training windows + `domain_weight` x cross-entropy of the
    discriminator, whose gradient reaches the embedding reversed and times `domain_schedule` (Ganin et al. 2016). The discriminator
    reads the batch's own domains, and as many windows of `target`, another site's traffic without labels, as the batch has.
    """

    section = "temporal.training"
    partial = True  # the discriminator's, where no domain is known

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
        self.target, self.windows = target, int(class_counts.sum())
        self.kl_weight, self.domain_weight, self.adaptive = settings.kl_weight, settings.domain_weight, settings.adaptive
        self.augment = Augmentation(settings.noise, settings.scale, settings.jitter, settings.missing)
        self.controller: ArchitectureController | None = None
        self._epoch, self._read = 0, 0
        self._draws = torch.Generator(self.device)
        self._tracked: NDArray[np.float32] | None = None

    def _step(self, state: dict[str, Any], train_batches: Batches, calibrate_batches: Batches) -> None:
        self._epoch, self._read = state["epoch"], 0
        if self.adaptive and self.controller is None:
            self.controller = self._watch(calibrate_batches)
            if "controller" in state:
                self.controller.restore(state.pop("controller"))
        super()._step(state, train_batches, calibrate_batches)
        state["history"][-1] |= self._attention(calibrate_batches)
        if self.controller is not None:
            self.controller.update(state["history"][-1])
            state["history"][-1] |= {name: float(getattr(self.model.config, name)) for name in ("num_levels", "num_heads", "memory_slots")}

    def _attention(self, batches: Batches) -> dict[str, float]:
        """How evenly each head spreads over some windows of `calibrate` (entropy, 1 is even), and how far it looks (steps)."""
        if self._tracked is None:
            self._tracked = _spread_over(batches, TRACKED)[0].cpu().numpy()
        tracker = AttentionTracker(self.model, self._tracked)
        tracker.record(self._epoch)
        names = ("entropy", "distance")
        return {f"attention/layer{int(row['layer'])}_head{int(row['head'])}_{name}": row[name] for row in tracker.rows for name in names}

    def _watch(self, batches: Batches) -> ArchitectureController:
        """A controller that probes the model with windows spread over `calibrate`."""
        windows, labels = _spread_over(batches, PROBE)
        return ArchitectureController(self.model, (windows.to(self.device), labels.to(self.device)), optimizer=self.optimizer, seed=self.seed)

    def train_epoch(self, batches: Batches) -> dict[str, float]:
        """One pass with updates, as `Trainer.train_epoch`; windows are augmented as the settings say."""
        self._draws.manual_seed(int(torch.randint(2**62, ())))  # the loop has seeded the global generator
        return super().train_epoch(batches)

    def _snapshot(self) -> dict[str, Any]:
        return {**super()._snapshot(), "best_shape": asdict(self.model.config)}

    def _give_back(self, state: dict[str, Any]) -> None:
        shape = ModelConfig(**state["best_shape"])
        if shape == self.model.config:
            super()._give_back(state)
            return
        self.model.adopt(shape, state["best_weights"])
        self.optimizer.state.clear()  # moments of parameters that are gone
        self.optimizer.param_groups[0]["params"] = list(self.model.parameters())

    def _moving(self) -> dict[str, Any]:
        found = {**super()._moving(), "moving_shape": asdict(self.model.config)}
        return found if self.controller is None else {**found, "controller": self.controller.state()}

    def _go_on(self, stored: dict[str, Any]) -> None:
        self.model.adopt(ModelConfig(**stored.pop("moving_shape")), stored["model"])
        self.optimizer.param_groups[0]["params"] = list(self.model.parameters())
        super()._go_on(stored)

    def objective(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss () of a batch on the trainer's device, and its logits (B, C); in evaluation the labelled loss alone."""
        windows, labels, *domains = batch
        learns = self.model.training
        adversarial = learns and self.model.discriminator is not None and (bool(domains) or self.target is not None)
        if learns:
            windows = self.augment(windows, self._spread(), self._draws)
        strength = domain_schedule((self._epoch + self._read / max(self.windows, 1)) / self.settings.epochs) if adversarial else None
        with torch.autocast(self.device.type, enabled=self.mixed):
            found = self.model(windows, domain_lambda=strength)
        logits = found["logits"].float()
        loss = self.loss(logits, labels)
        if not learns:
            return loss, logits
        self._read += len(labels) * self.peers.count
        loss = loss + self.kl_weight * found["kl"] / self.windows
        if strength is not None:
            loss = loss + self.domain_weight * self._domain_loss(found["discriminator_output"], domains, len(labels), strength)
        return loss, logits

    def _spread(self) -> Tensor:
        """(F,) deviation of each feature's signed logarithm in the rows that the scaler was fitted on; 0 where it is constant."""
        inverse = self.model.scaler.inverse
        return torch.where(inverse > 0, 1.0 / inverse.clamp(min=1e-12), 0.0)

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


def _spread_over(batches: Batches, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` windows (n, T, F) with labels (n,), evenly spread over all batches; no more than one batch is held beside them."""
    total = sum(len(batch[1]) for batch in batches)
    chosen = torch.linspace(0, total - 1, min(count, total)).long()
    parts, first = [], 0
    for windows, labels, *_ in batches:
        here = chosen[(chosen >= first) & (chosen < first + len(labels))] - first
        parts.append((windows[here], labels[here]))
        first += len(labels)
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
