"""Plays every policy on the same held-out episodes, and says how they compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.baselines import SIGNALS, Constant, Random, Threshold, threshold_candidates
from agents.bayes import BayesFilter, bayes_candidates
from agents.learned import load_policy
from agents.planner import Planner
from envs import IoTEnv, IoTVectorEnv
from envs.dynamics import Order
from envs.recording import EpisodeRecorder, Recording, read_recording
from envs.scenarios import FAMILIES, build_network
from envs.world import Simulation
from src.config import Config
from src.data.bank import TraceBank
from src.evaluation.rollout import Episodes, Policy, play
from src.evaluation.statistics import Estimate, difference_estimate, mean_estimate
from src.predictor.interface import Sensor

TEST_SEED = 1_000_000
"""First seed of the held-out episodes; training and tuning stay below it."""

TUNING_SEED = 500_000
"""First seed of the episodes on which heuristics are tuned."""

BENIGN_SHARE = 0.95
"""Share of benign windows among those that devices show in play: .95 where nobody defends, .98 under the Bayes filter."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """What was found."""

    rows: list[dict[str, Any]]
    """A row a policy, best last: `policy, return, low, high` and measures apart from the reward."""
    differences: dict[str, Estimate]
    """Mean return of the agent minus that of each policy compared with, paired by episode."""
    threshold: Threshold
    """The rule that tuning chose."""
    episodes: dict[str, list[Episodes]]
    """By policy; a list entry a training seed."""
    ablations: dict[str, Estimate]
    """Mean return that the agent loses when a sensor's readings are replaced by noise."""


class BenchmarkRunner:
    """Compares policies on one side of a trace bank."""

    def __init__(self, config: Config, bank: TraceBank, split: str = "test", sensor: Sensor | None = None) -> None:
        """Sections `env`, `attackers`, `reward` and `eval` of the configuration are read; `sensor` reads along where `env.sensors` is `live`."""
        self.config, self.bank, self.split, self.sensor = config, bank, split, sensor

    def env(self, count: int, split: str | None = None, mode: str = "discrete") -> IoTVectorEnv:
        """A batch of environments with flat observations."""
        return IoTVectorEnv(count, bank=self.bank, split=split or self.split, config=self.config, sensor=self.sensor, flatten=True, action_mode=mode)

    def blinded(self, sensor: str) -> BenchmarkRunner:
        """The same world, with one sensor's readings (`families`: all eight probabilities) replaced by those of random windows of the split.

        They are drawn as play shows them, benign ones mostly, so that what is seen stays as it was and only the information is gone;
        attackers evade as before.
        """
        columns = np.flatnonzero([name == sensor or (sensor == "families" and name.startswith("probability:")) for name in self.bank.sensor_names])
        rng = np.random.default_rng(self.config.compute.seed)
        noisy = np.array(self.bank.sensors)
        for split in np.unique(self.bank.split):
            inside = np.flatnonzero(self.bank.split == split)
            benign = np.isin(self.bank.label[inside], [i for i, family in enumerate(self.bank.class_families) if family == FAMILIES[0]])
            weight = np.where(benign, BENIGN_SHARE / max(benign.sum(), 1), (1 - BENIGN_SHARE) / max((~benign).sum(), 1))
            donors = rng.choice(inside, len(inside), p=weight / weight.sum())
            noisy[np.ix_(inside, columns)] = np.array(self.bank.sensors)[np.ix_(donors, columns)]
        stored = self.config.model_copy(update={"env": self.config.env.model_copy(update={"sensors": "stored"})})
        return BenchmarkRunner(stored, self.bank.with_sensors(noisy), self.split)

    def tune(self, signal: str = "risk") -> Threshold:
        """The best threshold rule on a signal, on `agent` traces, never on those of the evaluation."""
        env = self.env(self.config.eval.tuning_episodes, "agent")
        return max(threshold_candidates(env.simulation.layout, signal), key=lambda rule: play(env, rule, TUNING_SEED).mean)

    def tune_bayes(self) -> BayesFilter:
        """The Bayes filter that does best on `agent` traces; what it knows of readings is from `calibrate`."""
        env = self.env(self.config.eval.tuning_episodes, "agent")
        return max(bayes_candidates(self.config, self.bank, env.simulation.layout), key=lambda one: play(env, one, TUNING_SEED).mean)

    def champion(self, agents: Mapping[int, Path]) -> Path:
        """The trained agent that does best on `agent` traces: `test` only measures, it does not choose."""
        env = self.env(self.config.eval.tuning_episodes, "agent")
        return max(agents.values(), key=lambda folder: play(env, load_policy(folder, env.simulation), TUNING_SEED).mean)

    def constants(self, env: IoTVectorEnv, seed: int = TEST_SEED) -> dict[str, Episodes]:
        """Every single action, each repeated for the whole episode, and each kind on all devices at once."""
        names, count = env.simulation.network.names, env.num_envs
        found = {}
        for d, name in enumerate(names):
            for order in list(Order)[1:]:
                found[f"{order.name} {name}"] = play(env, Constant(1 + d * 5 + order - 1), seed)
        joint = self.env(count, mode="joint")
        for order in list(Order)[1:]:
            found[f"{order.name} all"] = play(joint, Constant(int(order), len(names)), seed)
        return found

    def run(self, agents: Mapping[int, Path], tell: Tell = lambda _: None) -> Comparison:
        """Play all policies.

        Args:
            agents: folder of each trained agent, by its seed.
            tell: receives a line before each part.
        """
        settings = self.config.eval
        env = self.env(settings.episodes)
        tell("tuning the threshold rule and the Bayes filter on the agent's traces")
        rule = self.tune()
        tell(f"playing {settings.episodes} held-out episodes a policy")
        episodes: dict[str, list[Episodes]] = {"no-op": [play(env, Constant(0), TEST_SEED)]}
        constants = self.constants(env)
        best = max(constants, key=lambda name: constants[name].mean)
        worst = min(constants, key=lambda name: constants[name].mean)
        episodes[f"worst constant: {worst}"] = [constants[worst]]
        episodes["random"] = [play(env, Random(env.simulation.layout, seed=self.config.compute.seed), TEST_SEED)]
        episodes[f"best constant: {best}"] = [constants[best]]
        episodes["tuned threshold"] = [play(env, rule, TEST_SEED)]
        episodes["Bayes filter"] = [play(env, self.tune_bayes(), TEST_SEED)]
        for _, folder in sorted(agents.items()):
            episodes.setdefault("agent", []).append(play(env, load_policy(folder, env.simulation), TEST_SEED))
        episodes["planner (sees the truth)"] = [play(env, Planner(env.simulation), TEST_SEED)]
        rng = np.random.default_rng(self.config.compute.seed)
        rows = [self._row(name, played, rng) for name, played in episodes.items()]
        differences, ablations = {}, {}
        if agents:
            mine = np.stack([played.returns for played in episodes["agent"]])
            for name, played in episodes.items():
                if name != "agent":
                    differences[name] = difference_estimate(mine, played[0].returns, settings.bootstrap, settings.confidence, rng)
            tell("playing the agents with noise for each sensor")
            for sensor in ("families", *SIGNALS):
                blind = self.blinded(sensor).env(settings.episodes)
                noisy = np.stack([play(blind, load_policy(folder, blind.simulation), TEST_SEED).returns for _, folder in sorted(agents.items())])
                ablations[sensor] = difference_estimate(mine, noisy, settings.bootstrap, settings.confidence, rng)
        return Comparison(rows, differences, rule, episodes, ablations)

    def _row(self, name: str, played: list[Episodes], rng: np.random.Generator) -> dict[str, Any]:
        settings = self.config.eval
        returns = np.stack([one.returns for one in played])  # (seeds, episodes)
        estimate = mean_estimate(returns if len(returns) > 1 else returns[0], settings.bootstrap, settings.confidence, rng)
        total = {key: np.concatenate([one.summary[key] for one in played]) for key in played[0].summary}
        ends = np.bincount(np.concatenate([one.end for one in played]), minlength=4) / returns.size
        hours = total["steps"].sum() * self.config.env.step_seconds / 3600.0
        calm = total["attacked"] == 0
        calm_days = total["steps"][calm].sum() * self.config.env.step_seconds / 86_400.0 * len(build_network(self.config.env.scenario).names)
        orders = {order.name.lower(): total[order.name.lower()].sum() for order in list(Order)[1:]}
        given = max(sum(orders.values()), 1.0)
        return {
            "policy": name,
            "return": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "damage": float(total["damage"].mean()),
            "service_loss": float(total["service"].mean()),
            "healthy_service": float(total["healthy_service"].mean()),
            "steps_to_contain": float(total["dwell"].sum() / max(total["compromises"].sum(), 1.0)),
            "orders_per_hour": float(total["orders"].sum() / hours),
            "false_downtime_hours_per_device_day": float(total["false_isolation"][calm].sum() * self.config.env.step_seconds / 3600.0 / calm_days)
            if calm.any()
            else 0.0,
            "length": float(total["steps"].mean()),
            **{f"end_{end}": float(ends[i]) for i, end in enumerate(("overrun", "evicted", "horizon"), start=1)},
            **{f"share_{kind}": float(count / given) for kind, count in orders.items()},
        }

    def record(self, policy: Callable[[Simulation], Policy], seed: int, path: Path) -> Recording:
        """Play one episode, and keep it at `path` with the truth beside what was ordered."""
        env = IoTEnv(bank=self.bank, split=self.split, config=self.config, sensor=self.sensor, flatten=True, action_mode="discrete")
        kept = EpisodeRecorder(env, path, truth=True)
        acting = policy(env.simulation)
        observation, _ = kept.reset(seed=seed)
        state, over = None, False
        while not over:
            action, state = acting.predict(observation[None], state, episode_start=np.array([state is None]), deterministic=True)
            observation, _, terminated, truncated, _ = kept.step(int(action[0]))
            over = terminated or truncated
        return read_recording(path)
