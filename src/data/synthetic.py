"""Seeded traffic drawn from a statistical profile of CICIoT2023's 39 features (Neto et al. 2023).

A row is a window of N packets, and most of its 39 columns follow from few: how many packets of each kind, their header
bytes, their sizes, and two times. `decompose` takes a row apart into these 29 variables, `compose` puts any values of
them together into a row that could have been measured: counts are whole, parts do not exceed their whole, sizes and their
variance belong to whole packets, time does not run backwards. The profile describes the variables; the identities
between columns hold by construction (`violations` counts where they do not).

The profile holds, for each class, a few components (regimes), and for each of these quantiles of every variable and the
rank correlations between them; for each class the transitions between components and the lag-1 autocorrelation of the
variables within them. Drawing: a Markov chain chooses the component, an AR(1) moves each latent variable, a Gaussian
copula couples them and the quantiles give them their values. Short rows at the end of a chunk are not drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import ndtr

from src.data.ciciot2023 import FEATURES_39, Capture
from src.data.windows import rebuild_time
from src.errors import UserError

EMBEDDED = Path(__file__).parent / "assets" / "ciciot2023_profile.npz"

_KINDS = ("ARP", "ICMP", "IGMP", "TCP", "UDP", "other")
_PROTOCOL = {"ARP": 0, "ICMP": 1, "IGMP": 2, "TCP": 6, "UDP": 17}
_FLAGS = tuple(f"{name}_flag_number" for name in ("fin", "syn", "rst", "psh", "ack", "ece", "cwr"))
_OF_TCP = (*_FLAGS, "HTTP", "HTTPS", "Telnet", "SMTP", "SSH", "IRC")
_OF_UDP = ("DNS", "DHCP")

VARIABLES: tuple[str, ...] = (*_KINDS, *_OF_TCP, *_OF_UDP, "option words", "TTL", "Min", "Max", "AVG", "Std", "log duration", "log idle")
"""What a row is made of. Kinds, flags and ports: share of packets; `option words`: 4-byte words of TCP options a TCP
packet; `log duration` and `log idle`: seconds from first to last packet, and from the row before."""

LEVELS: NDArray[np.float64] = np.concatenate(([0.0], ndtr(np.linspace(-2.6, 2.6, 39)), [1.0]))
"""Levels of the stored quantiles: evenly spaced for a normal variable, and both ends (where the stored value lies just inside)."""

_TICK = 1e-6
"""Resolution of the captures' clock, seconds."""


def decompose(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, V) the `VARIABLES` of rows (N, 39); a rate may be infinite."""
    row = {name: features[:, index].astype(np.float64) for index, name in enumerate(FEATURES_39)}
    number = row["Number"]
    row["other"] = np.maximum(1.0 - sum(row[kind] for kind in _PROTOCOL), 0.0)
    row["option words"] = (row["Header_Length"] - 8 * row["UDP"] - 20 * row["TCP"]) / np.maximum(4 * row["TCP"], 1e-9) * (row["TCP"] > 0)
    row["TTL"] = row["Time_To_Live"]
    duration = np.where(np.isfinite(row["Rate"]), number / row["Rate"], 0.0)
    row["log duration"] = np.log(np.maximum(duration, _TICK))
    row["log idle"] = np.log(np.maximum(row["IAT"] * number - duration, 0.0) + _TICK)
    return np.stack([row[name] for name in VARIABLES], axis=1)


def compose(variables: NDArray[np.float64], number: int, other_protocol: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N, 39) rows of `number` packets that come nearest to (N, V) variables of any value.

    Args:
        variables: (N, V), columns as `VARIABLES`.
        number: packets in a row.
        other_protocol: (N,) IP protocol number of packets that are of no decoded kind (fragments, GRE).
    """
    given = {name: variables[:, index] for index, name in enumerate(VARIABLES)}
    counts = _apportion(np.stack([given[kind] for kind in _KINDS], axis=1), number)
    count = {kind: counts[:, index] for index, kind in enumerate(_KINDS)}
    for name in (*_OF_TCP, *_OF_UDP):
        count[name] = np.clip(np.round(given[name] * number), 0, count["TCP" if name in _OF_TCP else "UDP"])
    row: dict[str, NDArray[np.float64]] = {name: count[name] / number for name in (*_PROTOCOL, *_OF_TCP, *_OF_UDP)}
    row |= {f"{flag}_count": count[f"{flag}_flag_number"] for flag in ("ack", "syn", "fin", "rst")}
    row["IPv"] = row["LLC"] = (number - count["ARP"]) / number
    options = np.clip(np.round(given["option words"] * count["TCP"]), 0, 10 * count["TCP"])
    row["Header_Length"] = (8 * count["UDP"] + 20 * count["TCP"] + 4 * options) / number
    row["Time_To_Live"] = np.clip(np.round(given["TTL"] * number), 0, 255 * (number - count["ARP"])) / number
    row["Protocol Type"] = _most_frequent(counts, other_protocol)
    row |= _sizes(given["Min"], given["Max"], given["AVG"], given["Std"], number)
    duration = np.maximum(np.exp(given["log duration"]), _TICK)
    row["Rate"] = number / duration
    row["IAT"] = (duration + np.maximum(np.exp(given["log idle"]) - _TICK, 0.0)) / number
    row["Number"] = np.full(len(variables), float(number))
    return np.stack([row[name] for name in FEATURES_39], axis=1)


def _apportion(shares: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """(N, K) whole counts that sum to `number`, nearest to the shares (largest remainders)."""
    shares = np.maximum(shares, 0.0)
    shares[shares.sum(axis=1) <= 0, _KINDS.index("TCP")] = 1.0
    exact = shares / shares.sum(axis=1, keepdims=True) * number
    whole = np.floor(exact + 1e-9)
    rank = np.argsort(np.argsort(whole - exact, axis=1, kind="stable"), axis=1, kind="stable")
    return whole + (rank < (number - whole.sum(axis=1, keepdims=True)))


def _most_frequent(counts: NDArray[np.float64], other_protocol: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N,) protocol number of most packets, the smallest of equals; ARP counts as 0."""
    codes = np.array(list(_PROTOCOL.values()))
    known = counts[:, :-1] + counts[:, -1:] * (codes == other_protocol[:, None])
    foreign = np.where(np.isin(other_protocol, codes), 0.0, counts[:, -1])
    best = np.argmax(known, axis=1)
    most = known[np.arange(len(known)), best]
    wins = (foreign > most) | ((foreign == most) & (other_protocol < codes[best]))
    return np.where(wins, other_protocol, codes[best]).astype(np.float64)


def _sizes(low: NDArray[np.float64], high: NDArray[np.float64], mean: NDArray[np.float64], deviation: NDArray[np.float64], number: int) -> dict[str, Any]:
    """Sizes of `number` whole packets of which one has the smallest and one the largest size."""
    low = np.maximum(np.round(low), 1.0)
    high = np.maximum(np.round(high), low)
    total = np.clip(np.round(mean * number), low * (number - 1) + high, high * (number - 1) + low)
    mean = total / number
    # The sum of squares lies between that of all other packets alike and that of all at the two ends, and is odd when the sum is.
    rest = (total - low - high) / max(number - 2, 1)
    least = low**2 + high**2 + (number - 2) * rest**2
    most = total**2 / number + number * (mean - low) * (high - mean)
    half = np.clip(
        np.round((deviation**2 * (number - 1) + total**2 / number - total) / 2), np.ceil((least - total) / 2 - 1e-6), np.floor((most - total) / 2 + 1e-6)
    )
    variance = np.maximum(total + 2 * half - total**2 / number, 0.0) / (number - 1)
    variance[high == low] = 0.0
    return {"Tot sum": total, "Min": low, "Max": high, "AVG": mean, "Tot size": mean, "Variance": variance, "Std": np.sqrt(variance)}


def violations(features: NDArray[np.floating]) -> dict[str, int]:
    """Rows of (N, 39) that break each identity of the feature definitions, at single precision."""
    row = {name: features[:, index].astype(np.float64) for index, name in enumerate(FEATURES_39)}
    number, total = row["Number"], row["Tot sum"]
    shares = [*_PROTOCOL, *_OF_TCP, *_OF_UDP, "IPv"]
    near = lambda left, right: np.abs(left - right) <= 1e-5 * np.maximum(np.abs(right), 1.0)  # noqa: E731
    whole = lambda value: np.abs(value - np.round(value)) <= 1e-4 + 1e-6 * np.abs(value)  # noqa: E731
    least = row["Min"] * (number - 1) + row["Max"]
    most = row["Max"] * (number - 1) + row["Min"]
    spread = number * (row["AVG"] - row["Min"]) * (row["Max"] - row["AVG"]) / np.maximum(number - 1, 1)
    options = row["Header_Length"] * number - 8 * row["UDP"] * number - 20 * row["TCP"] * number
    checks = {
        "finite": np.isfinite(features).all(axis=1),
        "shares are multiples of 1/N in 0..1": np.all([whole(row[s] * number) & (row[s] >= 0) & (row[s] <= 1) for s in shares], axis=0),
        "counts = flag shares x N": np.all([near(row[f"{f}_count"], row[f"{f}_flag_number"] * number) for f in ("ack", "syn", "fin", "rst")], axis=0),
        "IPv + ARP = 1": near(row["IPv"] + row["ARP"], 1.0),
        "LLC = IPv": row["LLC"] == row["IPv"],
        "TCP + UDP + ICMP + IGMP <= IPv": row["TCP"] + row["UDP"] + row["ICMP"] + row["IGMP"] <= row["IPv"] + 1e-5,
        "flags and TCP ports <= TCP": np.all([row[name] <= row["TCP"] + 1e-6 for name in _OF_TCP], axis=0),
        "UDP ports <= UDP": np.all([row[name] <= row["UDP"] + 1e-6 for name in _OF_UDP], axis=0),
        "header bytes are 8 a UDP and 20 to 60 a TCP packet": (options > -0.01)
        & (options <= 40 * row["TCP"] * number + 0.01)
        & whole((options + 20 * row["TCP"] * number) / 4),
        "TTL x N is whole, 0..255 an IP packet": whole(row["Time_To_Live"] * number) & (row["Time_To_Live"] <= 255 * row["IPv"] + 1e-3),
        "protocol type is whole": row["Protocol Type"] == np.round(row["Protocol Type"]),
        "AVG = Tot size = Tot sum / N": near(row["AVG"], total / number) & (row["AVG"] == row["Tot size"]),
        "sizes are whole": (total == np.round(total)) & (row["Min"] == np.round(row["Min"])) & (row["Max"] == np.round(row["Max"])),
        "Min <= AVG <= Max, for N packets": (total >= least - 1e-5 * least) & (total <= most + 1e-5 * most),
        "Variance = Std^2": near(row["Variance"], row["Std"] ** 2),
        "Variance is possible between Min and Max": row["Variance"] <= spread * (1 + 1e-4) + 1e-3 * row["AVG"],
        "time does not run backwards": row["IAT"] * number - number / row["Rate"] >= -1e-5 * row["IAT"] * number,
    }
    return {name: int((~held).sum()) for name, held in checks.items()}


@dataclass(frozen=True)
class Profile:
    """C classes in the taxonomy's order, K components, V variables, Q quantiles. Holds statistics only, no row."""

    class_names: tuple[str, ...]
    assembled: NDArray[np.bool_]
    """(C,) whether the rows it was fitted on were out of order: then drawn rows are independent."""
    packets: NDArray[np.int32]
    """(C,) packets in a row, 10 or 100."""
    rows: NDArray[np.int32]
    """(C,) rows it was fitted on."""
    owner: NDArray[np.int16]
    """(K,) class of each component; components of a class stand together."""
    weight: NDArray[np.float32]
    """(K,) share of the class."""
    other_protocol: NDArray[np.uint8]
    """(K,) IP protocol of packets that are of no decoded kind."""
    quantiles: NDArray[np.float32]
    """(K, V, Q) at `LEVELS`."""
    mixing: NDArray[np.float32]
    """(K, V, V) R with R R' = rank correlations as those of normals; stored as the root, so that drawing decomposes nothing."""
    transition: NDArray[np.float32]
    """(K, M) probability of the component of the next row, among the class's own (at most M, the rest 0)."""
    memory: NDArray[np.float32]
    """(C, V) lag-1 autocorrelation of the independent normals that `mixing` mixes."""
    origin: str
    """What it was fitted on."""

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read a profile.

        Raises:
            UserError: when the file is missing or is no profile.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                values: dict[str, Any] = {field.name: stored[field.name] for field in fields(cls)}
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"'{path}' is no traffic profile ({error}); make one with: python -m src.data.profile --root FOLDER") from error
        values |= {"class_names": tuple(values["class_names"].tolist()), "origin": values["origin"].item()}
        return cls(**values)

    @staticmethod
    @functools.cache
    def embedded() -> Profile:
        """The profile that ships with the code."""
        return Profile.load(EMBEDDED)

    def draw(self, name: str, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """(count, 39) consecutive rows of one class.

        Raises:
            UserError: for a class that the profile does not hold.
        """
        if name not in self.class_names:
            raise UserError(f"the traffic profile has no class '{name}': it holds {', '.join(self.class_names)}")
        index = self.class_names.index(name)
        own = np.flatnonzero(self.owner == index)
        chosen = _markov(rng, count, self.weight[own], self.transition[own, : len(own)])
        latent = _ar1(rng, count, self.memory[index])  # (count, V)
        variables = np.empty((count, len(VARIABLES)))
        for place, component in enumerate(own):
            here = np.flatnonzero(chosen == place)
            level = ndtr(latent[here] @ self.mixing[component].astype(np.float64).T)
            for column in range(len(VARIABLES)):
                variables[here, column] = np.interp(level[:, column], LEVELS, self.quantiles[component, column])
        return compose(variables, int(self.packets[index]), self.other_protocol[own][chosen].astype(np.int64)).astype(np.float32)

    def captures(self, count: int, rng: np.random.Generator, exclude: Collection[str] = ()) -> tuple[list[Capture], tuple[str, ...]]:
        """One capture of `count` rows of each class, and feature names.

        Args:
            count: rows of each class.
            rng: each class draws from its own child, so leaving one out does not change the others.
            exclude: canonical names to leave out.

        Raises:
            UserError: when no class is left.
        """
        captures: list[Capture] = []
        for index, (name, child) in enumerate(zip(self.class_names, rng.spawn(len(self.class_names)), strict=True)):
            if name in exclude:
                continue
            features = self.draw(name, count, child)
            column = {key: features[:, FEATURES_39.index(key)] for key in ("IAT", "Number", "Rate")}
            start, duration = rebuild_time(column["IAT"], column["Number"], column["Rate"])
            ordered = not self.assembled[index]
            captures.append(Capture(name, ordered, features, np.zeros(count, dtype=np.int32), start if ordered else np.full(count, np.nan), duration))
        if not captures:
            raise UserError(f"data.exclude_labels drops every class of the traffic profile: {', '.join(self.class_names)}")
        return captures, FEATURES_39


def _ar1(rng: np.random.Generator, count: int, memory: NDArray[np.floating]) -> NDArray[np.float64]:
    """(count, K) stationary standard normal series, column k with lag-1 autocorrelation `memory[k]`."""
    noise = rng.standard_normal((count, len(memory)))
    series = np.empty_like(noise)
    for column, value in enumerate(memory.astype(np.float64)):
        shock = noise[:, column] * np.sqrt(1 - value**2)
        shock[:1] = noise[:1, column]
        series[:, column] = lfilter([1.0], [1.0, -value], shock)
    return series


def _markov(rng: np.random.Generator, count: int, first: NDArray[np.floating], transition: NDArray[np.floating]) -> NDArray[np.int64]:
    """(count,) states of a Markov chain.

    Each step is a random map from state to state; maps are composed by prefix doubling, so there is no loop over rows.
    """
    edges = np.cumsum(transition.astype(np.float64), axis=1)
    chance = rng.random(count)
    maps = (chance[:, None, None] > (edges / edges[:, -1:])[None, :, :-1]).sum(axis=2)  # (count, K) next state from each state
    start = np.cumsum(first.astype(np.float64))
    maps[:1] = np.searchsorted(start[:-1] / start[-1], chance[:1])[:, None]
    step = 1
    while step < count:
        maps[step:] = np.take_along_axis(maps[step:], maps[:-step], axis=1)
        step *= 2
    return maps[:, 0]
