"""Stage 2: events to windows of features, for training, validation and test.

The order of things keeps the future and the answers out of what is learned. Rows are divided first (`src.data.splits`), by campaign, clock
or block as the schema says. Then windows are laid inside one session and one part; a window of the training part holds no attack row.
Then everything is fitted on benign training rows, and rows are encoded (`src.sae.features`). No window is made before its size is known:
over the limit, every part and class loses the same share of its windows, evenly spaced, the benign ones of validation and test last.

Memory holds the reserved columns of all rows as numbers (with what is made of them some 50 bytes a row), and one block of rows at a time, encoded in
256 MB at most.

    python -m src.sae.encoding --dataset bigbase --version v1 --config-preset basic
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from src.artifacts import new_artifact
from src.data.shelf import blocks
from src.data.splits import PARTS, among, copies
from src.errors import UserError
from src.sae.features import GAP, Encoder, check_config, seconds_since_previous
from src.sae.layout import Layout, Say, add_preset, finish, layout_of, parser, preset, read_json, teller
from src.sae.windows import FILES, EncodingSettings, Events, Windows, divide, lay_windows, reduce
from src.training.sae_trainer import evenly

KIND = "sae-windows"
"""Kind of this stage's artifact. Names of sessions, which hold hosts and addresses, stand in `sessions.json` alone."""

BLOCK = 131_072
"""Rows read at once."""

FIT_ROWS = 200_000
"""Most rows, evenly spaced, on which encoders are fitted."""

BYTES = 1 << 28
"""Most bytes of rows encoded at once."""

CHUNK = 1 << 24
"""Bytes of windows written at once."""


def encode(layout: Layout, encoding: Mapping[str, Any], settings: EncodingSettings, say: Say) -> dict[str, Any]:
    """Write `layout.encoded` from `layout.parquet` and `layout.metadata`.

    Args:
        layout: where artifacts lie.
        encoding: which column is encoded how (`src.sae.features`).
        settings: lengths and limits.
        say: shows one line of progress.

    Returns:
        What `metadata.json` of the artifact holds.

    Raises:
        UserError: when stage 1 is missing or not whole, the encoding does not fit it, a part of the split has no window, or validation no benign one.
    """
    if not layout.parquet.exists() or not layout.metadata.exists():
        missing = layout.metadata if layout.parquet.exists() else layout.parquet
        raise UserError(f"'{missing}' is missing; run stage 1 first (python -m src.sae.aggregation)")
    source = read_json(layout.metadata, required=("schema", "digest", "rows"))
    schema: dict[str, Any] = source["schema"]
    check_config(encoding, schema, _columns(layout, source))
    events = Events.read(layout.parquet)
    reader = Reader(layout.parquet, Encoder(dict(encoding)).columns, events)
    notes: list[str] = list(source.get("notes", ()))
    if (events.attack < 0).all():
        notes.append("no label per event: windows measure scale and robustness, not detection; all are taken as benign for training")
    unknown = np.count_nonzero(events.attack < 0)
    if unknown and events.judged:
        notes.append(
            f"{unknown:,} of {len(events):,} rows have no label: they leave training, and a window with one is of unknown kind unless an attack is in it"
        )
    if not events.ordered.all():
        notes.append(f"{np.count_nonzero(~events.ordered):,} of {len(events):,} rows are not in the order in which they happened: their windows are assembled")

    side, split = divide(events, schema, settings)
    # A row without a clock is only its vector, so a copy is the same observation; events at two times are two events, however alike.
    removed, duplicates = _duplicates(reader, side, drop=schema.get("time_column") is None)
    parts = lay_windows(events, side, removed, settings)
    rows_by_label = _rows_by_label(parts, events)
    for label, found in rows_by_label.items():
        if not found["test"]:
            notes.append(f"{label}: none of its {found['rows']:,} rows is in a window of the test part; nothing is measured of it")
    if not (parts[1].y == 0).any():
        notes.append("no window of validation is known to be benign: those without a label stand for them when the threshold is set")
    for note in notes:
        say(f"note: {note}")

    benign = np.flatnonzero((side == 0) & events.learnable & ~removed)
    fitted = evenly(benign, FIT_ROWS)
    encoder = Encoder.fit(reader.rows(fitted), encoding, settings.max_features, settings.seed)
    names = encoder.feature_names
    say(f"{len(names)} features, fitted on {len(fitted):,} of {len(benign):,} benign training rows")

    per_window = settings.seq_len * len(names) * 4
    whole = [len(part.starts) for part in parts]
    parts, reductions = reduce(parts, events, per_window, settings)
    for line in reductions:
        say(line)
    counts = {file: _counts(part, events) for file, part in zip(FILES, parts, strict=True)}

    metadata: dict[str, Any] = {
        "dataset": layout.dataset,
        "version": layout.version,
        "settings": asdict(settings),
        "seq_len": settings.seq_len,
        "stride": settings.stride,
        "features": len(names),
        "split": {**split, "rows": {part: int((side == index).sum()) for index, part in enumerate(PARTS)}, "rows_between": int((side < 0).sum())},
        "duplicates": duplicates,
        "windows": counts,
        "rows_by_label": rows_by_label,
        "windows_before_reduction": dict(zip(FILES, whole, strict=True)),
        "memory": {
            "limit_bytes": int(settings.memory_limit * 1e9),
            "estimate_bytes": sum(whole) * per_window,
            "written_bytes": sum(len(part.starts) for part in parts) * per_window,
        },
        "reductions": reductions,
        "notes": notes,
        "fitted_rows": len(fitted),
        "explained_variance": encoder.explained,
        "labels": events.labels,
        "groups": events.groups,
        "sessions": len(events.sessions),
        "source": {"file": layout.parquet.name, "bytes": layout.parquet.stat().st_size, "rows": len(events), "digest": source.get("digest")},
    }
    with new_artifact(layout.encoded, KIND, {"dataset": layout.dataset, "version": layout.version, "settings": asdict(settings)}) as folder:
        progress = _Progress(sum(len(part.starts) for part in parts), say)
        for file, part in zip(FILES, parts, strict=True):
            _write(folder, file, part, events, reader, encoder, progress)
            found = counts[file]
            say(f"{file}: {found['windows']:,} windows ({found['benign']:,} benign, {found['attack']:,} attack, {found['unknown']:,} unknown)")
        encoder.save(folder)
        (folder / "feature_names.json").write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
        (folder / "sessions.json").write_text(json.dumps({"sessions": events.sessions}, indent=1) + "\n", encoding="utf-8")
        (folder / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    say(f"done: {layout.encoded}")
    return metadata


def _columns(layout: Layout, source: Mapping[str, Any]) -> list[str]:
    """Columns of stage 1's table.

    Raises:
        UserError: when it cannot be read, or is not the one that the metadata are of.
    """
    try:
        found = pl.read_parquet_metadata(layout.parquet)
        columns = pl.scan_parquet(layout.parquet).collect_schema().names()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"'{layout.parquet}' cannot be read as parquet: {str(error).splitlines()[0]}; run stage 1 again") from error
    for key in ("digest", "rows"):
        if found.get(key) != str(source[key]):
            raise UserError(
                f"'{layout.parquet}' ({key} {found.get(key, 'not stated')}) and '{layout.metadata}' ({key} {source[key]}) are of two runs; run stage 1 again"
            )
    return columns


class Reader:
    """Rows of stage 1's parquet, with the derived columns, a block at a time."""

    def __init__(self, path: Path, columns: list[str], events: Events) -> None:
        self.scan = pl.scan_parquet(path)
        self.columns = [name for name in columns if name != GAP]
        self.count = len(events)
        self.gap = seconds_since_previous(events.time, events.session, events.ordered) if GAP in columns else None

    def block(self, first: int, last: int) -> pl.DataFrame:
        """Rows `first...last - 1`."""
        frame = self.scan.slice(first, last - first).select(self.columns).collect()
        return frame if self.gap is None else frame.with_columns(pl.Series(GAP, self.gap[first:last]))

    def rows(self, places: NDArray[np.integer]) -> pl.DataFrame:
        """The rows at these places, which ascend."""
        frames = []
        while len(places):
            first = int(places[0])
            inside, places = np.split(places, [np.searchsorted(places, first + BLOCK)])
            frames.append(self.block(first, int(inside[-1]) + 1)[inside - first])
        return pl.concat(frames, rechunk=True)

    def hashes(self) -> NDArray[np.uint64]:
        """(N,) equal for rows that are equal in every column that the parquet holds of those to encode."""
        found = np.empty(self.count, dtype=np.uint64)
        for here in blocks(self.count, BLOCK):
            found[here] = self.scan.slice(here.start, BLOCK).select(self.columns).collect().hash_rows().to_numpy()
        return found


def _duplicates(reader: Reader, side: NDArray[np.int8], drop: bool) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """(N,) rows that leave because a later part holds the same vector (none unless `drop`), and how many rows stand in the training part too."""
    row_hash = reader.hashes()
    removed = copies(side, row_hash) if drop else np.zeros(len(side), dtype=bool)
    train = row_hash[(side == 0) & ~removed]
    train.sort()
    shares = {
        part: float(among(row_hash[(side == index) & ~removed], train).mean()) if ((side == index) & ~removed).any() else 0.0
        for index, part in enumerate(PARTS)
        if index
    }
    policy = "copies leave the earlier part" if drop else "kept: identical events are the norm here"
    return removed, {"policy": policy, "rows_removed": int(removed.sum()), "share_of_rows_also_in_train": shares}


def _rows_by_label(parts: list[Windows], events: Events) -> dict[str, dict[str, int]]:
    """Rows of each label: all, those in windows of each part, and those in none; before limits leave windows out."""
    count = len(events.labels)
    covered = [part.covered(len(events)) for part in parts]
    columns = {"rows": np.bincount(events.label, minlength=count)}
    columns |= {file: np.bincount(events.label[held], minlength=count) for file, held in zip(FILES, covered, strict=True)}
    columns["in_no_window"] = np.bincount(events.label[~np.logical_or.reduce(covered)], minlength=count)
    return {label: {name: int(values[index]) for name, values in columns.items()} for index, label in enumerate(events.labels)}


def _counts(part: Windows, events: Events) -> dict[str, Any]:
    """Windows of a part by class, label and group."""
    group = events.group[part.rows[part.starts]]
    return {
        "windows": len(part.starts),
        **{name: int((part.y == value).sum()) for name, value in (("benign", 0), ("attack", 1), ("unknown", -1))},
        "by_label": {events.labels[index]: int(count) for index, count in enumerate(np.bincount(part.label)) if count},
        "by_group": {events.groups[index]: int(count) for index, count in enumerate(np.bincount(group)) if count},
        "sessions": len(np.unique(events.session[part.rows[part.starts]])),
    }


class _Progress:
    """Shows when 25, 50, 75 and 100 % of all windows are encoded."""

    def __init__(self, total: int, say: Say) -> None:
        self.total, self.say, self.done, self.began = total, say, 0, time.perf_counter()

    def __call__(self, windows: int) -> None:
        """So many more are done."""
        before, self.done = 4 * self.done // self.total, self.done + windows
        if (quarter := 4 * self.done // self.total) > before:
            self.say(f"encoded {25 * quarter} % of {self.total:,} windows, {time.perf_counter() - self.began:.1f} s")


def _write(folder: Path, file: str, part: Windows, events: Events, reader: Reader, encoder: Encoder, progress: _Progress) -> None:
    """Write the arrays of one part; the windows a chunk at a time, so that neither they nor a map of them fill the memory."""
    first = part.rows[part.starts]
    last = part.rows[part.starts + part.length - 1]
    np.save(folder / f"y_{file}.npy", part.y)
    np.save(folder / f"label_{file}.npy", part.label)
    np.save(folder / f"session_{file}.npy", events.session[first])
    np.save(folder / f"group_{file}.npy", events.group[first])
    np.save(folder / f"time_{file}.npy", events.time[last])
    width = len(encoder.feature_names)
    with (folder / f"X_{file}_sequences.npy").open("wb") as stream:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": (len(first), part.length, width)}
        np.lib.format.write_array_header_1_0(stream, header)
        for low, high in _blocks(part, max(1, min(BLOCK, BYTES // (width * 4)))):
            _write_block(stream, part, low, high, reader, encoder)
            progress(high - low)


def _blocks(part: Windows, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of windows over at most `most` rows of the part, or one window."""
    low = 0
    while low < len(part.starts):
        high = max(low + 1, int(np.searchsorted(part.starts, part.starts[low] + most - part.length, side="right")))
        yield low, high
        low = high


def _write_block(stream: IO[bytes], part: Windows, low: int, high: int, reader: Reader, encoder: Encoder) -> None:
    """Encode the rows of windows `low...high - 1`, each once, and append the windows."""
    starts = part.starts[low:high] - part.starts[low]
    change = np.zeros(int(starts[-1]) + part.length + 1, dtype=np.int32)
    np.add.at(change, starts, 1)
    np.add.at(change, starts + part.length, -1)
    needed = np.flatnonzero(np.cumsum(change[:-1]))  # places of the part that a window covers
    rows = part.rows[needed + part.starts[low]]
    order = np.argsort(rows, kind="stable")
    encoded = encoder.encode(reader.rows(rows[order]))
    place = np.zeros(len(change) - 1, dtype=np.int64)
    place[needed[order]] = np.arange(len(rows))
    step = max(1, CHUNK // (part.length * encoded.shape[1] * 4))
    for begin in range(0, len(starts), step):
        stream.write(encoded[place[starts[begin : begin + step, None] + np.arange(part.length)]].data)


def add_encoding_flags(words: argparse.ArgumentParser) -> None:
    """The flags of this stage, but for the configuration and the seed."""
    usual = EncodingSettings()
    words.add_argument("--seq-len", type=int, default=usual.seq_len, metavar="ROWS", help=f"rows in a window (default {usual.seq_len})")
    words.add_argument("--stride", type=int, default=usual.stride, metavar="ROWS", help=f"rows between two windows (default {usual.stride})")
    words.add_argument("--sample-size", type=int, default=usual.sample_size, metavar="N", help=f"most windows of all parts (default {usual.sample_size})")
    words.add_argument("--max-features", type=int, default=usual.max_features, metavar="N", help=f"components of the SVD (default {usual.max_features})")
    words.add_argument("--memory-limit", type=float, default=usual.memory_limit, metavar="GB", help=f"of all windows (default {usual.memory_limit:g})")
    words.add_argument("--leave-out", metavar="GROUP", help="test on this group (campaign, device) instead of the schema's split")


def encoding_settings(given: argparse.Namespace) -> EncodingSettings:
    """What the flags say, checked.

    Raises:
        UserError: for a value that is not allowed.
    """
    return EncodingSettings(given.seq_len, given.stride, given.sample_size, given.max_features, given.memory_limit, given.leave_out, given.seed)


def run(words: list[str] | None = None) -> None:
    """The command."""
    flags = parser("src.sae.encoding", "Stage 2 of the autoencoder pipeline: events to windows of features.")
    add_preset(flags)
    flags.add_argument("--encoding-config", type=Path, metavar="FILE", help="encoding configuration instead of the data set's own")
    add_encoding_flags(flags)
    flags.add_argument("--seed", type=int, default=EncodingSettings.seed, metavar="N", help=f"of the SVD (default {EncodingSettings.seed})")
    given = flags.parse_args(words)
    layout = layout_of(given)
    if given.encoding_config is not None and given.config_preset is not None:
        raise UserError("--encoding-config and --config-preset exclude each other; give one")
    config = read_json(given.encoding_config or preset(given.dataset, given.config_preset).encoding)
    encode(layout, config, encoding_settings(given), teller())


if __name__ == "__main__":
    sys.exit(finish(run))
