"""D13: attacks that no sensor has seen. Each attack family is left out of `fit` and `calibrate` in turn, and its windows are to be told from known ones.

Known are all classes that stay, benign and attacks, as they come; told from benign windows alone is shown beside it. The form of
`src.models.novelty` was chosen on windows of `agent`, and both sides are shown; the families are the same on both. Both networks are
trained with one seed, for fewer epochs and on fewer windows than the product's, so that fourteen trainings fit: say so with the figures.
Intervals are over blocks of windows (`src.evaluation.detection`) and know nothing of seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks.candidates import autoencoder
from benchmarks.common import Gate, PartOptions
from benchmarks.networks import NETWORKS, Network, draws_of, train_network, windows_of
from src.config import load_config
from src.data.dataset import Dataset, Rows, load_dataset, without_family
from src.data.taxonomy import FAMILIES, family_index
from src.evaluation.detection import Blocks, Bootstrap, Values, auroc
from src.evaluation.statistics import Estimate, interval
from src.models.fusion import disagreement
from src.models.loop import seeded
from src.models.lstm_attack_predictor import RealDataLSTMPredictor
from src.models.lstm_sae import AnomalyDetector
from src.models.novelty import ClassDistance, Novelty, views
from src.models.subspace import BenignSubspace

SEED = 0
STRIDE = 5
"""Rows between the starts of two windows that are scored; blocks are of ten such windows, about 50 rows."""
DRAWS = 10
"""Forward passes with dropout on, for the mutual information of the base LSTM (Gal and Ghahramani 2016)."""
MARK = 0.95
"""Novelty above which a window is marked as new."""
NOVELTY, SURENESS = "novelty (both distances)", "1 - largest probability"

Score = Callable[[Tensor], NDArray[np.float64]]


def scores(networks: Mapping[str, Network], name: str, dataset: Dataset, length: int, detector: AnomalyDetector) -> dict[str, Score]:
    """Every score of raw windows (N, T, F) by its name: the higher, the less known. Fitted on `fit` and `calibrate` of the data set.

    Args:
        networks: both.
        name: of the one that is scored; `disagreement` takes both, as the fused sensor's uncertainty does.
        dataset: without the family that was left out.
        length: rows in a window.
        detector: of benign windows.
    """
    model = networks[name]
    windows, labels = (torch.from_numpy(part) for part in windows_of(dataset.splits["fit"], length, STRIDE)[:2])
    calibrate, calibrate_labels = (torch.from_numpy(part) for part in windows_of(dataset.splits["calibrate"], length, STRIDE)[:2])
    benign = torch.from_numpy(np.flatnonzero(family_index(dataset.class_names) == 0))
    ordinary, checked = (part[torch.isin(label, benign)] for part, label in ((windows, labels), (calibrate, calibrate_labels)))
    subspace, novelty = BenignSubspace.fit(model.scaler, ordinary, checked), Novelty.fit(model, windows, labels, calibrate)
    background = ClassDistance.fit(views(model, windows)[0], torch.zeros_like(labels))
    in_batches: dict[str, Callable[[Tensor], Tensor]] = {
        SURENESS: lambda x: 1 - model.predict_attack_probability(x).amax(dim=1),
        "entropy": lambda x: _entropy(model.predict_attack_probability(x)),
        "energy": lambda x: -torch.logsumexp(draws_of(model, x).mean(dim=0), dim=1),
        "mutual information": lambda x: _mutual_information(model, x),
        "disagreement of both networks": lambda x: disagreement([torch.softmax(draws_of(one, x) / one.temperature, dim=-1) for one in networks.values()]),
        "Mahalanobis of embedding": lambda x: novelty.embedding(views(model, x)[0]),
        "relative Mahalanobis": lambda x: novelty.embedding(views(model, x)[0]) - background(views(model, x)[0]),
        "Mahalanobis of rows": lambda x: novelty.rows(views(model, x)[1]),
        "PCA of benign": subspace.error,
        "LSTM autoencoder of benign": lambda x: torch.from_numpy(detector.score(x.numpy())),
        NOVELTY: lambda x: novelty.score(model, x),
    }

    def batched(score: Callable[[Tensor], Tensor]) -> Score:
        def read(x: Tensor) -> NDArray[np.float64]:
            with torch.inference_mode():
                return torch.cat([score(part).double() for part in x.split(2048)]).numpy()

        return read

    return {name: batched(score) for name, score in in_batches.items()}


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-12).log()).sum(dim=-1)


def _mutual_information(model: Network, x: Tensor) -> Tensor:
    """(B,) of class and weights: over the temporal LSTM's own draws, over dropout for the base LSTM."""
    if not isinstance(model, RealDataLSTMPredictor):
        return model.uncertainties(x)["epistemic"]
    dropouts = [part for part in model.modules() if isinstance(part, nn.Dropout | nn.LSTM)]
    for part in dropouts:
        part.train()
    with seeded(SEED, 1):
        draws = torch.stack([torch.softmax(model(x), dim=1) for _ in range(DRAWS)])  # (S, B, C)
    model.eval()
    return _entropy(draws.mean(dim=0)) - _entropy(draws).mean(dim=0)


class Trial:
    """Windows of one side, known ones first, then those of the family that was left out."""

    def __init__(self, known: Rows, held: Rows, length: int, resamples: int) -> None:
        parts = [windows_of(rows, length, STRIDE) for rows in (known, held)]
        self.windows = torch.from_numpy(np.concatenate([part[0] for part in parts]))
        self.unknown = np.repeat([False, True], [len(part[0]) for part in parts])
        label = np.concatenate([parts[0][1], parts[1][1] + 1000])  # labels of the two sides are of different lists
        self.benign = label == 0
        self.sample = Bootstrap(Blocks.cut(label, np.concatenate([part[2] for part in parts]), 10), resamples, SEED)

    def told(self, score: NDArray[np.float64]) -> Values:
        """(1 + R,) AUROC of unknown against known windows."""
        return auroc(self.sample, score, self.unknown)

    def told_from_benign(self, score: NDArray[np.float64]) -> float:
        """AUROC of unknown against benign windows."""
        chosen = self.unknown | self.benign
        return float(roc_auc_score(self.unknown[chosen], score[chosen]))

    def fate(self, model: Network, novelty: NDArray[np.float64]) -> dict[str, float]:
        """What becomes of unknown windows: called benign, marked as new, and both failing; and how many known ones are marked."""
        with torch.inference_mode():
            called = torch.cat([model.predict_attack_probability(part).argmax(dim=1) for part in self.windows.split(2048)]).numpy()
        benign, marked = called == 0, novelty > MARK
        missed, known_marked = self.sample.share(benign, self.unknown), self.sample.share(marked, ~self.unknown)
        return {
            "called benign": float(missed[0]),
            "called benign, low": interval(missed[1:], 0.95)[0],
            "called benign, high": interval(missed[1:], 0.95)[1],
            "marked as new": float(self.sample.share(marked, self.unknown)[0]),
            "benign and not marked": float(self.sample.share(benign & ~marked, self.unknown)[0]),
            "known windows marked": float(known_marked[0]),
            "benign windows marked": float(self.sample.share(marked, self.benign)[0]),
        }


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Gate `D13.unknown`: novelty against how sure the network is of its answer, mean over families; tables by family."""
    config = load_config(overrides=[f"data.root={options.root}", *(["sae.training.epochs=2"] if options.quick else [])], environ={})
    dataset, length = load_dataset(config.data, SEED), config.data.window
    present = set(family_index(dataset.class_names))
    families = [name for index, name in enumerate(FAMILIES) if index > 0 and index in present]
    if options.quick:
        families = families[-2:]
    epochs, stride, resamples = (2, 12, 200) if options.quick else (8, 5, 1000)
    against_known, against_benign, fates, means = [], [], [], []
    on_agent: dict[tuple[str, str], list[float]] = {}
    on_test: dict[tuple[str, str], list[Values]] = {}
    for family in families:
        known, held = without_family(dataset, family)
        trained = {name: train_network(name, known, length, epochs=epochs, stride=stride, seed=SEED) for name in NETWORKS}
        networks = {name: one.model for name, one in trained.items()}
        detector, _ = autoencoder(config, known, SEED)
        choice, trial = (Trial(known.splits[side], held[side], length, count) for side, count in (("agent", 0), ("test", resamples)))
        for name in NETWORKS:
            place: dict[str, Any] = {"network": name, "family": family, "windows": int(trial.unknown.sum())}
            known_row, benign_row, fate = dict(place), dict(place), dict(place)
            for title, score in scores(networks, name, known, length, detector).items():
                values = score(trial.windows)
                told = trial.told(values)
                on_test.setdefault((name, title), []).append(told)
                on_agent.setdefault((name, title), []).append(float(choice.told(score(choice.windows))[0]))
                known_row[title], benign_row[title] = float(told[0]), trial.told_from_benign(values)
                if title == NOVELTY:
                    low, high = interval(told[1:], 0.95)
                    fate |= {"AUROC": float(told[0]), "low": low, "high": high, **trial.fate(networks[name], values)}
            against_known.append(known_row)
            against_benign.append(benign_row)
            fates.append({**fate, "macro-F1 of known (calibrate)": trained[name].macro_f1})
    over_families = {key: np.mean(values, axis=0) for key, values in on_test.items()}  # (1 + R,) each
    for name, title in sorted(over_families, key=lambda key: NETWORKS.index(key[0])):
        one, on_choice = _estimate(over_families[name, title]), float(np.mean(on_agent[name, title]))
        means.append({"network": name, "score": title, "agent": on_choice, "test": one.value, "low": one.low, "high": one.high})
    differences = [_estimate(over_families[name, NOVELTY] - over_families[name, SURENESS]) for name in NETWORKS]
    worst = min(differences, key=lambda one: one.low)
    what = f"AUROC of families left out, mean of {len(families)}: {NOVELTY} less {SURENESS}, the worse of {len(NETWORKS)} networks"
    tables = {
        "AUROC of a family left out against known windows": against_known,
        "AUROC of a family left out against benign windows": against_benign,
        f"what becomes of a family left out ({NOVELTY} above {MARK} marks a window as new)": fates,
        "AUROC against known windows, mean over families (novelty was chosen on agent)": means,
    }
    return {"D13.unknown": Gate(what, worst.value, 0.0, ">", worst.low, worst.high, by_interval=True)}, tables


def _estimate(values: Values) -> Estimate:
    return Estimate(float(values[0]), *interval(values[1:], 0.95))
