"""Stage 1: raw files of a data set become one table of events with labels, groups, sessions and times.

    python -m src.sae.aggregation --dataset iot23 --version v1 --root FOLDER

The schema (JSON) says which columns are kept as `core_features` and where label, time and host stand. Beside those columns every row has:

    label    String   the taxonomy's name where there is one, else the source's in one spelling
    attack   Int8     0 benign, 1 attack, null where nobody said
    group    String   what the split goes by: campaign, device or capture
    session  String   file and host (or run of a capture), up to a long silence of it: a window never crosses two
    time_ms  Int64    milliseconds since 1970, UTC; null where unknown; never a feature
    ordered  Boolean  false where the rows of a file are shuffled at the source

Rows of a session stand together and in time order; one without a time stays behind the row that it follows in its file. Files are read one by one,
and those of one capture's features in batches, so that memory does not grow with the data set.

Policy, each case counted in the metadata: what the readers in `src.data` count; an infinite rate, whose packets share one microsecond, becomes the rate
of as many packets in a microsecond.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from src.artifacts import versions, write_text
from src.config import nearest
from src.data import flows, sysmon, tables, zeek
from src.data.ciciot2023 import FEATURES_39, FEATURES_46, LARGEST, RATES, Batch, stream_ciciot2023
from src.data.nbaiot import FEATURES_115, stream_nbaiot
from src.data.site import read_site
from src.data.tables import BENIGN
from src.errors import UserError
from src.sae.layout import Layout, add_preset, finish, layout_of, parser, preset, read_json, teller
from src.sae.windows import split_fault

RESERVED: dict[str, Any] = {
    "label": pl.String, "attack": pl.Int8, "group": pl.String, "session": pl.String, "time_ms": pl.Int64, "ordered": pl.Boolean,
}  # fmt: skip
"""Columns that every row has beside the schema's."""

KEYS = ("core_features", "label_column", "benign_label", "time_column", "time_unit", "host_column", "session_gap_hours", "group", "split")
"""Keys of a schema; each must be there, null where the data set has nothing of the kind."""

GROUPS = ("apt_campaign", "file", "device")
"""Rules by which rows are grouped, beside the values of a column."""

RELEASES = {FEATURES_39: "merged39", FEATURES_46: "classic46"}
"""CICIoT2023's two releases by their columns, and the preset of each."""

_ROWS = 1 << 18
"""Rows that are written at once."""

SHUFFLED = 0.4
"""Share of a file's rows that are earlier than the row before them, above which it is no log but a shuffled sample: there it is a half."""


def read_schema(path: Path) -> dict[str, Any]:
    """A schema file.

    Raises:
        UserError: when it cannot be read, or a key is missing, unknown or of the wrong kind.
    """
    schema = read_json(path, KEYS, ())
    fault = _fault(schema)
    if fault is not None:
        raise UserError(f"'{path}': {fault}")
    return schema


def _fault(schema: Mapping[str, Any]) -> str | None:
    core = schema["core_features"]
    if not isinstance(core, list) or not core or not all(isinstance(name, str) for name in core) or len(set(core)) < len(core):
        return "'core_features' must be a list of different names"
    for key in ("label_column", "benign_label"):
        value = schema[key]
        if not (value is None or isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(name, str) for name in value))):
            return f"{key} is {value!r}; it must be a name, a list of names, or null"
    for name in core:
        if name in RESERVED:
            return f"core feature '{name}' has the name of a column that every table has: {', '.join(RESERVED)}"
        if name in _names(schema["label_column"]):
            return f"core feature '{name}' is the label"
    for key in ("time_column", "host_column"):
        if schema[key] is not None and not isinstance(schema[key], str):
            return f"{key} is {schema[key]!r}; it must be the name of a column, or null"
    group = schema["group"]
    if not isinstance(group, str) or not (group in GROUPS or re.fullmatch("column:.+", group)):
        return f"group is {group!r}: {nearest(str(group), [*GROUPS, 'column:NAME'])}"
    fault = split_fault(schema["split"])
    if fault is not None:
        return fault
    if schema["time_column"] is not None and schema["time_unit"] not in tables.TIME_UNITS:
        return f"time_unit '{schema['time_unit']}': {nearest(str(schema['time_unit']), tables.TIME_UNITS)}"
    hours = schema["session_gap_hours"]
    if hours is not None and (isinstance(hours, bool) or not isinstance(hours, int | float) or not 0 < hours < math.inf):
        return f"session_gap_hours is {hours!r}; it must be a number above 0, the longest silence of a host inside a session, or null for none"
    return None


def _names(value: str | list[str] | None) -> list[str]:
    """A name, several or none as a list."""
    return [] if value is None else [value] if isinstance(value, str) else [*value]


# ------------------------------------------------------------------------------------------------------------ event tables, a file at a time


_FILES: dict[str, tuple[Sequence[str], str]] = {
    "bigbase": (("dataset-*.csv",), "files dataset-1.csv to dataset-50.csv of bigbase"),
    "otrf": (("*.parquet",), "parquet file of OTRF's events"),
    "unraveled": (flows.PATTERNS, "CSVs of Unraveled's flows"),
    "iot23": (zeek.PATTERNS, "Zeek logs of IoT-23"),
}


def _events(dataset: str, root: Path, schema: Mapping[str, Any], report: Counter[str], sources: list[Path], notes: list[str]) -> Iterator[pl.DataFrame]:
    """Tables of one file each, arranged."""
    sources += tables.files(root, *_FILES[dataset])
    rule = str(schema["group"])
    column = rule.removeprefix("column:") if rule.startswith("column:") else None
    labels, benign = _names(schema["label_column"]), _names(schema["benign_label"])
    if dataset != "otrf" and not labels:
        raise UserError(f"the schema's label_column is null, but every event of {dataset} has a label: name its column")
    by_name: dict[str, Callable[[Path], str]] = {"apt_campaign": sysmon.campaign, "file": flows.network if dataset == "unraveled" else zeek.capture_name}
    if column is None and rule not in by_name:
        raise UserError(f"the schema's group '{rule}': {nearest(rule, [*by_name, 'column:NAME'])}")
    columns = [name for name in dict.fromkeys([*schema["core_features"], schema["time_column"], schema["host_column"], column]) if name is not None]
    for path in sources:
        if dataset == "bigbase":
            frame = sysmon.read_bigbase(path, columns, labels, benign)
        elif dataset == "otrf":
            frame = sysmon.read_otrf(path, columns)
        elif dataset == "unraveled":
            frame = flows.read_flows(path, columns, labels, benign, report)
        else:
            frame = zeek.read_zeek(path, columns, labels, benign)
        group = pl.col(column).fill_null("none") if column is not None else pl.lit(by_name[rule](path))
        yield from _arranged(path, _relative(path, root), frame, schema, group, report, notes)


def _arranged(
    path: Path, name: str, frame: pl.DataFrame, schema: Mapping[str, Any], group: pl.Expr, report: Counter[str], notes: list[str]
) -> Iterator[pl.DataFrame]:
    """The reserved columns beside the core features; rows of a session together and in time order."""
    report["rows read"] += len(frame)
    stamp, host = schema["time_column"], schema["host_column"]
    clock = pl.repeat(None, len(frame), dtype=pl.Int64, eager=True) if stamp is None else tables.epoch_ms(path, stamp, frame[stamp], schema["time_unit"])
    report["rows without a time"] += clock.null_count()
    if host is not None:
        report["rows without a host"] += frame[host].null_count()
    parts = [
        pl.lit(name),
        *([group] if str(schema["group"]).startswith("column:") else []),
        *([] if host is None else [pl.col(host).cast(pl.String).fill_null("?")]),
    ]
    attack = pl.when(pl.col("label") != sysmon.UNKNOWN).then((pl.col("label") != BENIGN).cast(pl.Int8))
    frame = frame.with_columns(clock.alias("time_ms"), attack.alias("attack"), group.alias("group"), pl.lit(True).alias("ordered"))
    frame = frame.with_columns(pl.concat_str(parts, separator="|").alias("session"))
    key = frame.select("session", "time_ms").with_row_index("row")
    key = key.select(
        "row",
        pl.col("row").min().over("session").alias("first"),
        pl.col("time_ms").forward_fill().backward_fill().over("session").alias("when"),
    )
    report["rows put in time order"] += key.select((pl.col("when") < pl.col("when").shift(1)).over("first").sum()).item()
    back = (clock < clock.shift(1)).mean()
    if isinstance(back, float) and back > SHUFFLED:
        notes.append(
            f"{name}: {back:.0%} of its rows are earlier than the row before them, as in a shuffled sample; each host's rows are put in order by their "
            "times, but what happened between two of them may be absent"
        )
    key = key.sort("first", "when", "row")
    order = key["row"]
    if schema["session_gap_hours"] is not None:
        silent = pl.col("when").diff() > schema["session_gap_hours"] * 3_600_000
        run = pl.Series("run", key.select(silent.fill_null(False).cum_sum().over("first")).to_series()).gather(order.arg_sort())
        report["sessions begun after a silence"] += key.select(silent.over("first").sum()).item()
        frame = frame.with_columns(pl.when(run > 0).then(pl.format("{}|{}", "session", run)).otherwise("session").alias("session"))
    wanted = [*schema["core_features"], *RESERVED]
    report["empty cells"] += sum(frame.select(pl.col(schema["core_features"]).null_count()).row(0))
    for start in range(0, len(order), _ROWS):
        yield frame[order[start : start + _ROWS]].select(wanted)


# -------------------------------------------------------------------------------------------------------- traffic features, a batch at a time


def _traffic(dataset: str, root: Path, schema: Mapping[str, Any], report: Counter[str], sources: list[Path], notes: list[str]) -> Iterator[pl.DataFrame]:
    """Tables of one batch of one file each."""
    if dataset == "nbaiot":
        names, batches = FEATURES_115, stream_nbaiot(root, report)
    else:
        names, batches = _captures(root, report)
    core = schema["core_features"]
    if schema["group"] not in ("file", "device"):
        raise UserError(f"the schema's group '{schema['group']}' does not fit {dataset}; allowed: file, device")
    if dataset == "ciciot2023" and names in RELEASES and not set(core) <= set(names):
        other = next(release for release in RELEASES if release is not names)
        if set(core) <= set(other):
            raise UserError(
                f"'{root}' holds CICIoT2023's release of {len(names)} features, the schema is of the one of {len(other)}: "
                f"give --config-preset {RELEASES[names]}"
            )
    tables.check_columns(root, names, core)
    place = [names.index(name) for name in core]
    rates = [core.index(name) for name in RATES if name in core]
    for batch in batches:
        if not sources or sources[-1] != batch.path:
            sources.append(batch.path)
        values = batch.features[:, place]
        for column in rates:
            endless = np.isinf(values[:, column])
            report["infinite rates replaced"] += int(endless.sum())
            values[endless, column] = np.minimum(batch.features[endless, names.index("Number")], LARGEST / 2e6) * 1e6
        source = _relative(batch.path, root)
        label = pl.lit(batch.label) if isinstance(batch.label, str) else pl.Series("label", batch.label, dtype=pl.String)
        group = batch.domain if schema["group"] == "device" or batch.domain != "CICIoT2023" else batch.path.name.split(".")[0]
        clock = pl.lit(None, pl.Int64) if batch.time is None else tables.epoch_ms(batch.path, "time", pl.Series(batch.time), "s")
        frame = pl.from_numpy(values, schema=core).with_columns(
            label.alias("label"),
            pl.lit(group).alias("group"),
            pl.concat_str(pl.lit(f"{source}|"), pl.Series(batch.chunk)).alias("session"),
            clock.alias("time_ms"),
            pl.lit(batch.ordered).alias("ordered"),
        )
        yield frame.with_columns((pl.col("label") != BENIGN).cast(pl.Int8).alias("attack")).select(*core, *RESERVED)


def _captures(root: Path, report: Counter[str]) -> tuple[tuple[str, ...], Iterator[Batch]]:
    """CICIoT2023's captures, and benign ones of named devices (`src.data.site`) in folders of their own."""
    folders = {path.parent for path in root.rglob("*.csv") if path.is_file()} if root.is_dir() else set[Path]()
    sites = sorted(folder for folder in folders if _is_site(folder))
    benign = itertools.chain.from_iterable(_site(folder, report) for folder in sites)
    if sites and len(sites) == len(folders):
        return FEATURES_39, benign
    names, captures = stream_ciciot2023(root, report, sites)
    if sites and names is not FEATURES_39:
        raise UserError(
            f"'{sites[0]}' holds the {len(FEATURES_39)} features of CICIoT2023's newer release, the captures {len(names)}: keep one release a folder"
        )
    return names, itertools.chain(benign, captures)


def _is_site(folder: Path) -> bool:
    """Whether the folder holds a CSV a device with captures and times."""
    with min(path for path in folder.glob("*.csv") if path.is_file()).open(encoding="utf-8", errors="replace") as stream:
        return {"pcap", "window_start"} <= {name.strip() for name in stream.readline().split(",")}


def _site(folder: Path, report: Counter[str]) -> Iterator[Batch]:
    """Benign captures of named devices; a capture is a run of its device's file."""
    first: Counter[str] = Counter()
    for capture in read_site(folder, report):
        chunk = capture.chunk + np.int32(first[capture.domain])
        first[capture.domain] = int(chunk[-1]) + 1 if len(chunk) else first[capture.domain]
        yield Batch(folder / f"{capture.domain}.csv", BENIGN, True, capture.features, chunk, capture.domain, capture.start)


# ------------------------------------------------------------------------------------------------------------------------------------ writing


def _relative(path: Path, root: Path) -> str:
    return path.name if path == root else path.relative_to(root).as_posix()


class _Summary:
    """What is known of all rows when the last one was seen."""

    def __init__(self) -> None:
        self.rows = 0
        self.mix: Counter[tuple[str, int | None, str]] = Counter()
        self.first: dict[str, Any] = {}
        self.times: list[int] = []
        self.last_session: str | None = None
        self.sessions = 0
        self.unordered = 0
        self.digest = hashlib.sha256()

    def add(self, frame: pl.DataFrame) -> None:
        """Count a table's rows."""
        if self.rows == 0:
            self.first = {name: frame[name][0] for name in frame.columns if name not in RESERVED}
        self.rows += len(frame)
        for label, attack, group, count in frame.group_by("label", "attack", "group").len().iter_rows():
            self.mix[label, attack, group] += count
        if self.first:
            same = frame.select(pl.col(name).eq_missing(pl.lit(value, dtype=frame.schema[name])).all() for name, value in self.first.items()).row(0)
            self.first = {name: value for (name, value), holds in zip(self.first.items(), same, strict=True) if holds}
        self.times = [time for time in (*self.times, frame["time_ms"].min(), frame["time_ms"].max()) if isinstance(time, int)]
        self.times = [min(self.times), max(self.times)] if self.times else []
        session = frame["session"]
        self.sessions += int((session != session.shift(1)).sum()) + (session[0] != self.last_session)
        self.last_session = session[-1]
        self.unordered += len(frame) - int(frame["ordered"].sum())
        self.digest.update(frame.hash_rows(seed=0).to_numpy().tobytes())

    def by(self, place: int) -> dict[str, int]:
        """Rows by label (0), attack (1) or group (2), the most frequent first."""
        found: Counter[Any] = Counter()
        for key, count in self.mix.items():
            found[key[place]] += count
        return {"unknown" if key is None else str(key): count for key, count in found.most_common()}


def aggregate(dataset: str, root: Path, schema: Mapping[str, Any], layout: Layout, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the table of all events, its metadata and its label distribution.

    Args:
        dataset: one of the six.
        root: folder of raw files, or one file.
        schema: as `read_schema` returns it.
        layout: where the three files go.
        say: shows one line of progress.

    Returns:
        The metadata as written.

    Raises:
        UserError: for a missing folder or file, a file, column, label, time or cell that does not fit, or a folder that cannot be written.
    """
    began = time.perf_counter()
    fault = _fault(schema)
    if fault is not None:
        raise UserError(f"schema of {dataset}: {fault}")
    report: Counter[str] = Counter()
    sources: list[Path] = []
    notes: list[str] = []
    tables_of = _traffic if dataset in ("ciciot2023", "nbaiot") else _events
    if not tables.is_file(root) and not root.exists():
        raise UserError(f"--root '{root}' does not exist: give the folder of {dataset}'s raw files")
    summary = _write(layout.parquet, tables_of(dataset, root, schema, report, sources, notes), say, began)
    benign = summary.by(1).get("0", 0)
    metadata = {
        "dataset": dataset,
        "version": layout.version,
        "schema": dict(schema),
        "rows": summary.rows,
        "rows by label": summary.by(0),
        "rows by group": summary.by(2),
        "rows by attack": summary.by(1),
        "sessions": summary.sessions,
        "rows not in order": summary.unordered,
        "first and last time_ms": summary.times or None,
        "counts": {name: count for name, count in report.items() if count},
        "notes": notes,
        "constant columns": list(summary.first),
        "sources": [{"name": _relative(path, root), "bytes": path.stat().st_size} for path in sources],
        "digest": summary.digest.hexdigest(),
        "versions": versions(),
        "seconds": round(time.perf_counter() - began, 3),
    }
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("label", "attack", "group", "rows"))
    writer.writerows((label, "" if attack is None else attack, group, count) for (label, attack, group), count in sorted(summary.mix.items(), key=str))
    write_text(layout.labels, table.getvalue())
    write_text(layout.metadata, json.dumps(metadata, indent=1) + "\n")
    for note in notes:
        say(f"note: {note}")
    say(f"{summary.rows:,} events in {summary.sessions:,} sessions of {len(sources)} files, {benign:,} benign: {layout.parquet}")
    return metadata


def _write(path: Path, frames: Iterable[pl.DataFrame], say: Callable[[str], None], began: float) -> _Summary:
    """Write the tables into one parquet file, whole or not at all."""
    summary = _Summary()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; choose a writable folder with --out FOLDER") from error
    writer: pq.ParquetWriter | None = None
    told = began
    try:
        for frame in _gathered(frames):
            summary.add(frame)
            arrow = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            if writer is None:
                # Numbers seldom repeat: a dictionary of them costs time and saves no space.
                options: dict[str, Any] = {"compression": "zstd", "use_dictionary": frame.select(pl.col(pl.String)).columns}
                writer = pq.ParquetWriter(name, arrow.schema, **options)
            writer.write_table(arrow)
            if time.perf_counter() - told > 5:
                told = time.perf_counter()
                say(f"{summary.rows:,} events, {summary.rows / (told - began):,.0f} a second")
        if writer is None:
            raise UserError(f"'{path}' is not written: no row is left, for every row below --root was dropped")
        writer.add_key_value_metadata({"digest": summary.digest.hexdigest(), "rows": str(summary.rows)})  # stage 2 compares them with the metadata's
        writer.close()
        writer = None
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; choose a writable folder with --out FOLDER") from error
    finally:
        if writer is not None:
            writer.close()
        with suppress(FileNotFoundError):  # it is gone where it became `path`
            os.unlink(name)
    return summary


def _gathered(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same rows in fewer, larger tables."""
    held: list[pl.DataFrame] = []
    for frame in frames:
        held.append(frame)
        if sum(map(len, held)) >= _ROWS:
            yield pl.concat(held)
            held = []
    held = [frame for frame in held if len(frame)]
    if held:
        yield pl.concat(held)


def run(words: list[str] | None) -> None:
    """Aggregate as the command line says.

    Raises:
        UserError: for wrong input.
    """
    flags = parser("src.sae.aggregation", "Stage 1: one table of events from a data set's raw files.")
    flags.add_argument("--root", required=True, type=Path, metavar="FOLDER", help="raw files of the data set")
    flags.add_argument("--subdir", metavar="NAME", help="folder below --root, e.g. network-flows")
    flags.add_argument("--schema", type=Path, metavar="FILE", help="schema of your own instead of a preset's")
    add_preset(flags)
    given = flags.parse_args(words)
    layout = layout_of(given)
    if given.schema is not None and given.config_preset is not None:
        raise UserError("--schema and --config-preset are two answers to one question; give one")
    schema = read_schema(given.schema or preset(given.dataset, given.config_preset).schema)
    aggregate(given.dataset, given.root / given.subdir if given.subdir else given.root, schema, layout, teller())


if __name__ == "__main__":
    sys.exit(finish(run))
