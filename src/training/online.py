"""Online learning: a trained predictor goes on learning from a labelled stream without forgetting, and a monitor says when it must.

Each labelled batch moves the weights by a few steps, on the batch and on windows replayed from a reservoir of 1,000; a penalty keeps the
logits of replayed windows where they were when these were stored (dark experience replay, DER++: Buzzega et al. 2020). A label of a new
name gives the output layer one more class. The optimiser and its state last as long as the learner. The monitor needs no label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from river.drift import ADWIN
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from src.artifacts import new_artifact, open_artifact
from src.data.taxonomy import BENIGN_OF, canonical
from src.errors import UserError
from src.models.loop import seeded
from src.models.lstm_attack_predictor import LSTMConfig, RealDataLSTMPredictor
from src.models.temporal_lstm import AdvancedLSTMTemporal, ModelConfig

KIND = "online-learner"

Model = RealDataLSTMPredictor | AdvancedLSTMTemporal
BUILDERS: dict[str, Callable[[dict[str, Any]], Model]] = {
    "RealDataLSTMPredictor": lambda shape: RealDataLSTMPredictor(LSTMConfig(**shape)),
    "AdvancedLSTMTemporal": lambda shape: AdvancedLSTMTemporal(ModelConfig(**shape)),
}
"""By class of the model: how to build one of a saved shape."""


@dataclass(frozen=True)
class OnlineSettings:
    """How an `OnlineLearner` learns. The defaults did best on CICIoT2023 streams (`benchmarks/part_online.py`)."""

    capacity: int = 1000
    """Windows in the reservoir."""
    balanced: bool = True
    """Give classes equal shares of the reservoir, as far as they have windows; otherwise each window ever offered has the same chance."""
    replay: int = 128
    """Windows replayed a step; 0 replays none, and the penalty has nothing to hold on to."""
    steps: int = 4
    """Updates a batch."""
    learning_rate: float = 0.01
    """Of Adagrad (Duchi et al. 2011)."""
    label_weight: float = 1.0
    """Weight of a replayed window's label beside one of the batch; 0 leaves only the penalty."""
    penalty: float = 0.03
    """Weight of the squared distance between a replayed window's logits and its stored ones. On the benchmark's streams .03 costs and wins nothing beside
    replay alone; .1 holds so fast that the old classes gain less from the stream."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, low in (("capacity", 1), ("replay", 0), ("steps", 1), ("label_weight", 0.0), ("penalty", 0.0)):
            if getattr(self, name) < low:
                raise UserError(f"online learning: {name} is {getattr(self, name)}; it must be at least {low}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise UserError(f"online learning: {name} is {getattr(self, name)}; it must be above 0")


class Reservoir:
    """At most `capacity` windows of all that were ever offered, with label and logits.

    Plain: each one offered stays with the same chance (algorithm R: Vitter 1985). Balanced: a window of a class that never held the most
    places takes the place of one of the class that does; one of any other class competes, by algorithm R, for its own class's places
    (Chrysakis and Moens 2020).
    """

    def __init__(self, capacity: int, balanced: bool, window: tuple[int, ...]) -> None:
        """Make room for windows of the shape `window`, (T, F)."""
        self.balanced, self.size = balanced, 0
        self.windows = torch.zeros(capacity, *window)  # (N, T, F)
        self.logits = torch.zeros(capacity, 0)  # (N, C)
        self.labels = torch.full((capacity,), -1)  # (N,)
        self.widths = torch.zeros(capacity, dtype=torch.int64)  # (N,) classes there were when the logits were taken
        self.seen = np.zeros(0, dtype=np.int64)  # (C,) windows offered
        self.once_largest = np.zeros(0, dtype=bool)  # (C,)

    def offer(self, windows: Tensor, labels: Tensor, logits: Tensor, rng: np.random.Generator) -> None:
        """Take some of the windows (B, T, F) with labels (B,) and logits (B, C); C never falls."""
        width = logits.shape[1]
        self.logits = functional.pad(self.logits, (0, width - self.logits.shape[1]))
        self.seen = np.pad(self.seen, (0, width - len(self.seen)))
        self.once_largest = np.pad(self.once_largest, (0, width - len(self.once_largest)))
        for index, label in enumerate(labels.tolist()):
            place = self._place(label, rng)
            if place is not None:
                self.windows[place], self.labels[place], self.logits[place], self.widths[place] = windows[index], label, logits[index], width

    def _place(self, label: int, rng: np.random.Generator) -> int | None:
        self.seen[label] += 1
        if self.size < len(self.labels):
            self.size += 1
            return self.size - 1
        if not self.balanced:
            drawn = int(rng.integers(self.seen.sum()))
            return drawn if drawn < self.size else None
        held = self.labels.numpy()
        counts = np.bincount(held, minlength=len(self.seen))
        largest = counts == counts.max()
        self.once_largest |= largest
        if not self.once_largest[label]:
            return int(rng.choice(np.flatnonzero(largest[held])))
        if rng.random() < counts[label] / self.seen[label]:
            return int(rng.choice(np.flatnonzero(held == label)))
        return None

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        """Places (R,) of different windows, `count` or as many as there are."""
        return torch.from_numpy(rng.choice(self.size, min(count, self.size), replace=False))

    def tensors(self) -> dict[str, Tensor]:
        """What is held, for a file."""
        return {name: getattr(self, name)[: self.size].contiguous() for name in ("windows", "logits", "labels", "widths")}

    def restore(self, tensors: Mapping[str, Tensor], seen: Sequence[int], once_largest: Sequence[bool]) -> None:
        """Take over what `tensors` gave, with the counts of classes."""
        self.size = len(tensors["labels"])
        self.logits = torch.zeros(len(self.labels), tensors["logits"].shape[1])
        for name, value in tensors.items():
            getattr(self, name)[: self.size] = value
        self.seen, self.once_largest = np.array(seen, dtype=np.int64), np.array(once_largest, dtype=bool)


class OnlineLearner:
    """Goes on training a model, in place, from labelled batches of any size.

    Random numbers follow from `seed` and the number of steps done; a learner that was saved and loaded goes on to the same weights.
    """

    def __init__(self, model: Model, class_names: Sequence[str], settings: OnlineSettings | None = None, seed: int = 0) -> None:
        """Take over a trained model, on the CPU, whose outputs are `class_names` in order.

        Raises:
            UserError: when names and outputs differ in number.
        """
        if len(class_names) != model.config.num_classes:
            raise UserError(f"online learning: {len(class_names)} class names for a model of {model.config.num_classes} classes")
        self.model, self.settings, self.seed = model, settings or OnlineSettings(), seed
        self.class_names = list(class_names)
        self.steps = 0
        self.rng = np.random.default_rng([seed, 0])
        shape = (model.config.sequence_length, model.config.input_size)
        self.memory = Reservoir(self.settings.capacity, self.settings.balanced, shape)
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Adagrad:
        return torch.optim.Adagrad(self.model.parameters(), lr=self.settings.learning_rate)

    def remember(self, windows: Tensor, names: Sequence[str]) -> None:
        """Offer windows (B, T, F) of what the model was trained on to the reservoir, without learning from them; shuffle them first.

        Raises:
            UserError: as `learn`.
        """
        self._offer(windows, self._labels(windows, names))

    def _offer(self, windows: Tensor, labels: Tensor) -> None:
        for part, own in zip(windows.split(1024), labels.split(1024), strict=True):
            with torch.no_grad():
                self.memory.offer(part, own, _logits(self.model.eval(), part), self.rng)

    def learn(self, windows: Tensor, names: Sequence[str]) -> float:
        """Learn from one labelled batch, then offer it to the reservoir.

        Args:
            windows: (B, T, F) raw.
            names: B labels in any known spelling; one that is new to the model becomes its last class.

        Returns:
            Loss of the last step, before it was made.

        Raises:
            UserError: for a batch that is empty, of another shape or with a value that is not finite, an unknown label, or a loss that
                is no longer finite; the model is as it was before the batch where the batch is at fault.
        """
        labels = self._labels(windows, names)
        loss = 0.0
        for _ in range(self.settings.steps):
            loss = self._step(windows, labels)
        self._offer(windows, labels)
        return loss

    def _labels(self, windows: Tensor, names: Sequence[str]) -> Tensor:
        """(B,) classes of the batch; the model has grown where some are new."""
        expected = tuple(self.memory.windows.shape[1:])
        if windows.ndim != 3 or tuple(windows.shape[1:]) != expected or len(windows) == 0 or len(windows) != len(names):
            raise UserError(f"online learning wants windows (B, {expected[0]}, {expected[1]}) with B labels, not {tuple(windows.shape)} with {len(names)}")
        if not bool(torch.isfinite(windows).all()):
            raise UserError("online learning: a window holds NaN or infinity; clean it as the training data were")
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise UserError(f"online learning: a label is {wrong[0]!r}; labels are names of classes, e.g. '{self.class_names[0]}'")
        names = [name if name in self.class_names or name.startswith(BENIGN_OF) else canonical(name) for name in names]
        self._grow([name for name in dict.fromkeys(names) if name not in self.class_names])
        return torch.tensor([self.class_names.index(name) for name in names])

    def _grow(self, names: list[str]) -> None:
        """Append classes; the optimiser's state of the parameters that grew is padded with zeros."""
        if not names:
            return
        before = [self.optimizer.state[parameter] for parameter in self.model.parameters()]
        with seeded(self.seed, 2 * self.steps + 1):
            self.model.grow_classes(len(names))
        self.class_names += names
        self.optimizer = self._optimizer()
        for parameter, state in zip(self.model.parameters(), before, strict=True):
            for name, value in state.items():
                self.optimizer.state[parameter][name] = _padded(value, parameter.shape) if value.ndim else value

    def _step(self, windows: Tensor, labels: Tensor) -> float:
        given, memory = self.settings, self.memory
        places = memory.draw(given.replay if memory.size else 0, self.rng)
        self.model.train()
        with seeded(self.seed, 2 * self.steps):
            logits = _logits(self.model, torch.cat([windows, memory.windows[places]]))  # (B + R, C)
        each = functional.cross_entropy(logits, torch.cat([labels, memory.labels[places]]), reduction="none")
        weight = torch.ones(len(each))
        weight[len(labels) :] = given.label_weight
        loss = (weight * each).sum() / weight.sum()
        if len(places):
            loss = loss + given.penalty * _distance(logits[len(labels) :], memory.logits[places], memory.widths[places])
        if not bool(torch.isfinite(loss)):
            raise UserError(f"online learning: the loss is no longer finite; lower the learning rate (now {given.learning_rate:g})")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), given.clip_norm)
        self.optimizer.step()
        self.model.eval()
        self.steps += 1
        return float(loss.detach())

    def save(self, folder: Path) -> None:
        """Write model, reservoir, optimiser and random state as an artifact folder, atomically."""
        state = {
            "model_kind": type(self.model).__name__,
            "model": asdict(self.model.config),
            "settings": asdict(self.settings),
            "class_names": self.class_names,
            "seed": self.seed,
            "steps": self.steps,
            "rng": self.rng.bit_generator.state,
            "seen": self.memory.seen.tolist(),
            "once_largest": self.memory.once_largest.tolist(),
        }
        moments = {f"{name}/{key}": value for name, parameter in self.model.named_parameters() for key, value in self.optimizer.state[parameter].items()}
        with new_artifact(folder, KIND, {"online": state}) as target:
            for name, tensors in (("model", self.model.state_dict()), ("memory", self.memory.tensors()), ("optimizer", moments)):
                save_file({key: value.detach().contiguous() for key, value in tensors.items()}, target / f"{name}.safetensors")

    @classmethod
    def load(cls, folder: Path) -> OnlineLearner:
        """Read what `save` wrote, and go on from there.

        Raises:
            UserError: when the folder is missing, altered, or does not fit this version's model.
        """
        state = open_artifact(folder, KIND).get("online", {})
        try:
            model = BUILDERS[state["model_kind"]](state["model"])
            model.load_state_dict(load_file(folder / "model.safetensors"))
            learner = cls(model.eval(), state["class_names"], OnlineSettings(**state["settings"]), state["seed"])
            learner.memory.restore(load_file(folder / "memory.safetensors"), state["seen"], state["once_largest"])
            for name, value in load_file(folder / "optimizer.safetensors").items():
                parameter, key = name.rsplit("/", 1)
                learner.optimizer.state[model.get_parameter(parameter)][key] = value
            learner.rng.bit_generator.state = state["rng"]
            learner.steps = state["steps"]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OSError, SafetensorError) as error:
            raise UserError(f"artifact '{folder}' does not fit this version: {' '.join(str(error).split())}; start a new learner") from error
        return learner


class DriftMonitor:
    """Says, without labels, when the stream has come to hold more windows that the model doubts.

    Each window's doubt, 1 - largest probability, becomes its rank among the doubts of `calibrate` windows (0 to 1, mean 1/2 while nothing
    changes), and ADWIN (Bifet and Gavalda 2007) compares the means of older and newer ranks. The ranks of the reference itself are fed
    first, so that a stream that is other from its first window on is noticed too. A model that has learned needs a new monitor.
    """

    def __init__(self, reference: NDArray[np.floating], confidence: float = 0.002, seed: int = 0) -> None:
        """Rank against probabilities (N, C) that the model gave to `calibrate` windows; `confidence` is ADWIN's delta.

        Raises:
            UserError: when there are none.
        """
        if len(reference) == 0:
            raise UserError("the drift monitor needs the probabilities of calibration windows; there are none")
        self.reference = np.sort(_doubt(reference))
        self.detector = ADWIN(delta=confidence)
        for rank in np.random.default_rng(seed).permutation(len(self.reference)):
            self.detector.update((rank + 0.5) / len(self.reference))

    def watch(self, probabilities: NDArray[np.floating]) -> NDArray[np.int64]:
        """Indices in the batch of windows, by probabilities (B, C), at which an alarm was raised; what came after the change is then the new normal."""
        found = []
        low, high = (np.searchsorted(self.reference, _doubt(probabilities), side) for side in ("left", "right"))
        for index, rank in enumerate((low + high) / 2 / len(self.reference)):
            before = self.detector.estimation
            self.detector.update(float(rank))
            if self.detector.drift_detected and self.detector.estimation > before:
                found.append(index)
        return np.array(found, dtype=np.int64)


def _doubt(probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
    return 1.0 - probabilities.max(axis=1)


def _logits(model: Model, windows: Tensor) -> Tensor:
    """(B, C) of either model; the temporal one returns them among others."""
    found = model(windows)
    return found["logits"] if isinstance(found, Mapping) else found


def _distance(logits: Tensor, stored: Tensor, widths: Tensor) -> Tensor:
    """Mean squared distance () of logits (R, C) from stored ones (R, C'), over the classes (R,) that there were then.

    Both are centred first: adding the same number to every logit changes no probability.
    """
    told = torch.arange(stored.shape[1]) < widths[:, None]  # (R, C')
    gap = torch.where(told, logits[:, : stored.shape[1]] - stored, 0.0)
    gap = torch.where(told, gap - gap.sum(dim=1, keepdim=True) / widths[:, None], 0.0)
    return gap.square().sum() / told.sum()


def _padded(value: Tensor, shape: torch.Size) -> Tensor:
    """`value` in the first rows of zeros of `shape`."""
    grown = value.new_zeros(shape)
    grown[: len(value)] = value
    return grown
