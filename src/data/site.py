"""Another site's benign traffic in place of the data set's own, for studies of false alarms and of shift.

A site is a folder of one CSV a device, in the 39 features of CICIoT2023's newer release and two columns more: `pcap`, the capture
that a row is of, and `window_start`, its time in seconds; e.g. the set-up captures of IoT Sentinel (Miettinen et al. 2017, ICDCS).
Each device becomes a class of its own, `Benign:<Device>`, so that a simulated device can replay one real device.

Policy, each case counted in the report:

* Captures of a device, and rows in a capture, stand in time order. A capture is a run of its own, so no window crosses two.
* A capture that repeats an earlier one row for row is dropped: the two could come to stand on two sides.
* Gaps in rows are closed, and rows dropped, as in `src.data.ciciot2023`; an infinite `Rate` becomes the largest one of the data
  set's `fit` side, as everywhere.
* Whole captures go to `calibrate`, `agent` and `test`, the earliest first, in the proportions of these sides, and at least one to
  each. Captures too short for a window are dropped; a device that cannot give each side one is left out. No row goes to `fit`.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from src.config import DataConfig
from src.data.ciciot2023 import FEATURES_39, Capture, Cleaner
from src.data.dataset import Dataset, Rows, content_hash
from src.data.splits import SIDES
from src.data.tables import first_line, is_file, readable
from src.data.taxonomy import BENIGN_OF, family_index
from src.data.windows import durations, window_starts
from src.errors import UserError

log = logging.getLogger(__name__)

TRACE_SIDES = SIDES[1:]
"""Sides that a site's captures are divided among; sensors are fitted on the data set itself."""

COLUMNS = (*FEATURES_39, "pcap", "window_start")
"""Columns of a device's CSV, in any order."""

RATE = FEATURES_39.index("Rate")
NUMBER = FEATURES_39.index("Number")

LATEST = 1e12
"""Seconds; no clock says as much, and differences of larger numbers may not be finite."""


def with_benign_site(dataset: Dataset, config: DataConfig) -> Dataset:
    """The data set with the benign rows of `config.benign_root` in place of its own, without a `fit` side; as it is where none is named.

    Each device is a domain of its own beside those of the data set, to which the attacks still belong.

    Raises:
        UserError: for a folder, file or column that is missing or wrong, for a data set in other features, or when
            no device has a capture with a window for each side.
    """
    if config.benign_root is None:
        return dataset
    if dataset.feature_names != FEATURES_39:
        raise UserError(
            f"data.benign_root holds the {len(FEATURES_39)} features of CICIoT2023's newer release, data.root has "
            f"{len(dataset.feature_names)}: give data.root in the newer release"
        )
    report: Counter[str] = Counter()
    captures = read_site(config.benign_root, report)
    sides = _divide(captures, config, report)
    largest = dataset.splits["fit"].features[:, RATE].max()
    attacks = [name for name, family in zip(dataset.class_names, family_index(dataset.class_names), strict=True) if family > 0]
    classes = (*sides, *attacks)
    place = np.array([classes.index(name) if name in attacks else -1 for name in dataset.class_names], dtype=np.int16)
    first = 1 + max(int(rows.segment.max(initial=-1)) for rows in dataset.splits.values())
    domains = (*dataset.domain_names, *(name.removeprefix(BENIGN_OF) for name in sides))
    splits: dict[str, Rows] = {}
    for side in TRACE_SIDES:
        own = dataset.splits[side]
        kept = place[own.label] >= 0
        parts = [Rows(own.features[kept], place[own.label[kept]], own.segment[kept], own.start[kept], own.duration[kept], own.domain[kept])]
        for name, divided in sides.items():
            for capture in divided[side]:
                features = np.where(np.isinf(capture.features), largest, capture.features)  # only a rate can be infinite here
                label = np.full(len(features), classes.index(name), dtype=np.int16)
                clock = capture.start - capture.start[0]
                domain = np.full(len(features), domains.index(capture.domain), dtype=np.int16)
                parts.append(Rows(features, label, capture.chunk + np.int32(first), clock, capture.duration, domain))
                first += int(capture.chunk[-1]) + 1
        splits[side] = Rows(**{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(Rows)})
        report[f"rows of the site in {side}"] = len(splits[side].label) - int(kept.sum())
    log.info("%s: %s", config.benign_root, ", ".join(f"{name} {count}" for name, count in report.items()))
    return dataclasses.replace(
        dataset,
        class_names=classes,
        splits=splits,
        site=f"benign: {_title(config.benign_root)} ({len(sides)} devices), attacks: {dataset.site}",
        assembled=tuple(name for name in dataset.assembled if name in attacks),
        data_hash=content_hash(splits, dataset.feature_names, classes, domains),
        report={**dataset.report, **{f"site: {name}": count for name, count in report.items()}},
        domain_names=domains,
    )


def read_site(root: Path, report: Counter[str]) -> list[Capture]:
    """Every capture of every device, by device name and then in time order; what is met is counted in `report`.

    Raises:
        UserError: for a missing or empty folder, a file that is no CSV of a device, or a cell that is no number.
    """
    if is_file(root) or not root.is_dir():
        raise UserError(f"data.benign_root '{root}' is no folder: give a folder of one CSV a device, or null for the data set's own benign traffic")
    paths = readable(sorted(path for path in root.glob("*.csv") if path.is_file()))
    if not paths:
        raise UserError(f"data.benign_root '{root}' holds no .csv file")
    clean, known, captures = Cleaner(FEATURES_39, report), set[bytes](), list[Capture]()
    for path in paths:
        captures += _read_device(path, clean, known)
    return captures


def _read_device(path: Path, clean: Cleaner, known: set[bytes]) -> list[Capture]:
    """Captures of one file; `known` are the hashes of captures that were met, and grows."""
    _check_header(path)
    types: dict[str, Any] = dict.fromkeys((*FEATURES_39, "window_start"), pl.Float64) | {"pcap": pl.String}
    try:
        frame = pl.read_csv(path, schema_overrides=types, glob=False).select(COLUMNS)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"'{path}': {first_line(error)}; every column but 'pcap' must be a number") from error
    if len(frame) == 0:
        raise UserError(f"'{path}' has a header but no rows")
    placed = frame.select(pl.col("pcap").is_not_null(), (pl.col("window_start").abs() < LATEST).fill_null(False))
    for name in placed.columns:
        if not placed[name].all():
            raise UserError(f"'{path}': column '{name}' is empty in some row, or no time; each row needs its capture and its time in seconds")
    found: list[Capture] = []
    for _, rows in frame.group_by("pcap", maintain_order=True):
        rows = rows.sort("window_start", maintain_order=True)
        content = rows.drop("pcap").hash_rows(seed=0).to_numpy().tobytes()
        if content in known:
            clean.report["captures that repeat another"] += 1
            continue
        known.add(content)
        clock = rows["window_start"].to_numpy()
        values, keep = clean(rows.select(FEATURES_39).to_numpy())
        kept = np.flatnonzero(keep)
        values = values[kept]
        chunk = np.cumsum(np.diff(kept, prepend=kept[:1]) > 1, dtype=np.int32)  # a run ends where a row is missing
        duration = durations(values[:, NUMBER], values[:, RATE])
        found.append(Capture(f"{BENIGN_OF}{path.stem}", True, values.astype(np.float32), chunk, clock[kept], duration, path.stem))
    began = [capture.start.min(initial=np.inf) for capture in found]
    return [found[index] for index in np.argsort(began, kind="stable")]


def _check_header(path: Path) -> None:
    try:
        header = pl.read_csv(path, n_rows=0, infer_schema=False, glob=False).columns
    except pl.exceptions.NoDataError:
        raise UserError(f"'{path}' is empty: a device's CSV has a header and rows") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"'{path}' cannot be read as CSV: {first_line(error)}") from error
    wrong = [("is missing", name, header) for name in COLUMNS if name not in header] + [("is unknown", name, COLUMNS) for name in header if name not in COLUMNS]
    if wrong:
        fault, name, others = wrong[0]
        near = difflib.get_close_matches(name, others, n=1)
        hint = f" (nearest: '{near[0]}')" if near else ""
        more = f", and {len(wrong) - 1} more are wrong" if len(wrong) > 1 else ""
        raise UserError(f"'{path}': column '{name}'{hint} {fault}{more}; a device's CSV has CICIoT2023's {len(FEATURES_39)} features, pcap and window_start")


def _divide(captures: Sequence[Capture], config: DataConfig, report: Counter[str]) -> dict[str, dict[str, list[Capture]]]:
    """Captures of each device that is kept, by class and side."""
    devices: dict[str, list[Capture]] = {}
    for capture in captures:
        long_enough = len(window_starts(capture.chunk, config.window)) > 0
        devices.setdefault(capture.label, []).extend([capture] if long_enough else [])
        report["captures too short for a window"] += not long_enough
    shares = np.array([getattr(config.fractions, side) for side in TRACE_SIDES])
    cuts = np.cumsum(shares)[:-1] / shares.sum()
    divided: dict[str, dict[str, list[Capture]]] = {}
    for name, held in devices.items():
        if len(held) < len(TRACE_SIDES):
            continue
        ends = _ends(len(held), cuts)
        divided[name] = {side: held[start:end] for side, start, end in zip(TRACE_SIDES, [0, *ends], [*ends, len(held)], strict=True)}
    left_out = [name.removeprefix(BENIGN_OF) for name in devices if name not in divided]
    report["devices"], report["devices left out"] = len(divided), len(left_out)
    if left_out:
        log.warning(
            "data.benign_root: %d of %d devices have fewer than three captures of %d rows and are left out: %s",
            len(left_out), len(devices), config.window, ", ".join(left_out),
        )  # fmt: skip
    if not divided:
        raise UserError(f"data.benign_root '{config.benign_root}': no device has three captures of {config.window} rows, one a side; lower data.window")
    return divided


def _ends(count: int, cuts: NDArray[np.float64]) -> list[int]:
    """Where the first two of three sides end among `count` captures; none is empty."""
    first = int(np.clip(np.rint(cuts[0] * count), 1, count - 2))
    return [first, int(np.clip(np.rint(cuts[1] * count), first + 1, count - 1))]


def _title(root: Path) -> str:
    """`.../iot_sentinel` -> `IoT Sentinel`."""
    words = root.resolve().name.replace("_", " ").split()
    return " ".join("IoT" if word.lower() == "iot" else word[:1].upper() + word[1:] for word in words)
