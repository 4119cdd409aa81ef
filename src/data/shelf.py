"""Arrays that may be larger than the memory: kept in it while they are small together, in files without a name beyond that.

Such a file vanishes with the last array that reads it, also when the process is killed. Pages that were read stay resident until somebody wants the
memory, or `forget` lets go of them.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from src.errors import UserError

BUDGET = 1 << 26
"""Bytes of all columns of a shelf that stay in memory."""
BLOCK = 1 << 17
"""Rows that are looked at together."""


class Shelf:
    """Columns that share one budget of memory."""

    def __init__(self, folder: Path | None = None, budget: int = BUDGET) -> None:
        """Open a shelf.

        Args:
            folder: where files go, made when the first one is; None: where the system keeps temporary files (`TMPDIR`).
            budget: bytes that stay in memory.
        """
        self.folder, self.budget, self.held = folder, budget, 0

    def column(self, kind: DTypeLike, *shape: int) -> Column:
        """An empty array of rows of this type and shape."""
        return Column(self, np.dtype(kind), shape)


class Column:
    """An array that grows by rows."""

    def __init__(self, shelf: Shelf, kind: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._shelf, self._kind, self._shape = shelf, kind, shape
        self._parts: list[NDArray[Any]] = []
        self._file: IO[bytes] | None = None
        self._count = 0

    def __len__(self) -> int:
        """Rows so far."""
        return self._count

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows (n, ...) at the end.

        Raises:
            UserError: when they cannot be written.
        """
        rows = np.ascontiguousarray(rows, dtype=self._kind)
        self._count += len(rows)
        if self._file is None and self._shelf.held + rows.nbytes <= self._shelf.budget:
            self._shelf.held += rows.nbytes
            self._parts.append(rows)
            return
        folder = self._shelf.folder
        try:
            if self._file is None:
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
                for part in self._parts:
                    self._file.write(part.data)
                self._shelf.held -= sum(part.nbytes for part in self._parts)
                self._parts.clear()
            self._file.write(rows.data)
            self._file.flush()  # a full disk shows here, not when the array is asked for
        except OSError as error:
            place = folder or tempfile.gettempdir()
            raise UserError(f"cannot write to '{place}': {error.strerror}; rows beyond the memory are kept there: make room, or read fewer rows") from error

    def array(self) -> NDArray[Any]:
        """(n, ...) the rows; nothing more can be appended."""
        if self._file is None:
            parts, self._parts = self._parts, []
            return np.concatenate(parts) if parts else np.empty((0, *self._shape), self._kind)
        with self._file as stream:
            return np.asarray(np.memmap(stream, self._kind, "r+", shape=(self._count, *self._shape)))


def forget(array: NDArray[Any]) -> None:
    """Let go of the pages of a file that were read through this array; they are read again when they are needed. Arrays in memory stay."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


def blocks(count: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices over `count` rows, in order."""
    return (slice(first, min(first + size, count)) for first in range(0, count, size))
