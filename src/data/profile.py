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

from src.config import DataConfig
from src.data.ciciot2023 import FEATURES_39
from src.data.dataset import Dataset, load_dataset
from src.data.synthetic import EMBEDDED, LEVELS, VARIABLES, Profile, decompose, root
from src.errors import UserError

SMALLEST = 120
"""Rows below which a class is not divided further into components."""
COMPONENTS = 8
"""Most components of a class."""


def fit_profile(data: Dataset, seed: int, components: int = COMPONENTS) -> Profile:
    """Describe the `fit` side of a data set of the 39-feature release.

    Args:
        data: real data.
        seed: of the grouping into components.
        components: largest number of them a class.

    Raises:
        UserError: for the 46-feature release.
    """
    if data.feature_names != FEATURES_39:
        raise UserError(f"a profile is made from the 39-feature release; this data has {len(data.feature_names)} features")
    rows, parts = data.splits["fit"], []
    for index, name in enumerate(data.class_names):
        mine = rows.label == index
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
    count = max(1, min(components, len(features) // SMALLEST))
    group = KMeans(count, random_state=seed).fit_predict(scores) if count > 1 else np.zeros(len(features), dtype=np.int64)
    weight = np.bincount(group, minlength=count) / len(group)
    quantiles, correlation, protocol, mixing = [], [], [], np.zeros((len(VARIABLES),) * 2)
    for component in range(count):
        here = group == component
        quantiles.append(np.quantile(variables[here], LEVELS, axis=0).T)
        correlation.append(_correlation(variables[here]))
        protocol.append(_other_protocol(features[here], variables[here]))
        mixing += weight[component] * root(correlation[-1]) ** 2
        scores[here] = _scores(variables[here])
    transition = np.zeros((count, components))
    transition[:, :count] = weight
    memory = np.zeros(len(VARIABLES))
    if not assembled:
        before = np.flatnonzero(np.diff(segment) == 0)
        np.add.at(transition, (group[before], group[before + 1]), 1.0)
        # A mixture of latents has the mixture of their autocorrelations: solved for the latents', none negative.
        memory = np.clip(nnls(mixing, np.array([_lag(scores[:, column], before) for column in range(len(VARIABLES))]))[0], 0.0, 0.98)
    return {
        "assembled": np.array([assembled]),
        "packets": np.array([packets]),
        "rows": np.array([len(features)]),
        "weight": weight,
        "other_protocol": np.array(protocol),
        "quantiles": np.stack(quantiles),
        "correlation": np.stack(correlation),
        "transition": transition / transition.sum(axis=1, keepdims=True),
        "memory": memory[None, :],
    }


def _correlation(variables: NDArray[np.float64]) -> NDArray[np.float64]:
    """(V, V) correlation of the normals of a Gaussian copula, from Spearman's (Kruskal 1958); constants correlate with nothing."""
    ranks = rankdata(variables, axis=0)
    moving = np.ptp(ranks, axis=0) > 0
    result = np.eye(variables.shape[1])
    if moving.sum() > 1:
        result[np.ix_(moving, moving)] = 2 * np.sin(np.pi / 6 * np.corrcoef(ranks[:, moving], rowvar=False))
    np.fill_diagonal(result, 1.0)
    return result


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
    values |= {"quantiles": profile.quantiles.astype(np.float32), "correlation": profile.correlation.astype(np.float32)}
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
