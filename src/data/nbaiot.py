"""Reader of traffic in N-BaIoT's 115 features (Meidan et al. 2018, IEEE Pervasive Computing 17(3)), a row a packet.

Layouts, told by the path, in one folder or several:

* `{1..9}.benign.csv`, `{d}.gafgyt.{combo,junk,scan,tcp,udp}.csv`, `{d}.mirai.{ack,scan,syn,udp,udpplain}.csv`;
* `<Device>/benign_traffic.csv`, `<Device>/{gafgyt,mirai}_attacks/{combo,...}.csv`;
* `<capture>.parquet`: packets of other captures in the same features, with a column `label`, and `ts` (seconds) where time is known.
  These are no rows of N-BaIoT, and the site says so.

A file is a capture in order, of one device: its number's or folder's name, or the name of the parquet file. The release names no time.

Policy, each case counted in the report:

* `features.csv`, `device_info.csv`, `data_summary.csv` and `demonstrate_structure*.csv` describe the release and are skipped.
* The first row of a CSV, and rows with a mean gap (`HH_jit_*_mean`) that no gap can have, carry the time of capture: the extractor takes
  the time of a channel's first packet for a gap. It shows as values near 6e8 that fade with the packets that follow. Such rows tell when
  a file was made, hence its label, and are dropped.
* A row with a cell that is empty or infinite (or beyond single precision) is dropped. A run ends where a row was dropped.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from src.config import nearest
from src.data.ciciot2023 import LARGEST, Batch, Capture, excluded_set
from src.data.tables import check_parquet, first_line, is_file, readable
from src.data.taxonomy import canonical
from src.errors import UserError

log = logging.getLogger(__name__)

DECAYS = ("L5", "L3", "L1", "L0.1", "L0.01")
"""Damped windows; the number is the decay a second (Mirsky et al. 2018, NDSS)."""

_ONE_WAY, _JITTER, _TWO_WAY = ("weight", "mean", "variance"), "HH_jit", ("weight", "mean", "std", "magnitude", "radius", "covariance", "pcc")
_BLOCKS = (("MI_dir", _ONE_WAY), ("H", _ONE_WAY), ("HH", _TWO_WAY), (_JITTER, _ONE_WAY), ("HpHp", _TWO_WAY))

FEATURES_115: tuple[str, ...] = tuple(f"{block}_{decay}_{statistic}" for block, statistics in _BLOCKS for decay in DECAYS for statistic in statistics)
"""The published columns, in their order."""

DEVICES = (
    *("Danmini_Doorbell", "Ecobee_Thermostat", "Ennio_Doorbell", "Philips_B120N10_Baby_Monitor", "Provision_PT_737E_Security_Camera"),
    *("Provision_PT_838_Security_Camera", "Samsung_SNH_1011_N_Webcam", "SimpleHome_XCS7_1002_WHT_Security_Camera"),
    "SimpleHome_XCS7_1003_WHT_Security_Camera",
)
"""Devices 1 to 9 by the names of their folders, so that both layouts name them alike."""

TRAFFIC = {"benign": ("",), "gafgyt": ("combo", "junk", "scan", "tcp", "udp"), "mirai": ("ack", "scan", "syn", "udp", "udpplain")}
"""What each botnet's files are called; 3 and 7 have no Mirai."""

LONGEST_GAP = 1e6
"""Seconds; no capture of the release lasts that long, so a larger mean gap is no gap."""

_AUXILIARY = re.compile(r"(features|device_info|data_summary|demonstrate_structure.*)\.csv", re.IGNORECASE)
_NUMBERED = re.compile(r"(\d+)\.(benign|gafgyt|mirai)(?:\.(\w+))?\.csv", re.IGNORECASE)
_GAP_MEANS = np.array([index for index, name in enumerate(FEATURES_115) if name.startswith(_JITTER) and name.endswith("_mean")])
_BATCH = 100_000


@dataclass(frozen=True)
class _File:
    """A file whose path was understood."""

    path: Path
    device: str
    label: str | None
    """Canonical name; None where the file has a label column."""


def read_nbaiot(root: Path, exclude: Collection[str] = (), max_rows_per_file: int | None = None) -> tuple[list[Capture], dict[str, int], str]:
    """Read every file below `root`, batch by batch; memory grows with the rows kept, not with the rows read.

    Args:
        root: a folder, searched recursively, or one file.
        exclude: canonical labels to leave out.
        max_rows_per_file: rows kept of each file, from its start; so that of every device some are kept.

    Returns:
        Captures by file name, each with its device as `domain`; counts of what was met; and where the traffic comes from.

    Raises:
        UserError: for a missing or empty folder or file, a path that is none of the layouts', a missing or unknown column, an unknown label,
            a cell that is no number, or one capture in both layouts.
    """
    excluded = excluded_set(exclude)
    report: Counter[str] = Counter()
    files = _files(root, report)
    captures: list[Capture] = []
    for file in files:
        if file.label in excluded:
            continue
        found = _read(file, max_rows_per_file, report)
        captures += [capture for capture in found if capture.label not in excluded]
    if not captures:
        raise UserError(f"data.root '{root}': no row is left; data.exclude_labels drops {', '.join(sorted(exclude)) or 'nothing'}")
    report["rows kept"] = sum(len(capture.features) for capture in captures)
    log.info("read %s: %s", root, ", ".join(f"{name} {count}" for name, count in report.items()))
    others = sorted(file.device for file in files if file.label is None)
    sites = ["N-BaIoT"] * (len(others) < len(files)) + [f"no N-BaIoT rows but {', '.join(others)} in its features"] * (len(others) > 0)
    return captures, dict(report), "; ".join(sites)


def stream_nbaiot(root: Path, report: Counter[str]) -> Iterator[Batch]:
    """The rows of `read_nbaiot` batch by batch, each file's in capture order whatever their labels; memory grows with neither the rows nor the files.

    Args:
        root: a folder, searched recursively, or one file.
        report: counts what is met; grows as the batches are taken.

    Raises:
        UserError: as `read_nbaiot` does.
    """
    for file in _files(root, report):
        rows, last, chunk = 0, -1, 0
        for frame in _batches(file):
            keep = _usable(frame.select(FEATURES_115).to_numpy(), rows == 0 and file.label is not None, report)
            kept = np.flatnonzero(keep)
            place, rows, frame = kept + rows, rows + len(frame), frame[kept]
            if len(kept) == 0:
                continue
            broken = np.diff(place, prepend=last) > 1
            broken[0] &= last >= 0
            runs = chunk + np.cumsum(broken, dtype=np.int32)
            last, chunk = int(place[-1]), int(runs[-1])
            label = file.label or _labels(file, frame["label"]).to_list()
            time = frame["ts"].to_numpy() if "ts" in frame.columns else None
            yield Batch(file.path, label, True, frame.select(FEATURES_115).to_numpy().astype(np.float32), runs, file.device, time)
        if rows == 0:
            raise UserError(f"'{file.path}' has a header but no rows")


def _labels(file: _File, spelled: pl.Series) -> pl.Series:
    """Canonical labels of rows as their file spells them."""
    if spelled.null_count():
        raise UserError(f"'{file.path}': column 'label' is empty in some row")
    if len(spelled) == 0:
        return spelled
    try:
        return spelled.replace_strict({name: canonical(name) for name in spelled.unique()}, return_dtype=pl.String)
    except UserError as error:
        raise UserError(f"'{file.path}', column 'label': {error}") from None


def _files(root: Path, report: Counter[str]) -> list[_File]:
    if not is_file(root) and not root.exists():
        raise UserError(f"data.root '{root}' does not exist: give a folder of N-BaIoT's CSVs, or one file of it")
    paths = [root] if is_file(root) else sorted(path for path in root.rglob("*") if path.suffix.lower() in (".csv", ".parquet") and path.is_file())
    paths = readable(paths)
    report["auxiliary files skipped"] = sum(_AUXILIARY.fullmatch(path.name) is not None for path in paths)
    files = [_understand(path) for path in paths if not _AUXILIARY.fullmatch(path.name)]
    if not files:
        raise UserError(f"data.root '{root}' holds no traffic of N-BaIoT (searched recursively for .csv and .parquet)")
    seen: dict[tuple[str, str], Path] = {}
    for file in files:
        if file.label is not None and (twin := seen.setdefault((file.device, file.label), file.path)) != file.path:
            raise UserError(f"'{twin}' and '{file.path}' are both {file.label} of {file.device}: keep one layout a folder")
    report["files"] = len(files)
    return files


def _understand(path: Path) -> _File:
    """Device and label of a path."""
    if path.suffix.lower() == ".parquet":
        return _File(path, path.stem, None)
    folder = path.resolve().parent
    numbered = _NUMBERED.fullmatch(path.name)
    if numbered is not None:
        number, botnet, attack = int(numbered[1]), numbered[2].lower(), (numbered[3] or "").lower()
        if not 1 <= number <= len(DEVICES):
            raise UserError(f"'{path}': N-BaIoT's devices are 1 to {len(DEVICES)}, not {number}")
        device = DEVICES[number - 1]
    elif path.stem.lower() == "benign_traffic":
        device, botnet, attack = folder.name, "benign", ""
    elif (botnet := folder.name.lower().removesuffix("_attacks")) in TRAFFIC and folder.name.lower() != botnet:
        device, attack = folder.parent.name, path.stem.lower()
    else:
        raise UserError(
            f"'{path}' is no file of N-BaIoT: device and label are read from the path, e.g. 1.benign.csv, 2.gafgyt.combo.csv, "
            "Ecobee_Thermostat/benign_traffic.csv, Ecobee_Thermostat/mirai_attacks/udpplain.csv"
        )
    if attack not in TRAFFIC[botnet]:
        known = [f"{name}.{one}".strip(".") for name, every in TRAFFIC.items() for one in every]
        raise UserError(f"'{path}': unknown label '{botnet}.{attack}': {nearest(f'{botnet}.{attack}', known)}")
    return _File(path, device, canonical(f"{botnet}-{attack}"))


def _check_columns(path: Path, header: list[str], labelled: bool) -> None:
    wanted = (*FEATURES_115, "label") if labelled else FEATURES_115
    missing = [name for name in wanted if name not in header]
    unknown = [] if labelled else [name for name in header if name not in FEATURES_115]
    if missing or unknown:
        fault, name, others = ("is missing", missing[0], header) if missing else ("is unknown", unknown[0], [*FEATURES_115])
        near = difflib.get_close_matches(name, others, n=1)
        hint = f" (nearest: '{near[0]}')" if near else ""
        more = f", and {len(missing) + len(unknown) - 1} more are wrong" if len(missing) + len(unknown) > 1 else ""
        raise UserError(f"'{path}': column '{name}'{hint} {fault}{more}; the schema is N-BaIoT's {len(FEATURES_115)} features{' and label' * labelled}")


def _batches(file: _File) -> Iterator[pl.DataFrame]:
    """The features in their order, with `label` and `ts` where the file has them; batch by batch in file order."""
    labelled = file.label is None
    try:
        if labelled:
            check_parquet(file.path, (*FEATURES_115, "label", "ts"))
            lazy = pl.scan_parquet(file.path, glob=False)
            header = lazy.collect_schema().names()
        else:
            header = pl.read_csv(file.path, n_rows=0, infer_schema=False, glob=False).columns
            types: dict[str, Any] = dict.fromkeys(header, pl.Float64)
            lazy = pl.scan_csv(file.path, schema_overrides=types, glob=False)
    except pl.exceptions.NoDataError:
        raise UserError(f"'{file.path}' is empty: a file of N-BaIoT has a header and rows") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"'{file.path}' cannot be read: {first_line(error)}") from error
    _check_columns(file.path, header, labelled)
    if labelled:  # of what is no number a cast would make an empty cell, or worse
        schema = lazy.collect_schema()
        odd = [name for name in FEATURES_115 if not schema[name].is_numeric()]
        if odd:
            raise UserError(f"'{file.path}': column '{odd[0]}' holds {schema[odd[0]]}; every feature must be a number")
    more = [pl.col(name).cast(kind) for name, kind in (("label", pl.String), ("ts", pl.Float64)) if labelled and name in header]
    try:
        yield from lazy.select(pl.col(FEATURES_115).cast(pl.Float64), *more).collect_batches(chunk_size=_BATCH, maintain_order=True)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"'{file.path}': {first_line(error)}; every feature must be a number") from error


def _read(file: _File, most: int | None, report: Counter[str]) -> list[Capture]:
    """A capture for each label of the file, of at most `most` rows in all."""
    parts: list[pl.DataFrame] = []
    places: list[NDArray[np.int64]] = []
    rows, taken = 0, 0
    for frame in _batches(file):
        keep = _usable(frame.select(FEATURES_115).to_numpy(), rows == 0 and file.label is not None, report)
        kept = np.flatnonzero(keep)[: None if most is None else most - taken]
        parts.append(frame[kept])
        places.append(kept + rows)
        rows, taken = rows + len(frame), taken + len(kept)
        if taken == most:
            break
    if rows == 0:
        raise UserError(f"'{file.path}' has a header but no rows")
    frame, place = pl.concat(parts), np.concatenate(places)
    if file.label is not None:
        return [_capture(file, file.label, frame, place)] if len(frame) else []
    label = _labels(file, frame["label"])
    return [_capture(file, name, frame.filter(label == name), place[(label == name).to_numpy()]) for name in label.unique(maintain_order=True)]


def _usable(values: NDArray[np.float64], first: bool, report: Counter[str]) -> NDArray[np.bool_]:
    """(n,) which rows to keep; `first` is whether the first one is the first of a CSV."""
    complete: NDArray[np.bool_] = np.asarray((np.abs(values) <= LARGEST).all(axis=1))  # NaN is no less than anything
    timed: NDArray[np.bool_] = np.logical_and(complete, (values[:, _GAP_MEANS] > LONGEST_GAP).any(axis=1))
    timed[:1] &= not first
    report["rows read"] += len(values)
    report["first rows dropped"] += first and len(values) > 0
    report["rows incomplete"] += int((~complete[int(first) :]).sum())
    report["rows with the time of capture"] += int(timed.sum())
    keep = np.logical_and(complete, ~timed)
    keep[:1] &= not first
    return keep


def _capture(file: _File, label: str, frame: pl.DataFrame, place: NDArray[np.int64]) -> Capture:
    """Rows of one label; `place` is where each stood in the file, and a run ends where a row is missing."""
    chunk = np.cumsum(np.diff(place, prepend=place[:1]) > 1, dtype=np.int32)
    unknown = np.full(len(frame), np.nan)
    start, duration = unknown, unknown
    if "ts" in frame.columns:
        clock = frame["ts"].to_numpy()
        start, duration = clock - clock[np.searchsorted(chunk, chunk)], np.zeros(len(frame))  # a packet takes no time
    return Capture(label, True, frame.select(FEATURES_115).to_numpy().astype(np.float32), chunk, start, duration, file.device)
