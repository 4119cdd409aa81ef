"""Which rows are divided how, and windows over them: what stage 2 decides before it makes any array.

A window lies inside one session and one part; one of the training part holds no attack row. What is over the limit of memory is left out
here, the same share of every part and class once the benign windows that thresholds and false alarms are read off are safe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from src.config import nearest
from src.data.shelf import blocks
from src.data.splits import PARTS, capture_side, group_side, leave_group_out, run_ids, time_side
from src.data.windows import window_starts
from src.errors import UserError
from src.sae.features import distinct
from src.training.sae_trainer import evenly

FILES = ("train", "val", "test")
"""How the files of each of `PARTS` are called."""

BENIGN = 1000
"""Benign windows of validation, and of test, that are kept before the limits cut others: they tell false alarm rates down to 1 in 1,001."""

BLOCK = 1 << 21
"""Rows of one reserved column that are read at once."""

RESERVED = ("label", "attack", "group", "session", "time_ms", "ordered")
"""Columns of stage 1 that are never features."""


@dataclass(frozen=True)
class EncodingSettings:
    """How events become windows."""

    seq_len: int = 50
    """Rows in a window."""
    stride: int = 10
    """Rows between the starts of two windows of a session."""
    sample_size: int = 20_000
    """Most windows, over all parts."""
    max_features: int = 100
    """Components of the truncated SVD, where text and categories make more columns."""
    memory_limit: float = 2.0
    """Most gigabytes (10^9 bytes) of all windows."""
    leave_out: str | None = None
    """Group to test on instead of the schema's split."""
    seed: int = 0
    """Of the SVD."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: when one is too small.
        """
        for name, least in (("seq_len", 2), ("stride", 1), ("sample_size", 3), ("max_features", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
        if not 0 < self.memory_limit < math.inf:
            raise UserError(f"--memory-limit is {self.memory_limit:g}; it must be a number of gigabytes above 0")


@dataclass(frozen=True)
class Events:
    """What is known of every row beside its features."""

    attack: NDArray[np.int8]
    """(N,) 0 benign, 1 attack, -1 unknown."""
    time: NDArray[np.int64]
    """(N,) milliseconds since 1970 UTC, -1 where unknown."""
    ordered: NDArray[np.bool_]
    """(N,) whether rows stand in the order in which they happened."""
    label: NDArray[np.int32]
    """(N,) index into `labels`."""
    group: NDArray[np.int32]
    """(N,) index into `groups`."""
    session: NDArray[np.int32]
    """(N,) index into `sessions`; rows of a session stand together."""
    labels: list[str]
    groups: list[str]
    sessions: list[str]

    @classmethod
    def read(cls, path: Path) -> Events:
        """Read the reserved columns, one at a time.

        Raises:
            UserError: when one is missing, there is no row, or a session's rows do not stand together.
        """
        scan = pl.scan_parquet(path)
        found = scan.collect_schema().names()
        for name in RESERVED:
            if name not in found:
                raise UserError(f"'{path}' lacks column '{name}'; found: {', '.join(found)}; run stage 1 again")

        count = int(scan.select(pl.len()).collect().item())
        if not count:
            raise UserError(f"'{path}' holds no row; run stage 1 again")

        def column(name: str) -> Iterator[tuple[slice, pl.Series]]:
            return ((here, scan.slice(here.start, here.stop - here.start).select(name).collect().to_series()) for here in blocks(count, BLOCK))

        attack, ordered, time = np.empty(count, np.int8), np.empty(count, np.bool_), np.broadcast_to(np.int64(-1), count)
        for here, values in column("attack"):
            attack[here] = values.cast(pl.Int8).fill_null(-1).to_numpy()
        for here, values in column("ordered"):
            ordered[here] = values.fill_null(False).to_numpy()
        for here, values in column("time_ms"):
            if values.null_count() < len(values):
                time = time if time.flags.writeable else time.copy()  # no time at all takes no memory
                time[here] = values.fill_null(-1).to_numpy()
        named: dict[str, tuple[list[str], NDArray[np.int32]]] = {}
        for name in ("label", "group", "session"):
            codes, known = np.empty(count, np.int32), dict[str, int]()
            for here, values in column(name):
                found, inside = distinct(values.fill_null("unknown"))
                codes[here] = np.array([known.setdefault(str(value), len(known)) for value in found])[inside]
            named[name] = ([*known], codes)
        session = named["session"][1]
        if 1 + np.count_nonzero(session[1:] != session[:-1]) != len(named["session"][0]):
            raise UserError(f"'{path}': the rows of a session do not stand together; run stage 1 again")
        return cls(
            attack, time, ordered, named["label"][1], named["group"][1], session, named["label"][0], named["group"][0], named["session"][0],
        )  # fmt: skip

    def __len__(self) -> int:
        """Rows."""
        return len(self.attack)

    @property
    def judged(self) -> bool:
        """Whether any row is known to be benign."""
        return bool((self.attack == 0).any())

    @property
    def learnable(self) -> NDArray[np.bool_]:
        """(N,) rows to learn from: the benign ones; where none is known to be, all that are no attack."""
        return self.attack == 0 if self.judged else self.attack != 1


@dataclass(frozen=True)
class Windows:
    """Windows of one part, not yet made: window i is `rows[starts[i] : starts[i] + length]`."""

    rows: NDArray[np.int64]
    """Rows of the events that the part keeps; they ascend inside a session, and inside a label of a shuffled one."""
    starts: NDArray[np.int64]
    """(W,) first place in `rows`."""
    length: int
    """Rows in a window."""
    y: NDArray[np.int8]
    """(W,) 1 where any row is an attack, else -1 where any is unknown, else 0."""
    label: NDArray[np.int32]
    """(W,) of the last attack row, or of the last row where there is none."""

    @classmethod
    def lay(cls, events: Events, rows: NDArray[np.int64], segment: NDArray[np.int64], length: int, stride: int) -> Windows:
        """Every window inside one segment; `segment` (K,) is of the part's `rows` (K,)."""
        starts = window_starts(segment, length, stride)
        ends = starts + length
        attack = events.attack[rows]
        count = np.concatenate(([0], np.cumsum(attack == 1)))
        unknown = np.concatenate(([0], np.cumsum(attack < 0)))
        hit = count[ends] > count[starts]
        y = np.where(hit, 1, np.where(unknown[ends] > unknown[starts], -1, 0)).astype(np.int8)
        last_attack = np.maximum.accumulate(np.where(attack == 1, np.arange(len(rows)), 0))
        last = np.where(hit, last_attack[ends - 1], ends - 1)
        return cls(rows, starts, length, y, events.label[rows[last]])

    def covered(self, count: int) -> NDArray[np.bool_]:
        """(count,) whether a window holds each of all rows."""
        change = np.zeros(len(self.rows) + 1, dtype=np.int64)
        np.add.at(change, self.starts, 1)
        np.add.at(change, self.starts + self.length, -1)
        result = np.zeros(count, dtype=bool)
        result[self.rows[np.cumsum(change[:-1]) > 0]] = True
        return result

    def take(self, kept: NDArray[np.integer]) -> Windows:
        """Some of the windows."""
        return Windows(self.rows, self.starts[kept], self.length, self.y[kept], self.label[kept])


_SPLIT_KEYS = {"group": PARTS, "time": ("within", "shares"), "blocks": ("shares",)}


def split_fault(split: Any) -> str | None:
    """What is wrong with a schema's `split`; None for nothing."""
    if not isinstance(split, Mapping):
        return f"split is {split!r}; it must be an object with 'by': {', '.join(_SPLIT_KEYS)}"
    by = split.get("by")
    if not isinstance(by, str) or by not in _SPLIT_KEYS:
        return f"split: by is {by!r}: {nearest(str(by), _SPLIT_KEYS)}"
    for key in split:
        if key not in ("by", *_SPLIT_KEYS[by]):
            return f"split by '{by}': unknown key '{key}': {nearest(str(key), _SPLIT_KEYS[by])}"
    if by == "group":
        for part in PARTS:
            names = split.get(part)
            if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
                return f"split by 'group': {part} is {names!r}; it must be a list of names of groups"
        return None
    if "within" in split and split["within"] != "group":
        return f"split by 'time': within is {split['within']!r}; allowed: 'group', for each to be cut by itself"
    shares = split.get("shares")
    numbers = [share for share in shares if isinstance(share, int | float) and share > 0] if isinstance(shares, list) else []
    if len(numbers) != len(PARTS) or numbers != shares or abs(sum(numbers) - 1) > 1e-6:
        return f"split by '{by}': shares is {shares!r}; it must be three numbers above 0 that sum to 1, of {', '.join(PARTS)}"
    return None


def divide(events: Events, schema: Mapping[str, Any], settings: EncodingSettings) -> tuple[NDArray[np.int8], dict[str, Any]]:
    """(N,) index into `PARTS` of each row, -1 for rows left out between two, and how they were divided.

    Raises:
        UserError: when the schema's `split` is malformed, or its groups and the data's do not fit.
    """
    fault = split_fault(schema.get("split"))
    if fault is not None:
        raise UserError(f"schema: {fault}")
    split: dict[str, Any] = dict(schema["split"])
    gap = settings.seq_len
    if settings.leave_out is not None:
        order = [name for part in PARTS for name in split.get(part, ()) if name in events.groups] or events.groups
        split = {"by": "group", **leave_group_out(order, settings.leave_out)}
    if split["by"] == "group":
        return group_side(events.group, events.groups, split), split
    by, shares = split["by"], split["shares"]
    if by == "time" and (events.time < 0).all():
        raise UserError("the schema splits by time, but no row has one: name the time_column and run stage 1 again, or split by 'blocks' or 'group'")
    if by == "time" and split.get("within") == "group":
        side = np.full(len(events), -1, dtype=np.int8)
        for group in np.unique(events.group):
            mine = np.flatnonzero(events.group == group)
            side[mine] = time_side(events.time[mine], events.session[mine], shares, gap)
        return side, {**split, "gap": gap}
    if by == "time":
        return time_side(events.time, events.session, shares, gap), {**split, "gap": gap}
    return capture_side(events.group, events.session, events.label, events.ordered, shares, gap, shortest=settings.seq_len), {**split, "gap": gap}


def _in_runs(events: Events) -> tuple[NDArray[np.int32], NDArray[np.integer]]:
    """(N,) rows as windows are laid over them, and the (N,) run of each row: its session, and in a shuffled session its label, too.

    Neighbours in a shuffled file have nothing to do with each other, so that of a file with many classes hardly a window would be of one of them alone.
    """
    size = len(events.labels) + 1
    run = events.session.astype(np.int64 if len(events.sessions) * size > np.iinfo(np.int32).max else np.int32)
    run *= size
    run += np.where(events.ordered, 0, events.label + 1).astype(run.dtype, copy=False)
    order = np.arange(len(run), dtype=np.int32) if events.ordered.all() else np.argsort(run, kind="stable").astype(np.int32)
    return order, run


def lay_windows(events: Events, side: NDArray[np.int8], removed: NDArray[np.bool_], settings: EncodingSettings) -> list[Windows]:
    """Windows of each of `PARTS`, each inside one session; those of the first hold no attack row, those of a shuffled session one class.

    Args:
        events: all rows.
        side: (N,) index into `PARTS`, -1 for rows left out.
        removed: (N,) rows that leave as copies.
        settings: length and stride.

    Raises:
        UserError: when a part has no window, or validation no benign one though events have labels.
    """
    result = []
    order, run = _in_runs(events)
    for index, part in enumerate(PARTS):
        out = removed | (side != index)
        if index == 0:
            out = out | ~events.learnable
        kept = np.flatnonzero(~out[order])
        rows = order[kept].astype(np.int64)
        segment = run_ids(kept, events.ordered[rows], run[rows])
        windows = Windows.lay(events, rows, segment, settings.seq_len, settings.stride)
        if not len(windows.starts):
            if index == 0 and not events.learnable.any():
                raise UserError(
                    f"none of the {len(events):,} rows is benign, and benign rows are what the autoencoder learns; add benign captures to stage 1's folder"
                )
            longest = int(np.bincount(segment).max(initial=0))
            what = "benign rows" if index == 0 else "rows"
            raise UserError(f"{part} has no window of {settings.seq_len} {what}: its longest run has {longest}; choose a smaller --seq-len or another split")
        result.append(windows)
    if events.judged and not (result[1].y == 0).any():
        raise UserError(
            f"validation has no benign window of {settings.seq_len} rows (each of {len(result[1].y):,} holds an attack or unlabelled row), but those set the "
            "threshold; choose a smaller --seq-len or another split (--leave-out GROUP, or 'split' of the schema), or add benign captures"
        )
    return result


def reduce(parts: list[Windows], events: Events, per_window: int, settings: EncodingSettings) -> tuple[list[Windows], list[str]]:
    """The windows that are within the limits, and one line for each part and class that lost some.

    Every part and class keeps the same share, but those of benign traffic in validation and test keep `BENIGN` windows first (a quarter of the limit
    where that is less): the threshold, and what it lets through, are read off them.
    """
    total = sum(len(part.starts) for part in parts)
    by_memory = int(settings.memory_limit * 1e9 // per_window)
    limit = min(settings.sample_size, by_memory)
    if total <= limit:
        return parts, []
    cells = [(index, int(label), np.flatnonzero(part.label == label)) for index, part in enumerate(parts) for label in np.unique(part.label)]
    sizes = np.array([len(places) for _, _, places in cells])
    if limit < len(cells):
        raise UserError(
            f"{limit} windows fit the limits (--sample-size {settings.sample_size}, --memory-limit {settings.memory_limit:g} GB = {by_memory} windows of "
            f"{per_window:,} bytes), but parts and classes are {len(cells)}; raise the limit or choose a smaller --seq-len or --max-features"
        )
    first = min(BENIGN, (limit - len(cells)) // 4)
    least = np.ones(len(cells), dtype=np.int64)
    for index in (1, 2):
        benign = np.array([part == index and not (parts[part].y[places] == 1).any() for part, _, places in cells])
        known = sizes[benign].sum()
        least[benign] = sizes[benign] if known <= first else np.maximum(1, sizes[benign] * first // known)
    held, share = np.zeros(len(cells), dtype=bool), limit / total
    while (short := ~held & (sizes * share < least)).any():  # what these keep beyond their share, the others lose
        held |= short
        share = (limit - least[held].sum()) / sizes[~held].sum()
    keep = np.where(held, least, (sizes * share).astype(np.int64))
    why = f"--memory-limit {settings.memory_limit:g} GB" if by_memory < settings.sample_size else f"--sample-size {settings.sample_size:,}"
    lines = []
    chosen: list[list[NDArray[np.int64]]] = [[] for _ in parts]
    for (index, label, places), most, more in zip(cells, keep, held & (least > 1), strict=True):
        chosen[index].append(evenly(places, int(most)))
        if most < len(places):
            beyond = "; benign windows that are judged by are cut last" if more else ""
            lines.append(f"{FILES[index]} {events.labels[label]}: {int(most):,} of {len(places):,} windows kept, evenly spaced ({why}{beyond})")
    return [part.take(np.sort(np.concatenate(places))) for part, places in zip(parts, chosen, strict=True)], lines
