"""Reader of flows as NFStream exports them (Aouini and Pekar 2022, Computer Networks 204), with Unraveled's labels (Myneni et al. 2023).

Unraveled has a CSV a network and day, `<week>/<network>_Flow_labeled.csv`: NFStream's 89 columns, then `Activity`, `Stage`, `DefenderResponse` and
`Signature`. `Stage` is the label; `Benign` in `DefenderResponse` says what the defender did.

Policy: texts of some rows (a user agent, a host name) hold commas without quotes, so that such a row has more fields than the header. Numbers and
addresses, which hold none, are taken from the left, the columns behind the texts from the right, and the texts of the row are left empty and counted:
where one ends and the next begins cannot be known.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from src.data.tables import check_agreement, check_columns, first_line, labels, plain, typed
from src.errors import UserError

PATTERNS = ("*.csv",)
"""Names of files that hold flows."""

STAGES = ("Reconnaissance", "Establish Foothold", "Lateral Movement", "Data Exfiltration", "Cover Up")
"""Unraveled's stages of an attack, beside `Benign`."""

LABEL_COLUMNS = ("Activity", "Stage", "DefenderResponse", "Signature")
"""What Unraveled adds on the right."""

_TEXTS = (
    *("splt_direction", "splt_ps", "splt_piat_ms", "application_name", "application_category_name", "application_is_guessed"),
    *("application_confidence", "requested_server_name", "client_fingerprint", "server_fingerprint", "user_agent", "content_type"),
)
_ADDRESSES = ("src_ip", "src_mac", "src_oui", "dst_ip", "dst_mac", "dst_oui")
_BATCH = 20_000
_LABELS = {plain(name): name for name in STAGES}


def read_flows(path: Path, columns: Sequence[str], label_columns: Sequence[str], benign: Sequence[str], report: Counter[str]) -> pl.DataFrame:
    """The asked columns of one CSV in file order, with `label`.

    Args:
        path: the CSV.
        columns: NFStream's names.
        label_columns: where labels stand; the first one that is set holds for a row.
        benign: spellings of the benign label, in any case.
        report: counts rows with commas in texts; grows.

    Returns:
        Numbers for NFStream's statistics, text for others, and `label`: benign traffic, one of `STAGES`, or a name of the taxonomy.

    Raises:
        UserError: for a missing column, a row with too few fields, a cell that is no number, a row without a label or with an unknown one.
    """
    try:
        lines = pl.scan_csv(
            path, has_header=False, separator="\x01", quote_char=None, infer_schema=False, new_columns=["line"], encoding="utf8-lossy", glob=False
        )
        line = lines.collect().to_series()
    except pl.exceptions.NoDataError:
        raise UserError(f"'{path}' is empty: a CSV of flows has a header and rows") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"'{path}' cannot be read as CSV: {first_line(error)}") from error
    header = _cells(path, line[:1].str.strip_chars("\ufeff\r"), 0)[0]
    check_columns(path, header, [*columns, *label_columns])
    line = line[1:].str.strip_chars_end("\r")
    line = line.filter(line.str.len_bytes() > 0)
    if len(line) == 0:
        raise UserError(f"'{path}' has a header but no rows")
    wanted = list(dict.fromkeys([*columns, *label_columns]))
    frame = pl.concat([_split(path, line[first : first + _BATCH], first, header, wanted, report) for first in range(0, len(line), _BATCH)])
    check_agreement(path, frame, label_columns, benign)
    spelled = frame.select(pl.coalesce(label_columns).str.strip_chars().alias("label")).to_series()
    texts = {*_TEXTS, *_ADDRESSES, *LABEL_COLUMNS}
    numbers: dict[str, Any] = {name: pl.Float64 for name in columns if name not in texts and header.index(name) < _first_text(header)}
    name = labels(path, " / ".join(label_columns), spelled, benign, _LABELS)
    return typed(path, frame.select(columns), numbers).with_columns(name)


def network(path: Path) -> str:
    """Network that a file is of."""
    return path.stem.removesuffix("_Flow_labeled")


def _first_text(header: Sequence[str]) -> int:
    """Columns before the first text that may hold a comma."""
    return min((header.index(name) for name in _TEXTS if name in header), default=len(header))


def _cells(path: Path, line: pl.Series, first: int) -> list[list[str]]:
    """Cells of lines that may hold quotation marks; `first` is the place of the first line in its file.

    Raises:
        UserError: for a line that no CSV has.
    """
    try:
        return list(csv.reader(line.fill_null("").to_list(), strict=False))
    except csv.Error as error:  # a carriage return inside a line, or a cell of more than 128 KB
        raise UserError(f"'{path}' cannot be read as CSV at or behind row {first + 1}: {error}") from error


def _split(path: Path, line: pl.Series, first: int, header: Sequence[str], wanted: Sequence[str], report: Counter[str]) -> pl.DataFrame:
    """The wanted columns of every line as text, empty cells as null; `first` is the place of the first line in its file."""
    width = len(header)
    simple = (line.str.count_matches(",", literal=True) == width - 1) & ~line.str.contains('"', literal=True)
    place = {name: header.index(name) for name in wanted}
    fields = line.filter(simple).to_frame("line").select(pl.col("line").str.split_exact(",", width - 1)).unnest("line")
    parts = [fields.select(pl.col(f"field_{place[name]}").alias(name) for name in wanted)]
    odd = np.flatnonzero(~simple.to_numpy())
    if len(odd):
        left = _first_text(header)
        right = max((header.index(name) + 1 for name in _TEXTS if name in header), default=left)
        rows = []
        found = _cells(path, line[odd], first)
        for number, row in zip(odd, found, strict=False):  # rows with quotes or commas in texts alone
            if len(row) < width:
                raise UserError(f"'{path}': row {first + number + 1} has {len(row)} fields, the header {width}")
            if len(row) > width:
                report["rows with commas in texts"] += 1
                row = [*row[:left], *[""] * (right - left), *row[len(row) - (width - right) :]]
            rows.append([row[place[name]] for name in wanted])
        if len(rows) < len(odd):
            raise UserError(f"'{path}': a quotation mark is opened and not closed near row {first + odd[len(rows)] + 1}")
        parts.append(pl.DataFrame(rows, schema=dict.fromkeys(wanted, pl.String), orient="row"))
    order = np.argsort(np.concatenate([np.flatnonzero(simple.to_numpy()), odd]))
    return pl.concat(parts)[order].with_columns(pl.all().replace("", None))
