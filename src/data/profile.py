"""Fits the statistical profile from which `src.data.synthetic` draws: `python -m src.data.profile --root FOLDER`.

Only the `fit` side of the real data is read, so nothing of the other sides is in the profile. What is stored are
quantiles, rank correlations and autocorrelations of groups of at least `SMALLEST` rows; no row can be read back.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import ndtri
from scipy.stats import rankdata
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from src.config import DataConfig
from src.data.ciciot2023 import FEATURES_39
from src.data.dataset import Dataset, load_dataset
from src.data.synthetic import EMBEDDED, LEVELS, VARIABLES, Profile, decompose
from src.errors import UserError

SMALLEST = 100
"""Fewest rows of a component."""
COMPONENTS = 16
"""Most components of a class."""


def fit_profile(data: Dataset, seed: int, components: int = COMPONENTS) -> Profile:
    """Describe the `fit` side of a data set of the 39-feature release.

    Args:
        data: real data.
        seed: of the grouping into components.
        components: largest number of them a class.

    Raises:
        UserError: for the 46-feature release, or a class of fewer than `SMALLEST` rows.
    """
    if data.feature_names != FEATURES_39:
        raise UserError(f"a profile is made from the 39-feature release; this data has {len(data.feature_names)} features")
    rows, parts = data.splits["fit"], []
    for index, name in enumerate(data.class_names):
        mine = rows.label == index
        if mine.sum() < SMALLEST:
            raise UserError(f"class '{name}' has {int(mine.sum())} rows on side 'fit'; a profile needs {SMALLEST}, or it would repeat rows")
        with threadpool_limits(1):  # matrices are small: threads would only wait for each other
            parts.append(_fit_class(rows.features[mine], rows.segment[mine], name in data.assembled, seed, components))
    merged = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    merged["owner"] = np.repeat(np.arange(len(parts)), [len(part["weight"]) for part in parts])
    kinds = {"owner": np.int16, "packets": np.int32, "rows": np.int32, "other_protocol": np.uint8, "assembled": np.bool_}
    arrays = {key: value.astype(kinds.get(key, np.float32)) for key, value in merged.items()}
    return Profile(class_names=data.class_names, origin=f"{data.site}, fit side, {len(rows.label)} rows, data {data.data_hash[:16]}", **arrays)


def _scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, V) normal scores of each column; equal values share one."""
    return ndtri(rankdata(values, axis=0) / (len(values) + 1))


def _fit_class(features: NDArray[np.float32], segment: NDArray[np.int32], assembled: bool, seed: int, components: int) -> dict[str, NDArray]:
    packets = int(np.median(features[:, FEATURES_39.index("Number")]))
    full = features[:, FEATURES_39.index("Number")] == packets
    features, segment = features[full], segment[full]
    variables = decompose(features)
    scores = _scores(variables)
    group = _groups(scores, components, seed)
    count = int(group.max()) + 1
    weight = np.bincount(group) / len(group)
    quantiles, mixing, protocol, shares = [], [], [], np.zeros((len(VARIABLES),) * 2)
    for component in range(count):
        here = group == component
        # Half a row inside both ends: an extreme belongs to one row, and a component may have but one variable that moves.
        edge = 0.5 / (here.sum() - 1)
        quantiles.append(np.quantile(variables[here], np.clip(LEVELS, edge, 1 - edge), axis=0).T)
        mixing.append(_root(_correlation(variables[here])))
        protocol.append(_other_protocol(features[here], variables[here]))
        shares += weight[component] * mixing[-1] ** 2
        scores[here] = _scores(variables[here])
    transition = np.zeros((count, components))
    transition[:, :count] = weight
    memory = np.zeros(len(VARIABLES))
    if not assembled:
        before = np.flatnonzero(np.diff(segment) == 0)
        np.add.at(transition, (group[before], group[before + 1]), 1.0)
        # A mixture of latents has the mixture of their autocorrelations: solved for the latents', none negative.
        memory = np.clip(nnls(shares, np.array([_lag(scores[:, column], before) for column in range(len(VARIABLES))]))[0], 0.0, 0.98)
    return {
        "assembled": np.array([assembled]),
        "packets": np.array([packets]),
        "rows": np.array([len(features)]),
        "weight": weight,
        "other_protocol": np.array(protocol),
        "quantiles": np.stack(quantiles),
        "mixing": np.stack(mixing),
        "transition": transition / transition.sum(axis=1, keepdims=True),
        "memory": memory[None, :],
    }


def _groups(scores: NDArray[np.float64], components: int, seed: int) -> NDArray[np.int64]:
    """(N,) component of each row, from 0; none of fewer than `SMALLEST` rows, whose quantiles would be the rows themselves."""
    if components == 1 or len(scores) < 2 * SMALLEST:
        return np.zeros(len(scores), dtype=np.int64)
    means = KMeans(components, random_state=seed).fit(scores)
    distance = means.transform(scores)  # (N, components)
    group = distance.argmin(axis=1)
    while (size := np.bincount(group, minlength=components))[size > 0].min() < SMALLEST:
        distance[:, np.where(size > 0, size, len(scores) + 1).argmin()] = np.inf
        group = distance.argmin(axis=1)
    return np.unique(group, return_inverse=True)[1]


def _correlation(variables: NDArray[np.float64]) -> NDArray[np.float64]:
    """(V, V) correlation of the normals of a Gaussian copula, from Spearman's (Kruskal 1958); constants correlate with nothing."""
    ranks = rankdata(variables, axis=0)
    moving = np.ptp(ranks, axis=0) > 0
    result = np.eye(variables.shape[1])
    if moving.sum() > 1:
        result[np.ix_(moving, moving)] = 2 * np.sin(np.pi / 6 * np.corrcoef(ranks[:, moving], rowvar=False))
    np.fill_diagonal(result, 1.0)
    return result


def _root(correlation: NDArray[np.floating]) -> NDArray[np.float64]:
    """(V, V) R with R R' = the nearest possible correlation; row v mostly follows latent v."""
    values, vectors = np.linalg.eigh(correlation.astype(np.float64))
    factor = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return factor / np.linalg.norm(factor, axis=1, keepdims=True)


def _lag(series: NDArray[np.float64], first: NDArray[np.int64]) -> float:
    """Correlation of a series with itself one row on, over the given first rows of pairs; at least 0."""
    before, after = series[first], series[first + 1]
    if len(first) < 30 or before.std() < 1e-9 or after.std() < 1e-9:
        return 0.0
    return float(max(np.corrcoef(before, after)[0, 1], 0.0))


def _other_protocol(features: NDArray[np.float32], variables: NDArray[np.float64]) -> int:
    """The protocol most often named where packets of no decoded kind prevail; TCP (6) where there are none."""
    kinds = variables[:, : VARIABLES.index("other") + 1]
    prevail = kinds[:, -1] > kinds[:, :-1].max(axis=1)
    if not prevail.any():
        return 6
    return int(np.bincount(features[prevail, FEATURES_39.index("Protocol Type")].astype(np.int64)).argmax())


def save_profile(profile: Profile, path: Path) -> None:
    """Write the profile as one compressed file without pickled objects."""
    values = {field.name: getattr(profile, field.name) for field in fields(Profile)}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **{name: np.asarray(value) for name, value in values.items()})


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m src.data.profile", description="Make the statistical profile from real CICIoT2023 CSVs.")
    parser.add_argument("--root", type=Path, required=True, help="folder of CSVs of the 39-feature release")
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="file to write (default: the embedded profile)")
    parser.add_argument("--seed", type=int, default=0, help="of the grouping into components")
    given = parser.parse_args(arguments)
    try:
        profile = fit_profile(load_dataset(DataConfig(root=given.root), given.seed), given.seed)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    save_profile(profile, given.out)
    sys.stdout.write(f"{given.out}: {given.out.stat().st_size / 1024:.0f} KiB, {len(profile.class_names)} classes, {len(profile.owner)} components\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
