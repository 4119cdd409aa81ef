"""The data as everyone else sees it: four sides of finite rows, with labels, contiguous runs and time."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.config import DataConfig, nearest
from src.data.ciciot2023 import RATES, Capture, excluded_set, read_ciciot2023, row_hashes
from src.data.nbaiot import FEATURES_115, read_nbaiot
from src.data.shelf import Shelf, blocks, forget
from src.data.splits import SIDES, block_side, copies, segments
from src.data.synthetic import Profile
from src.data.taxonomy import FAMILIES, family_index, in_order
from src.data.windows import window_starts
from src.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """N rows of one side: captures one after another, each in file order."""

    features: NDArray[np.float32]
    """(N, F) finite."""
    label: NDArray[np.int16]
    """(N,) index into `Dataset.class_names`."""
    segment: NDArray[np.int32]
    """(N,) id of the contiguous run inside one chunk, capture and side; a window never crosses two."""
    start: NDArray[np.float64]
    """(N,) seconds since the start of the chunk; NaN where rows are assembled or the release has no clock."""
    duration: NDArray[np.float64]
    """(N,) seconds that the row covers; NaN in the classic release."""
    domain: NDArray[np.int16]
    """(N,) index into `Dataset.domain_names`: device or site that a row is of."""


@dataclass(frozen=True)
class Dataset:
    """Rows by side, and what is known of them."""

    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    """Canonical labels present, benign first, in the order of the taxonomy."""
    splits: dict[str, Rows]
    """By `fit` (everything that is fitted), `calibrate` (thresholds, early stopping), `agent` (traces), `test`."""
    source: str
    """`real` or `synthetic profile`."""
    site: str
    assembled: tuple[str, ...]
    """Classes with rows that are not in capture order; results on their windows must say so."""
    data_hash: str
    """SHA-256 of features, labels, runs and names of every side, and of domains where there are several."""
    report: dict[str, int | float]
    """Counts of what was read, replaced and dropped."""
    domain_names: tuple[str, ...]
    """Devices or sites, in the order in which they were read; CICIoT2023 names no device and is one."""


def load_dataset(config: DataConfig, seed: int, scratch: Path | None = None) -> Dataset:
    """Read CICIoT2023 or traffic in N-BaIoT's features from `config.root`, or draw CICIoT2023's from the embedded profile, and divide it.

    An infinite `Rate` (all packets of a row share one timestamp) becomes the largest finite one of the `fit` side.

    Rows beyond 64 MB lie in files without a name, and the arrays of the data set read these; memory holds some 30 bytes a row while rows are divided.

    Args:
        config: section `data`.
        seed: of the draw; real data do not depend on it.
        scratch: folder for such files; None: where the system keeps temporary ones.

    Raises:
        UserError: for wrong input (see `read_ciciot2023` and `read_nbaiot`), or a class too small for a window on each side.
    """
    source, site, shelf = "real", "CICIoT2023", Shelf(scratch)
    if config.dataset == "nbaiot":
        if config.root is None:
            raise UserError("data.dataset is 'nbaiot', of which no synthetic profile exists: give data.root, a folder of N-BaIoT's CSVs")
        captures, counted, site = read_nbaiot(config.root, config.exclude_labels, config.max_rows_per_class)
        names = FEATURES_115
    elif config.root is None:
        rows = min(config.synthetic_rows_per_class, config.max_rows_per_class or config.synthetic_rows_per_class)
        captures, names = Profile.embedded().captures(rows, np.random.default_rng(seed), excluded_set(config.exclude_labels))
        counted, source = {"rows drawn": sum(len(capture.features) for capture in captures)}, "synthetic profile"
    else:
        captures, names, counted = read_ciciot2023(config.root, config.exclude_labels, config.max_rows_per_class, shelf)
    return divide(captures, names, config, source, site, dict(counted), Shelf(scratch))


def divide(
    captures: list[Capture], names: tuple[str, ...], config: DataConfig, source: str, site: str, report: dict[str, int | float], shelf: Shelf | None = None
) -> Dataset:
    """Divide captures among the four sides, as `src.data.splits` says.

    Args:
        captures: of any data set; each is divided by itself.
        names: of the features.
        config: `window`, `gap` and `fractions` are read.
        source: `real` or `synthetic profile`.
        site: where the traffic comes from.
        report: what reading it has counted; grows, and becomes the data set's.
        shelf: where the rows of the sides go; None: one of their own.

    Raises:
        UserError: for a class too small for a window on each side.
    """
    classes = in_order([capture.label for capture in captures])
    shares = [getattr(config.fractions, side) for side in SIDES]
    sides = [block_side(len(capture.features), shares, config.gap, config.window) for capture in captures]
    side = np.concatenate(sides)
    report["rows lost to gaps"] = int((side < 0).sum())
    report["captures too short to divide"] = sum(bool((part == 0).all()) for part in sides)
    largest = _largest_rates(captures, sides, names, report)
    hashes = np.empty(len(side), dtype=np.uint64)
    least, most = np.full(len(names), np.inf, dtype=np.float32), np.full(len(names), -np.inf, dtype=np.float32)
    first = 0
    for capture, part in zip(captures, sides, strict=True):
        for here in blocks(len(part)):
            rows = _finite(capture.features[here], largest)
            hashes[first + here.start : first + here.stop] = row_hashes(rows)
            fitted = rows[part[here] == 0]
            least, most = np.minimum(least, fitted.min(axis=0, initial=np.inf)), np.maximum(most, fitted.max(axis=0, initial=-np.inf))
        first += len(part)
        forget(capture.features)
    removed = copies(side, hashes)
    hashes.sort()
    report["duplicate rows"] = len(hashes) - len(hashes[:1]) - int(np.count_nonzero(hashes[1:] != hashes[:-1]))
    del hashes
    report["rows dropped as copies of a later side"] = int(removed.sum())
    for index, name in enumerate(SIDES[:-1]):
        report[f"rows dropped from {name} as copies"] = int((removed & (side == index)).sum())
    report["constant columns"] = int((least == most).sum())

    segment = np.empty(len(side), dtype=np.int32)
    first, used = 0, 0
    for capture, part in zip(captures, sides, strict=True):
        here = slice(first, first + len(part))
        found = segments(capture.chunk, part, removed[here], capture.ordered)
        segment[here] = np.where(found >= 0, found + used, -1)
        used += int(found.max(initial=-1)) + 1
        first += len(part)
        forget(capture.chunk)
    del side, removed
    domains = tuple(dict.fromkeys(capture.domain for capture in captures))
    shelf = shelf or Shelf()
    splits: dict[str, Rows] = {}
    for index, name in enumerate(SIDES):
        splits[name] = _side(index, captures, sides, segment, classes, domains, largest, shelf)
        report[f"rows in {name}"] = len(splits[name].label)
        _require_windows(splits[name], name, classes, config.window)
    assembled = in_order([capture.label for capture in captures if not capture.ordered])
    log.info("%s: %s", source, ", ".join(f"{name} {count}" for name, count in report.items()))
    return Dataset(names, classes, splits, source, site, assembled, content_hash(splits, names, classes, domains), report, domains)


def _side(
    index: int,
    captures: list[Capture],
    sides: list[NDArray[np.int8]],
    segment: NDArray[np.int32],
    classes: tuple[str, ...],
    domains: tuple[str, ...],
    largest: dict[int, np.float32],
    shelf: Shelf,
) -> Rows:
    """Rows of one side; `segment` (N,) is of the rows of all captures, -1 for those that are out."""
    features = shelf.column(np.float32, captures[0].features.shape[1])
    label, run, domain = shelf.column(np.int16), shelf.column(np.int32), shelf.column(np.int16)
    start, duration = shelf.column(np.float64), shelf.column(np.float64)
    first = 0
    for capture, part in zip(captures, sides, strict=True):
        runs = segment[first : first + len(part)]
        first += len(part)
        for here in blocks(len(part)):
            mine = np.flatnonzero((part[here] == index) & (runs[here] >= 0))
            if not len(mine):
                continue
            features.append(_finite(capture.features[here][mine], largest))
            label.append(np.full(len(mine), classes.index(capture.label), dtype=np.int16))
            run.append(runs[here][mine])
            start.append(capture.start[here][mine])
            duration.append(capture.duration[here][mine])
            domain.append(np.full(len(mine), domains.index(capture.domain), dtype=np.int16))
        for column in (capture.features, capture.start, capture.duration):
            forget(column)
    return Rows(features.array(), label.array(), run.array(), start.array(), duration.array(), domain.array())


def leave_out(dataset: Dataset, domain: str, window: int) -> Dataset:
    """The data set with all rows of one device in `test`, alone there, and on no other side: does what others taught hold for it?

    A vector that stands in `test` leaves the other sides, as in `src.data.splits`.

    Raises:
        UserError: for an unknown domain, or one without which a class has no window of `window` rows on some other side.
    """
    if domain not in dataset.domain_names:
        raise UserError(f"unknown device or site '{domain}': {nearest(domain, dataset.domain_names)}")
    chosen = dataset.domain_names.index(domain)
    mine = [_kept(rows, rows.domain == chosen, rows.segment) for rows in dataset.splits.values()]
    test = Rows(**{field.name: np.concatenate([getattr(part, field.name) for part in mine]) for field in dataclasses.fields(Rows)})
    held = np.unique(row_hashes(test.features))
    splits: dict[str, Rows] = {}
    used = int(test.segment.max(initial=-1)) + 1
    for side in SIDES[:-1]:
        rows = dataset.splits[side]
        removed = np.isin(row_hashes(rows.features), held)
        breaks = np.diff(rows.segment, prepend=rows.segment[:1]) != 0
        breaks |= removed
        splits[side] = _kept(rows, (rows.domain != chosen) & ~removed, (used + np.cumsum(breaks)).astype(np.int32))
        used += int(breaks.sum()) + 1
        counts = np.bincount(splits[side].label[window_starts(splits[side].segment, window)], minlength=len(dataset.class_names))
        if counts.min() == 0:
            name = dataset.class_names[int(np.argmin(counts))]
            raise UserError(
                f"without '{domain}', class '{name}' has no window of {window} rows on side '{side}': it is traffic of that device alone, or nearly"
            )
    splits["test"] = test
    return dataclasses.replace(dataset, splits=splits, data_hash=content_hash(splits, dataset.feature_names, dataset.class_names, dataset.domain_names))


def _kept(rows: Rows, keep: NDArray[np.bool_], segment: NDArray[np.int32]) -> Rows:
    """The rows to keep, of other runs."""
    return Rows(**{field.name: getattr(rows, field.name)[keep] for field in dataclasses.fields(Rows) if field.name != "segment"}, segment=segment[keep])


def _largest_rates(captures: list[Capture], sides: list[NDArray[np.int8]], names: tuple[str, ...], report: dict[str, int | float]) -> dict[int, np.float32]:
    """By column, what takes the place of infinite rates: the largest finite one of `fit`; columns that hold an infinite one alone."""
    columns = [names.index(name) for name in RATES if name in names]
    endless, most = np.zeros(len(columns), dtype=np.int64), np.zeros(len(columns), dtype=np.float32)
    if not columns:
        return {}
    for capture, part in zip(captures, sides, strict=True):
        for here in blocks(len(part)):
            rates = capture.features[here][:, columns]
            infinite = np.isinf(rates)
            endless += infinite.sum(axis=0)
            most = np.maximum(most, np.where(infinite, np.float32(0.0), rates)[part[here] == 0].max(axis=0, initial=0.0))
        forget(capture.features)
    for column, count, value in zip(columns, endless, most, strict=True):
        if count:
            report[f"infinite {names[column]} replaced"] = int(count)
            report[f"{names[column]} in their place"] = float(value)
    return {column: value for column, count, value in zip(columns, endless, most, strict=True) if count}


def _finite(rows: NDArray[np.float32], largest: dict[int, np.float32]) -> NDArray[np.float32]:
    """(n, F) the rows with infinite rates replaced."""
    if not largest:
        return rows
    rows = rows.copy()
    for column, value in largest.items():
        rows[np.isinf(rows[:, column]), column] = value
    return rows


def _require_windows(rows: Rows, side: str, classes: tuple[str, ...], window: int) -> None:
    counts = np.bincount(rows.label[window_starts(rows.segment, window)], minlength=len(classes))
    forget(rows.label)
    forget(rows.segment)
    if counts.min() == 0:
        name = classes[int(np.argmin(counts))]
        raise UserError(
            f"class '{name}' has no window of {window} rows on side '{side}' ({int((rows.label == classes.index(name)).sum())} rows there); "
            f"give more rows of it, lower data.window and data.gap, or add '{name}' to data.exclude_labels"
        )


def without_family(dataset: Dataset, family: str) -> tuple[Dataset, dict[str, Rows]]:
    """The data set with one attack family taken out, for studies of attacks that no sensor has seen.

    Returns:
        The data set without the family's classes on any side, labels renumbered; and by side the rows that were taken out, labelled
        as in the given data set.

    Raises:
        UserError: for a family that is benign, unknown or not in the data set.
    """
    found = family_index(dataset.class_names)  # (C,)
    present = [name for index, name in enumerate(FAMILIES) if index > 0 and (found == index).any()]
    if family not in present:
        raise UserError(f"family '{family}' cannot be left out; attack families in these data: {', '.join(present)}")
    held = found == FAMILIES.index(family)  # (C,)
    kept = tuple(name for name, out in zip(dataset.class_names, held, strict=True) if not out)
    place = np.cumsum(~held) - 1  # (C,) new index of each class that stays
    known, taken = {}, {}
    for side, rows in dataset.splits.items():
        out = held[rows.label]
        known[side] = dataclasses.replace(chosen := _chosen(rows, ~out), label=place[chosen.label].astype(np.int16))
        taken[side] = _chosen(rows, out)
    assembled = tuple(name for name in dataset.assembled if name in kept)
    digest = content_hash(known, dataset.feature_names, kept, dataset.domain_names)
    return dataclasses.replace(dataset, class_names=kept, splits=known, assembled=assembled, data_hash=digest), taken


def _chosen(rows: Rows, chosen: NDArray[np.bool_]) -> Rows:
    return Rows(**{field.name: getattr(rows, field.name)[chosen] for field in dataclasses.fields(Rows)})


def content_hash(splits: dict[str, Rows], names: tuple[str, ...], classes: tuple[str, ...], domains: tuple[str, ...]) -> str:
    """SHA-256 of features, labels and runs of every side, and of the names; of domains too, where there is more than one."""
    several = len(domains) > 1
    digest = hashlib.sha256(repr((names, classes, domains) if several else (names, classes)).encode())
    for side, rows in splits.items():
        digest.update(side.encode())
        for array in (rows.features, rows.label, rows.segment, *([rows.domain] if several else [])):
            for here in blocks(len(array)):
                digest.update(np.ascontiguousarray(array[here]).data)
                forget(array)
    return digest.hexdigest()
