"""Detectors that are compared on the same windows: how each is trained, and what it says, kept so that a run that was cut off goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.common import cache_folder, code_digest, digest
from src.artifacts import new_artifact, open_artifact
from src.config import Config
from src.data.dataset import Dataset
from src.models.lstm_attack_predictor import RealDataLSTMPredictor, build_model
from src.models.lstm_sae import AnomalyDetector
from src.models.predictor_interface import EnhancedAttackPredictor
from src.models.temporal_lstm import AdvancedLSTMTemporal, create_model
from src.training.autoencoder import AutoencoderTrainer
from src.training.fused import join
from src.training.lstm_trainer import LSTMTrainer, remove_checkpoints
from src.training.peers import PEERS, Predictor

MODEL, READOUT = "benchmark-model", "benchmark-readout"
DATA_CODE = tuple(f"src/data/{name}.py" for name in ("ciciot2023", "dataset", "nbaiot", "profile", "splits", "synthetic", "taxonomy", "windows"))
NETWORK_CODE = (
    *DATA_CODE,
    *(f"src/models/{name}.py" for name in ("classifier", "loop", "lstm_attack_predictor", "scores", "stopping", "temperature")),
    *("src/models/temporal_lstm", "src/training/lstm_trainer.py", "src/training/temporal_trainer.py", "benchmarks/candidates.py"),
)
SENSOR_CODE = (
    *NETWORK_CODE,
    *(f"src/models/{name}.py" for name in ("fusion", "lstm_sae", "predictor_interface")),
    *(f"src/training/{name}.py" for name in ("autoencoder", "fused", "sae_trainer")),
)
PEER_CODE = (*DATA_CODE, "src/models/scores.py", "src/training/peers.py", "benchmarks/candidates.py")
"""Code that a kept candidate hangs on."""
BATCH = 1024

Windows = NDArray[np.float32]
Train = Callable[[Config, Dataset, int], tuple[Predictor, float]]
"""Configuration, data set and seed to a trained candidate, and the seconds that its training took."""


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
    """A trained network among the peers."""

    def __init__(self, model: RealDataLSTMPredictor | AdvancedLSTMTemporal) -> None:
        self.model = model

    def probabilities(self, windows: Windows) -> NDArray[np.float32]:
        """(N, C) calibrated probabilities of raw windows (N, T, F)."""
        return self.read(windows)["probabilities"]

    def read(self, windows: Windows) -> dict[str, NDArray[np.float32]]:
        """`probabilities` (N, C) and, of a network that draws from a posterior, `doubt` (N,): mutual information of class and weights, nats."""
        found: dict[str, list[NDArray[np.float32]]] = {}
        for first in range(0, len(windows), BATCH):
            part = torch.from_numpy(np.ascontiguousarray(windows[first : first + BATCH]))
            if isinstance(self.model, AdvancedLSTMTemporal):
                told = self.model.uncertainties(part)
                said = {"probabilities": told["probabilities"], "doubt": told["epistemic"]}
            else:
                said = {"probabilities": self.model.predict_attack_probability(part)}
            for key, value in said.items():
                found.setdefault(key, []).append(value.numpy())
        return {key: np.concatenate(values) for key, values in found.items()}

    def size(self) -> int:
        """Trainable parameters."""
        counts = self.model.count_parameters()
        return counts if isinstance(counts, int) else counts["total"]


def base_lstm(config: Config, dataset: Dataset, seed: int) -> tuple[RealDataLSTMPredictor, float]:
    """The base LSTM as `--phase lstm` trains it, and the seconds that took; kept, and taken from what was kept."""
    trainer = LSTMTrainer(_seeded(config, seed), dataset)
    return _kept(BASE, config, dataset, seed, lambda: build_model(trainer.shape, seed), lambda file: trainer.train_base(file, resume=True)[0])


def temporal_lstm(config: Config, dataset: Dataset, seed: int) -> tuple[AdvancedLSTMTemporal, float]:
    """The temporal LSTM likewise."""
    trainer = LSTMTrainer(_seeded(config, seed), dataset)
    return _kept(TEMPORAL, config, dataset, seed, lambda: create_model(trainer.temporal_shape), lambda file: trainer.train_temporal(file, resume=True)[0])


def fused_sensor(config: Config, dataset: Dataset, seed: int) -> tuple[EnhancedAttackPredictor, float]:
    """Both networks and the autoencoder of a seed as one sensor, joined on `calibrate`, and the seconds that training all three took."""
    base, first = base_lstm(config, dataset, seed)
    temporal, second = temporal_lstm(config, dataset, seed)
    detector, third = autoencoder(config, dataset, seed)
    return join(config, dataset, base, temporal, detector), first + second + third


def autoencoder(config: Config, dataset: Dataset, seed: int) -> tuple[AnomalyDetector, float]:
    """The autoencoder as `--phase sae` trains it, and the seconds that took; kept, and taken from what was kept."""
    folder = cache_folder() / "autoencoders" / identity(AUTOENCODER, config, dataset, seed)
    if not folder.exists():
        AutoencoderTrainer(_seeded(config, seed), dataset).train(folder, resume=True)
    detector, meta = AnomalyDetector.load(folder)
    return detector, float(meta["metrics"]["seconds"])


class Fused(Network):
    """The fused sensor among the peers."""

    def __init__(self, sensor: EnhancedAttackPredictor) -> None:
        self.sensor = sensor

    def read(self, windows: Windows) -> dict[str, NDArray[np.float32]]:
        """`probabilities` (N, C) and `doubt` (N,): how far networks and draws disagree."""
        reading = self.sensor.read(windows)
        return {"probabilities": reading.probabilities, "doubt": reading.uncertainty}

    def size(self) -> int:
        """Trainable parameters of all networks."""
        second, detector = self.sensor.second, self.sensor.detector
        counts = [self.sensor.model.count_parameters(), second.model.count_parameters()["total"] if second else 0]
        return sum(counts) + (detector.model.count_parameters() if isinstance(detector, AnomalyDetector) else 0)


def _fused(config: Config, dataset: Dataset, seed: int) -> tuple[Predictor, float]:
    sensor, seconds = fused_sensor(config, dataset, seed)
    return Fused(sensor), seconds


def _seeded(config: Config, seed: int) -> Config:
    return config.model_copy(update={"compute": config.compute.model_copy(update={"seed": seed})})


Model = TypeVar("Model", bound=nn.Module)


def _kept(name: str, config: Config, dataset: Dataset, seed: int, build: Callable[[], Model], train: Callable[[Path], Model]) -> tuple[Model, float]:
    folder = cache_folder() / "models" / identity(name, config, dataset, seed)
    if folder.exists():
        meta, model = open_artifact(folder, MODEL), build()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval(), float(meta["seconds"])
    started, checkpoint = time.perf_counter(), folder.with_name(folder.name + ".checkpoint.pt")
    model = train(checkpoint).eval()
    seconds = time.perf_counter() - started
    with new_artifact(folder, MODEL, {"candidate": name, "seed": seed, "data_hash": dataset.data_hash, "seconds": seconds}) as target:
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, target / "model.safetensors")
    remove_checkpoints(checkpoint)
    return model, seconds


def identity(name: str, config: Config, dataset: Dataset, seed: int) -> str:
    """What a trained candidate hangs on: data, the sections of the configuration that it reads, seed and code."""
    code = PEER_CODE if name in PEERS else SENSOR_CODE if name in (FUSED, AUTOENCODER) else NETWORK_CODE
    return digest(name, dataset.data_hash, config.model_dump(mode="json", include={"data", *SECTIONS.get(name, ())}), seed, code_digest(*code))


def _peer(name: str) -> Train:
    def train(config: Config, dataset: Dataset, seed: int) -> tuple[Predictor, float]:
        started = time.perf_counter()
        return PEERS[name](dataset, config.data.window, seed), time.perf_counter() - started

    return train


def _network(train: Callable[[Config, Dataset, int], tuple[Any, float]]) -> Train:
    def wrapped(config: Config, dataset: Dataset, seed: int) -> tuple[Predictor, float]:
        model, seconds = train(config, dataset, seed)
        return Network(model), seconds

    return wrapped


BASE, TEMPORAL, FUSED, AUTOENCODER = "base LSTM", "temporal LSTM", "fused sensor", "LSTM autoencoder"
SECTIONS = {BASE: ("lstm",), TEMPORAL: ("temporal",), FUSED: ("lstm", "temporal", "sae"), AUTOENCODER: ("sae",)}
"""Sections of the configuration that a candidate reads beside `data`."""
CANDIDATES: dict[str, Train] = {BASE: _network(base_lstm), TEMPORAL: _network(temporal_lstm), FUSED: _fused, **{name: _peer(name) for name in PEERS}}
"""Every candidate by the name that tables show."""


def read_out(name: str, config: Config, dataset: Dataset, seed: int, windows: Mapping[str, Callable[[], Windows]]) -> Readout:
    """Train a candidate with a seed and let it read every set of windows, or take what it said when it was trained on the same before.

    What was kept hangs on the modules that make the windows, too: by the module of each maker, and that of `side_windows`, which makers call.
    """
    makers = code_digest("src/training/peers.py", *sorted({f"{make.__module__.replace('.', '/')}.py" for make in windows.values()}))
    folder = cache_folder() / "readouts" / digest(identity(name, config, dataset, seed), sorted(windows), makers)
    if folder.exists():
        meta = open_artifact(folder, READOUT)
        with np.load(folder / "readout.npz") as arrays:
            found = {key: arrays[key] for key in arrays.files}
    else:
        model, seconds = CANDIDATES[name](config, dataset, seed)
        meta = {"candidate": name, "seed": seed, "data_hash": dataset.data_hash, "seconds": seconds, "parameters": model.size()}
        found = {}
        for key, make in windows.items():
            held = make()
            said = model.read(held) if isinstance(model, Network) else {"probabilities": model.probabilities(held)}
            found |= {f"{part}/{key}": value for part, value in said.items()}
        with new_artifact(folder, READOUT, meta) as target:
            np.savez(target / "readout.npz", **found)  # type: ignore[arg-type]
    parts = {part: {key.partition("/")[2]: value for key, value in found.items() if key.startswith(part)} for part in ("probabilities", "doubt")}
    return Readout(parts["probabilities"], parts["doubt"], int(meta["parameters"]), float(meta["seconds"]))
