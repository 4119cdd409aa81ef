"""Leakage audit: `python -m src.data.audit [--root DIR] [--quick]` (requirement B4).

Asks of a data set as it is divided: do vectors stand on two sides; does one feature alone do the work; does a model learn from labels
that mean nothing; what hangs on the artefacts of how rows were made (`IAT`, `Number`, `Rate`); do rows that were shuffled at the source
give their classes away; and what is the best that any model could reach, since equal vectors carry different labels.

Ends with status 0 when nothing undeclared was found, 1 when something leaks, 2 for wrong input. The tables are printed and written
to `artifacts/audit.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.tree import DecisionTreeClassifier

from src.artifacts import write_text
from src.config import load_config
from src.data.ciciot2023 import row_hashes
from src.data.dataset import Dataset, load_dataset
from src.data.splits import SIDES
from src.data.windows import gather, window_starts
from src.errors import UserError

ARTEFACTS = ("IAT", "Number", "Rate")
"""Features that say how rows were made: the gap before them, how many packets they hold, and both together."""
LEAVES = 64
"""Of the tree that sees one feature."""
ALONE = 0.8
"""Share of the macro-F1 of all features that one feature may reach; packet sizes alone do reach much, since each flood sends one size."""
CHANCE = 0.03
"""How far above chance the mean recall of a model of meaningless labels may lie."""
SHUFFLINGS, NONSENSE_ROUNDS = 16, 10
"""Models of meaningless labels, and their rounds of boosting."""
SHORTCUT = 0.1
"""How far the AUC of assembled against ordered classes may lie above its control."""
SEED = 0

Rows = list[dict[str, Any]]
Matrix = NDArray[np.float32]


def ceiling(vectors: NDArray[np.integer], label: NDArray[np.integer], classes: int) -> dict[str, float]:
    """The best `accuracy` and `macro_f1` that any rule can reach where equal vectors carry different labels.

    Accuracy: each vector is given its commonest label. Macro-F1: the mean over classes of the F1 of the set of vectors that is best for
    that class alone, which no rule can pass, and which one that serves all classes at once may not reach.

    Args:
        vectors: (N,) equal for equal vectors.
        label: (N,) class.
        classes: number of classes; those without a row do not count.
    """
    _, place = np.unique(vectors, return_inverse=True)
    counts = np.bincount(place * classes + label, minlength=(place.max(initial=-1) + 1) * classes).reshape(-1, classes)  # (V, C)
    total, best = counts.sum(axis=1), []
    for own in counts.T:
        if own.any():
            order = np.argsort(-own / total, kind="stable")
            best.append(float((2 * np.cumsum(own[order]) / (own.sum() + np.cumsum(total[order]))).max()))
    return {"accuracy": float(counts.max(axis=1).sum() / len(label)), "macro_f1": float(np.mean(best))}


def duplicates(dataset: Dataset) -> Rows:
    """For each side, the share of its rows whose vector a later side holds: before copies were dropped, and now."""
    hashes = {side: row_hashes(dataset.splits[side].features) for side in SIDES}
    found: Rows = []
    for index, side in enumerate(SIDES[:-1]):
        dropped, kept = int(dataset.report.get(f"rows dropped from {side} as copies", 0)), len(hashes[side])
        again = np.isin(hashes[side], np.concatenate([hashes[later] for later in SIDES[index + 1 :]]))
        found.append({"side": side, "rows": kept, "before": dropped / max(kept + dropped, 1), "now": float(again.mean())})
    return found


def boosted(features: Matrix, label: NDArray[np.integer], classes: int, rounds: int) -> lightgbm.Booster:
    """Gradient-boosted trees on (N, K) inputs, weighted so that classes count by the square root of their size."""
    counts = np.maximum(np.bincount(label, minlength=classes), 1).astype(np.float64)
    settings = {
        "objective": "multiclass", "num_class": classes, "learning_rate": 0.1, "num_leaves": 15, "max_bin": 63, "feature_fraction": 0.5,
        "seed": SEED, "deterministic": True, "force_row_wise": True, "num_threads": 1, "verbose": -1,
    }  # fmt: skip
    return lightgbm.train(settings, lightgbm.Dataset(features, label, weight=counts[label] ** -0.5), rounds)


def guessed(model: lightgbm.Booster, features: Matrix) -> NDArray[np.int64]:
    """(N,) most probable class."""
    return np.asarray(model.predict(features, num_threads=1)).argmax(axis=1)


def scores(label: NDArray[np.integer], guess: NDArray[np.integer], classes: int) -> dict[str, float]:
    """`accuracy`, `macro_f1` and mean `recall` over the classes that occur."""
    confusion = np.bincount(label.astype(np.int64) * classes + guess, minlength=classes * classes).reshape(classes, classes)
    hits, rows, both = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=1) + confusion.sum(axis=0)
    return {
        "accuracy": float(hits.sum() / len(label)),
        "macro_f1": float((2 * hits / np.maximum(both, 1))[both > 0].mean()),
        "recall": float((hits / np.maximum(rows, 1))[rows > 0].mean()),
    }


def single_features(dataset: Dataset) -> Rows:
    """What a tree of `LEAVES` leaves reaches on rows of `test` with one feature of `fit` alone, the best first."""
    fit, test, classes = dataset.splits["fit"], dataset.splits["test"], len(dataset.class_names)
    found: Rows = []
    for index, name in enumerate(dataset.feature_names):
        tree = DecisionTreeClassifier(max_leaf_nodes=LEAVES, min_samples_leaf=20, random_state=SEED).fit(fit.features[:, [index]], fit.label)
        found.append({"feature": name, **scores(test.label, tree.predict(test.features[:, [index]]).astype(np.int64), classes)})
    return sorted(found, key=lambda row: -row["macro_f1"])


def artefacts(dataset: Dataset, rounds: int) -> Rows:
    """Boosted trees on rows: with all features, without each of `ARTEFACTS` and without all of them, with these alone, and with shuffled labels."""
    fit, test, classes = dataset.splits["fit"], dataset.splits["test"], len(dataset.class_names)
    names = dataset.feature_names
    known = [name for name in ARTEFACTS if name in names]
    chosen = {"all features": list(range(len(names)))}
    for name in known:
        chosen[f"without {name}"] = [index for index, other in enumerate(names) if other != name]
    if len(known) > 1:
        together = ", ".join(known)
        chosen[f"without {together}"] = [index for index, other in enumerate(names) if other not in known]
        chosen[f"{together} alone"] = [names.index(name) for name in known]
    found: Rows = []
    for what, columns in chosen.items():
        model = boosted(fit.features[:, columns], fit.label, classes, rounds)
        found.append({"features": what, **scores(test.label, guessed(model, test.features[:, columns]), classes)})
    told = meaningless(dataset)
    found.append({"features": f"all, labels shuffled (mean of {SHUFFLINGS})", **{key: float(np.mean([one[key] for one in told])) for key in told[0]}})
    return found


def meaningless(dataset: Dataset) -> list[dict[str, float]]:
    """Scores on `test` of models of shuffled labels, from equally many rows of each class, so that by symmetry the expected recall is chance.

    Several are asked: each flood's rows are nearly one vector, so one shuffling is right or wrong about thousands of rows at once.
    """
    fit, test, classes = dataset.splits["fit"], dataset.splits["test"], len(dataset.class_names)
    rng, size = np.random.default_rng(SEED), np.bincount(fit.label, minlength=classes).min()
    even = np.concatenate([rng.choice(np.flatnonzero(fit.label == label), size, replace=False) for label in range(classes)])
    models = [boosted(fit.features[even], rng.permutation(fit.label[even]), classes, NONSENSE_ROUNDS) for _ in range(SHUFFLINGS)]
    return [scores(test.label, guessed(model, test.features), classes) for model in models]


def dynamics(windows: Matrix, rng: np.random.Generator) -> Matrix:
    """(N, 3 F) what the order of rows alone says of each feature in windows (N, T, F), whatever its level and spread.

    Von Neumann's ratio (1941; squared successive differences over squared deviations, about 2 for rows without memory), the correlation
    with time, and the autocorrelation at two rows, all of ranks. Equal values get ranks by chance, so that a feature that stands still,
    which says much of its class, looks like one without memory.
    """
    chance = rng.random(windows.shape)
    ranks = np.argsort(np.lexsort((chance, windows), axis=1), axis=1).astype(np.float64)  # (N, T, F)
    ranks -= (windows.shape[1] - 1) / 2
    energy = np.square(ranks[:1]).sum(axis=1)
    ratio = np.square(np.diff(ranks, axis=1)).sum(axis=1) / energy
    trend = np.einsum("ntf,t->nf", ranks, ranks[0, :, 0][np.argsort(ranks[0, :, 0])]) / energy
    echo = (ranks[:, 2:] * ranks[:, :-2]).sum(axis=1) / energy
    return np.concatenate([ratio, trend, echo], axis=1, dtype=np.float32)


def shuffled_rows(windows: Matrix, rng: np.random.Generator) -> Matrix:
    """Windows (N, T, F) with the rows of each in an order of its own."""
    order = rng.permuted(np.tile(np.arange(windows.shape[1]), (len(windows), 1)), axis=1)
    return np.take_along_axis(windows, order[:, :, None], axis=1)


def _windows(dataset: Dataset, side: str, length: int, cap: int) -> tuple[Matrix, NDArray[np.int64]]:
    """At most `cap` windows of each class, evenly spread, and their classes."""
    rows = dataset.splits[side]
    starts = window_starts(rows.segment, length)
    label = rows.label[starts]
    kept = np.concatenate([mine[np.unique(np.linspace(0, len(mine) - 1, cap).astype(int))] for mine in (np.flatnonzero(label == c) for c in np.unique(label))])
    return gather(rows.features, starts[kept], length), label[kept].astype(np.int64)


def order_shortcut(dataset: Dataset, length: int, rounds: int, cap: int) -> Rows:
    """Can assembled classes be told from classes in capture order by the order of rows alone, on classes that were not trained on?

    Windows of equal numbers a class; each assembled class in turn is held out with its share of the others. The control is the same on
    windows whose rows were shuffled: there only how features go together can be read, which the order of rows does not change.
    """
    assembled = [index for index, name in enumerate(dataset.class_names) if name in dataset.assembled]
    ordered = [index for index, name in enumerate(dataset.class_names) if name not in dataset.assembled]
    if min(len(assembled), len(ordered)) < 2:
        return []
    rng = np.random.default_rng(SEED)
    windows, label = _windows(dataset, "fit", length, cap)
    held, held_label = _windows(dataset, "test", length, cap)
    folds = [([name], ordered[index :: len(assembled)]) for index, name in enumerate(assembled)]
    found: Rows = []
    for what, change in (("rows as they stand", lambda part: part), ("rows shuffled (control)", lambda part: shuffled_rows(part, rng))):
        inputs, held_inputs = dynamics(change(windows), rng), dynamics(change(held), rng)
        areas = []
        for ours, theirs in folds:
            away = np.isin(label, [*ours, *theirs])
            model = boosted(inputs[~away], np.isin(label[~away], assembled).astype(np.int64), 2, rounds)
            asked = np.isin(held_label, [*ours, *theirs])
            areas.append(_area(np.asarray(model.predict(held_inputs[asked], num_threads=1))[:, 1], np.isin(held_label[asked], ours)))
        found.append({"windows": what, "AUC": float(np.mean(areas)), "lowest": min(areas), "highest": max(areas), "folds": len(folds)})
    return found


def _area(score: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Chance that a positive scores above a negative, ties counting half."""
    lower = np.sort(score[~positive])
    higher = score[positive]
    return float((np.searchsorted(lower, higher, "left") + np.searchsorted(lower, higher, "right")).mean() / 2 / len(lower))


def order_use(dataset: Dataset, length: int, rounds: int, cap: int) -> Rows:
    """Boosted trees on levels and `dynamics` of windows: what is lost when rows are shuffled in test windows, and when trained so as well."""
    rng, classes = np.random.default_rng(SEED), len(dataset.class_names)
    windows, label = _windows(dataset, "fit", length, cap)
    held, truth = _windows(dataset, "test", length, cap)
    assembled = np.isin(truth, [index for index, name in enumerate(dataset.class_names) if name in dataset.assembled])

    def inputs(part: Matrix) -> Matrix:
        return np.concatenate([part.mean(axis=1), part.std(axis=1), part.min(axis=1), part.max(axis=1), dynamics(part, rng)], axis=1)

    def row(trained: str, read: str, guess: NDArray[np.int64]) -> dict[str, Any]:
        right = guess == truth
        groups = {
            f"accuracy, {name}": float(right[mask].mean()) for name, mask in (("assembled classes", assembled), ("capture order", ~assembled)) if mask.any()
        }
        return {"trained on rows": trained, "read with rows": read, **scores(truth, guess, classes), **groups}

    intact, mixed = inputs(held), inputs(shuffled_rows(held, rng))
    model = boosted(inputs(windows), label, classes, rounds)
    again = boosted(inputs(shuffled_rows(windows, rng)), label, classes, rounds)
    return [
        row("in order", "in order", guessed(model, intact)),
        row("in order", "shuffled", guessed(model, mixed)),
        row("shuffled", "shuffled", guessed(again, mixed)),
    ]


def ceilings(dataset: Dataset, length: int) -> Rows:
    """Best possible scores on rows and on windows of `test`, and on the rows of all sides."""
    classes, test = len(dataset.class_names), dataset.splits["test"]
    hashes, starts = row_hashes(test.features), window_starts(test.segment, length)
    windows = np.unique(hashes[starts[:, None] + np.arange(length)], axis=0, return_inverse=True)[1].reshape(-1)
    every = np.concatenate([row_hashes(dataset.splits[side].features) for side in SIDES])
    labels = np.concatenate([dataset.splits[side].label for side in SIDES])
    asked = {"rows of test": (hashes, test.label), f"windows of {length} rows of test": (windows, test.label[starts]), "rows of all sides": (every, labels)}
    return [{"what": what, "count": len(label), **ceiling(vectors, label, classes)} for what, (vectors, label) in asked.items()]


def audit(dataset: Dataset, length: int, quick: bool) -> dict[str, Rows]:
    """All tables by title; `verdict` is the first."""
    rounds, cap = (20, 60) if quick else (100, 600)
    copies, single, by_features = duplicates(dataset), single_features(dataset), artefacts(dataset, rounds)
    shortcut, use, best = order_shortcut(dataset, length, rounds, cap), order_use(dataset, length, rounds, cap), ceilings(dataset, length)
    everything, chance, nonsense = by_features[0], 1 / len(dataset.class_names), by_features[-1]
    share = single[0]["macro_f1"] / everything["macro_f1"]
    verdict: Rows = [
        _verdict("rows of a side whose vector a later side holds (largest share)", max(row["now"] for row in copies), 0.0),
        _verdict(f"macro-F1 of the best single feature ({single[0]['feature']}) as a share of that of all", share, ALONE),
        _verdict("mean recall after training on shuffled labels", nonsense["recall"], chance + CHANCE),
    ]
    if shortcut:
        # No split can mend this one: the source shuffled these classes. Every result names them as assembled.
        found = _verdict("AUC of assembled against ordered classes from the order of rows alone", shortcut[0]["AUC"], shortcut[1]["AUC"] + SHORTCUT)
        verdict.append(found if found["verdict"] == "clean" else {**found, "verdict": "declared: " + ", ".join(dataset.assembled)})
    return {
        "verdict": verdict,
        "copies across sides, share of rows": copies,
        "one feature alone": single,
        "artefacts and shuffled labels, boosted trees on rows": by_features,
        "assembled against ordered classes, dynamics alone, classes held out": shortcut,
        "what the order of rows is worth, boosted trees on windows": use,
        "best possible, equal vectors with different labels": best,
    }


def _verdict(what: str, value: float, limit: float) -> dict[str, Any]:
    return {"check": what, "value": value, "limit": limit, "verdict": "clean" if value <= limit else "LEAK"}


def _print(title: str, rows: Rows, console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for index, key in enumerate(rows[0]):
        table.add_column(key, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(f"\n[bold]{title}[/bold]", highlight=False)
    console.print(table)


def main(words: Sequence[str] | None = None) -> int:
    """Audit one data set, print and write the tables, and say by the status whether it leaks."""
    parser = argparse.ArgumentParser(prog="python -m src.data.audit", description="Leakage audit of a data set as it is divided.")
    parser.add_argument("--root", type=Path, help="folder of CICIoT2023 CSVs; without it the embedded synthetic profile is audited")
    parser.add_argument("--quick", action="store_true", help="fewer trees and windows")
    given = parser.parse_args(words)
    try:
        config = load_config(overrides=[] if given.root is None else [f"data.root={given.root}"])
        dataset = load_dataset(config.data, config.compute.seed)
        tables = audit(dataset, config.data.window, given.quick)
        console = Console(width=160)
        console.print(f"{dataset.site}, {dataset.source}: {', '.join(f'{side} {len(dataset.splits[side].label)}' for side in SIDES)} rows", highlight=False)
        for title, rows in tables.items():
            if rows:
                _print(title, rows, console)
        path = config.compute.artifacts / "audit.json"
        write_text(
            path, json.dumps({"source": dataset.source, "data_hash": dataset.data_hash, "assembled": dataset.assembled, "tables": tables}, indent=1) + "\n"
        )
        console.print(f"written to {path}", highlight=False)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return int(any(row["verdict"] == "LEAK" for row in tables["verdict"]))


if __name__ == "__main__":
    sys.exit(main())
