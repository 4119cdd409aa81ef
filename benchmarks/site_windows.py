"""What a detector is asked when it is taken to another site, and what it answered: windows of both sites, controls, resamples, figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from src.data.ciciot2023 import Capture
from src.data.dataset import Dataset
from src.data.taxonomy import FAMILIES, family_index
from src.data.transplant import AT, Rows, capture_windows
from src.data.windows import gather, window_starts
from src.evaluation.detection import BLOCK, Blocks, Bootstrap, Values
from src.training.adaptation import threshold_for

LENGTH = 10
"""Rows in a window."""
AT_HOME = 0.10
"""False alarms that the home detector's own threshold is set for, on `calibrate`."""
STRIDE = 4
"""Rows between the starts of two attack windows; half of it in the site's captures, 1 in CICIoT2023's few ordinary rows."""
MADE = 40
"""Windows of each attack class in a control that is made of others' rows; ten times as many of ordinary traffic."""
SITE, INFECTED, THIRD, ASSEMBLED, SPLICED, SPLICED_BENIGN = range(100, 106)
"""Groups of windows beside the classes of CICIoT2023."""


class Windows:
    """Everything that a detector is asked, once and for all methods: windows, which group each is of, and the resamples."""

    def __init__(self, dataset: Dataset, held: Sequence[Capture], third: Sequence[Capture], infected: Sequence[Capture], resamples: int) -> None:
        """Cut the windows.

        Args:
            dataset: home; side `test` is read.
            held: captures of the site that no method sees.
            third: ordinary captures of a place that no method sees.
            infected: captures of an infected device.
            resamples: of the bootstrap.
        """
        self.dataset = dataset
        self.attacks = np.flatnonzero(family_index(dataset.class_names) > 0)
        self.benign = int(np.flatnonzero(family_index(dataset.class_names) == 0)[0])
        self._parts: list[Rows] = []
        self._blocks: list[NDArray[np.int64]] = []
        self._labels: list[int] = []
        rows, rng = dataset.splits["test"], np.random.default_rng(0)
        site, capture = capture_windows(held, LENGTH, STRIDE // 2)
        for label in (self.benign, *self.attacks):
            stride = 1 if label == self.benign else STRIDE
            starts = window_starts(rows.segment, LENGTH, stride)
            starts = starts[rows.label[starts] == label]
            self._add(int(label), gather(rows.features, starts, LENGTH), Blocks.cut(rows.label[starts], rows.segment[starts], BLOCK // stride).of)
        self._add(SITE, site, capture)
        for group, captures in ((INFECTED, infected), (THIRD, third)):
            windows, of = capture_windows(captures, LENGTH, STRIDE // 2)
            self._add(group, windows, Blocks.cut(of, of, 2 * BLOCK // STRIDE).of)
        own = {label: np.flatnonzero(rows.label == label) for label in (self.benign, *self.attacks)}
        assembled = [rows.features[rng.choice(own[label], (MADE, LENGTH))] for label in self.attacks]
        self._add(ASSEMBLED, np.concatenate(assembled), np.arange(len(assembled) * MADE) // 10)
        for group, labels in ((SPLICED, self.attacks), (SPLICED_BENIGN, [self.benign])):
            spliced = [self._spliced(site, self._parts[self._labels_at(int(label))], rng, MADE if group == SPLICED else 10 * MADE) for label in labels]
            self._add(group, np.concatenate(spliced), np.arange(sum(map(len, spliced))) // 10)
        group = np.concatenate([np.full(len(part), label) for part, label in zip(self._parts, self._labels, strict=True)])
        self.group, self.windows = group, np.concatenate(self._parts)
        ends = np.cumsum([0, *(int(of.max()) + 1 for of in self._blocks)])
        of = np.concatenate([block + first for block, first in zip(self._blocks, ends, strict=False)])
        block_label = np.concatenate([np.full(int(block.max()) + 1, label) for block, label in zip(self._blocks, self._labels, strict=True)])
        self.sample = Bootstrap(Blocks(of, block_label), resamples, seed=0)
        number = rows.features[:, AT["Number"]]
        self.small = [label for label in self.attacks if np.median(number[rows.label == label]) <= 10]
        """Attack classes recorded in rows of 10 frames, as the site's are."""

    def _add(self, label: int, windows: Rows, blocks: NDArray[np.int64]) -> None:
        self._parts.append(windows)
        self._blocks.append(np.unique(blocks, return_inverse=True)[1])
        self._labels.append(label)

    def _labels_at(self, label: int) -> int:
        return self._labels.index(label)

    @staticmethod
    def _spliced(site: Rows, other: Rows, rng: np.random.Generator, count: int) -> Rows:
        """(count, T, F) windows of the site whose later half is another's rows."""
        windows = site[rng.integers(0, len(site), count)].copy()
        windows[:, LENGTH // 2 :] = other[rng.integers(0, len(other), count), LENGTH // 2 :]
        return windows

    def judge(self, score: NDArray[np.float64], threshold: float) -> dict[str, Values]:
        """(1 + R,) of every figure of a detector with scores (W,)."""
        flagged = score > threshold
        shares = {label: self.sample.share(flagged, self.group == label) for label in np.unique(self.group)}
        at_exact = score > threshold_for([score[self.group == SITE]], AT_HOME)
        found = {
            "site_false_alarms": shares[SITE],
            "recall": np.mean([shares[label] for label in self.attacks], axis=0),
            "recall_small": np.mean([shares[label] for label in self.small], axis=0),
            "home_benign_flagged": shares[self.benign],
            "infected_flagged": shares[INFECTED],
            "third_flagged": shares[THIRD],
            "recall_at_exact": np.mean([self.sample.share(at_exact, self.group == label) for label in self.attacks], axis=0),
            "assembled": shares[ASSEMBLED],
            "spliced": shares[SPLICED],
            "spliced_benign": shares[SPLICED_BENIGN],
        }
        for index, family in enumerate(FAMILIES[1:], start=1):
            mine = [label for label in self.attacks if family_index(self.dataset.class_names)[label] == index]
            if mine:
                found[f"family/{family}"] = np.mean([shares[label] for label in mine], axis=0)
        return found


class Figures:
    """What each method scored, for each seed."""

    def __init__(self) -> None:
        """Begin with none."""
        self._found: dict[str, list[dict[str, Values]]] = {}

    def add(self, method: str, judged: dict[str, Values]) -> None:
        """Take in one seed of a method."""
        self._found.setdefault(method, []).append(judged)

    def of(self, method: str, figure: str) -> Values:
        """(S, 1 + R)."""
        return np.array([judged[figure] for judged in self._found[method]])

    @property
    def names(self) -> set[str]:
        """Figures that there are."""
        return {name for found in self._found.values() for name in found[0]}

    def __iter__(self) -> Iterator[str]:
        """Methods, in the order in which they came."""
        return iter(self._found)
