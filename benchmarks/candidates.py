"""Detectors that are compared on the same windows: how each is trained, and what it says, kept so that a run that was cut off goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import cache_folder, code_digest, digest
from src.artifacts import new_artifact, open_artifact
from src.config import Config
from src.data.dataset import Dataset
from src.models.predictor_interface import EnhancedAttackPredictor
from src.training.lstm_trainer import LSTMTrainer
from src.training.peers import PEERS, Predictor

KIND = "benchmark-readout"
CODE = ("src/config.py", "src/data", "src/models", "src/training", "benchmarks/candidates.py")
"""What a kept model hangs on."""

Windows = NDArray[np.float32]
Train = Callable[[Config, Dataset, int, Path], Predictor]
"""Configuration, data set, seed and a folder of its own, to keep what it trains in, to a trained candidate."""


@dataclass(frozen=True)
class Readout:
    """What one trained candidate says."""

    probabilities: dict[str, NDArray[np.float32]]
    """(W, C) by name of the windows."""
    doubt: dict[str, NDArray[np.float32]]
    """(W,) epistemic uncertainty by name of the windows, nats; empty where a candidate states none."""
    parameters: int
    """Fitted parameters: weights of a network, leaves of trees."""
    seconds: float
    """Training time."""


class Network:
    """A trained sensor among the peers."""

    def __init__(self, sensor: EnhancedAttackPredictor) -> None:
        self.sensor = sensor

    def probabilities(self, windows: Windows) -> NDArray[np.float32]:
        """(N, C) calibrated probabilities of raw windows (N, T, F)."""
        return self.sensor.read(windows).probabilities

    def size(self) -> int:
        """Trainable parameters."""
        return self.sensor.model.count_parameters()


def train_base(config: Config, dataset: Dataset, seed: int, folder: Path) -> Network:
    """The base LSTM, as `--phase lstm` trains it."""
    seeded = config.model_copy(update={"compute": config.compute.model_copy(update={"seed": seed})})
    return Network(LSTMTrainer(seeded, dataset).train(folder, resume=True).sensor)


def _peer(name: str) -> Train:
    return lambda config, dataset, seed, folder: PEERS[name](dataset, config.data.window, seed)


BASE, TEMPORAL = "base LSTM", "temporal LSTM"
CANDIDATES: dict[str, Train] = {BASE: train_base, **{name: _peer(name) for name in PEERS}}
"""Every candidate by the name that tables show."""


def read_out(name: str, config: Config, dataset: Dataset, seed: int, windows: Mapping[str, Callable[[], Windows]]) -> Readout:
    """Train a candidate with a seed and let it read every set of windows, or take what it said when it was trained on the same before.

    Kept by data, configuration, seed and `CODE`.
    """
    identity = digest(name, dataset.data_hash, config.model_dump(mode="json", exclude={"compute"}), seed, sorted(windows), code_digest(*CODE))
    folder = cache_folder() / "readouts" / identity
    if folder.exists():
        meta = open_artifact(folder, KIND)
        with np.load(folder / "readout.npz") as arrays:
            found = {key: arrays[key] for key in arrays.files}
    else:
        started = time.perf_counter()
        model = CANDIDATES[name](config, dataset, seed, cache_folder() / "models" / identity)
        meta = {"candidate": name, "seed": seed, "data_hash": dataset.data_hash, "seconds": time.perf_counter() - started, "parameters": model.size()}
        found = {}
        for key, make in windows.items():
            held = make()
            found[f"probabilities/{key}"] = model.probabilities(held)
            if (epistemic := getattr(model, "epistemic", None)) is not None:
                found[f"doubt/{key}"] = epistemic(held)
        with new_artifact(folder, KIND, meta) as target:
            np.savez(target / "readout.npz", **found)  # type: ignore[arg-type]
    parts = {part: {key.partition("/")[2]: value for key, value in found.items() if key.startswith(part)} for part in ("probabilities", "doubt")}
    return Readout(parts["probabilities"], parts["doubt"], int(meta["parameters"]), float(meta["seconds"]))
