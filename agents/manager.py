"""The trainings of an experiment: every seed of every group of agents, those that are there already left alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agents.training import OnMetrics, identity
from src.config import AGENT, Config, changed, flatten
from src.data.bank import TraceBank
from src.errors import UserError
from src.predictor.interface import Sensor


def groups(config: Config) -> dict[str, Config]:
    """The configuration of each group of agents by its name: `AGENT`, then `rl.variants`.

    Raises:
        UserError: for a variant with an unknown setting or a value of the wrong type or range, or that trains the same agents as another group.
    """
    alone = changed(config, {"rl.variants": {}})
    found, known = {AGENT: alone}, {json.dumps(identity(alone)): AGENT}
    for name, settings in config.rl.variants.items():
        try:
            found[name] = changed(alone, {f"rl.{key}": value for key, value in flatten(settings).items()})
        except UserError as error:
            raise UserError(f"rl.variants.{name}: {error}") from error
        if (other := known.setdefault(json.dumps(identity(found[name])), name)) != name:
            raise UserError(f"rl.variants.{name} would train the same agents as '{other}'; of the sections of algorithms only that of `algorithm` counts")
    return found


class Trainer(Protocol):
    """Trains the agents of one configuration, as `agents.training.RLTrainer` does, of whose class's arguments it is made."""

    config: Config
    bank: TraceBank
    folder: Path
    sensor: Sensor | None

    def target(self, seed: int) -> Path:
        """Where the agent of a seed is saved."""
        ...

    def trained(self, seed: int) -> bool:
        """Whether the agent of a seed is there, whole, and of this configuration."""
        ...

    def train(self, seed: int, on_metrics: OnMetrics | None = None, resume: bool = False) -> Path:
        """Train one agent, save it, and return its folder; `resume` goes on from a checkpoint where there is one."""
        ...


@dataclass(frozen=True)
class Job:
    """One training."""

    group: str
    """Name of the group that the agent is of."""
    trainer: Trainer
    seed: int

    def __str__(self) -> str:
        """For the user."""
        config = self.trainer.config
        return f"{self.group}, seed {self.seed}: {config.rl.total_timesteps:,} steps of '{config.env.scenario}'"


Watch = Callable[[Job], AbstractContextManager[OnMetrics | None]]
"""Given a job, what its metrics go to; left once the agent is saved."""

Say = Callable[[str], None]
CarryOut = Callable[[Sequence[Job], Watch, bool, Say], None]
"""Trains all jobs, in any order; the flag says whether to go on from checkpoints, and lines for the user go to the last."""


def in_turn(jobs: Sequence[Job], watch: Watch, resume: bool, say: Say) -> None:
    """Train one after the other, in this process."""
    for job in jobs:
        say(f"training {job}")
        with watch(job) as on_metrics:
            job.trainer.train(job.seed, on_metrics, resume)


class TrainingManager:
    """Trains groups of agents, each with the same seeds."""

    def __init__(self, trainers: Mapping[str, Trainer], seeds: Sequence[int], carry_out: CarryOut = in_turn) -> None:
        """`trainers` by name of a group."""
        self.trainers, self.seeds, self.carry_out = trainers, seeds, carry_out

    @property
    def agents(self) -> dict[str, dict[int, Path]]:
        """By group and seed, where the agent is saved."""
        return {group: {seed: trainer.target(seed) for seed in self.seeds} for group, trainer in self.trainers.items()}

    def train(self, watch: Watch, say: Say, resume: bool = False, reuse: bool = False) -> None:
        """Train what is missing.

        Args:
            watch: opened around each training.
            say: receives lines for the user.
            resume: go on from the checkpoint of an interrupted training; implies `reuse`.
            reuse: keep agents that are trained already; else each is trained anew.

        Raises:
            UserError: for an altered artifact, a checkpoint of another run, or a folder that cannot be written.
        """
        jobs = [Job(group, trainer, seed) for group, trainer in self.trainers.items() for seed in self.seeds]
        missing = [job for job in jobs if not ((resume or reuse) and job.trainer.trained(job.seed))]
        self.carry_out(missing, watch, resume, say)
