"""Scores of a classifier, all from one confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.data.taxonomy import FAMILIES, family_index


def confusion_matrix(truth: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """(classes, classes) counts; rows are the truth, columns the prediction."""
    pairs = truth.astype(np.int64) * classes + predicted.astype(np.int64)  # (N,)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_scores(confusion: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """`precision`, `recall`, `f1` and `support`, each (C,); 0 where a denominator is 0, as scikit-learn has it."""
    hits, support, predicted = np.diag(confusion).astype(np.float64), confusion.sum(axis=1), confusion.sum(axis=0)
    return {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(support + predicted, 1),
        "support": support.astype(np.float64),
    }


def summary(confusion: NDArray[np.int64]) -> dict[str, float]:
    """`accuracy`, `macro_f1` (over classes that occur in truth or prediction, as scikit-learn has it) and `weighted_f1`."""
    scores = class_scores(confusion)
    occurs = (confusion.sum(axis=0) + confusion.sum(axis=1)) > 0
    total = max(int(confusion.sum()), 1)
    return {
        "accuracy": float(np.diag(confusion).sum() / total),
        "macro_f1": float(scores["f1"][occurs].mean()) if occurs.any() else 0.0,
        "weighted_f1": float((scores["f1"] * scores["support"]).sum() / total),
    }


@dataclass(frozen=True)
class Evaluation:
    """What a classifier did on one split."""

    class_names: tuple[str, ...]
    """Order of both axes of `confusion`."""
    confusion: NDArray[np.int64]
    """(C, C) counts; rows are the truth, columns the prediction."""
    loss: float
    """Mean loss a window."""

    def family_confusion(self) -> NDArray[np.int64]:
        """(8, 8) counts with classes merged into families, in the order of `FAMILIES`."""
        member = np.eye(len(FAMILIES), dtype=np.int64)[family_index(self.class_names)]  # (C, 8)
        return member.T @ self.confusion @ member  # (8, 8)

    def metrics(self) -> dict[str, float]:
        """Flat figures: accuracy, macro and weighted F1, loss, both for families, and the benign false-positive rate.

        `family/NAME/macro_f1` is the mean F1 of the family's classes; `family_macro_f1` the macro-F1 of the eight-class
        problem, in which mistaking one flood for another of the same family costs nothing.
        """
        families, scores, found = self.family_confusion(), class_scores(self.confusion), family_index(self.class_names)
        merged = summary(families)
        figures = {**summary(self.confusion), "loss": self.loss, "family_accuracy": merged["accuracy"], "family_macro_f1": merged["macro_f1"]}
        occurs = scores["support"] > 0
        for index, name in enumerate(FAMILIES):
            chosen = (found == index) & occurs
            if chosen.any():
                figures[f"family/{name}/macro_f1"] = float(scores["f1"][chosen].mean())
        if families[0].sum() > 0:
            figures["benign_false_positive_rate"] = float(1 - families[0, 0] / families[0].sum())
        return figures

    def rows(self) -> list[dict[str, Any]]:
        """One row a class: name, family, precision, recall, F1, support."""
        scores, found = class_scores(self.confusion), family_index(self.class_names)
        return [
            {
                "class": name,
                "family": FAMILIES[found[index]],
                **{key: round(float(scores[key][index]), 4) for key in ("precision", "recall", "f1")},
                "support": int(scores["support"][index]),
            }
            for index, name in enumerate(self.class_names)
        ]
