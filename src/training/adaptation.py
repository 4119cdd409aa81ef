"""Taking a detector to another site, of whose own traffic some captures are at hand, but no attack and no label.

Between sites the ordinary traffic itself differs (hop counts, ports, pace, frame sizes), so that a detector trained at one calls most of what it
sees at another an attack. Two remedies that suggest themselves fail: a threshold moved up to the site's own traffic misses the attacks too,
and training with the site's traffic as the benign class teaches the network to tell the sites apart. Here

1. columns whose ordinary values at the site lie far from those at home are not read (Kolmogorov-Smirnov distance), nor those that count
   frames, which tell how a recording was cut up;
2. ordinary traffic of both sites is one class, and attacks are shown as they came, *moved* (each feature through the map that takes the
   quantiles of ordinary traffic at home to those at the site) and *blended* (some of their frames replaced by frames of the site). Ordinary
   traffic from home is moved and blended just so: nothing that this leaves behind tells an attack;
3. in a share of windows the rows are drawn apart from one another, in every class: one that comes shuffled (CICIoT2023's benign one) is
   not to be known by its disorder;
4. a model with a discriminator is shown which ordinary windows are from home and which from the site, and trained to hide it (Ganin et al.
   2016). Attacks are known from home only and take no part: to hide their home would be to hide that they are attacks.

The captures of the site are taken to be free of attacks; an attack among them would be learned as ordinary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.artifacts import open_artifact
from src.config import LSTMTrainingConfig, TemporalTrainingConfig
from src.data.ciciot2023 import FEATURES_39, Capture
from src.data.dataset import Dataset
from src.data.taxonomy import family_index
from src.data.transplant import AT, VOLUME, Move, Rows, blend, capture_windows, column_distances, divide_captures, finite_rates
from src.data.windows import gather, window_starts
from src.errors import UserError
from src.models.loop import Batch, Trainer, WindowBatches
from src.models.lstm_attack_predictor import KIND, RealDataLSTMPredictor, RealDataTrainer
from src.models.predictor_interface import EnhancedAttackPredictor
from src.models.subspace import BenignSubspace
from src.models.temperature import fit_temperature
from src.models.temporal_lstm import AdvancedLSTMTemporal
from src.training.temporal_trainer import IGNORED, TemporalTrainer

Detector = RealDataLSTMPredictor | AdvancedLSTMTemporal

HOME, SITE = 0, 1
"""Domains that a discriminator tells apart."""

SUBSPACE_WINDOWS = 2_000
"""Ordinary windows of each site that the anomaly score is fitted on, and calibrated on, at most."""

_BATCH = 4096


@dataclass(frozen=True)
class AdaptationSettings:
    """How a detector is taken to another site."""

    unlike: float = 0.4
    """Columns whose ordinary values at home and at the site are further apart than this (`column_distances`) are not read."""
    read_volume: bool = False
    """Whether columns that count frames are read."""
    own: float = 0.3
    """Weight of windows as they came from home. Ordinary windows and attacks are half of a batch each, attack classes equally often."""
    moved: float = 0.2
    """Weight of windows from home that are moved to the site."""
    blended: float = 0.2
    """Weight of windows from home into which frames of the site are blended."""
    site: float = 0.3
    """Weight of the site's windows, among ordinary ones only; 0 shows them to a discriminator and the threshold alone."""
    least: float = 0.3
    """Smallest share of frames from home in a blended window; the share is uniform between this and 1."""
    shuffled: float = 0.5
    """Share of windows whose rows are drawn apart."""
    learned: float = 0.6
    """Share of each device's captures that is trained on, the earliest; the rest sets the threshold."""
    false_alarms: float = 0.1
    """Share of ordinary windows that may be flagged, at home and at the site."""
    batches: int = 100
    """Training steps an epoch."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            UserError: for a weight, share or count out of its range.
        """
        shares = {name: getattr(self, name) for name in ("least", "shuffled", "learned", "false_alarms")}
        weights = {name: getattr(self, name) for name in ("own", "moved", "blended", "site")}
        for name, value in (shares | weights).items():
            if not 0 <= value <= 1:
                raise UserError(f"adaptation: {name} is {value}; allowed: 0 to 1")
        if not any(weights.values()) or self.batches < 1:
            raise UserError("adaptation: one of own, moved, blended and site must be above 0, and batches at least 1")


class SiteBatches:
    """Training windows of both sites, drawn anew each epoch; the site's count as benign."""

    def __init__(self, dataset: Dataset, site: Rows, settings: AdaptationSettings, batch_size: int, domains: bool) -> None:
        """Draw from `fit` of the data set, and from windows (W, T, F) of the site; `domains` says whether batches carry domains."""
        self.settings, self.batch_size, self.domains, self.generator = settings, batch_size, domains, torch.Generator()
        fit, family = dataset.splits["fit"], family_index(dataset.class_names)
        self._rows, self._site, self._length = fit.features, site, site.shape[1]
        self._benign, self._attacks = int(np.flatnonzero(family == 0)[0]), np.flatnonzero(family > 0)
        starts = window_starts(fit.segment, self._length)
        self._starts = [starts[fit.label[starts] == label] for label in range(len(family))]
        self._of = [np.flatnonzero(fit.label == label) for label in range(len(family))]
        self._move = Move(fit.features[self._of[self._benign]], site.reshape(-1, site.shape[-1]))

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.settings.batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield windows (B, T, F), labels (B,) and, if asked for, domains (B,): of ordinary windows as they came, `IGNORED` of all others."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=self.generator)))
        for _ in range(len(self)):
            yield self._draw(rng)

    def _draw(self, rng: np.random.Generator) -> Batch:
        settings, count = self.settings, self.batch_size
        ordinary = np.arange(count) < count // 2
        label = np.where(ordinary, self._benign, rng.choice(self._attacks, count))  # (B,)
        weights = np.array([settings.own, settings.moved, settings.blended, settings.site])
        of_attack = weights[:3] / max(weights[:3].sum(), 1e-12) if weights[:3].any() else np.array([1.0, 0.0, 0.0])
        kind = np.where(ordinary, rng.choice(4, count, p=weights / weights.sum()), rng.choice(3, count, p=of_attack))  # (B,)
        windows, background = self._home(rng, label), self._elsewhere(rng)  # (B, T, F) each
        moved, blended, site = (np.flatnonzero(kind == which) for which in (1, 2, 3))
        windows[moved] = self._move(windows[moved])
        share = np.repeat(rng.uniform(settings.least, 1, len(blended))[:, None], self._length, axis=1)
        windows[blended] = blend(windows[blended], background[blended], share)
        windows[site] = background[site]
        batch = torch.from_numpy(windows), torch.from_numpy(label)
        domain = np.where(ordinary & (kind == 0), HOME, np.where(kind == 3, SITE, IGNORED))
        return (*batch, torch.from_numpy(domain)) if self.domains else batch

    def _home(self, rng: np.random.Generator, label: NDArray[np.int64]) -> Rows:
        """(B, T, F) windows of classes (B,)."""
        index = np.empty((len(label), self._length), dtype=np.int64)
        apart = rng.random(len(label)) < self.settings.shuffled
        for one in np.unique(label):
            runs, drawn = np.flatnonzero((label == one) & ~apart), np.flatnonzero((label == one) & apart)
            index[runs] = rng.choice(self._starts[one], len(runs))[:, None] + np.arange(self._length)
            index[drawn] = rng.choice(self._of[one], (len(drawn), self._length))
        return self._rows[index]

    def _elsewhere(self, rng: np.random.Generator) -> Rows:
        """(B, T, F) windows of the site."""
        shape = self.batch_size, self._length
        apart = (rng.random(self.batch_size) < self.settings.shuffled)[:, None]
        window = np.where(apart, rng.integers(0, len(self._site), shape), rng.integers(0, len(self._site), self.batch_size)[:, None])
        row = np.where(apart, rng.integers(0, self._length, shape), np.arange(self._length))
        return self._site[window, row]


@dataclass(frozen=True)
class SiteDetector:
    """A detector at another site: flags a window whose score lies above a threshold."""

    model: Detector
    """Reads raw windows; columns that are not read are silenced in its scaling."""
    subspace: BenignSubspace
    """Of ordinary windows of both sites."""
    class_names: tuple[str, ...]
    """Of the model's outputs."""
    threshold: float
    """Largest score that is not flagged."""
    unread: tuple[str, ...]
    """Columns that are not read."""

    def score(self, windows: Rows) -> NDArray[np.float64]:
        """(N,) probability that raw windows (N, T, F) are no ordinary traffic."""
        return attack_scores(self.model, self.class_names, windows)

    def alarms(self, windows: Rows) -> NDArray[np.bool_]:
        """(N,) whether raw windows (N, T, F) are flagged."""
        return self.score(windows) > self.threshold

    def sensor(self) -> EnhancedAttackPredictor:
        """The detector behind the sensor contract.

        Raises:
            UserError: when its model is no base LSTM.
        """
        if not isinstance(self.model, RealDataLSTMPredictor):
            raise UserError(f"a {type(self.model).__name__} cannot be saved as a base sensor; adapt a base LSTM")
        return EnhancedAttackPredictor(self.model, self.subspace, FEATURES_39, self.class_names)

    def save(self, folder: Path, meta: Mapping[str, Any]) -> None:
        """Write an adapted base LSTM as an artifact folder, atomically; `EnhancedAttackPredictor.load` opens it too.

        Raises:
            UserError: as `sensor`, or when the folder cannot be written.
        """
        self.sensor().save(folder, {**meta, "adaptation": {"threshold": self.threshold, "unread": list(self.unread)}})

    @classmethod
    def load(cls, folder: Path) -> SiteDetector:
        """Open a saved detector.

        Raises:
            UserError: when the folder is missing or altered, or holds a sensor that was not adapted.
        """
        sensor, meta = EnhancedAttackPredictor.load(folder), open_artifact(folder, KIND)
        try:
            stated = meta["adaptation"]
            if not isinstance(sensor.detector, BenignSubspace):
                raise TypeError
            return cls(sensor.model, sensor.detector, sensor.class_names, float(stated["threshold"]), tuple(stated["unread"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"artifact '{folder}' holds a sensor that was not adapted to a site; adapt it, or open it as a plain sensor") from error


def attack_scores(model: Detector, class_names: Sequence[str], windows: Rows) -> NDArray[np.float64]:
    """(N,) one minus the probability of the benign classes, of raw windows (N, T, F)."""
    benign = torch.from_numpy(np.flatnonzero(family_index(class_names) == 0))
    parts = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32)).split(_BATCH)
    return np.concatenate([1 - model.predict_attack_probability(part)[:, benign].sum(dim=1).double().numpy() for part in parts])


def threshold_for(ordinary: Sequence[NDArray[np.float64]], rate: float) -> float:
    """The lowest threshold above which lies at most the share `rate` of each of several sets of scores (N,) of ordinary windows."""
    return max(float(np.quantile(scores, 1 - rate, method="higher")) for scores in ordinary)


def unread_columns(home: Rows, site: Rows, settings: AdaptationSettings) -> tuple[str, ...]:
    """Columns not to be read, from ordinary rows (N, F) at home and (M, F) at the site.

    Raises:
        UserError: when none is left.
    """
    far = column_distances(home, site) > settings.unlike
    unread = tuple(name for name, apart in zip(FEATURES_39, far, strict=True) if apart or (name in VOLUME and not settings.read_volume))
    if len(unread) == len(FEATURES_39):
        raise UserError(f"every column of the site is further than {settings.unlike:g} from home; raise settings.unlike")
    return unread


def adapt(
    model: Detector,
    dataset: Dataset,
    captures: Sequence[Capture],
    settings: AdaptationSettings,
    training: LSTMTrainingConfig,
    *,
    seed: int,
    device: str = "cpu",
) -> SiteDetector:
    """Take a detector to a site.

    Args:
        model: left as it is; a copy is trained on, from its weights and with its scaling. A fresh one needs its scaling fitted.
        dataset: of home; sides `fit` and `calibrate` are read.
        captures: ordinary traffic of the site, each device's in time order (`src.data.site.read_site`).
        settings: what is done.
        training: epochs, batch size, optimiser, and the discriminator's weight if it has one (`TemporalTrainingConfig`). The epoch of the best
            macro-F1 on windows that were not trained on is kept; an adapted detector that was trained at home before needs two or three.
        seed: of everything that is drawn.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        The detector. Its threshold is the lowest that flags at most `settings.false_alarms` of ordinary windows that were not trained on,
        at the site and at home.

    Raises:
        UserError: when the data set is in other features than the site's or has no benign class, when the captures hold too few rows, or
            when no column can be read.
    """
    if dataset.feature_names != FEATURES_39:
        raise UserError(f"a site's captures are in CICIoT2023's {len(FEATURES_39)} newer features, the data set is not: give data.root in that release")
    benign = np.flatnonzero(family_index(dataset.class_names) == 0)
    if len(benign) != 1 or "fit" not in dataset.splits:
        raise UserError("a detector is adapted with the benign class and the 'fit' side that it was trained on; load the data set without data.benign_root")
    fit, length = dataset.splits["fit"], model.config.sequence_length
    early, late = divide_captures(finite_rates(captures, float(fit.features[:, AT["Rate"]].max())), settings.learned)
    learned, held = (capture_windows(part, length)[0] for part in (early, late))
    unread = unread_columns(fit.features[fit.label == benign[0]], np.concatenate([capture.features for capture in early]), settings)
    model = copy.deepcopy(model)
    model.scaler.inverse[[AT[name] for name in unread]] = 0.0

    home, label = _windows(dataset, "calibrate", length, training.stride)
    seen = held if settings.site > 0 else held[:0]
    windows = torch.from_numpy(np.concatenate([home, seen]))
    labels = torch.from_numpy(np.concatenate([label, np.full(len(seen), benign[0])]))
    checks = _side_by_side(windows, labels)
    domains = isinstance(model, AdvancedLSTMTemporal) and model.discriminator is not None
    batches = SiteBatches(dataset, learned, settings, training.batch_size, domains)
    _trainer(model, training, batches, learned if domains and settings.site == 0 else None, seed, device).train(batches, checks)
    model.to("cpu").eval()
    with torch.inference_mode():
        model.temperature.fill_(fit_temperature(torch.cat([_draws(model, part) for part in windows.split(_BATCH)], dim=1), labels))
        ordinary, _ = _windows(dataset, "fit", length, 1, int(benign[0]))
        subspace = BenignSubspace.fit(model.scaler, _joined(ordinary, learned), _joined(home[label == benign[0]], held))
    scores = [attack_scores(model, dataset.class_names, part) for part in (home[label == benign[0]], held)]
    return SiteDetector(model, subspace, dataset.class_names, threshold_for(scores, settings.false_alarms), unread)


def _windows(dataset: Dataset, side: str, length: int, stride: int, label: int | None = None) -> tuple[Rows, NDArray[np.int64]]:
    """Windows (W, T, F) and labels (W,) of a side, or of one class of it."""
    rows = dataset.splits[side]
    starts = window_starts(rows.segment, length, stride)
    if label is not None:
        starts = starts[rows.label[starts] == label]
    return gather(rows.features, starts, length), rows.label[starts].astype(np.int64)


def _side_by_side(windows: Tensor, labels: Tensor, domains: Tensor | None = None) -> WindowBatches:
    """Batches of windows (W, T, F) with labels (W,)."""
    count, length, _ = windows.shape
    return WindowBatches(windows.flatten(0, 1), torch.arange(count) * length, labels, length, _BATCH, domains=domains)


def _trainer(model: Detector, training: LSTMTrainingConfig, batches: SiteBatches, unlabelled: Rows | None, seed: int, device: str) -> Trainer[Any]:
    """A trainer without class weights, as batches hold classes in due shares; `unlabelled` windows of the site are for a discriminator."""
    training = training.model_copy(update={"class_weights": "none"})
    if isinstance(model, RealDataLSTMPredictor):
        return RealDataTrainer(model, training, seed=seed, device=device)
    target = None
    if unlabelled is not None:
        site = torch.full((len(unlabelled),), SITE)
        target = _side_by_side(torch.from_numpy(unlabelled), torch.zeros_like(site), site)
    counts = np.full(model.config.num_classes, len(batches) * batches.batch_size // model.config.num_classes)
    return TemporalTrainer(model, TemporalTrainingConfig(**training.model_dump()), class_counts=counts, seed=seed, device=device, target=target)


def _draws(model: Detector, windows: Tensor) -> Tensor:
    """(S, B, C) logits before temperature, of each draw from a temporal model's posterior; a base LSTM draws nothing and is one."""
    return model(windows)[None] if isinstance(model, RealDataLSTMPredictor) else model.sample_logits(windows)


def _joined(*parts: Rows) -> Tensor:
    """(W, T, F) raw windows of several sets, evenly chosen from each."""
    chosen = [part[np.linspace(0, len(part) - 1, min(len(part), SUBSPACE_WINDOWS)).astype(np.int64)] for part in parts]
    return torch.from_numpy(np.concatenate(chosen))
