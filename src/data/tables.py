"""What readers of labelled event tables share: a header is checked, cells become numbers, spellings become labels, texts become times.

Whatever does not fit is an error that names the file, what was found in it and what is allowed; nothing is guessed, and no label or time is invented.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from src.config import nearest
from src.data.taxonomy import canonical
from src.errors import UserError

BENIGN = canonical("benign")

YEARS = (1990, 2100)
"""Years that an event can be of; a time outside of them was read in the wrong unit."""

LONGEST_HEADER = 2**16
"""Bytes of the line that names the columns."""

_PER_MS = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
TIME_UNITS = (*_PER_MS, "text")
"""Units of a time column: since 1970, or UTC as text, `2020-06-10 02:50:54.631` or `2020-06-10T02:50:54.631Z`."""


def natural(path: Path) -> list[int | str]:
    """Sorts paths so that 2 comes before 12."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", path.as_posix()))]


def is_file(path: Path) -> bool:
    """Whether a file lies there.

    Raises:
        UserError: for a path that no file can have, such as one with thousands of letters.
    """
    try:
        return path.is_file()
    except OSError as error:
        raise UserError(f"'{path}' cannot be looked up: {error.strerror}; give the path of a file or folder") from error


def readable(paths: list[Path]) -> list[Path]:
    """The paths, none of which polars would stumble on.

    It holds a kilobyte for each column that a first line names, and drops rows without a word where a file ends with a quotation mark that opens a cell.

    Raises:
        UserError: for a file that cannot be opened, a name that is no UTF-8 text, or a text table whose first line is far too long, or that
            ends inside a quotation mark.
    """
    for path in paths:
        try:
            str(path).encode()
            with path.open("rb") as stream:
                line = stream.readline(LONGEST_HEADER + 1)
                while line.startswith(b"#"):
                    line = stream.readline(LONGEST_HEADER + 1)
                stream.seek(max(os.fstat(stream.fileno()).st_size - 8, 0))
                end = stream.read().rstrip(b"\r\n")
        except UnicodeEncodeError as error:
            raise UserError(f"'{path}': the name is no UTF-8 text; rename the file or its folder") from error
        except OSError as error:
            raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
        if path.suffix.lower() == ".parquet":
            continue
        if end.endswith(b'"') and end[-2:-1] in (b"", b",", b";", b"\t", b"\r", b"\n"):
            raise UserError(f"'{path}' ends inside a quotation mark; was it cut off?")
        if len(line) > LONGEST_HEADER:
            raise UserError(f"'{path}': the first line is longer than {LONGEST_HEADER:,} bytes; a table begins with the names of its columns")
    return paths


def check_parquet(path: Path, columns: Iterable[str]) -> None:
    """Decode the columns once with a reader that ends in an error where polars, on damaged pages, ends in a panic.

    Raises:
        UserError: for a file that is no parquet, or is damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            wanted = set(columns)
            for _ in file.iter_batches(columns=[name for name in file.schema_arrow.names if name in wanted]):
                pass
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"'{path}' cannot be read as parquet: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says first; polars adds plans and hints behind."""
    return next((line for line in str(error).splitlines() if line.strip()), error.__class__.__name__)


def files(root: Path, patterns: Sequence[str], what: str) -> list[Path]:
    """Files below `root` (or `root` itself) that match one of the patterns; 2 comes before 12.

    Raises:
        UserError: when the folder is missing or holds none; `what` says what was looked for.
    """
    if is_file(root):
        return readable([root])
    if not root.exists():
        raise UserError(f"--root '{root}' does not exist: give a folder of {what}, or one such file")
    found = {path for pattern in patterns for path in root.rglob(pattern) if path.is_file()}
    if not found:
        raise UserError(f"--root '{root}' holds no {what} (searched recursively for {', '.join(patterns)})")
    return readable(sorted(found, key=natural))


def check_columns(path: Path, found: Sequence[str], wanted: Iterable[str]) -> None:
    """Refuse a file that lacks a column.

    Raises:
        UserError: it names the first missing column, the nearest one, and what was found.
    """
    missing = [name for name in wanted if name not in found]
    if missing:
        near = difflib.get_close_matches(missing[0], found, n=1)
        hint = f" (nearest found: '{near[0]}')" if near else ""
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"'{path}': column '{missing[0]}'{hint} is missing{more}; found: {', '.join(found)}")


def typed(path: Path, frame: pl.DataFrame, types: Mapping[str, Any]) -> pl.DataFrame:
    """The frame with its text columns as numbers where `types` says so; an empty cell stays empty.

    Raises:
        UserError: for a cell that is no such number, or is not finite.
    """
    given = {name: kind for name, kind in types.items() if name in frame.columns and frame.schema[name] == pl.String}
    cast = frame.with_columns(pl.col(name).str.replace(r"\.0+$", "").cast(kind, strict=False) for name, kind in given.items())
    for name, kind in given.items():
        wrong = cast[name].is_null() if kind.is_integer() else cast[name].is_null() | ~cast[name].is_finite()
        if (wrong & frame[name].is_not_null()).any():
            bad = frame[name].filter(wrong & frame[name].is_not_null())
            raise UserError(f"'{path}': column '{name}' must hold {'whole ' * kind.is_integer()}numbers, found '{bad[0]}' and {len(bad) - 1} more")
    return cast


def plain(text: str) -> str:
    """Lower case, letters and digits only: how two spellings of a label are compared."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def labels(path: Path, column: str, spelled: pl.Series, benign: Iterable[str], known: Mapping[str, str]) -> pl.Series:
    """The canonical label of every row.

    Args:
        path: the file, for the error.
        column: where the labels stand, for the error.
        spelled: (N,) labels as the file spells them.
        benign: spellings that mean benign traffic, in any case.
        known: plain spelling (`plain`) to label; what is not in it must be in the taxonomy.

    Raises:
        UserError: for a row without a label or with an unknown one.
    """
    if spelled.null_count():
        place = int(spelled.is_null().arg_max() or 0)
        raise UserError(
            f"'{path}': column '{column}' is empty in {spelled.null_count()} of {len(spelled)} rows, first in row {place + 1}; every row needs a label"
        )
    harmless = {plain(name) for name in benign}
    names: dict[str, str] = {}
    for name in spelled.unique().to_list():
        found = BENIGN if plain(name) in harmless else known.get(plain(name))
        if found is None:
            try:
                found = canonical(name)
            except UserError:
                raise UserError(f"'{path}', column '{column}': unknown label '{name}': {nearest(name, [*benign, *dict.fromkeys(known.values())])}") from None
            if found == BENIGN:
                raise UserError(f"'{path}', column '{column}': '{name}' is no benign label of the schema, which are: {', '.join(benign)}")
        names[name] = found
    return spelled.replace_strict(names, return_dtype=pl.String)


def check_agreement(path: Path, frame: pl.DataFrame, columns: Sequence[str], benign: Iterable[str]) -> None:
    """Refuse rows that one of the label columns calls benign and another an attack; an empty cell says nothing.

    Raises:
        UserError: it names the first such row and how both columns spell it.
    """
    if len(columns) < 2:
        return
    harmless = {plain(name) for name in benign}
    cells = frame.select(pl.col(name).str.strip_chars().replace(["", "-"], [None, None]) for name in columns)
    votes = cells.select(
        pl.col(name).replace_strict({cell: plain(cell) in harmless for cell in cells[name].unique().drop_nulls()}, default=None, return_dtype=pl.Boolean)
        for name in columns
    )
    against = votes.select(pl.any_horizontal(pl.all()).fill_null(False) & pl.any_horizontal(~pl.all()).fill_null(False)).to_series()
    if against.any():
        place = int(against.arg_max() or 0)
        spelled = ", ".join(f"{name} '{cell}'" for name, cell in zip(columns, cells.row(place), strict=True) if cell is not None)
        raise UserError(f"'{path}': labels contradict each other in {against.sum()} of {len(frame)} rows, first in row {place + 1}: {spelled}")


def epoch_ms(path: Path, column: str, values: pl.Series, unit: str) -> pl.Series:
    """(N,) Int64 milliseconds since 1970, UTC; null where the cell is empty.

    Args:
        path: the file, for the error.
        column: where the times stand, for the error.
        values: (N,) numbers, or text where `unit` is `text`.
        unit: one of `TIME_UNITS`.

    Raises:
        UserError: for a text that is no time, and for a time outside of `YEARS`.
    """
    if unit == "text":
        clean = values.cast(pl.String).str.strip_chars().str.replace("T", " ", literal=True).str.strip_suffix("Z").replace("", None)
        time = clean.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False).dt.epoch("ms").cast(pl.Float64)
        if time.null_count() > clean.null_count():
            bad = clean.filter(time.is_null() & clean.is_not_null())[0]
            raise UserError(f"'{path}': column '{column}' must hold times like 2020-06-10 02:50:54.631, found '{bad}'")
    else:
        time = (values.cast(pl.Float64) * _PER_MS[unit]).fill_nan(None).round()
    for extreme in (time.min(), time.max()):
        year = 1970 + extreme / 31_556_952_000 if isinstance(extreme, float) else None
        if year is not None and not YEARS[0] <= year < YEARS[1]:
            raise UserError(
                f"'{path}': column '{column}' read as '{unit}' gives the year {year:.0f}, outside {YEARS[0]} to {YEARS[1]}; "
                f"state the right time_unit: {', '.join(TIME_UNITS)}"
            )
    return time.cast(pl.Int64)  # exact: milliseconds of such years stay below 2^53
