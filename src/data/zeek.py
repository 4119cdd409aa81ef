"""Reader of Zeek's connection log with the labels of IoT-23 (Garcia, Parmisano, Erquiaga 2020, doi:10.5281/zenodo.4743746).

Layouts:

* `conn.log.labeled`: tabs between fields, names in the `#fields` line; the last field holds `tunnel_parents`, `label` and `detailed-label`
  with three blanks between two of them;
* a CSV of such rows with readable names (`timestamp`, `orig_host`, ..., `Label`, `Sub_Label`), which are turned into Zeek's.

`-` is an unset field and becomes empty; so does `(empty)`, an empty set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from src.data.tables import check_agreement, check_columns, first_line, labels, typed
from src.errors import UserError

PATTERNS = ("*conn.log*", "*.csv")
"""Names of files that hold connections."""

_COUNTS = ("id.orig_p", "id.resp_p", "orig_bytes", "resp_bytes", "missed_bytes", "orig_pkts", "orig_ip_bytes", "resp_pkts", "resp_ip_bytes")
TYPES: dict[str, Any] = {"ts": pl.Float64, "duration": pl.Float64, **dict.fromkeys(_COUNTS, pl.Int64)}
"""Columns of numbers; all others are text."""

_ZEEK_NAMES = {
    "timestamp": "ts", "unique_id": "uid", "orig_host": "id.orig_h", "orig_port": "id.orig_p", "resp_host": "id.resp_h", "resp_port": "id.resp_p",
    "protocol": "proto", "Label": "label", "Sub_Label": "detailed-label",
}  # fmt: skip

LABELS = {
    "ddos": "DDoS",
    "partofahorizontalportscan": "Recon-PortScan",
    "okiru": "Okiru",
    "okiruattack": "Okiru",
    "attack": "Bot-exploit",
    "partofahorizontalportscanattack": "Bot-exploit",
    "filedownload": "FileDownload",
    **dict.fromkeys(("cc", "ccheartbeat", "ccmirai", "cctorii", "ccpartofahorizontalportscan", "ccheartbeatattack"), "C&C"),
    **dict.fromkeys(("ccfiledownload", "ccheartbeatfiledownload"), "FileDownload"),
}
"""IoT-23's detailed labels, without case and punctuation, in the taxonomy's names. `Attack` is an attempt on a vulnerable service by the bot."""


def read_zeek(path: Path, columns: Sequence[str], label_columns: Sequence[str], benign: Sequence[str]) -> pl.DataFrame:
    """The asked columns of one log in file order, with `label`.

    Args:
        path: a log or a CSV.
        columns: Zeek's names.
        label_columns: where labels stand; the first one that is set holds for a row.
        benign: spellings of the benign label, in any case.

    Returns:
        Numbers for the columns in `TYPES`, text for others, and `label` in the taxonomy's names.

    Raises:
        UserError: for a file that is no such log, a missing column, a cell that is no number, a row without a label, with an unknown one, or
            with labels that contradict each other.
    """
    lazy = _scan(path)
    try:
        found = lazy.collect_schema().names()
        check_columns(path, found, [*columns, *label_columns])
        frame = lazy.select(*dict.fromkeys([*columns, *label_columns])).collect()
    except (OSError, pl.exceptions.PolarsError) as error:  # two columns of one name show only here
        raise UserError(f"'{path}' cannot be read: {first_line(error)}") from error
    if len(frame) == 0:
        raise UserError(f"'{path}' has a header but no rows")
    check_agreement(path, frame, label_columns, benign)
    spelled = frame.select(pl.coalesce(label_columns).alias("label")).to_series()
    # A label that is asked for as a column of its own would be overwritten; the schema's check refuses it.
    frame = typed(path, frame.select(columns), TYPES)
    return frame.with_columns(labels(path, " / ".join(label_columns), spelled, benign, LABELS))


def capture_name(path: Path) -> str:
    """Capture that a log is of: the folder's name where the file is called as Zeek calls it, else the file's."""
    name = re.sub(r"[._-]*(conn\.log.*|csv)$", "", path.name)
    folders = (folder.name for folder in path.resolve().parents if folder.name.lower() not in ("bro", "zeek"))
    return name or next(folders)


def _scan(path: Path) -> pl.LazyFrame:
    """All columns as text under Zeek's names, unset ones empty."""
    text: dict[str, Any] = {"infer_schema": False, "null_values": ["-", "(empty)"], "encoding": "utf8-lossy", "glob": False}
    try:
        if path.suffix.lower() == ".csv":
            lazy = pl.scan_csv(path, **text)
            return lazy.rename({name: zeek for name, zeek in _ZEEK_NAMES.items() if name in lazy.collect_schema().names()})
        fields = _fields(path)
        lazy = pl.scan_csv(path, separator="\t", has_header=False, comment_prefix="#", quote_char=None, **text)
        found = lazy.collect_schema().names()
    except pl.exceptions.NoDataError:
        raise UserError(f"'{path}' has a header but no rows") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"'{path}' cannot be read: {first_line(error)}") from error
    joined = re.split(r" {2,}", fields[-1])
    if len(found) != len(fields):
        raise UserError(f"'{path}': #fields names {len(fields)} fields, the rows have {len(found)}")
    lazy = lazy.rename(dict(zip(found, fields, strict=True)))
    if len(joined) == 1:
        return lazy
    parts = pl.col(fields[-1]).str.strip_chars().str.replace_all(r" {2,}", "\t").str.split_exact("\t", len(joined) - 1)
    lazy = lazy.with_columns(parts.struct.field(f"field_{place}").alias(name) for place, name in enumerate(joined)).drop(fields[-1])
    return lazy.with_columns(pl.col(name).replace(["-", "(empty)"], [None, None]) for name in joined)


def _fields(path: Path) -> list[str]:
    """Names in the `#fields` line; the last one may hold several with blanks between."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if line.startswith("#fields"):
                if fields := line.rstrip("\n").split("\t")[1:]:
                    return fields
                break
            if not line.startswith("#"):
                break
    raise UserError(f"'{path}' is no Zeek log: its first lines must hold one that begins with #fields and names them, with tabs between")
