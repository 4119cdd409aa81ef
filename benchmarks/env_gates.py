"""Is the environment worth solving? `python -m benchmarks.env_gates [--episodes 500] [--quick]`.

Gates 1, 3 and 6 of the environment's model, and of gate 2 what concerns threshold rules, on held-out traces of `clinic`.
Real traffic is used where the folder of CICIoT2023 CSVs is given or found beside the checkout, with a predictor trained for
it here; elsewhere the bundled synthetic bank, and the result says so. `--quick` plays 100 episodes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from agents.baselines import Constant, Random, Threshold
from agents.benchmark import TEST_SEED, BenchmarkRunner
from agents.planner import Planner
from benchmarks.common import Gate, launch, parser, write_result
from envs import IoTVectorEnv
from envs.world import Layout
from src.config import Config, load_config
from src.data.bank import TraceBank
from src.evaluation.rollout import Episodes, Policy, play
from src.evaluation.statistics import difference_estimate, interval

Numbers = NDArray[np.float64]


def main() -> None:
    """Measure, print and write."""
    words = parser(__doc__, data=True)
    words.add_argument("--episodes", type=int, default=500, help="a policy")
    given = words.parse_args()
    episodes = 100 if given.quick else given.episodes
    root = given.root if given.root.exists() else None
    if root is None:
        print(f"no CICIoT2023 CSVs at '{given.root}': measuring on the bundled synthetic bank")
    config = load_config(overrides=[f"eval.episodes={episodes}", f"eval.tuning_episodes={min(episodes, 100)}", f"data.root={root or 'null'}"])
    bank = TraceBank.bundled() if root is None else trained_bank(config)
    runner = BenchmarkRunner(config, bank)
    rules = {signal: runner.tune(signal) for signal in ("risk", "anomaly")}
    gates, rows = worth_solving(runner, rules)
    more, sensed = sensors_matter(runner, rules)
    gates |= more | behaves(config, bank, 50_000 if given.quick else 1_000_000)
    data = "real" if bank.source == "real" else "synthetic"
    write_result("env_gates", data, gates, {"policies": rows, "sensors": sensed}, given.quick)


def trained_bank(config: Config) -> TraceBank:
    """The bank of this data, with the predictor of the default configuration."""
    from src.pipeline import start

    with start(config, "lstm", None) as run:
        run.train_sensor()
        return run.bank()


def worth_solving(runner: BenchmarkRunner, rules: dict[str, Threshold]) -> tuple[dict[str, Gate], list[dict[str, Any]]]:
    """Gate 1, no constant action solves it and little damage is beyond reach; of gate 2, the tuned threshold rules leave room."""
    env = runner.env(runner.config.eval.episodes)
    constants = {"no-op": play(env, Constant(0), TEST_SEED), **runner.constants(env)}
    ranked = sorted(constants, key=lambda name: constants[name].mean)
    played = {
        **{name: constants[name] for name in [*ranked[:3], *ranked[-5:], "no-op"]},
        "random": play(env, Random(env.simulation.layout, 0), TEST_SEED),
        **{f"threshold on {name}": play(env, rule, TEST_SEED) for name, rule in rules.items()},
        "planner": play(env, Planner(env.simulation), TEST_SEED),
    }
    ruled = max((played[f"threshold on {name}"] for name in rules), key=lambda episodes: episodes.mean).returns
    best, worst, planner = constants[ranked[-1]].returns, constants[ranked[0]].returns, played["planner"].returns
    # Nobody prevents more than whoever cuts everything off before an attack begins, whatever that costs.
    least = min((episodes.summary["damage"] for episodes in (constants["ISOLATE all"], played["planner"])), key=lambda damage: damage.mean())
    idle, seen = constants["no-op"].summary["damage"], played["planner"].summary["damage"]
    rng = np.random.default_rng(0)

    def ratio(what: str, target: float, op: Literal[">=", "<="], of: Callable[[NDArray[np.int64]], float]) -> Gate:
        count = len(best)
        samples = np.array([of(rng.integers(0, count, count)) for _ in range(runner.config.eval.bootstrap)])
        return Gate(what, of(np.arange(count)), target, op, *interval(samples, runner.config.eval.confidence), by_interval=True)

    gates = {
        "F.gate1": ratio(
            "planner minus best constant, as a share of the constants' range", 0.4, ">=",
            lambda i: float((planner[i].mean() - best[i].mean()) / (best[i].mean() - worst[i].mean())),
        ),
        "F.gate1.prevented": ratio(
            "preventable damage that the planner prevents", 0.9, ">=",
            lambda i: float((idle[i].mean() - seen[i].mean()) / (idle[i].mean() - least[i].mean())),
        ),
        "F.gate1.unpreventable": ratio(
            "damage left even where all devices are cut off from the start or the planner acts, as a share of no-op's", 0.1, "<=",
            lambda i: float(least[i].mean() / idle[i].mean()),
        ),
    }  # fmt: skip
    gates["F.gate2.above_constants"] = ratio(
        "best tuned threshold rule minus best constant, as a share of planner minus best constant", 0.15, ">=",
        lambda i: float((ruled[i].mean() - best[i].mean()) / (planner[i].mean() - best[i].mean())),
    )  # fmt: skip
    gates["F.gate2.room"] = ratio(
        "planner minus best tuned threshold rule, as a share of planner minus best constant", 0.15, ">=",
        lambda i: float((planner[i].mean() - ruled[i].mean()) / (planner[i].mean() - best[i].mean())),
    )  # fmt: skip
    rows = [row(name, episodes) for name, episodes in sorted(played.items(), key=lambda item: item[1].mean)]
    return gates, rows


def row(name: str, episodes: Episodes) -> dict[str, Any]:
    """A line of the table."""
    return {
        "policy": name,
        "return": episodes.mean,
        "standard_error": float(episodes.returns.std(ddof=1) / len(episodes.returns) ** 0.5),
        "damage": float(episodes.summary["damage"].mean()),
        "service_loss": float(episodes.summary["service"].mean()),
        "healthy_service": float(episodes.summary["healthy_service"].mean()),
    }


@dataclass(frozen=True)
class Shuffled:
    """A policy that sees each device's observation under another device's name, another draw each step."""

    policy: Policy
    layout: Layout
    rng: np.random.Generator

    def predict(self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Any, Any]:
        """As the policy, on shuffled devices."""
        mixed = self.rng.permuted(np.tile(np.arange(self.layout.devices), (len(observation), 1)), axis=1)
        parts = self.layout.split(observation)
        moved = {name: part if name == "context" else np.take_along_axis(part, mixed[:, :, None], axis=1) for name, part in parts.items()}
        return self.policy.predict(self.layout.join(moved), state, episode_start, deterministic)


def sensors_matter(runner: BenchmarkRunner, rules: dict[str, Threshold]) -> tuple[dict[str, Gate], list[dict[str, Any]]]:
    """Gate 3: noise in a sensor, or shuffled observations, lower the return of the rule that reads it."""
    config = runner.config
    env = runner.env(config.eval.episodes)
    layout = env.simulation.layout
    rng = np.random.default_rng(1)
    gates, rows = {}, []
    for name, rule in rules.items():
        intact = play(env, rule, TEST_SEED)
        blind = runner.blinded(name)
        controls = {
            "noise": play(blind.env(config.eval.episodes), rule, TEST_SEED),
            "noise, tuned again": play(blind.env(config.eval.episodes), blind.tune(name), TEST_SEED),
            "observations shuffled": play(env, Shuffled(rule, layout, rng), TEST_SEED),
        }
        rows.append({**row(f"threshold on {name}", intact), "rule": str(rule)})
        for control, episodes in controls.items():
            rows.append({**row(f"threshold on {name}: {control}", episodes), "rule": ""})
            lost = difference_estimate(intact.returns, episodes.returns, config.eval.bootstrap, config.eval.confidence, rng)
            key = f"F.gate3.{name}.{control.replace(',', '').replace(' ', '_')}"
            gates[key] = Gate(f"return that the threshold rule on {name} loses by {control}", lost.value, 0.0, ">", lost.low, lost.high, by_interval=True)
    return gates, rows


def behaves(config: Config, bank: TraceBank, steps: int) -> dict[str, Gate]:
    """Gate 6: check_env without a warning, bounds kept, and the same seed twice."""
    complaints = 0
    variants: list[dict[str, Any]] = [{}, {"flatten": True}, {"action_mode": "joint"}]
    for settings in variants:
        for check in (check_env, sb3_check_env):
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                check(gymnasium.make("IoTDefense-v0", bank=bank, config=config, **settings).unwrapped)
            complaints += len(heard)
    count = 1000
    differing = outside = 0
    twins = [IoTVectorEnv(count, bank=bank, config=config, flatten=True) for _ in range(2)]
    rng = np.random.default_rng(2)
    for twin in twins:
        twin.reset(seed=0)
    low, high = twins[0].single_observation_space.low, twins[0].single_observation_space.high  # type: ignore[attr-defined]
    for _ in range(steps // count):
        actions = rng.integers(0, twins[0].single_action_space.n, count)  # type: ignore[attr-defined]
        (first, rewards, *_), (second, others, *_) = (twin.step(actions) for twin in twins)
        outside += int(((first < low) | (first > high) | ~np.isfinite(first)).sum())
        differing += int((first != second).sum() + (rewards != others).sum())
    return {
        "F.gate6.check_env": Gate("warnings of gymnasium's and Stable-Baselines3's check_env", float(complaints), 0.0, "<="),
        "F.gate6.bounds": Gate(f"numbers outside the observation space in {steps:,} random steps", float(outside), 0.0, "<="),
        "F.gate6.seeds": Gate(f"numbers that differ between twins of one seed in {steps:,} steps", float(differing), 0.0, "<="),
    }


if __name__ == "__main__":
    launch(main)
