"""CICIoT2023 at its published size, made from the rows that are at hand: its CSVs tiled into as many files and rows as wanted.

A tiled file repeats the rows of one CSV in their order, as text, cell for cell, but for `AVG`: copy k of a row has it times 1 + k / 10^6, so that no copy
equals another at single precision. Exact copies would be found on every side of a split and leave all but one of them (`src.data.splits`). Tiled rows have
the size of the data set and the cost of reading it; nothing that is measured of detection on them means anything. The folder says so in a file of its own.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from src.errors import UserError

ROWS, FILES = 46_686_579, 169
"""Of CICIoT2023's classic release."""
STEP = 1e-6
"""Share by which `AVG` of one copy differs from that of the next; single precision tells 10^-7 apart."""
CHUNK = 100_000
"""Rows written at once."""
NOTE = "These are not CICIoT2023's files: real rows of it, tiled to its size by benchmarks/tiling.py, for measuring memory and speed.\n"
_TOLD_APART = "AVG"


@dataclass(frozen=True)
class Source:
    """A CSV of real rows, its text cut at the cell that tells copies apart."""

    path: Path
    header: str
    text: pl.DataFrame
    """(n,) `before` and `after`, the text of each row on both sides of the cell, and `value`, the cell."""

    @classmethod
    def read(cls, path: Path) -> Source:
        """Read a CSV as text.

        Raises:
            UserError: when it lacks the column or holds no row.
        """
        cells = pl.read_csv(path, infer_schema=False).with_columns(pl.all().fill_null(""))
        if _TOLD_APART not in cells.columns or not len(cells):
            raise UserError(f"'{path}' has no column '{_TOLD_APART}', or no row; rows of CICIoT2023 are tiled")
        place = cells.columns.index(_TOLD_APART)
        text = cells.select(
            pl.concat_str(cells.columns[:place], separator=",").alias("before"),
            pl.col(_TOLD_APART).cast(pl.Float64).alias("value"),
            pl.concat_str(cells.columns[place + 1 :], separator=",").alias("after"),
        )
        return cls(path, ",".join(cells.columns), text)

    @property
    def row_bytes(self) -> float:
        """Mean bytes of a row as text, and as many more as the cell may grow by."""
        return float(self.text.select(pl.col("before").str.len_bytes() + pl.col("after").str.len_bytes()).to_series().mean()) + 23  # type: ignore[arg-type]

    def write(self, path: Path, first: int, last: int) -> None:
        """Write rows `first...last - 1` of the endless repetition of the source."""
        with path.open("wb") as stream:
            stream.write(f"{self.header}\n".encode())
            for begin in range(first, last, CHUNK):
                copy, row = np.divmod(np.arange(begin, min(begin + CHUNK, last)), len(self.text))
                value = pl.col("value") * pl.Series(1 + copy * STEP)
                self.text[row].select(pl.concat_str("before", value, "after", separator=",")).write_csv(stream, include_header=False, quote_style="never")


def tile(root: Path, folder: Path, rows: int = ROWS, files: int = FILES) -> list[Path]:
    """Fill a new folder with `files` CSVs of `rows` rows in all, the CSVs below `root` taking turns, in the layouts that these have.

    Args:
        root: CSVs of CICIoT2023, per attack, or with a label column.
        folder: does not exist yet.
        rows: over all files; these differ by one at most.
        files: each named after its source, with a running number.

    Returns:
        The files, in the order in which they were written.

    Raises:
        UserError: when `root` holds no CSV, `rows` are fewer than `files`, or the disk is too small.
    """
    # Files with labels come last, so that the share of their rows, which are the dearest to read, is not less in more files.
    sources = sorted((Source.read(path) for path in root.rglob("*.csv")), key=lambda source: (source.header.count(","), source.path))
    if not sources or rows < files:
        raise UserError(f"'{root}' holds no CSV to tile" if not sources else f"{rows} rows do not fill {files} files")
    require_space(folder.parent, rows * max(source.row_bytes for source in sources))
    folder.mkdir(parents=True)
    (folder / "README.txt").write_text(NOTE, encoding="utf-8")
    made = []
    done = [0] * len(sources)
    for index, count in enumerate(np.diff(np.linspace(0, rows, files + 1).round().astype(int)).tolist()):
        turn = index % len(sources)
        source = sources[turn]
        stem, _, ends = source.path.name.partition(".")
        made.append(folder / f"{stem}-{index // len(sources) + 1}.{ends}")  # readers of labels drop a number at the end
        source.write(made[-1], done[turn], done[turn] + count)
        done[turn] += count
    return made


def require_space(folder: Path, needed: float) -> None:
    """Check that a disk has room.

    Raises:
        UserError: saying how much is missing.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"'{folder}' has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed; choose another disk with TMPDIR=FOLDER, or --quick")
