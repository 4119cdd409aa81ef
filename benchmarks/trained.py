"""Agents that a benchmark compares: the world they live in, each trained once and kept, as many at a time as there are processors."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.benchmark import BenchmarkRunner, Scripted
from agents.training import RLTrainer, identity
from benchmarks.common import PartOptions, cache_folder, code_digest, digest
from benchmarks.parts import own_code
from src.config import Config, changed, load_config
from src.data.bank import TraceBank
from src.evaluation.rollout import PLANNER
from src.evaluation.statistics import Estimate, Resamples, estimated, ratio
from src.pipeline import start

SHORT = 200_000
"""Environment steps of a training where many settings are compared."""

QUICK = {
    "lstm.training.epochs": 10, "lstm.training.teachers": 0, "temporal.training.epochs": 5, "rl.total_timesteps": 20_000, "rl.ppo.demonstrations": 10_000,
    "eval.episodes": 60, "eval.tuning_episodes": 30, "eval.bootstrap": 200,
}  # fmt: skip
"""Settings of `--quick`."""

REFERENCES = ("best constant", "threshold on risk", "Bayes filter", PLANNER)
"""Policies that groups of agents are held against."""


@dataclass(frozen=True)
class World:
    """A configuration and its trace bank; `place` is where the bank lies, None for the bundled one."""

    config: Config
    bank: TraceBank
    place: Path | None

    def with_settings(self, settings: Mapping[str, Any]) -> World:
        """The same bank under other settings, by dotted name."""
        return World(changed(self.config, settings), self.bank, self.place)


def real_world(options: PartOptions) -> World:
    """The default configuration on real rows, with its sensors trained here if they are missing."""
    config = changed(load_config(overrides=[f"data.root={options.root}"], environ={}), QUICK if options.quick else {})
    with start(config, "lstm", None) as run:
        return World(config, run.bank(), run.bank_folder)


def train(world: World, groups: Mapping[str, Mapping[str, Any]], seeds: int) -> dict[str, dict[int, Path]]:
    """Folders of the agents of each group, by seed, trained where they are missing.

    Args:
        world: where.
        groups: name to settings, by dotted name, that differ from the world's.
        seeds: trainings of each.
    """
    # What of the settings matters is in the agents' identity; a new default elsewhere trains nothing anew.
    code = code_digest(*(place for place in own_code("agents.training") if place != "src/config.py"))
    found: dict[str, dict[int, Path]] = {}
    jobs = []
    for name, settings in groups.items():
        config = changed(world.config, settings)
        folder = cache_folder() / "agents" / digest(code, identity(config), world.bank.features.shape, float(world.bank.sensors.sum(dtype=np.float64)))
        trainer = RLTrainer(config, world.bank, folder)
        found[name] = {seed: trainer.target(seed) for seed in range(seeds)}
        jobs += [(config.model_dump(mode="json"), world.place, folder, seed) for seed in range(seeds)]
    # One process a processor: a training computes on one thread.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_train, *zip(*jobs, strict=True)))
    return found


def _train(settings: dict[str, Any], place: Path | None, folder: Path, seed: int) -> None:
    bank = TraceBank.bundled() if place is None else TraceBank.load(place)
    RLTrainer(Config.model_validate(settings), bank, folder).train(seed, resume=True)


def returns(world: World, side: str, agents: Mapping[int, Path]) -> NDArray[np.float64]:
    """(seeds, episodes) returns of a group on a side."""
    return np.stack([one.returns for one in BenchmarkRunner(world.config, world.bank).on(side).play_agents(agents)])


def references(world: World) -> dict[str, Scripted]:
    """The policies that groups are held against, tuned in this world."""
    return BenchmarkRunner(world.config, world.bank).scripted(REFERENCES)


def levels(world: World, side: str, tuned: Mapping[str, Scripted]) -> dict[str, NDArray[np.float64]]:
    """(episodes,) returns of tuned policies on a side."""
    played = BenchmarkRunner(world.config, world.bank).on(side).side(tuned, {}).episodes
    return {name: runs[0].returns for name, runs in played.items()}


def group_rows(world: World, groups: Mapping[str, tuple[World, Mapping[int, Path]]], against: str | None = None) -> list[dict[str, Any]]:
    """A row a group and side with attackers: mean return, and its place between the Bayes filter (0) and the planner (1).

    Args:
        world: whose policies to compare with are tuned and played.
        groups: name to the world that the group was trained for, and its agents.
        against: name of the group that the others are compared with.
    """
    rows, tuned = [], references(world)
    for side in ("seen", "held out"):
        scale = levels(world, side, tuned)
        played = {name: returns(own, side, agents) for name, (own, agents) in groups.items()}
        drawn = _resamples(world, played.values())
        zero, one = drawn.means(scale["Bayes filter"][None]), drawn.means(scale[PLANNER][None])
        for name, values in played.items():
            mine = drawn.means(values)
            row: dict[str, Any] = {"side": side, "agents": name, "seeds": len(values), "return": float(mine[0])}
            row |= _spread("H", _estimate(ratio(mine - zero, one - zero), world))
            row |= {name: float(level.mean()) for name, level in scale.items()}
            if against is not None:
                same = name == against
                gain = None if same else _estimate(mine - drawn.means(played[against]), world)
                row |= {f"minus {against}": gain and gain.value, "low": gain and gain.low, "high": gain and gain.high}
            rows.append(row)
    return rows


def _resamples(world: World, played: Iterable[NDArray[np.float64]]) -> Resamples:
    settings, values = world.config.eval, list(played)
    strata = np.zeros(values[0].shape[1], np.int64)
    return Resamples.draw(strata, {1, *(len(one) for one in values)}, settings.bootstrap, np.random.default_rng(world.config.compute.seed))


def _estimate(values: NDArray[np.float64], world: World) -> Estimate:
    return estimated(values, world.config.eval.confidence)


def _spread(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, f"{name} low": found.low, f"{name} high": found.high}


def compared(options: PartOptions) -> tuple[int, dict[str, Any]]:
    """Trainings of each group where many are compared, and settings of their length."""
    return (1, {}) if options.quick else (options.seeds, {"rl.total_timesteps": SHORT, "rl.validation_steps": SHORT // 4})
