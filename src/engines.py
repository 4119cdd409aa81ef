"""Who trains: this process, one thing after another, or a Ray cluster, side by side (`compute.engine`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.manager import CarryOut, Trainer, in_turn
from agents.training import RLTrainer
from src.config import ComputeConfig, Config
from src.data.bank import TraceBank
from src.data.dataset import Dataset
from src.predictor.interface import Sensor
from src.training.autoencoder import AutoencoderTrainer
from src.training.log import TrainingLog
from src.training.lstm_trainer import LSTMTrainer
from src.training.search import Search, search

Families = list[dict[str, Any]]
"""A row a family of traffic, from the autoencoder's evaluation."""


@dataclass(frozen=True)
class Engine:
    """What trains, and leaves artifacts in a folder and figures in a log. The last argument of either predictor says whether to resume."""

    trainer: Callable[[Config], Callable[[Config, TraceBank, Path, Sensor | None], Trainer]]
    """Of a configuration's algorithm, what makes its trainer."""
    train_agents: CarryOut
    train_networks: Callable[[Config, Dataset, TrainingLog, Path, bool], None]
    """Base LSTM and temporal LSTM."""
    train_autoencoder: Callable[[Config, Dataset, TrainingLog, Path, bool], Families]
    search: Search


def _networks(config: Config, data: Dataset, log: TrainingLog, folder: Path, resume: bool) -> None:
    LSTMTrainer(config, data, log).train(folder, resume)


def _autoencoder(config: Config, data: Dataset, log: TrainingLog, folder: Path, resume: bool) -> Families:
    return AutoencoderTrainer(config, data, log).train(folder, resume).rows


@contextlib.contextmanager
def engine(compute: ComputeConfig) -> Iterator[tuple[Engine, str]]:
    """Who trains as `compute` says, and what is to be told of it.

    Raises:
        UserError: when a cluster is asked for and cannot be reached.
    """
    if compute.engine == "local":
        yield Engine(lambda _: RLTrainer, in_turn, _networks, _autoencoder, search), ""
        return
    from src.cluster.connection import connected

    with connected(compute) as told:
        from src.cluster import agents, predictors, rllib, trials  # once Ray is known to be there

        def trainer(config: Config) -> type[RLTrainer]:
            return rllib.RLlibTrainer if config.rl.algorithm == "rllib_ppo" else RLTrainer

        yield Engine(trainer, agents.train_agents, predictors.train_networks, predictors.train_autoencoder, trials.search), told
