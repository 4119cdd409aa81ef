"""How much of the real data's usefulness the embedded profile keeps (requirement A3).

LightGBM is trained on rows drawn from the profile, exactly as a run without `data.root` gets them, and tested on real
`test` rows, beside LightGBM trained on real `fit` rows. The profile was fitted on `fit` alone. Each of several draws
is trained once; the interval is a block bootstrap over test rows (blocks of 20 rows of one run, the correlation between
neighbours being kept) with a draw picked at random each time. A classifier that has to tell drawn from real rows says
what is still missing: 0.5 is indistinguishable.
"""

from __future__ import annotations

import sys
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from benchmarks.common import Gate, launch, parser, write_result
from src.config import DataConfig
from src.data.ciciot2023 import FEATURES_39
from src.data.dataset import Rows, load_dataset
from src.data.synthetic import EMBEDDED, Profile, violations
from src.data.taxonomy import FAMILIES, family_index
from src.errors import UserError

BLOCK = 20
SEED = 0


def trained(features: NDArray[np.float32], label: NDArray[np.integer], trees: int) -> lightgbm.Booster:
    """A classifier of default shape, one tree a class and round."""
    model = lightgbm.LGBMClassifier(n_estimators=trees, num_leaves=31, learning_rate=0.1, num_threads=1, random_state=SEED, verbose=-1)
    return model.fit(features, label).booster_


def predicted(model: lightgbm.Booster, features: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) most probable class."""
    return np.asarray(model.predict(features, num_threads=1)).argmax(axis=1)


def f1(label: NDArray[np.integer], guess: NDArray[np.integer], classes: int) -> NDArray[np.float64]:
    """(classes,) 2 TP / (rows + guesses)."""
    hit = np.bincount(label[label == guess], minlength=classes)
    return 2 * hit / np.maximum(np.bincount(label, minlength=classes) + np.bincount(guess, minlength=classes), 1)


def macro_f1(label: NDArray[np.integer], guess: NDArray[np.integer], classes: int) -> float:
    """Mean of `f1`."""
    return float(f1(label, guess, classes).mean())


def blocks(segment: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """Row numbers of blocks of `BLOCK` rows that lie in one run."""
    ends = np.flatnonzero(np.diff(segment)) + 1
    return [part[first : first + BLOCK] for part in np.split(np.arange(len(segment)), ends) for first in range(0, len(part), BLOCK)]


def interval(
    label: NDArray[np.integer], real: NDArray[np.integer], drawn: list[NDArray[np.integer]], segment: NDArray[np.integer], rounds: int
) -> tuple[float, float]:
    """95 % interval of the ratio of macro-F1s."""
    rng, pieces = np.random.default_rng(SEED), blocks(segment)
    ratios = []
    for _ in range(rounds):
        chosen = np.concatenate([pieces[index] for index in rng.integers(len(pieces), size=len(pieces))])
        guess = drawn[rng.integers(len(drawn))]
        ratios.append(macro_f1(label[chosen], guess[chosen], len(FAMILIES)) / macro_f1(label[chosen], real[chosen], len(FAMILIES)))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def told_apart(profile: Profile, real: Rows, names: tuple[str, ...], trees: int) -> tuple[float, list[dict[str, Any]]]:
    """AUC of a classifier of drawn against real `test` rows, over all and by class: equal counts of each, halves in order to train and to test."""
    rng = np.random.default_rng(SEED + 1)
    sides: list[list[NDArray[np.float32]]] = [[], []]
    owner: list[NDArray[np.int64]] = []
    for index, (name, child) in enumerate(zip(names, rng.spawn(len(names)), strict=True)):
        mine = real.features[real.label == index]
        sides[0].append(mine)
        sides[1].append(profile.draw(name, len(mine), child))
        owner.append(np.full(len(mine), index))
    late = np.concatenate([np.arange(len(part)) >= len(part) // 2 for part in owner])
    label, features = np.concatenate(owner), [np.concatenate(part) for part in sides]
    early = np.concatenate([part[~late] for part in features])
    model = trained(early, np.repeat([0, 1], (~late).sum()), trees)
    scores = [np.asarray(model.predict(part[late], num_threads=1)) for part in features]
    truth = np.repeat([0, 1], late.sum())
    table = [
        {"class": name, "AUC": float(roc_auc_score(np.repeat([0, 1], mine.sum()), np.concatenate([score[mine] for score in scores])))}
        for index, name in enumerate(names)
        if (mine := label[late] == index).any()
    ]
    return float(roc_auc_score(truth, np.concatenate(scores))), table


def rank_lag(series: NDArray[np.floating], follows: NDArray[np.bool_]) -> float:
    """Spearman correlation of a series with itself one row on, over the pairs that follow one another."""
    return float(np.corrcoef(rankdata(series[:-1][follows]), rankdata(series[1:][follows]))[0, 1])


def memory(real: Rows, profile: Profile, names: tuple[str, ...], assembled: tuple[str, ...]) -> list[dict[str, Any]]:
    """Lag-1 rank correlation of some columns, real (`fit`) and drawn, of classes in capture order."""
    rng, table = np.random.default_rng(SEED + 2), []
    for index, name in enumerate(names):
        if name in assembled:
            continue
        mine = real.label == index
        features, follows = real.features[mine], np.diff(real.segment[mine]) == 0
        drawn = profile.draw(name, 4000, rng)
        row: dict[str, Any] = {"class": name}
        for column in ("Rate", "AVG", "TCP"):
            place = FEATURES_39.index(column)
            row[f"{column} real"] = rank_lag(features[:, place], follows)
            row[f"{column} drawn"] = rank_lag(drawn[:, place], np.ones(len(drawn) - 1, dtype=bool))
        table.append(row)
    return table


def main() -> None:
    """Measure and write the result."""
    options = parser(__doc__, data=True).parse_args()
    draws, trees, rounds = (1, 40, 200) if options.quick else (5, 100, 2000)
    try:
        real = load_dataset(DataConfig(root=options.root), SEED)
    except UserError as error:
        sys.exit(f"error: {error}")
    profile, family = Profile.embedded(), family_index(real.class_names)
    fit, test = real.splits["fit"], real.splits["test"]
    truth = family[test.label]

    by_real = predicted(trained(fit.features, family[fit.label], trees), test.features)
    fine_real = predicted(trained(fit.features, fit.label, trees), test.features)
    by_drawn, fine_drawn, broken, rows = [], [], 0, 0
    for seed in range(draws):
        drawn = load_dataset(DataConfig(), seed)
        if drawn.class_names != real.class_names:
            sys.exit(f"error: the profile holds {', '.join(drawn.class_names)}, the data {', '.join(real.class_names)}: make the profile again")
        part = drawn.splits["fit"]
        by_drawn.append(predicted(trained(part.features, family[part.label], trees), test.features))
        fine_drawn.append(predicted(trained(part.features, part.label, trees), test.features))
        every = np.concatenate([side.features for side in drawn.splits.values()])
        broken, rows = broken + sum(violations(every).values()), rows + len(every)

    score_real = macro_f1(truth, by_real, len(FAMILIES))
    scores = [macro_f1(truth, guess, len(FAMILIES)) for guess in by_drawn]
    classes = len(real.class_names)
    fine_score, fine_scores = macro_f1(test.label, fine_real, classes), [macro_f1(test.label, guess, classes) for guess in fine_drawn]
    low, high = interval(truth, by_real, by_drawn, test.segment, rounds)
    auc, auc_by_class = told_apart(profile, test, real.class_names, trees)

    tables: dict[str, list[dict[str, Any]]] = {
        "macro-F1 on real test rows": [
            {
                "classes": count,
                "trained on real": of_real,
                "trained on drawn": float(np.mean(of_drawn)),
                "worst draw": min(of_drawn),
                "kept": float(np.mean(of_drawn)) / of_real,
            }
            for count, of_real, of_drawn in ((len(FAMILIES), score_real, scores), (classes, fine_score, fine_scores))
        ],
        "F1 by family": [
            {"family": name, "trained on real": float(one), "trained on drawn": float(other)}
            for name, one, other in zip(
                FAMILIES, f1(truth, by_real, len(FAMILIES)), np.mean([f1(truth, guess, len(FAMILIES)) for guess in by_drawn], axis=0), strict=True
            )
        ],
        "AUC drawn against real test rows": [{"class": "all", "AUC": auc}, *auc_by_class],
        "lag-1 rank correlation": memory(fit, profile, real.class_names, real.assembled),
        "rows": [{"real fit": len(fit.label), "real test": len(test.label), "drawn": rows, "draws": draws, "profile": profile.origin}],
    }
    what = "8-family macro-F1 on real test rows: trained on drawn rows, as a share of trained on real rows"
    megabytes = EMBEDDED.stat().st_size / 1e6
    gates = {
        "A3.fidelity": Gate(what, float(np.mean(scores)) / score_real, 0.9, ">=", low, high),
        "A3.identities": Gate("share of drawn rows that obey every identity of the features", 1.0 - broken / rows, 1.0, ">="),
        "A3.size": Gate("size of the embedded profile, MB", megabytes, 2.0, "<"),
    }
    write_result("profile_fidelity", "real", gates, tables, options.quick)


if __name__ == "__main__":
    launch(main)
