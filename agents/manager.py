"""Several trainings of one configuration: a seed after the other, those that are there already left alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from agents.training import OnMetrics, RLTrainer
from src.config import Config
from src.data.bank import TraceBank
from src.predictor.interface import Sensor

Watch = Callable[[int], AbstractContextManager[OnMetrics | None]]
"""Given a seed, what its metrics go to while it trains."""


class TrainingManager:
    """Trains `rl.seeds` agents, with seeds from `compute.seed` on."""

    def __init__(self, config: Config, bank: TraceBank, folder: Path, sensor: Sensor | None = None) -> None:
        """`folder` receives one artifact a seed; `sensor` reads along where `env.sensors` is `live`."""
        self.trainer = RLTrainer(config, bank, folder, sensor)
        self.seeds = range(config.compute.seed, config.compute.seed + config.rl.seeds)

    @property
    def agents(self) -> dict[int, Path]:
        """Where the agent of each seed is saved."""
        return {seed: self.trainer.target(seed) for seed in self.seeds}

    def train(self, watch: Watch, resume: bool = False, reuse: bool = False) -> dict[int, Path]:
        """Train what is missing, and return the agents' folders.

        Args:
            watch: opened around each training.
            resume: go on from the checkpoint of an interrupted training; implies `reuse`.
            reuse: keep agents that are trained already; else each is trained anew.

        Raises:
            UserError: for an altered artifact, a checkpoint of another run, or a folder that cannot be written.
        """
        for seed in self.seeds:
            if (resume or reuse) and self.trainer.trained(seed):
                continue
            with watch(seed) as on_metrics:
                self.trainer.train(seed, on_metrics, resume)
        return self.agents
