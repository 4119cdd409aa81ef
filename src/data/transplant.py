"""Rows of one site as they would look at another, and how far the ordinary traffic of two sites is apart; in the features of CICIoT2023's newer release.

Everything here is told by ordinary traffic alone: no attack at the other site and no label is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from src.data.ciciot2023 import FEATURES_39, Capture
from src.data.windows import gather
from src.errors import UserError

Rows = NDArray[np.float32]

VOLUME = ("ack_count", "syn_count", "fin_count", "rst_count", "Tot sum", "Number")
"""Columns that grow with the frames of a row: 10 or 100 by the recording of CICIoT2023, whatever goes on."""

MOVED = ("Header_Length", "Time_To_Live", "Rate", "Min", "Max", "AVG", "Std", "IAT")
"""Continuous columns, whose quantiles are matched; what follows from them is computed anew."""

AT = {name: index for index, name in enumerate(FEATURES_39)}
"""Place of each column."""

_FLAGS = tuple(name for name in FEATURES_39 if name.endswith("_flag_number"))
_SHARES = ("HTTP", "HTTPS", "DNS", "Telnet", "SMTP", "SSH", "IRC", "TCP", "UDP", "DHCP", "ARP", "ICMP", "IGMP", "IPv", "LLC")
_AVERAGED = [AT[name] for name in ("Header_Length", "Time_To_Live", "AVG", *_FLAGS, *_SHARES)]
_SHORTEST = 1e-7
"""Seconds or packets a second below which pace is not told apart."""


def divide_captures(captures: Sequence[Capture], share: float) -> tuple[list[Capture], list[Capture]]:
    """The first `share` of each device's captures, which stand in time order, and the rest; a device's only capture is cut in time."""
    early, late = list[Capture](), list[Capture]()
    for device in dict.fromkeys(capture.label for capture in captures):
        mine = [capture for capture in captures if capture.label == device]
        if len(mine) == 1:
            cut = round(share * len(mine[0].features))
            early.append(_rows_of(mine[0], slice(0, cut)))
            late.append(_rows_of(mine[0], slice(cut, None)))
        else:
            count = min(max(round(share * len(mine)), 1), len(mine) - 1)
            early += mine[:count]
            late += mine[count:]
    return [one for one in early if len(one.features)], [one for one in late if len(one.features)]


def _rows_of(capture: Capture, rows: slice) -> Capture:
    parts = {name: getattr(capture, name)[rows] for name in ("features", "chunk", "start", "duration")}
    return dataclasses.replace(capture, **parts)


def finite_rates(captures: Sequence[Capture], largest: float) -> list[Capture]:
    """Captures whose infinite `Rate` is `largest`, the largest finite one of the data set's `fit` side, as everywhere."""
    return [dataclasses.replace(one, features=np.where(np.isinf(one.features), np.float32(largest), one.features)) for one in captures]


def capture_windows(captures: Sequence[Capture], length: int, stride: int = 1) -> tuple[Rows, NDArray[np.int64]]:
    """Windows (W, length, F) of captures, and the index (W,) of the capture of each; none crosses a gap.

    A run shorter than a window is filled up on the left by repeating its oldest row, as the sensor does with short sequences.

    Raises:
        UserError: when there is no row.
    """
    windows, of = list[Rows](), list[NDArray[np.int64]]()
    for index, capture in enumerate(captures):
        for run in np.unique(capture.chunk):
            rows = capture.features[capture.chunk == run]
            rows = np.concatenate([np.repeat(rows[:1], max(0, length - len(rows)), axis=0), rows])
            windows.append(gather(rows, np.arange(0, len(rows) - length + 1, stride), length))
            of.append(np.full(len(windows[-1]), index))
    if not windows:
        raise UserError("the site's captures hold too few rows; give more captures of its ordinary traffic")
    return np.concatenate(windows), np.concatenate(of)


def column_distances(home: Rows, site: Rows) -> NDArray[np.float64]:
    """(F,) Kolmogorov-Smirnov distance between rows (N, F) and (M, F), column by column: 0 for equal distributions, 1 for disjoint ones."""
    found = np.empty(home.shape[1])
    for column in range(home.shape[1]):
        a, b = np.sort(home[:, column]), np.sort(site[:, column])
        both = np.concatenate([a, b])
        found[column] = np.abs(np.searchsorted(a, both, "right") / len(a) - np.searchsorted(b, both, "right") / len(b)).max()
    return found


class Move:
    """Rows from home as they would look at a site: quantiles of ordinary traffic at home become those at the site, a column at a time.

    Beyond the ordinary range the distance from it, in logarithms, is kept: what stands out at home stands out as far at the site.
    """

    def __init__(self, home: Rows, site: Rows, points: int = 101) -> None:
        """Take `points` quantiles of ordinary rows (N, F) from home and (M, F) of the site."""
        self._columns = [AT[name] for name in MOVED]
        shares = np.linspace(0, 1, points)
        self._home, self._site = (np.quantile(_log(rows[:, self._columns]), shares, axis=0) for rows in (home, site))  # (points, columns)

    def __call__(self, rows: Rows) -> Rows:
        """(..., F) moved rows."""
        moved = rows.copy()
        for place, column in enumerate(self._columns):
            value, low, high = _log(rows[..., column]), self._home[:, place], self._site[:, place]
            beyond = np.maximum(value - low[-1], 0) + np.minimum(value - low[0], 0)
            moved[..., column] = np.expm1(np.maximum(np.interp(value, low, high) + beyond, 0))
        return _settle(moved)


def blend(rows: Rows, background: Rows, share: NDArray[np.float64]) -> Rows:
    """(..., F) rows in which the share (...) of frames is of `rows` (..., F), the others of `background` (..., F).

    Means over frames, frame sizes and their variance are those of the mixture; pace (`Rate`, `IAT`) is the geometric mean by share.
    """
    own, found = share[..., None].astype(np.float32), rows.copy()
    found[..., _AVERAGED] = own * rows[..., _AVERAGED] + (1 - own) * background[..., _AVERAGED]
    (mean, square), (other_mean, other_square) = (_moments(part) for part in (rows, background))
    mean, square = share * mean + (1 - share) * other_mean, share * square + (1 - share) * other_square
    found[..., AT["Std"]] = np.sqrt(np.maximum(square - mean**2, 0))
    for name, extreme in (("Min", np.minimum), ("Max", np.maximum)):
        found[..., AT[name]] = extreme(rows[..., AT[name]], background[..., AT[name]])
    for name in ("Rate", "IAT"):
        pace, other = (np.log(np.maximum(part[..., AT[name]].astype(np.float64), _SHORTEST)) for part in (rows, background))
        found[..., AT[name]] = np.exp(share * pace + (1 - share) * other)
    mode = AT["Protocol Type"]
    found[..., mode] = np.where(share >= 0.5, rows[..., mode], background[..., mode])
    return _settle(found)


def _moments(rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and mean square of frame sizes, (...) each."""
    mean = rows[..., AT["AVG"]].astype(np.float64)
    return mean, rows[..., AT["Std"]].astype(np.float64) ** 2 + mean**2


def _log(values: Rows) -> NDArray[np.float64]:
    return np.log1p(np.maximum(values.astype(np.float64), 0))  # a mean gap can be negative where a capture is out of order


def _settle(rows: Rows) -> Rows:
    """Make columns follow from one another again, in place, as the extractor has them."""
    mean, number = rows[..., AT["AVG"]], rows[..., AT["Number"]]
    rows[..., AT["Min"]] = np.minimum(rows[..., AT["Min"]], mean)
    rows[..., AT["Max"]] = np.maximum(rows[..., AT["Max"]], mean)
    rows[..., AT["Tot size"]] = mean
    rows[..., AT["Tot sum"]] = mean * number
    rows[..., AT["Variance"]] = rows[..., AT["Std"]] ** 2
    for flag in ("ack", "syn", "fin", "rst"):
        rows[..., AT[f"{flag}_count"]] = rows[..., AT[f"{flag}_flag_number"]] * number
    return rows
