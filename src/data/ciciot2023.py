"""Reader of CICIoT2023's CSVs (Neto et al. 2023, Sensors 23(13):5941), both releases, all three layouts.

Layouts: one capture a file (label from the file name, rows in capture order), merged files and the classic release's
parts (a `label` column, rows shuffled), samples (`label_multiclass`). A *mixed* file is one with a label column.

Policy, each case counted in the report:

* A capture is cut where a row holds fewer packets than the file's window size (10 or 100): such a row ends a chunk of
  the capture, and the clock starts anew behind it. A chunk whose last row happens to be full is not seen (about one in
  10 or in 100).
* `Std` and `Variance` are empty for a row of one packet: 0. A column with no value at all is an error.
* `Rate` (and `Srate`, `Drate`) is infinite or empty where all packets of a row share one timestamp. It is left infinite
  here; `src.data.dataset` replaces it.
* A row with any other missing or infinite cell (infinite is what single precision does not hold), or without a label (some merged files are truncated
  at the source), is dropped; in a capture, a chunk ends there.
* Rows of a mixed file that repeat, at single precision, a row of a per-attack file of the same family are dropped, so a
  sample may lie in the same folder as the captures it was drawn from.
"""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from src.data.shelf import Shelf
from src.data.splits import among
from src.data.tables import first_line, is_file, natural, readable
from src.data.taxonomy import LABELS, canonical
from src.data.windows import durations, rebuild_time
from src.errors import UserError

log = logging.getLogger(__name__)

_FLAGS = ("fin_flag_number", "syn_flag_number", "rst_flag_number", "psh_flag_number", "ack_flag_number", "ece_flag_number", "cwr_flag_number")
_SIZES = ("Tot sum", "Min", "Max", "AVG", "Std", "Tot size", "IAT", "Number")
_PORTS = ("HTTP", "HTTPS", "DNS", "Telnet", "SMTP", "SSH", "IRC", "TCP", "UDP", "DHCP", "ARP", "ICMP")

FEATURES_39: tuple[str, ...] = (
    *("Header_Length", "Protocol Type", "Time_To_Live", "Rate", *_FLAGS, "ack_count", "syn_count", "fin_count", "rst_count"),
    *(*_PORTS, "IGMP", "IPv", "LLC", *_SIZES, "Variance"),
)
"""The newer release's columns, in its order."""

FEATURES_46: tuple[str, ...] = (
    *("flow_duration", "Header_Length", "Protocol Type", "Duration", "Rate", "Srate", "Drate", *_FLAGS),
    *("ack_count", "syn_count", "fin_count", "urg_count", "rst_count", *_PORTS, "IPv", "LLC", *_SIZES),
    *("Magnitue", "Radius", "Covariance", "Variance", "Weight"),
)
"""The classic release's columns, in its order (`Magnitue` is its spelling)."""

RATES = ("Rate", "Srate", "Drate")
_GAPS = ("Std", "Variance")
_CLOCK = ("IAT", "Number", "Rate")
_LABEL_COLUMNS = ("label_multiclass", "label")
_BATCH = 200_000
LARGEST = float(np.finfo(np.float32).max)
"""Of what single precision holds; what lies beyond is infinite there."""


@dataclass(frozen=True)
class Capture:
    """Rows of one label: a capture in order, or the shuffled rows of every mixed file."""

    label: str
    """Canonical name."""
    ordered: bool
    """Whether rows stand in capture order."""
    features: NDArray[np.float32]
    """(N, F) finite, but for infinite rates."""
    chunk: NDArray[np.int32]
    """(N,) contiguous run that each row belongs to, from 0."""
    start: NDArray[np.float64]
    """(N,) seconds since the start of the chunk; NaN where it cannot be known."""
    duration: NDArray[np.float64]
    """(N,) seconds; NaN where it cannot be known."""
    domain: str = "CICIoT2023"
    """Device or site that the rows are of; this data set names no device."""


@dataclass(frozen=True)
class _Source:
    """A CSV whose header was understood."""

    path: Path
    columns: tuple[str, ...]
    """The file's own spelling of the features, in the release's order."""
    label_column: str | None
    label: str | None
    features: tuple[str, ...]


def row_hashes(features: NDArray[np.float32]) -> NDArray[np.uint64]:
    """(N,) a hash of each row's exact values; equal rows have equal hashes."""
    return pl.from_numpy(np.ascontiguousarray(features)).hash_rows(seed=0).to_numpy()


def _files(root: Path) -> list[Path]:
    if is_file(root):
        return readable([root])
    if not root.exists():
        raise UserError(f"data.root '{root}' does not exist: give a folder of CICIoT2023 CSVs or one CSV, or null for the synthetic profile")
    # Captures of one class are numbered without padding.
    found = sorted((path for path in root.rglob("*.csv") if path.is_file()), key=natural)
    if not found:
        raise UserError(f"data.root '{root}' holds no .csv file (searched recursively)")
    return readable(found)


def _understand(path: Path) -> _Source:
    """Read the header: which release, which columns, where the label is."""
    try:
        header = pl.read_csv(path, n_rows=0, infer_schema=False, glob=False).columns
    except pl.exceptions.NoDataError:
        raise UserError(f"'{path}' is empty: a CICIoT2023 CSV has a header and rows") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"'{path}' cannot be read as CSV: {first_line(error)}") from error
    plain = {name.strip().lower().replace("magnitude", "magnitue"): name for name in header}
    release = min((FEATURES_39, FEATURES_46), key=lambda names: sum(name.lower() not in plain for name in names))
    missing = [name for name in release if name.lower() not in plain]
    if missing:
        near = difflib.get_close_matches(missing[0], header, n=1)
        hint = f" (nearest found: '{near[0]}')" if near else ""
        raise UserError(
            f"'{path}': column '{missing[0]}'{hint} of CICIoT2023's {len(release)}-feature release is missing"
            f"{f', and {len(missing) - 1} more' if len(missing) > 1 else ''}; found: {', '.join(header)}"
        )
    label_column = next((plain[name] for name in _LABEL_COLUMNS if name in plain), None)
    label = None
    if label_column is None:
        try:
            label = canonical(path.name)
        except UserError as error:
            raise UserError(f"'{path}' has no label column (label, Label or label_multiclass), and its file name is no label: {error}") from None
    return _Source(path, tuple(plain[name.lower()] for name in release), label_column, label, release)


def _batches(source: _Source) -> Iterator[tuple[NDArray[np.float64], list[str | None] | None]]:
    """Features (n, F) in double precision, and labels of a mixed file, batch by batch in file order."""
    types: dict[str, Any] = dict.fromkeys(source.columns, pl.Float64)
    wanted = [*source.columns]
    if source.label_column is not None:
        types[source.label_column] = pl.String
        wanted.append(source.label_column)
    try:
        lazy = pl.scan_csv(source.path, schema_overrides=types, glob=False).select(wanted)
        for frame in lazy.collect_batches(chunk_size=_BATCH, maintain_order=True):
            labels = frame[source.label_column].to_list() if source.label_column is not None else None
            yield frame.select(source.columns).to_numpy().astype(np.float64, copy=False), labels
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"'{source.path}': {first_line(error)}; every feature must be a number") from error


class Cleaner:
    """Applies the policy to batches, and counts."""

    def __init__(self, features: tuple[str, ...], report: Counter[str]) -> None:
        self.report = report
        self.number = features.index("Number")
        self.rates = [features.index(name) for name in RATES if name in features]
        self.gaps = [features.index(name) for name in _GAPS]
        self.other = np.array([index for index in range(len(features)) if index not in self.rates])

    def __call__(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The values with the known gaps closed, and (n,) which rows to keep."""
        values = values.copy()
        values[np.abs(values) > LARGEST] = np.inf
        self.report["rows read"] += len(values)
        self.report["inf cells"] += int(np.isinf(values).sum())
        self.report["NaN cells"] += int(np.isnan(values).sum())
        for column in self.rates:
            values[np.isnan(values[:, column]) & (values[:, self.number] >= 1), column] = np.inf
        for column in self.gaps:
            values[np.isnan(values[:, column]) & (values[:, self.number] <= 1), column] = 0.0
        keep: NDArray[np.bool_] = np.logical_and(np.isfinite(values[:, self.other]).all(axis=1), ~np.isnan(values).any(axis=1))
        self.report["rows incomplete"] += int((~keep).sum())
        return values, keep


def _check_columns(source: _Source, seen: NDArray[np.bool_], rows: int) -> None:
    if rows == 0:
        raise UserError(f"'{source.path}' has a header but no rows")
    if not seen.all():
        raise UserError(f"'{source.path}': column '{source.columns[int(np.argmin(seen))]}' has no value in any of {rows} rows")


class _Ordered:
    """Rows of all captures in order, one capture after another."""

    def __init__(self, shelf: Shelf, features: tuple[str, ...]) -> None:
        self.features = shelf.column(np.float32, len(features))
        self.chunk = shelf.column(np.int32)
        self.start, self.duration = shelf.column(np.float64), shelf.column(np.float64)
        self.ends: list[tuple[str, int]] = []
        """Label and end of each capture."""

    def captures(self) -> list[Capture]:
        features, chunk, start, duration = self.features.array(), self.chunk.array(), self.start.array(), self.duration.array()
        places = [slice(first, end) for first, (_, end) in zip([0, *(end for _, end in self.ends)], self.ends, strict=False)]
        return [Capture(label, True, features[here], chunk[here], start[here], duration[here]) for here, (label, _) in zip(places, self.ends, strict=True)]


class _Shuffled:
    """Rows of one label of all mixed files."""

    def __init__(self, shelf: Shelf, features: tuple[str, ...]) -> None:
        self.features, self.duration = shelf.column(np.float32, len(features)), shelf.column(np.float64)

    def capture(self, label: str) -> Capture:
        count = len(self.features)
        return Capture(label, False, self.features.array(), np.broadcast_to(np.int32(0), count), np.broadcast_to(np.nan, count), self.duration.array())


def _read_capture(source: _Source, label: str, clean: Cleaner, quota: int | None, hashes: list[NDArray[np.uint64]] | None, into: _Ordered) -> int:
    """Add the rows of one capture up to `quota`, and the hash of every row of the file to `hashes`; how many rows were added."""
    clocks: list[NDArray[np.float64]] = []  # (n, 3) IAT, Number, Rate: a capture's own fit into memory, its features need not
    breaks: list[NDArray[np.bool_]] = []
    timed = [source.features.index(name) for name in _CLOCK]
    seen, rows, taken, last = np.zeros(len(source.columns), dtype=bool), 0, 0, -1
    for values, _ in _batches(source):
        seen |= ~np.isnan(values).all(axis=0)
        before, rows = rows, rows + len(values)
        values, keep = clean(values)
        if hashes is not None:
            hashes.append(row_hashes(values[keep].astype(np.float32)))
        room = len(values) if quota is None else quota - taken
        if room > 0:
            kept = np.flatnonzero(keep)[:room]
            values = values[kept]
            into.features.append(values.astype(np.float32))
            clocks.append(values[:, timed])
            breaks.append(np.diff(kept + before, prepend=last) > 1)
            last = int(kept[-1]) + before if len(kept) else last
            taken += len(kept)
        elif hashes is None:
            break
    _check_columns(source, seen, rows)
    if not taken:
        return 0
    broken, (iat, number, rate) = np.concatenate(breaks), np.concatenate(clocks).T
    start = duration = np.broadcast_to(np.nan, taken)
    if source.features is FEATURES_39:
        broken[1:] |= number[:-1] < number.max()
    broken[:1] = False
    chunk = np.cumsum(broken, dtype=np.int32)
    if source.features is FEATURES_39:  # the classic release's IAT is epoch time / 20 and its Number a position: no clock to rebuild
        start, duration = rebuild_time(iat, number, rate, chunk)
    for column, part in ((into.chunk, chunk), (into.start, start), (into.duration, duration)):
        column.append(part)
    into.ends.append((label, len(into.features)))
    return taken


def _read_mixed(
    source: _Source,
    clean: Cleaner,
    excluded: Collection[str],
    quota: dict[str, int] | None,
    repeated: dict[str, NDArray[np.uint64]],
    into: dict[str, _Shuffled],
    shelf: Shelf,
) -> None:
    """Add the rows of a mixed file to those of their label; `quota` (rows still wanted of each label) is counted down."""
    number, rate = (source.features.index(name) for name in ("Number", "Rate"))
    spelled: dict[str, str] = {}
    seen, rows = np.zeros(len(source.columns), dtype=bool), 0
    for values, raw in _batches(source):
        assert raw is not None
        seen |= ~np.isnan(values).all(axis=0)
        rows += len(values)
        values, keep = clean(values)
        labels = pl.Series(raw, dtype=pl.String)
        for name in labels.unique(maintain_order=True).drop_nulls().to_list():
            if name not in spelled:
                spelled[name] = _label(source, name)
            label = spelled[name]
            if label in excluded:
                clean.report["rows of excluded labels"] += int((labels == name).sum())
                continue
            part = values[(labels == name).fill_null(False).to_numpy() & keep]
            family = LABELS[label].family
            if family in repeated:
                again = among(row_hashes(part.astype(np.float32)), repeated[family])
                clean.report["rows repeated from a per-attack file"] += int(again.sum())
                part = part[~again]
            if quota is not None:
                part = part[: quota[label]]
                quota[label] -= len(part)
            if len(part):
                held = into.setdefault(label, _Shuffled(shelf, source.features))
                held.features.append(part.astype(np.float32))
                held.duration.append(durations(part[:, number], part[:, rate]) if source.features is FEATURES_39 else np.broadcast_to(np.nan, len(part)))
        clean.report["rows without a label"] += labels.null_count()
    _check_columns(source, seen, rows)


def read_ciciot2023(
    root: Path, exclude: Collection[str] = (), max_rows_per_class: int | None = None, shelf: Shelf | None = None
) -> tuple[list[Capture], tuple[str, ...], dict[str, int]]:
    """Read every CSV below `root`, batch by batch; memory grows with neither the rows read nor, beyond what the shelf holds there, the rows kept.

    Only where mixed files lie beside captures, 8 bytes a row of the captures are held, so that repeated rows can be found.

    Args:
        root: a folder, searched recursively, or one CSV.
        exclude: canonical labels to leave out.
        max_rows_per_class: rows kept of each label, from the start of its captures.
        shelf: where the rows go; None: one of their own.

    Returns:
        Captures in file order (ordered ones first), feature names of the release, and counts of what was met.

    Raises:
        UserError: for a missing or empty folder or file, a missing column, no label, an unknown label, a cell that is no
            number, a column without a value, or both releases in one folder.
    """
    excluded = excluded_set(exclude)
    sources = _sources(root)
    features = sources[0].features
    report: Counter[str] = Counter(files=len(sources))
    clean = Cleaner(features, report)
    quota = None if max_rows_per_class is None else dict.fromkeys(LABELS, max_rows_per_class)
    mixed = [source for source in sources if source.label is None]
    hashes: dict[str, list[NDArray[np.uint64]]] = {}
    shelf = shelf or Shelf()
    ordered = _Ordered(shelf, features)
    for source in sources:
        if source.label is None:
            continue
        family = hashes.setdefault(LABELS[source.label].family, []) if mixed else None
        room = 0 if source.label in excluded else None if quota is None else quota[source.label]
        if room == 0 and family is None:
            continue
        taken = _read_capture(source, source.label, clean, room, family, ordered)
        if quota is not None:
            quota[source.label] -= taken
    repeated = _repeatable(hashes)
    by_label: dict[str, _Shuffled] = {}
    for source in mixed:
        _read_mixed(source, clean, excluded, quota, repeated, by_label, shelf)
    captures = [*ordered.captures(), *(held.capture(label) for label, held in by_label.items())]
    if not captures:
        raise UserError(f"data.root '{root}': no row is left; data.exclude_labels drops {', '.join(sorted(exclude)) or 'nothing'}")
    report["rows kept"] = sum(len(capture.features) for capture in captures)
    log.info("read %s: %s", root, ", ".join(f"{name} {count}" for name, count in report.items()))
    return captures, features, dict(report)


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of one file, as they are streamed."""

    path: Path
    label: str | list[str]
    """Canonical name; of each row where they differ."""
    ordered: bool
    """Whether rows stand in capture order."""
    features: NDArray[np.float32]
    """(n, F) finite, but for infinite rates."""
    chunk: NDArray[np.int32]
    """(n,) contiguous run of the file that each row belongs to, from 0."""
    domain: str = "CICIoT2023"
    """Device or site that the rows are of."""
    time: NDArray[np.float64] | None = None
    """(n,) seconds since 1970, where the file says so."""


def stream_ciciot2023(root: Path, report: Counter[str], without: Collection[Path] = ()) -> tuple[tuple[str, ...], Iterator[Batch]]:
    """The rows of `read_ciciot2023` batch by batch, captures first; memory grows with neither the rows nor the files.

    Only where mixed files lie beside captures, 8 bytes a row of the captures are held, so that repeated rows can be found. A capture's window size is
    the largest `Number` met so far, which its first rows tell.

    Args:
        root: a folder, searched recursively, or one CSV.
        report: counts what is met; grows as the batches are taken.
        without: folders whose files are not read.

    Returns:
        Feature names of the release, and the batches in file order.

    Raises:
        UserError: as `read_ciciot2023` does, at once for what a header shows, and while batches are taken for what a row shows.
    """
    sources = _sources(root, without)
    report["files"] += len(sources)
    return sources[0].features, _stream(sources, report)


def _stream(sources: list[_Source], report: Counter[str]) -> Iterator[Batch]:
    clean = Cleaner(sources[0].features, report)
    mixed = [source for source in sources if source.label is None]
    hashes: dict[str, list[NDArray[np.uint64]]] = {}
    for source in sources:
        if source.label is not None:
            family = hashes.setdefault(LABELS[source.label].family, []) if mixed else None
            yield from _stream_capture(source, source.label, clean, family)
    repeated = _repeatable(hashes)
    for source in mixed:
        yield from _stream_mixed(source, clean, repeated)


def _stream_capture(source: _Source, label: str, clean: Cleaner, hashes: list[NDArray[np.uint64]] | None) -> Iterator[Batch]:
    seen, rows, chunk = np.zeros(len(source.columns), dtype=bool), 0, 0
    last, number, most = -1, np.inf, 0.0  # the row before: its place, its packets, and the most packets of any row
    for values, _ in _batches(source):
        seen |= ~np.isnan(values).all(axis=0)
        values, keep = clean(values)
        kept = np.flatnonzero(keep)
        place, values, rows = kept + rows, values[kept], rows + len(values)
        if len(kept) == 0:
            continue
        broken = np.diff(place, prepend=last) > 1
        if source.features is FEATURES_39:
            packets = values[:, clean.number]
            most = max(most, packets.max())
            broken |= np.concatenate(([number], packets[:-1])) < most
            number = packets[-1]
        broken[0] &= last >= 0  # the first row of a file begins a chunk anyway
        features = values.astype(np.float32)
        if hashes is not None:
            hashes.append(row_hashes(features))
        runs = chunk + np.cumsum(broken, dtype=np.int32)
        last, chunk = int(place[-1]), int(runs[-1])
        yield Batch(source.path, label, True, features, runs)
    _check_columns(source, seen, rows)


def _stream_mixed(source: _Source, clean: Cleaner, repeated: dict[str, NDArray[np.uint64]]) -> Iterator[Batch]:
    spelled: dict[str, str] = {}
    seen, rows = np.zeros(len(source.columns), dtype=bool), 0
    for values, raw in _batches(source):
        seen |= ~np.isnan(values).all(axis=0)
        rows += len(values)
        values, keep = clean(values)
        given = pl.Series(raw, dtype=pl.String)
        clean.report["rows without a label"] += given.null_count()
        keep &= given.is_not_null().to_numpy()
        for name in given.unique().drop_nulls():
            if name not in spelled:
                spelled[name] = _label(source, name)
        names = given.replace_strict(spelled, return_dtype=pl.String) if spelled else given
        features = values.astype(np.float32)
        for name in names.unique().drop_nulls():
            if (family := LABELS[name].family) in repeated:
                rows_of = np.flatnonzero((names == name).fill_null(False).to_numpy() & keep)
                again = among(row_hashes(features[rows_of]), repeated[family])
                keep[rows_of[again]] = False
                clean.report["rows repeated from a per-attack file"] += int(again.sum())
        yield Batch(source.path, names.filter(keep).to_list(), False, features[keep], np.zeros(int(keep.sum()), dtype=np.int32))
    _check_columns(source, seen, rows)


def _label(source: _Source, name: str) -> str:
    try:
        return canonical(name)
    except UserError as error:
        raise UserError(f"'{source.path}', column '{source.label_column}': {error}") from None


def _sources(root: Path, without: Collection[Path] = ()) -> list[_Source]:
    """Every CSV below `root` but those in the folders `without`, understood; all of one release."""
    sources = [_understand(path) for path in _files(root) if path.parent not in without]
    features = sources[0].features
    for source in sources:
        if source.features is not features:
            raise UserError(
                f"data.root '{root}' mixes releases: '{sources[0].path.name}' has {len(features)} features, "
                f"'{source.path.name}' has {len(source.features)}; keep one release a folder"
            )
    return sources


def excluded_set(exclude: Collection[str]) -> frozenset[str]:
    """Canonical names of the labels to leave out.

    Raises:
        UserError: for a name that is no label.
    """
    return frozenset(canonical(name) for name in exclude)


def _repeatable(hashes: dict[str, list[NDArray[np.uint64]]]) -> dict[str, NDArray[np.uint64]]:
    """Hashes of rows of captures by family, sorted; the given ones are let go of."""
    return {family: np.sort(np.concatenate(parts)) for family in list(hashes) if (parts := hashes.pop(family))}
