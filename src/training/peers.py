"""Peers of the sequence models: gradient-boosted trees and a random forest on rows and on statistics of windows.

Fair to the trees: they see the same windows of `fit`, the number of rounds is found by early stopping and the class weights are chosen
by macro-F1, both on `calibrate`, as the networks' epochs are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import lightgbm
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from src.data.dataset import Dataset
from src.data.windows import gather, window_starts
from src.errors import UserError
from src.models.scores import confusion_matrix, summary

WEIGHT_POWERS = {"none": 0.0, "sqrt": -0.5, "balanced": -1.0}
"""Weight of a class: its count to this power, as in `lstm.training.class_weights`."""
STRIDE = 3
"""Rows between two training windows, as the networks have it by default."""
ROUNDS, PATIENCE, LEAVES = 300, 15, 15
"""Most rounds of boosting, rounds without a better loss on `calibrate` before it stops, and leaves of a tree."""
TREES = 200
"""Trees of the forest."""


class Predictor(Protocol):
    """Whatever gives class probabilities for raw windows."""

    def probabilities(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C) of raw windows (N, T, F), oldest row first."""
        ...

    def size(self) -> int:
        """Number of fitted parameters: weights of a network, leaves of trees."""
        ...


def window_statistics(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 6 F) mean, deviation, least, largest and last value and mean absolute step of each feature in windows (N, T, F)."""
    moved = np.abs(np.diff(windows, axis=1)).mean(axis=1)
    parts = [windows.mean(axis=1), windows.std(axis=1), windows.min(axis=1), windows.max(axis=1), windows[:, -1], moved]
    return np.concatenate(parts, axis=1, dtype=np.float32)


def pooled(log_probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
    """(N, C) probabilities of windows from the log-probabilities (N, T, C) of their rows, taken as independent."""
    total = log_probabilities.sum(axis=1)
    likely = np.exp(total - total.max(axis=1, keepdims=True))
    return (likely / likely.sum(axis=1, keepdims=True)).astype(np.float32)


class RowTrees:
    """LightGBM on single rows (Ke et al. 2017), read by a window's last row, or by all of its rows together."""

    def __init__(self, booster: lightgbm.Booster, classes: int, together: bool) -> None:
        """`together`: sum the rows' log-probabilities over the window, else read the last row alone."""
        self.booster, self.classes, self.together = booster, classes, together

    def probabilities(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C) of raw windows (N, T, F)."""
        if not self.together:
            return _predict(self.booster, windows[:, -1])
        count, length, features = windows.shape
        rows = _predict(self.booster, windows.reshape(count * length, features))
        return pooled(np.log(np.maximum(rows, 1e-12)).reshape(count, length, self.classes))

    def size(self) -> int:
        """Leaves of the rounds in use."""
        return _leaves(self.booster)


class StatisticsTrees:
    """LightGBM on `window_statistics`."""

    def __init__(self, booster: lightgbm.Booster) -> None:
        self.booster = booster

    def probabilities(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C) of raw windows (N, T, F)."""
        return _predict(self.booster, window_statistics(windows))

    def size(self) -> int:
        """Leaves of the rounds in use."""
        return _leaves(self.booster)


class StatisticsForest:
    """Random forest (Breiman 2001) on `window_statistics`."""

    def __init__(self, forest: RandomForestClassifier) -> None:
        self.forest = forest

    def probabilities(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C) of raw windows (N, T, F)."""
        return np.asarray(self.forest.predict_proba(window_statistics(windows)), dtype=np.float32)

    def size(self) -> int:
        """Leaves of all trees."""
        return sum(int(tree.get_n_leaves()) for tree in self.forest.estimators_)


Fit = Callable[[Dataset, int, int], Predictor]
"""A data set, the rows in a window and a seed to a fitted peer."""


def fit_rows(dataset: Dataset, length: int, seed: int, together: bool = False) -> RowTrees:
    """LightGBM on the rows of `fit`; the class weights are those under which it reads windows of `calibrate` best.

    Raises:
        UserError: when a side that is read holds no window.
    """
    classes = len(dataset.class_names)
    fit, calibrate = dataset.splits["fit"], dataset.splits["calibrate"]
    windows, labels = side_windows(dataset, "calibrate", length)
    side_windows(dataset, "fit", length, STRIDE)

    def grow(power: float) -> RowTrees:
        booster = _boost((fit.features, fit.label), (calibrate.features, calibrate.label), classes, power, seed, 0.8)
        return RowTrees(booster, classes, together)

    return _best([grow(power) for power in WEIGHT_POWERS.values()], windows, labels, classes)


def fit_pooled(dataset: Dataset, length: int, seed: int) -> RowTrees:
    """As `fit_rows`, read by all rows of a window together."""
    return fit_rows(dataset, length, seed, together=True)


def fit_statistics(dataset: Dataset, length: int, seed: int) -> StatisticsTrees:
    """LightGBM on statistics of windows of `fit`; class weights chosen on `calibrate`.

    Raises:
        UserError: when a side that is read holds no window.
    """
    classes = len(dataset.class_names)
    windows, labels = side_windows(dataset, "calibrate", length)
    learn, held = _statistics(dataset, "fit", length), (window_statistics(windows), labels)
    found = [StatisticsTrees(_boost(learn, held, classes, power, seed, 0.3)) for power in WEIGHT_POWERS.values()]
    return _best(found, windows, labels, classes)


def fit_forest(dataset: Dataset, length: int, seed: int) -> StatisticsForest:
    """A random forest on statistics of windows of `fit`; class weights chosen on `calibrate`.

    Raises:
        UserError: when a side that is read holds no window, or a class has none in `fit`.
    """
    classes = len(dataset.class_names)
    windows, labels = side_windows(dataset, "calibrate", length)
    learn, answers = _statistics(dataset, "fit", length)
    if len(np.unique(answers)) < classes:
        raise UserError(f"a class has no window of {length} rows to fit the forest on; read more rows or lower data.window")

    def grow(power: float) -> StatisticsForest:
        weights = _class_weights(answers, classes, power)[answers]
        return StatisticsForest(RandomForestClassifier(TREES, min_samples_leaf=2, random_state=seed).fit(learn, answers, sample_weight=weights))

    return _best([grow(power) for power in WEIGHT_POWERS.values()], windows, labels, classes)


PEERS: dict[str, Fit] = {
    "LightGBM, rows": fit_rows,
    "LightGBM, rows summed over the window": fit_pooled,
    "LightGBM, window statistics": fit_statistics,
    "random forest, window statistics": fit_forest,
}
"""Peers by the name that tables show."""


def side_windows(dataset: Dataset, side: str, length: int, stride: int = 1) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Raw windows (W, T, F) of a side and their labels (W,), in row order.

    Raises:
        UserError: when the side has none.
    """
    rows = dataset.splits[side]
    starts = window_starts(rows.segment, length, stride)
    if len(starts) == 0:
        raise UserError(f"split '{side}' holds no window of {length} rows; read more rows or lower data.window")
    return gather(rows.features, starts, length), rows.label[starts].astype(np.int64)


def _statistics(dataset: Dataset, side: str, length: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    windows, labels = side_windows(dataset, side, length, STRIDE)
    return window_statistics(windows), labels


Best = TypeVar("Best", bound=Predictor)


def _best(found: list[Best], windows: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> Best:
    """The candidate with the highest macro-F1 on windows of `calibrate`."""
    return max(found, key=lambda one: summary(confusion_matrix(labels, one.probabilities(windows).argmax(axis=1), classes))["macro_f1"])


def _class_weights(labels: NDArray[np.integer], classes: int, power: float) -> NDArray[np.float64]:
    return np.maximum(np.bincount(labels, minlength=classes), 1).astype(np.float64) ** power  # (C,)


Labelled = tuple[NDArray[np.float32], NDArray[np.integer]]


def _boost(learn: Labelled, held: Labelled, classes: int, power: float, seed: int, share: float) -> lightgbm.Booster:
    """Trees on (N, K) inputs and (N,) labels, stopped early on `held`; each tree sees a `share` of the inputs."""
    weights = _class_weights(learn[1], classes, power)
    settings = {
        "objective": "multiclass", "num_class": classes, "learning_rate": 0.1, "num_leaves": LEAVES, "max_bin": 63,
        "feature_fraction": share, "bagging_fraction": 0.8, "bagging_freq": 1,
        "seed": seed, "deterministic": True, "force_row_wise": True, "num_threads": 1, "verbose": -1,
    }  # fmt: skip
    data = lightgbm.Dataset(learn[0], learn[1], weight=weights[learn[1]])
    check = lightgbm.Dataset(held[0], held[1], weight=weights[held[1]], reference=data)
    return lightgbm.train(settings, data, ROUNDS, valid_sets=[check], callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)])


def _predict(booster: lightgbm.Booster, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(booster.predict(inputs, num_threads=1), dtype=np.float32)


def _leaves(booster: lightgbm.Booster) -> int:
    trees = booster.dump_model(num_iteration=booster.best_iteration)["tree_info"]
    return sum(int(tree["num_leaves"]) for tree in trees)
