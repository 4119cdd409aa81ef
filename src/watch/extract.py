"""Features of a capture's packets, batch by batch: the table that `main.py features` writes, and the captures that calibration reads."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from src.artifacts import replacing
from src.data.ciciot2023 import FEATURES_39, Capture, Cleaner
from src.data.nbaiot import FEATURES_115
from src.data.packets import CaptureReader, decode, open_capture
from src.data.packets39 import FRAMES, Rows, WindowExtractor
from src.data.packets115 import StreamExtractor
from src.errors import UserError
from src.watch.site import Roster

SCHEMAS = ("ciciot39", "nbaiot115")
SIZES = (10, 100)
"""Frames in a window of CICIoT2023."""


@contextlib.contextmanager
def opened(name: str) -> Iterator[CaptureReader]:
    """A reader of the capture at a path, or of standard input where it is `-`.

    Raises:
        UserError: when there is no such file, or nothing is piped in.
    """
    if name == "-":
        if sys.stdin.isatty():
            raise UserError("'-' reads a capture from standard input, and nothing is piped in: e.g. `sudo tcpdump -i br0 -w - | python main.py watch -`")
        yield CaptureReader(sys.stdin.buffer, "standard input")
        return
    with open_capture(name) as stream:
        yield CaptureReader(stream, name)


def windows_of(reader: CaptureReader, roster: Roster | None = None, frames: int = FRAMES, last: bool = True) -> Iterator[Rows]:
    """Windows of a capture in CICIoT2023's 39 features, as its batches finish them.

    Args:
        reader: of the capture.
        roster: whose windows are kept apart; None for those of the whole capture.
        frames: in a window.
        last: whether windows that the end of the capture left unfinished are given too.

    Raises:
        UserError: as the reader.
    """
    extractor = WindowExtractor(1 if roster is None else len(roster.names), frames)
    for batch in reader.batches():
        headers = decode(batch)
        owners = None
        if roster is not None:
            owners, mistaken = roster.owners(headers)
            for device in mistaken:
                extractor.forget(device)
        yield extractor.add(batch, headers, owners)
    if last:
        yield extractor.rest()


class Written(NamedTuple):
    """What a table holds."""

    frames: int
    rows: int
    report: Counter[str]


@dataclass(frozen=True)
class TableOptions:
    """What `features` is asked for."""

    schema: str
    """One of `SCHEMAS`."""
    frames: int = FRAMES
    """In a window of `ciciot39`."""
    roster: Roster | None = None
    """Whose windows of `ciciot39` are kept apart."""


def write_table(name: str, out: Path, options: TableOptions) -> Written:
    """Write the features of a capture as parquet, whole or not at all.

    Columns of `ciciot39`: `window_start`, `window_end`, `duration` (seconds), `device` where windows are kept apart, and the 39; `Std` and
    `Variance` are null in a window of one frame. Of `nbaiot115`: `ts` (seconds), and the 115.

    Raises:
        UserError: as the reader; for a capture without a frame; when the table cannot be written.
    """
    named = options.roster is not None and options.schema == "ciciot39"
    first = [("window_start", pa.float64()), ("window_end", pa.float64()), ("duration", pa.float64()), *([("device", pa.string())] if named else [])]
    fields = [*first, *((one, pa.float64()) for one in FEATURES_39)]
    if options.schema == "nbaiot115":
        fields = [("ts", pa.float64()), *((one, pa.float32()) for one in FEATURES_115)]
    schema, count, report = pa.schema(fields), 0, Counter[str]()
    with opened(name) as reader, replacing(out) as target:
        with pq.ParquetWriter(target, schema) as writer:
            for columns in _tables(reader, options, report):
                table = pa.Table.from_arrays([pa.array(one, from_pandas=True) for one in columns], schema=schema)
                writer.write_table(table)
                count += len(table)
        if count == 0:
            what = "Ethernet frame" if options.schema == "nbaiot115" else "IPv4 or ARP frame" + (" of a device of the site" if named else "")
            raise UserError(f"'{reader.name}' holds no {what} ({reader.report['frames']:,} frames)")
        return Written(reader.report["frames"], count, reader.report + report)


def _tables(reader: CaptureReader, options: TableOptions, report: Counter[str]) -> Iterator[list[Any]]:
    """Columns, batch by batch."""
    if options.schema == "nbaiot115":
        extractor = StreamExtractor()
        for batch in reader.batches():
            yield [batch.time, *extractor.add(batch).T]
            report.update({name: count - report[name] for name, count in extractor.report.items()})
        return
    for rows in windows_of(reader, options.roster, options.frames):
        if len(rows.device):
            whose = [] if options.roster is None else [[options.roster.names[device] for device in rows.device]]
            yield [rows.start, rows.end, rows.duration, *whose, *rows.features.T]


def read_captures(names: Iterable[str], roster: Roster | None = None, frames: int = FRAMES, label: str = "site") -> list[Capture]:
    """Ordinary traffic of a site, as `src.training.adaptation` takes it: a capture a file, or a file and device, in time order by device.

    Args:
        names: paths of captures.
        roster: whose windows are kept apart; None for those of whole captures, which are then of the one device `label`.
        frames: in a window.
        label: what whole captures are called.

    Raises:
        UserError: as the reader, or when no capture holds a full window.
    """
    found: list[Capture] = []
    clean = Cleaner(FEATURES_39, Counter())
    for name in names:
        with opened(name) as reader:
            parts = list(windows_of(reader, roster, frames, last=False))
        rows = Rows(*(np.concatenate(column) for column in zip(*parts, strict=True))) if parts else None
        for device in np.unique(rows.device).tolist() if rows is not None and len(rows.device) else []:
            assert rows is not None
            mine = rows.device == device
            whose = label if roster is None else roster.names[device]
            features = clean(rows.features[mine])[0].astype(np.float32)
            found.append(Capture(whose, True, features, np.zeros(len(features), np.int32), rows.start[mine], rows.duration[mine], whose))
    if not found:
        raise UserError(f"no capture holds {frames} IPv4 or ARP frames of a device; give more of the site's traffic")
    return sorted(found, key=lambda one: (one.label, one.start[0]))
