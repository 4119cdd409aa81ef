"""When training ends: strategies that judge the validation figure of each epoch, and name the epoch whose weights are to be kept.

Two things are kept apart. The best value is the best of all epochs, by however little; its weights are the ones to restore. An
improvement is significant when it is large enough measured from the last value that was: the reference moves on significance alone,
so that a slow but steady descent adds up and a creeping one does not.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from src.config import nearest
from src.errors import UserError


class Stopping(ABC):
    """Watches one figure, an epoch at a time."""

    KEPT: tuple[str, ...] = ("best", "best_epoch", "improved", "reason")
    """What `state` holds."""

    def __init__(self, mode: Literal["min", "max"] = "min") -> None:
        """Watch a figure that is to become small (`min`) or large (`max`)."""
        self.mode = mode
        self.reset()

    def reset(self) -> None:
        """Forget every epoch."""
        self.best = math.inf if self.mode == "min" else -math.inf
        self.best_epoch = 0
        """Epoch of `best`; 0 before the first that was finite."""
        self.improved = False
        """Whether the last epoch was the best so far."""
        self.reason = ""
        """Why training is to stop; empty while it is not."""

    def update(self, epoch: int, value: float, learning_rate: float | None = None) -> bool:
        """Judge an epoch; returns whether training is to stop.

        Args:
            epoch: its number, from 1.
            value: its figure. One that is not finite ends training.
            learning_rate: the rate that it was trained with; None when that is not to count.
        """
        self.improved = math.isfinite(value) and (value < self.best if self.mode == "min" else value > self.best)
        if self.improved:
            self.best, self.best_epoch = value, epoch
        self.reason = self._judge(epoch, value, learning_rate) if math.isfinite(value) else f"the figure of epoch {epoch} is not finite ({value})"
        return bool(self.reason)

    @abstractmethod
    def _judge(self, epoch: int, value: float, learning_rate: float | None) -> str:
        """Why to stop after an epoch whose figure is finite, or nothing."""

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on as if nothing had happened: numbers, words and lists of them."""
        kept = {name: list(value) if isinstance(value := getattr(self, name), list) else value for name in self.KEPT}
        return {"strategy": type(self).__name__, **kept}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            KeyError: when it was taken of another strategy.
        """
        if state["strategy"] != type(self).__name__:
            raise KeyError(f"state of a {state['strategy']}, not of a {type(self).__name__}")
        for name in self.KEPT:
            value = state[name]
            setattr(self, name, list(value) if isinstance(value, list) else value)


class StandardEarlyStopping(Stopping):
    """Stops when `patience` epochs in a row brought no better value than the best, by however little."""

    def __init__(self, patience: int = 5, mode: Literal["min", "max"] = "min") -> None:
        self.patience = patience
        super().__init__(mode)

    def _judge(self, epoch: int, value: float, learning_rate: float | None) -> str:
        return f"no better value for {self.patience} epochs" if epoch - self.best_epoch >= self.patience else ""


class _SignificantStopping(Stopping):
    """Stops when `patience` epochs in a row brought no significant improvement of a loss. What is significant, subclasses say.

    A fall of the learning rate restarts patience, as it often brings a burst of improvement some epochs later; a further fall does
    so only when there was a significant improvement since the last, or a schedule that keeps falling would keep training alive.
    """

    KEPT = (*Stopping.KEPT, "reference", "waited", "rate", "grace")

    def __init__(self, patience: int) -> None:
        self.patience = patience
        super().__init__("min")

    def reset(self) -> None:
        """Forget every epoch."""
        super().reset()
        self.reference = math.inf
        """Last significant value, from which improvement is measured."""
        self.waited = 0
        """Epochs since then, or since patience restarted."""
        self.rate = math.inf
        """Learning rate of the last epoch."""
        self.grace = True
        """Whether a fall of the rate restarts patience."""

    @abstractmethod
    def _significant(self, gain: float) -> bool:
        """Whether a loss that is `gain` below `reference` is a significant improvement."""

    def _restart(self) -> None:
        self.waited, self.grace = 0, False

    def _judge(self, epoch: int, value: float, learning_rate: float | None) -> str:
        if learning_rate is not None:
            if learning_rate < self.rate < math.inf and self.grace:
                self._restart()
            self.rate = learning_rate
        if self.reference == math.inf or self._significant(self.reference - value):
            self.reference, self.waited, self.grace = value, 0, True
        else:
            self.waited += 1
        return f"no significant improvement for {self.patience} epochs" if self.waited >= self.patience else ""


class SmartEarlyStopping(_SignificantStopping):
    """Stops on patience, or when what the last epochs brought together is too little.

    An epoch is significant when its loss is below the last significant one by both `min_improvement_pct` per cent of it and
    `min_improvement_abs`. The absolute bound is in units of the loss and is 0 by default: the .0005 of the former pipeline asks for
    a quarter of a loss of .002, and stops every training whose loss is small. From `improvement_window` epochs on, the best value is
    compared with the best that there was that many epochs ago (or at the restart of patience, counted from there).
    """

    KEPT = (*_SignificantStopping.KEPT, "bests")

    def __init__(
        self,
        min_improvement_pct: float = 0.5,
        min_improvement_abs: float = 0.0,
        patience: int = 5,
        improvement_window: int = 10,
        min_window_improvement: float = 2.0,
        min_improvement_rate: float = 0.1,
    ) -> None:
        """Set the bounds.

        Args:
            min_improvement_pct: per cent of the last significant loss.
            min_improvement_abs: in units of the loss; both bounds must be met.
            patience: epochs without a significant improvement.
            improvement_window: epochs over which improvement is added up.
            min_window_improvement: per cent that they must bring together.
            min_improvement_rate: per cent that they must bring on average, an epoch; stricter than the former only from
                `min_window_improvement / improvement_window` on.
        """
        self.min_improvement_pct, self.min_improvement_abs = min_improvement_pct, min_improvement_abs
        self.improvement_window, self.min_window_improvement, self.min_improvement_rate = improvement_window, min_window_improvement, min_improvement_rate
        super().__init__(patience)

    def reset(self) -> None:
        """Forget every epoch."""
        super().reset()
        self.bests: list[float] = []
        """Best value after each of the last epochs, oldest first."""

    def _significant(self, gain: float) -> bool:
        return gain > 0 and gain >= self.min_improvement_abs and 100 * gain >= self.min_improvement_pct * abs(self.reference)

    def _restart(self) -> None:
        super()._restart()
        self.bests = self.bests[-1:]

    def _judge(self, epoch: int, value: float, learning_rate: float | None) -> str:
        reason = super()._judge(epoch, value, learning_rate)
        self.bests = [*self.bests, self.best][-self.improvement_window - 1 :]
        if reason or len(self.bests) <= self.improvement_window:
            return reason
        total = 100 * (self.bests[0] - self.bests[-1]) / abs(self.bests[0]) if self.bests[0] else 0.0
        rate = total / self.improvement_window
        if total < self.min_window_improvement:
            return f"{total:.2f} % improvement in {self.improvement_window} epochs; {self.min_window_improvement:g} % wanted"
        if rate < self.min_improvement_rate:
            return f"{rate:.3f} % improvement an epoch over {self.improvement_window} epochs; {self.min_improvement_rate:g} % wanted"
        return ""


class AdaptiveEarlyStopping(_SignificantStopping):
    """Stops on patience alone; an improvement counts from `min_improvement_ratio` of the loss on, whatever its size."""

    def __init__(self, min_improvement_ratio: float = 0.001, base_patience: int = 5) -> None:
        self.min_improvement_ratio = min_improvement_ratio
        super().__init__(base_patience)

    def _significant(self, gain: float) -> bool:
        return gain > 0 and gain >= self.min_improvement_ratio * abs(self.reference)


def create_smart_callbacks(
    strategy: str = "smart", *, optimizer: torch.optim.Optimizer, min_improvement_pct: float = 0.5, patience: int = 5
) -> tuple[Stopping, ReduceLROnPlateau]:
    """What watches the training of an autoencoder: a stopping strategy, and a schedule that divides the rate by five at the fourth epoch without a better loss.

    Args:
        strategy: `standard`, `smart` or `adaptive`.
        optimizer: whose rate is scheduled.
        min_improvement_pct: of the smart strategy.
        patience: of any.

    Raises:
        UserError: for an unknown strategy.
    """
    made: dict[str, Stopping] = {
        "standard": StandardEarlyStopping(patience),
        "smart": SmartEarlyStopping(min_improvement_pct, patience=patience),
        "adaptive": AdaptiveEarlyStopping(base_patience=patience),
    }
    if strategy not in made:
        raise UserError(f"unknown stopping strategy '{strategy}': {nearest(strategy, made)}")
    return made[strategy], ReduceLROnPlateau(optimizer, mode="min", factor=0.2, patience=3, min_lr=1e-7)
