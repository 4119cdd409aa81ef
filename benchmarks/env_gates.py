"""Is the environment worth solving? `python -m benchmarks.env_gates [--episodes 500] [--quick]`.

All seven gates of the environment's model, on held-out traces of `clinic`, and how the other scenarios and the held-out attackers
compare. Real traffic is used where the folder of CICIoT2023 CSVs is given or found beside the checkout, with a predictor trained
for it here; elsewhere the bundled synthetic bank, and the result says so. `--quick` plays 200 episodes, tunes on 50, searches a tenth as
long and leaves out the scenarios above twelve devices.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from agents.baselines import Constant, Random, Threshold
from agents.benchmark import TUNING_SEED, BenchmarkRunner
from agents.exact import ExactPolicy, Model, exact_config
from agents.exploits import evolve, named, scripts
from agents.planner import Planner
from benchmarks.common import Gate, launch, parser, write_result
from envs import IoTVectorEnv
from envs.dynamics import Order
from envs.scenarios import SCENARIOS
from src.config import Config, load_config
from src.data.bank import TraceBank
from src.evaluation.rollout import Episodes, Policy, play
from src.evaluation.statistics import difference_estimate, interval, mean_estimate

GATE_SEED = 2_000_000
"""First seed of the episodes played here: others than those on which the attackers' numbers were tried out."""

Gates = dict[str, Gate]
Numbers = NDArray[np.float64]
Rows = list[dict[str, Any]]


def main() -> None:
    """Measure, print and write."""
    words = parser(__doc__, data=True)
    words.add_argument("--episodes", type=int, default=500, help="a policy")
    given = words.parse_args()
    episodes, tuning = (200, 50) if given.quick else (given.episodes, min(given.episodes, 200))
    root = given.root if given.root.exists() else None
    if root is None:
        print(f"no CICIoT2023 CSVs at '{given.root}': measuring on the bundled synthetic bank")
    shorter = ["lstm.training.epochs=10", "lstm.training.teachers=0", "temporal.training.epochs=5"] if given.quick else []
    config = load_config(overrides=[f"eval.episodes={episodes}", f"eval.tuning_episodes={tuning}", f"data.root={root or 'null'}", *shorter])
    bank = TraceBank.bundled() if root is None else trained_bank(config)
    runner = BenchmarkRunner(config, bank)
    rules = tuned(runner)
    gates, policies, threshold = worth_solving(runner, rules)
    tables: dict[str, Rows] = {"policies": policies}
    for part, found in {
        "sensors": sensors_matter(runner, rules),
        "exploits": nothing_blind_wins(runner, threshold, 20 if given.quick else 200, 2 if given.quick else 10),
        "solo": optimum_is_reached(config, bank, 2_000 if given.quick else 20_000),
        "attack-free episodes": calm_is_left_alone(runner, rules),
        "worlds": other_worlds(config, bank, SCENARIOS[:2] if given.quick else SCENARIOS),
    }.items():
        more, tables[part] = found
        gates |= more
    gates |= behaves(config, bank, 50_000 if given.quick else 1_000_000)
    write_result("env_gates", "real" if bank.source == "real" else "synthetic", gates, tables, given.quick)


def trained_bank(config: Config) -> TraceBank:
    """The bank of this data, with the predictor of the default configuration."""
    from src.pipeline import start

    with start(config, "lstm", None) as run:
        return run.bank()


def tuned(runner: BenchmarkRunner) -> dict[str, Policy]:
    """The scripted defenders that read sensors, each at its best on `agent` traces."""
    return {**{f"threshold on {signal}": runner.tune(signal) for signal in ("risk", "anomaly")}, "Bayes filter": runner.tune_bayes()}


def row(name: str, episodes: Episodes) -> dict[str, Any]:
    """A line of a table."""
    return {
        "policy": name,
        "return": episodes.mean,
        "standard_error": float(episodes.returns.std(ddof=1) / len(episodes.returns) ** 0.5),
        "damage": float(episodes.summary["damage"].mean()),
        "service_loss": float(episodes.summary["service"].mean()),
        "healthy_service": float(episodes.summary["healthy_service"].mean()),
    }


def worth_solving(runner: BenchmarkRunner, rules: Mapping[str, Policy]) -> tuple[Gates, Rows, Episodes]:
    """Gate 1, no constant action solves it and little damage is beyond reach; gate 2, the best scripts on sensors leave room."""
    env = runner.env(runner.config.eval.episodes)
    constants = {"no-op": play(env, Constant(0), GATE_SEED), **runner.constants(env, GATE_SEED)}
    ranked = sorted(constants, key=lambda name: constants[name].mean)
    heuristics = {name: play(env, rule, GATE_SEED) for name, rule in rules.items()}
    played = {
        **{name: constants[name] for name in [*ranked[:3], *ranked[-5:], "no-op"]},
        "random": play(env, Random(env.simulation.layout, 0), GATE_SEED),
        **heuristics,
        "planner": play(env, Planner(env.simulation), GATE_SEED),
    }
    threshold = max((heuristics[name] for name in rules if name.startswith("threshold")), key=lambda one: one.mean)
    heuristic = max(heuristics.values(), key=lambda one: one.mean)
    best, worst, planner = constants[ranked[-1]].returns, constants[ranked[0]].returns, played["planner"].returns
    # What can be prevented at all is what cutting everything off from the first step prevents.
    least = constants["ISOLATE all"].summary["damage"]
    idle, seen = constants["no-op"].summary["damage"], played["planner"].summary["damage"]
    rng = np.random.default_rng(0)

    def ratio(what: str, target: float, op: Literal[">=", "<="], above: Numbers, below: Numbers, of_above: Numbers, of_below: Numbers) -> Gate:
        """(above - below) / (of_above - of_below), resampled over episodes."""

        def share(i: NDArray[np.int64]) -> float:
            return float((above[i].mean() - below[i].mean()) / (of_above[i].mean() - of_below[i].mean()))

        samples = np.array([share(rng.integers(0, len(best), len(best))) for _ in range(runner.config.eval.bootstrap)])
        return Gate(what, share(np.arange(len(best))), target, op, *interval(samples, runner.config.eval.confidence), by_interval=True)

    none = np.zeros_like(best)
    ruled, filtered, strongest = threshold.returns, heuristics["Bayes filter"].returns, heuristic.returns
    above = difference_estimate(filtered, ruled, runner.config.eval.bootstrap, runner.config.eval.confidence, rng)
    gates = {
        "F.gate1": ratio("planner minus best constant, as a share of the constants' range", 0.4, ">=", planner, best, best, worst),
        "F.gate1.prevented": ratio("preventable damage that the planner prevents", 0.9, ">=", idle, seen, idle, least),
        "F.gate1.unpreventable": ratio("damage that is left under the planner, one order a step, as a share of no-op's", 0.1, "<=", seen, none, idle, none),
        "F.gate2.above_constants": ratio(
            "best tuned threshold rule minus best constant, as a share of planner minus best constant", 0.15, ">=", ruled, best, planner, best
        ),
        "F.gate2.bayes": Gate(
            "return of the Bayes filter minus that of the best tuned threshold rule", above.value, 0.0, ">", above.low, above.high, by_interval=True
        ),
        "F.gate2.room": ratio("planner minus best tuned heuristic, as a share of planner minus best constant", 0.15, ">=", planner, strongest, planner, best),
    }
    return gates, [row(name, episodes) for name, episodes in sorted(played.items(), key=lambda item: item[1].mean)], threshold


def sensors_matter(runner: BenchmarkRunner, rules: Mapping[str, Policy]) -> tuple[Gates, Rows]:
    """Gate 3: noise in a sensor, or shuffled observations, lower the return of the policies that read it."""
    config = runner.config
    env = runner.env(config.eval.episodes)
    rng = np.random.default_rng(1)
    gates: Gates = {}
    rows: Rows = []
    for name, rule in rules.items():
        intact = play(env, rule, GATE_SEED)
        rows.append({**row(name, intact), "rule": str(rule)})
        controls = {"observations shuffled": play(env, runner.shuffled(rule, env.simulation), GATE_SEED)}
        read = (rule.signal,) if isinstance(rule, Threshold) else ("families", "risk", "uncertainty", "anomaly")
        for sensor in read:
            blind = runner.blinded(sensor)
            controls[f"noise for {sensor}"] = play(blind.env(config.eval.episodes), rule, GATE_SEED)
            if isinstance(rule, Threshold):
                controls[f"noise for {sensor}, tuned again"] = play(blind.env(config.eval.episodes), blind.tune(sensor), GATE_SEED)
        for control, episodes in controls.items():
            rows.append({**row(f"{name}: {control}", episodes), "rule": ""})
            lost = difference_estimate(intact.returns, episodes.returns, config.eval.bootstrap, config.eval.confidence, rng)
            key = f"F.gate3.{_key(name)}.{_key(control)}"
            gates[key] = Gate(f"return that the {name} loses by {control}", lost.value, 0.0, ">", lost.low, lost.high, by_interval=True)
    return gates, rows


def _key(words: str) -> str:
    return words.removeprefix("threshold on ").replace(",", "").replace(" ", "_")


def nothing_blind_wins(runner: BenchmarkRunner, threshold: Episodes, count: int, generations: int) -> tuple[Gates, Rows]:
    """Gate 4: ping-pong, always-restore, periodic scripts, the best of many random ones and of an evolution stay below the rule."""
    env, ground = runner.env(runner.config.eval.episodes), runner.env(runner.config.eval.tuning_episodes, "agent")
    layout = env.simulation.layout
    rng = np.random.default_rng(2)

    def fitness(script: Policy) -> float:
        return play(ground, script, TUNING_SEED).mean

    drawn = sorted(itertools.islice(scripts(layout, rng), count), key=fitness, reverse=True)
    found: dict[str, dict[str, Policy]] = {
        "named": {**named(layout)},
        "random": {f"best of {count} random scripts: {drawn[0]}": drawn[0]},
    }
    bred = evolve(drawn[:20], fitness, rng, generations, 40)
    found["evolved"] = {f"best after {generations} generations: {bred}": bred}
    gates: Gates = {}
    rows = [row("best tuned threshold rule", threshold)]
    for kind, policies in found.items():
        played = {name: play(env, policy, GATE_SEED) for name, policy in policies.items()}
        rows += [row(name, episodes) for name, episodes in played.items()]
        best = max(played.values(), key=lambda episodes: episodes.mean)
        ahead = difference_estimate(threshold.returns, best.returns, runner.config.eval.bootstrap, runner.config.eval.confidence, rng)
        what = f"return of the best tuned threshold rule minus that of the best blind script ({kind})"
        gates[f"F.gate4.{kind}"] = Gate(what, ahead.value, 0.0, ">", ahead.low, ahead.high, by_interval=True)
    return gates, rows


def optimum_is_reached(config: Config, bank: TraceBank, episodes: int) -> tuple[Gates, Rows]:
    """Gate 5: on `solo`, the environment's mean return under the policy of value iteration is the value that it computed."""
    world = exact_config(config)
    model = Model(world)
    solution = model.solve()
    env = IoTVectorEnv(episodes, bank=bank, split="test", config=world, flatten=True)
    played = play(env, ExactPolicy(env.simulation, model, solution), GATE_SEED)
    rng = np.random.default_rng(3)
    seen = mean_estimate(played.returns, config.eval.bootstrap, 0.99, rng)
    off = abs(seen.value - solution.value)
    gate = Gate(
        "distance between the mean return under the optimal policy of `solo` and the value computed by value iteration, in half 99 % intervals",
        off / ((seen.high - seen.low) / 2), 1.0, "<=",
    )  # fmt: skip
    computed = {"optimum": solution.value, "planner": model.evaluate(model.orders_of(Planner, bank)).value}
    computed |= {f"{order.name} always": model.evaluate(np.full(len(model.states), order)).value for order in Order}
    policies: dict[str, Policy] = {"planner": Planner(env.simulation), **{f"{order.name} always": Constant(int(order)) for order in Order}}
    returns = {"optimum": played, **{name: play(env, policy, GATE_SEED) for name, policy in policies.items()}}
    rows = [{**row(name, one), "computed": computed[name]} for name, one in returns.items()]
    return {"F.gate5": gate}, rows


def calm_is_left_alone(runner: BenchmarkRunner, rules: Mapping[str, Policy]) -> tuple[Gates, Rows]:
    """Gate 7: in attack-free episodes no constant beats doing nothing; how often each policy cuts off healthy devices there."""
    config = runner.config
    calm = BenchmarkRunner(config.model_copy(update={"env": config.env.model_copy(update={"attack_free": 1.0})}), runner.bank)
    env = calm.env(config.eval.episodes)
    idle = play(env, Constant(0), GATE_SEED)
    # RELEASE, and what is masked, changes nothing here, and so is doing nothing.
    constants = {name: played for name, played in calm.constants(env, GATE_SEED).items() if played.summary["orders"].any()}
    nearest = max(constants, key=lambda name: constants[name].mean)
    ahead = idle.returns - constants[nearest].returns
    gate = Gate("no-op minus the best other constant in attack-free episodes, in the worst of them", float(ahead.min()), 0.0, ">")
    policies: dict[str, Policy] = {**rules, "planner": Planner(env.simulation)}
    played = {"no-op": idle, f"best other constant: {nearest}": constants[nearest], **{name: play(env, one, GATE_SEED) for name, one in policies.items()}}
    hours = config.env.step_seconds / 3600.0
    rows = []
    for name, episodes in played.items():
        days = episodes.summary["steps"].sum() * hours / 24.0 * env.simulation.layout.devices
        rows.append({**row(name, episodes), "false_downtime_hours_per_device_day": float(episodes.summary["false_isolation"].sum() * hours / days)})
    return {"F.gate7": gate}, rows


def other_worlds(config: Config, bank: TraceBank, scenarios: Sequence[str]) -> tuple[Gates, Rows]:
    """Scenarios and both sides of attackers: what doing nothing, the best kind on all devices, the rules and the planner come to."""
    rows: Rows = []
    for scenario in scenarios:

        def among(side: str, scenario: str = scenario) -> BenchmarkRunner:
            world = config.env.model_copy(update={"scenario": scenario, "attackers": side})
            return BenchmarkRunner(config.model_copy(update={"env": world}), bank)

        rule, bayes = among("train").tune(), among("train").tune_bayes()
        for side in ("train", "held_out"):
            env = among(side).env(config.eval.episodes)
            devices = env.simulation.layout.devices
            joint = IoTVectorEnv(
                config.eval.episodes, bank=bank, split="test", config=among(side).config, flatten=True, action_mode="joint",
                budget=config.env.horizon * devices,
            )  # fmt: skip
            constants = [play(joint, Constant(int(order), devices), GATE_SEED).mean for order in list(Order)[1:]]
            rows.append(
                {
                    "scenario": scenario,
                    "attackers": side.replace("_", " "),
                    "no-op": play(env, Constant(0), GATE_SEED).mean,
                    "best kind on all devices": max(constants),
                    "threshold on risk": play(env, rule, GATE_SEED).mean,
                    "Bayes filter": play(env, bayes, GATE_SEED).mean,
                    "planner": play(env, Planner(env.simulation), GATE_SEED).mean,
                }
            )
    return {}, rows


def behaves(config: Config, bank: TraceBank, steps: int) -> Gates:
    """Gate 6: check_env without a warning, bounds kept, and the same seed twice."""
    complaints = 0
    variants: list[dict[str, Any]] = [{}, {"flatten": True}, {"action_mode": "joint"}, {"history": 4, "telemetry_delay": 2}, {"scenario": "campus"}]
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
