"""An architecture that follows its data: levels are weighted, and levels, heads and memory slots come and go by validation signals.

What is added leaves the model's function as it was (Net2Net, Chen et al. 2016; zero-initialised outputs), so nothing learned is lost;
what is removed is what matters least to a probe of validation windows, and only if the probe's loss allows it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.errors import UserError
from src.models.loop import seeded
from src.models.temporal_lstm.blocks import Level, MemoryBank, RowsLinear, TemporalAttention
from src.models.temporal_lstm.model import AdvancedLSTMTemporal


@dataclass(frozen=True)
class ControllerSettings:
    """When the controller acts, and how far."""

    patience: int = 2
    """Updates without a better macro-F1 before the shape is changed."""
    gain: float = 0.002
    """Rise of macro-F1 that counts as better."""
    gap: float = 0.15
    """Training macro-F1 less validation macro-F1 above which the model is made smaller instead of larger."""
    weight_step: float = 0.1
    """By how much an update moves the weights of the most and the least useful level."""
    weight_range: tuple[float, float] = (0.25, 4.0)
    """Bounds of a level's weight."""
    loss_rise: float = 0.02
    """Largest rise of the probe's loss, in nats, that a removal may cost."""
    slots: tuple[int, int] = (16, 256)
    """Fewest and most memory slots; they come and go by a quarter."""
    heads: tuple[int, int] = (1, 16)
    """Fewest and most heads of each attention layer."""
    levels: tuple[int, int] = (1, 5)
    """Fewest and most levels."""


PARTS = ("slots", "heads", "levels")
"""What comes and goes, in the order of its turns."""
Record = dict[str, Any]
"""One decision: `update, action (weigh, add, remove, none), block, before, after, reason, loss_before, loss_after, kept`; losses of the probe."""


class ArchitectureController:
    """Decides after each epoch; every decision is a record, those that were tried and taken back too."""

    def __init__(
        self,
        model: AdvancedLSTMTemporal,
        probe: tuple[Tensor, Tensor],
        settings: ControllerSettings | None = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        seed: int = 0,
    ) -> None:
        """Watch a model.

        Args:
            model: changed in place; `model.config` always states its shape.
            probe: raw validation windows (N, T, F) and labels (N,) on the model's device; a few hundred do.
            settings: when to act.
            optimizer: of all of the model's parameters in one group; follows every change, and keeps its moments of parameters that stay.
            seed: of the first weights of what is added.

        Raises:
            UserError: when the optimiser has several groups.
        """
        if optimizer is not None and len(optimizer.param_groups) != 1:
            raise UserError(f"the architecture controller follows an optimiser of one parameter group, not of {len(optimizer.param_groups)}")
        self.model, self.probe, self.optimizer, self.seed = model, probe, optimizer, seed
        self.settings = settings or ControllerSettings()
        self.records: list[Record] = []
        self.updates = self._stale = self._turn = 0
        self._best = -math.inf

    def update(self, validation_metrics: Mapping[str, float]) -> list[Record]:
        """Act on the figures of an epoch; returns the decisions of this update.

        Args:
            validation_metrics: `macro_f1` and, for the gap, `train_macro_f1`; or, as `Trainer` names them, `calibrate/macro_f1` and `train/macro_f1`.

        Raises:
            UserError: when no macro-F1 is given.
        """
        score = validation_metrics.get("macro_f1", validation_metrics.get("calibrate/macro_f1"))
        if score is None:
            raise UserError(f"the architecture controller needs 'macro_f1' or 'calibrate/macro_f1'; given: {', '.join(validation_metrics) or 'nothing'}")
        trained = validation_metrics.get("train_macro_f1", validation_metrics.get("train/macro_f1", score))
        self.updates += 1
        found = self._weigh()
        former = self._best
        better = score > former + self.settings.gain
        self._best = max(self._best, score)
        self._stale = 0 if better else self._stale + 1
        if self._stale >= self.settings.patience:
            self._stale = 0
            reason = f"macro-F1 {score:.4f} after a best of {former:.4f}: no gain of {self.settings.gain:g} for {self.settings.patience} updates"
            if trained - score > self.settings.gap:
                found += self._shrink(f"{reason}, and {trained - score:.3f} below training")
            else:
                found += self._grow(reason)
        self.records += found
        return found

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on as if nothing had happened; plain numbers."""
        return {"updates": self.updates, "stale": self._stale, "turn": self._turn, "best": self._best, "records": copy.deepcopy(self.records)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; the model itself is restored with `AdvancedLSTMTemporal.adopt`."""
        self.updates, self._stale, self._turn, self._best = state["updates"], state["stale"], state["turn"], state["best"]
        self.records = copy.deepcopy(state["records"])

    def _loss(self, model: AdvancedLSTMTemporal) -> float:
        """Mean negative log-likelihood of the probe, in nats."""
        training = model.training
        model.eval()
        with torch.inference_mode():
            loss = float(functional.cross_entropy(model(self.probe[0])["logits"], self.probe[1]))
        model.train(training)
        return loss

    def _weigh(self) -> list[Record]:
        """Move weight from the level that the probe misses least to the one that it misses most; taken back if the loss rises."""
        scale = self.model.hierarchy.level_scale
        if len(scale) == 1:
            return []
        before, loss = scale.clone(), self._loss(self.model)
        missed = []
        for level in range(len(scale)):
            scale[level] = 0.0
            missed.append(self._loss(self.model) - loss)
            scale.copy_(before)
        most, least = missed.index(max(missed)), missed.index(min(missed))
        scale[most] *= 1 + self.settings.weight_step
        scale[least] *= 1 - self.settings.weight_step
        scale.clamp_(*self.settings.weight_range)
        after, new_loss = scale.clone(), self._loss(self.model)
        kept = new_loss <= loss
        if not kept:
            scale.copy_(before)
        reason = f"without level {most} the loss rises by {missed[most]:.4f}, without level {least} by {missed[least]:.4f}"
        return [self._record("weigh", "levels", before.tolist(), after.tolist(), reason, loss, new_loss, kept)]

    def _grow(self, reason: str) -> list[Record]:
        """Add slots, a head or a level, in turn; what has reached its limit is passed over."""
        loss = self._loss(self.model)
        for _ in range(3):
            part = self._turn % 3
            block, count = PARTS[part], self._size(part)
            self._turn += 1
            limit = getattr(self.settings, block)[1]
            if count < limit:
                with seeded(self.seed, 100_000 + self.updates):
                    if block == "slots":
                        add_slots(self.model, min(max(1, count // 4), limit - count))
                    elif block == "heads":
                        add_head(self.model)
                    else:
                        add_level(self.model)
                self._follow()
                return [self._record("add", block, count, self._size(part), reason, loss, self._loss(self.model), True)]
        return [self._record("none", "all", None, None, f"{reason}; every part is as large as allowed", loss, loss, False)]

    def _shrink(self, reason: str) -> list[Record]:
        """Remove what costs the probe least of slots, a head and a level, unless it costs too much."""
        loss, found = self._loss(self.model), []
        sizes = [self._size(part) for part in range(3)]
        fewest = [getattr(self.settings, block)[0] for block in PARTS]
        removals: list[Callable[[AdvancedLSTMTemporal], None]] = [
            lambda model: remove_slots(model, min(max(1, sizes[0] // 4), sizes[0] - fewest[0])),
            remove_head,
            remove_level,
        ]
        for part, (block, remove) in enumerate(zip(PARTS, removals, strict=True)):
            if sizes[part] > fewest[part]:
                trial = copy.deepcopy(self.model)
                remove(trial)
                found.append((self._loss(trial), block, part, remove))
        if not found:
            return [self._record("none", "all", None, None, f"{reason}; every part is as small as allowed", loss, loss, False)]
        cost, block, part, remove = min(found, key=lambda item: item[0])
        kept = cost <= loss + self.settings.loss_rise
        if kept:
            remove(self.model)
            self._follow()
        return [self._record("remove", block, sizes[part], self._size(part), reason, loss, cost, kept)]

    def _size(self, part: int) -> int:
        config = self.model.config
        return (config.memory_slots, config.num_heads, config.num_levels)[part]

    def _record(self, action: str, block: str, before: Any, after: Any, reason: str, loss: float, new_loss: float, kept: bool) -> Record:
        return {
            "update": self.updates,
            "action": action,
            "block": block,
            "before": before,
            "after": after,
            "reason": reason,
            "loss_before": loss,
            "loss_after": new_loss,
            "kept": kept,
        }

    def _follow(self) -> None:
        """Give the optimiser the model's parameters, in the model's order; moments of parameters that are gone go too."""
        if self.optimizer is None:
            return
        parameters = list(self.model.parameters())
        staying = set(parameters)
        for gone in [parameter for parameter in self.optimizer.state if parameter not in staying]:
            del self.optimizer.state[gone]
        self.optimizer.param_groups[0]["params"] = parameters


def add_slots(model: AdvancedLSTMTemporal, count: int) -> None:
    """Split the `count` most used slots (at most all) in two of the same content; reading stays what it was.

    The halves share the slot's weight 3 to 1, so that writing moves them at different rates and they part.
    """
    bank = model.memory
    chosen = bank.usage.topk(min(count, len(bank.usage))).indices
    prior = bank.log_prior.detach().clone()
    parted = prior[chosen] + math.log(0.25)
    prior[chosen] += math.log(0.75)
    usage = bank.usage.clone()
    usage[chosen] *= 0.75
    _set_slots(model, torch.cat([bank.slots, bank.slots[chosen]]), torch.cat([prior, parted]), torch.cat([usage, usage[chosen] / 3]))


def remove_slots(model: AdvancedLSTMTemporal, count: int) -> None:
    """Forget the `count` least used slots; at least one stays."""
    bank = model.memory
    kept = bank.usage.topk(max(1, len(bank.usage) - count)).indices.sort().values
    _set_slots(model, bank.slots[kept], bank.log_prior.detach()[kept], bank.usage[kept])


def _set_slots(model: AdvancedLSTMTemporal, slots: Tensor, log_prior: Tensor, usage: Tensor) -> None:
    bank: MemoryBank = model.memory
    bank.slots, bank.usage, bank.log_prior = slots.clone(), usage.clone(), nn.Parameter(log_prior.clone())
    model.config = replace(model.config, memory_slots=len(slots))


def add_head(model: AdvancedLSTMTemporal) -> None:
    """Give each attention layer a head whose output weights are 0: logits stay what they were, gradients reach it at once."""
    for layer in model.attention:
        assert isinstance(layer, TemporalAttention)
        _set_heads(model, layer, list(range(layer.heads)), 1)
    model.config = replace(model.config, num_heads=model.config.num_heads + 1)


def remove_head(model: AdvancedLSTMTemporal) -> None:
    """Take from each attention layer the head whose value and output weights are smallest (product of their norms).

    Raises:
        UserError: when there is one head only.
    """
    if model.config.num_heads == 1:
        raise UserError("the temporal model's last head cannot be removed")
    for layer in model.attention:
        assert isinstance(layer, TemporalAttention)
        value = layer.project.weight.unflatten(0, (3, layer.heads, layer.head_size))[2]  # (h, D, H)
        output = layer.out.weight.unflatten(1, (layer.heads, layer.head_size))  # (H, h, D)
        least = int((value.flatten(1).norm(dim=1) * output.transpose(0, 1).flatten(1).norm(dim=1)).argmin())
        _set_heads(model, layer, [head for head in range(layer.heads) if head != least], 0)
    model.config = replace(model.config, num_heads=model.config.num_heads - 1)


@torch.no_grad()
def _set_heads(model: AdvancedLSTMTemporal, layer: TemporalAttention, kept: list[int], added: int) -> None:
    """Leave the heads `kept` to a layer, and add some that do nothing yet."""
    heads, size, hidden = len(kept) + added, layer.head_size, layer.project.in_features
    config = model.config
    other = TemporalAttention(hidden, heads, size, layer.log_period.shape[1], config.sequence_length, config.dropout).to(layer.project.weight.device)
    other.project.weight.unflatten(0, (3, heads, size))[:, : len(kept)] = layer.project.weight.unflatten(0, (3, layer.heads, size))[:, kept]
    output = other.out.weight.unflatten(1, (heads, size))
    output[:, : len(kept)] = layer.out.weight.unflatten(1, (layer.heads, size))[:, kept]
    output[:, len(kept) :] = 0.0
    for name in ("log_temperature", "log_slope", "log_period", "amplitude", "shift"):
        grown = getattr(other, name)
        grown[: len(kept)] = getattr(layer, name)[kept]
        setattr(layer, name, grown)
    other.out.bias = layer.out.bias
    layer.project, layer.out, layer.heads = other.project, other.out, heads


def add_level(model: AdvancedLSTMTemporal) -> None:
    """Put a level on top, at half the rate of the last, whose projection is 0: logits stay what they were, gradients reach it at once."""
    hierarchy, hidden, device = model.hierarchy, model.config.hidden_size, model.temperature.device
    level = Level(2 * hidden, hidden)
    nn.init.zeros_(level.project.weight)
    nn.init.zeros_(level.project.bias)
    hierarchy.levels.append(level.to(device))
    hierarchy.up.append(RowsLinear(2 * hidden, 2 * hidden).to(device))
    hierarchy.down.append(RowsLinear(2 * hidden, hidden).to(device))
    hierarchy.weight = nn.Parameter(torch.cat([hierarchy.weight.detach(), hierarchy.weight.new_ones(1)]))
    hierarchy.level_scale = torch.cat([hierarchy.level_scale, hierarchy.level_scale.new_ones(1)])
    model.config = replace(model.config, num_levels=model.config.num_levels + 1)


def remove_level(model: AdvancedLSTMTemporal) -> None:
    """Take the slowest level away.

    Raises:
        UserError: when there is one level only.
    """
    hierarchy = model.hierarchy
    if len(hierarchy.levels) == 1:
        raise UserError("the temporal model's last level cannot be removed")
    for blocks in (hierarchy.levels, hierarchy.up, hierarchy.down):
        del blocks[-1]
    hierarchy.weight = nn.Parameter(hierarchy.weight.detach()[:-1].clone())
    hierarchy.level_scale = hierarchy.level_scale[:-1].clone()
    model.config = replace(model.config, num_levels=model.config.num_levels - 1)
