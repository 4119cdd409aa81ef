"""Predictors trained by Ray Train: `compute.workers` processes share each batch, and torch averages their gradients.

A worker that dies ends the others; Ray Train starts all of them again, and they go on from the last epoch where the first one finds its checkpoint
(a disk in common, or the same node), else from the start. Figures are handed over with the finished artifact.
"""
# pyright: reportMissingImports=false
# (Ray is no part of requirements.txt)

from __future__ import annotations

import copy
import shutil
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from matplotlib.figure import Figure
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import distributed

from src.artifacts import command, issued_by
from src.cluster.connection import at_home
from src.cluster.parcels import SCRATCH, pack, unpack
from src.config import Config
from src.data.dataset import Dataset
from src.errors import UserError
from src.training.autoencoder import AutoencoderTrainer
from src.training.log import TrainingLog
from src.training.lstm_trainer import LSTMTrainer

TRIES = 10
"""How often workers are started again after one has died."""


class Recorded:
    """A log that keeps what it is told, for another to be told in another process."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers."""
        self.calls.append(("log_metrics", (dict(metrics), step)))

    def log_figure(self, figure: Figure, path: str) -> None:
        """Record a figure."""
        self.calls.append(("log_figure", (figure, path)))

    def log_table(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        """Record rows."""
        self.calls.append(("log_table", ([dict(row) for row in rows], path)))

    def tell(self, log: TrainingLog) -> None:
        """Pass all of it on."""
        for name, given in self.calls:
            getattr(log, name)(*copy.deepcopy(given))  # figures that have travelled cannot be drawn: their arrays are read-only


def train_networks(config: Config, data: Dataset, log: TrainingLog, folder: Path, resume: bool) -> None:
    """Train base LSTM and temporal LSTM, as `src.training.lstm_trainer` does.

    Raises:
        UserError: what training says, or that workers died too often.
    """
    _train(LSTMTrainer, config, data, log, folder, resume)


def train_autoencoder(config: Config, data: Dataset, log: TrainingLog, folder: Path, resume: bool) -> list[dict[str, Any]]:
    """Train the LSTM autoencoder, as `src.training.autoencoder` does; returns a row a family of its evaluation.

    Raises:
        UserError: what training says, or that workers died too often.
    """
    return _train(AutoencoderTrainer, config, data, log, folder, resume)


def _train(kind: type[LSTMTrainer] | type[AutoencoderTrainer], config: Config, data: Dataset, log: TrainingLog, folder: Path, resume: bool) -> Any:
    place = folder.parent.resolve() / SCRATCH / folder.name
    if not resume:
        shutil.rmtree(place, ignore_errors=True)
    compute = config.compute
    gpu = compute.device == "cuda"
    given = {"kind": kind, "config": config, "data": ray.put(data), "folder": place / folder.name, "home": Path.cwd(), "issued": command()}
    # Ray Train keeps books of its own; they are of no use once the artifact is there.
    books = place.parent / f"ray-{uuid.uuid4().hex[:8]}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Ray deprecates is for Ray to mend
            found = TorchTrainer(
                _work,
                train_loop_config=given,
                scaling_config=ScalingConfig(num_workers=compute.workers, use_gpu=gpu, resources_per_worker={"CPU": float(compute.threads)}),
                run_config=RunConfig(name=folder.name, storage_path=str(books), failure_config=FailureConfig(max_failures=TRIES)),
                torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            ).fit()
    except Exception as error:  # Ray Train wraps what a worker raised, more than once
        raise _cause(error) from error
    finally:
        shutil.rmtree(books, ignore_errors=True)
    calls, parcel, rows, refused = found.return_value
    if refused:
        raise UserError(refused)
    calls.tell(log)
    unpack(parcel, folder)
    shutil.rmtree(place.parent, ignore_errors=True)
    return rows


def _cause(error: BaseException) -> Exception:
    return UserError(f"the training on the Ray cluster failed: {' '.join(str(error).split())[:300]}; look at its nodes, then go on with --resume")


def _work(given: dict[str, Any]) -> tuple[Recorded, dict[str, bytes], Any, str]:
    """Train, in each worker; the first one evaluates and packs the artifact."""
    first = distributed.get_rank() == 0
    log, folder = Recorded(), given["folder"]
    trainer = given["kind"](given["config"], ray.get(given["data"]), log)
    try:
        if not first:
            trainer.follow()
            return log, {}, None, ""
        with at_home(given["home"]), issued_by(given["issued"]):
            trained = trainer.train(folder, resume=True)
    except UserError as error:  # wrong data or settings are no reason to try again
        if first:
            distributed.destroy_process_group()  # or the others would wait
        return log, {}, None, str(error)
    except RuntimeError as error:
        if first or "closed by peer" not in str(error):
            raise
        return log, {}, None, ""  # the first worker has refused, or died, which Ray Train sees for itself
    return log, pack(folder), getattr(trained, "rows", None), ""
