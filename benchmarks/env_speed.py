"""How fast is the environment, beside its peers? `python -m benchmarks.env_speed [--bank DIR] [--quick]`.

Everything runs on one thread, under a random policy, resets included, in rounds: each round times every contestant once, in an
order drawn anew, so that whatever else the machine does meets all of them alike. Figures are medians over rounds, ratios are
taken within a round, and their intervals come from resampling rounds. Actions are drawn beforehand, for every contestant.

The peers come from the package index, in a virtual environment of their own, `artifacts/peers-venv`, which is made on the first
run; `--quick` makes none, and measures beside those that are there. A peer that does not install or start is left out, and the
reason is printed and stored. Ours has its sensors attached: a trace bank that was trained (`--bank`), or the bundled one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from agents.factory import AlgorithmFactory
from agents.training import knowledge_of, learning_env
from benchmarks.common import ROOT, Gate, launch, parser, write_result
from benchmarks.contest import Rates, Run, Worker, compete, estimate, gate, own_python
from benchmarks.peers import PEERS
from envs import IoTVectorEnv, dynamics
from envs.world import Simulation, open_bank
from src.config import Config, load_config
from src.data.bank import TraceBank

REQUIREMENTS = ROOT / "benchmarks" / "requirements-peers.txt"
REFERENCE = "CartPole"
DICT, FLAT = "IoTEnv, Dict", "IoTEnv, flat"
BATCH = 1024
"""Environments of the batch that the gates are about."""
POOL = 64
"""Batches of actions drawn beforehand, which are used in turn."""


@dataclass(frozen=True)
class Contestant:
    """Whoever is timed, and what the table says of it."""

    name: str
    scenario: str
    environments: int
    devices: int | None
    run: Run
    whole: int = 1
    """Only a multiple of so many steps is a fair sample."""


def main() -> None:
    """Measure, print and write."""
    words = parser(__doc__)
    words.add_argument("--bank", type=Path, help="folder of a trained trace bank; the bundled one where left out")
    given = words.parse_args()
    config = load_config(overrides=["compute.device=cpu"])
    torch.set_num_threads(1)
    bank = open_bank(given.bank)
    rng = np.random.default_rng(0)
    contestants = ours(config, bank)
    with peers(Path(config.compute.artifacts) / "peers-venv", install=not given.quick) as (others, missing):
        contestants |= others
        rates = compete({name: (one.run, one.whole) for name, one in contestants.items()}, 3 if given.quick else 21, 0.15 if given.quick else 0.6, rng)
    learning = compete_learning(config, bank, 3 if given.quick else 9, rng)
    tables = {
        "steps a second": [row(one, rates, name) for name, one in contestants.items()],
        "times as fast as": ratios(rates, others, rng),
        "share of a step's time": shares(config, bank, 300 if given.quick else 2000),
        "training with PPO": [{"environments stepped": name, **spread(values)} for name, values in learning.items()],
        "left out": [{"peer": name, "reason": reason} for name, reason in missing.items()],
    }
    write_result("env_speed", "real" if bank.source == "real" else "synthetic", gates(contestants, rates, learning, rng), tables, given.quick)


def vector(scenario: str, count: int) -> str:
    """The vector front's name in rates and tables."""
    return f"IoTVectorEnv, {scenario}, {count:,}"


def ours(config: Config, bank: TraceBank) -> dict[str, Contestant]:
    """Our fronts, and gymnasium's CartPole in the same interpreter."""
    reference = gymnasium.make("CartPole-v1", disable_env_checker=True)
    found = [Contestant(f"{REFERENCE} (gymnasium {gymnasium.__version__})", "CartPole-v1", 1, None, single(reference))]
    for name, flatten in ((DICT, False), (FLAT, True)):
        env = gymnasium.make("IoTDefense-v0", disable_env_checker=True, scenario="clinic", bank=bank, config=config, flatten=flatten)
        found.append(Contestant(name, "clinic", 1, len(env.unwrapped.device_names), single(env)))  # type: ignore[attr-defined]
    for scenario, count in (("clinic", 1), ("clinic", 64), ("clinic", BATCH), ("clinic", 4096), ("factory", BATCH), ("campus", BATCH)):
        batch = IoTVectorEnv(count, scenario=scenario, bank=bank, config=config, flatten=True)
        found.append(Contestant(vector(scenario, count), scenario, count, batch.simulation.layout.devices, batched(batch)))
    return {one.name if one.devices else REFERENCE: one for one in found}


def single(env: gymnasium.Env) -> Run:
    """Steps of one environment."""
    env.action_space.seed(0)
    actions = [int(env.action_space.sample()) for _ in range(POOL * 16)]
    env.reset(seed=0)

    def run(steps: int) -> tuple[int, float]:
        began = time.perf_counter()
        for i in range(steps):
            _, _, terminated, truncated, _ = env.step(actions[i % len(actions)])
            if terminated or truncated:
                env.reset()
        return steps, time.perf_counter() - began

    return run


def batched(env: IoTVectorEnv) -> Run:
    """Steps of a batch, once its episodes no longer begin together."""
    actions = np.random.default_rng(0).integers(0, env.single_action_space.n, (POOL, env.num_envs))  # type: ignore[attr-defined]
    env.reset(seed=0)

    def run(steps: int) -> tuple[int, float]:
        calls = -(-steps // env.num_envs)
        began = time.perf_counter()
        for i in range(calls):
            env.step(actions[i % POOL])
        return calls * env.num_envs, time.perf_counter() - began

    run(env.num_envs * env.simulation.config.env.horizon * 3 // 2)
    return run


@contextmanager
def peers(folder: Path, install: bool) -> Iterator[tuple[dict[str, Contestant], dict[str, str]]]:
    """The peers that start, each in a process that waits for its turn; and why the others do not."""
    python = own_python(folder, REQUIREMENTS, install)
    if python is None:
        reason = f"no virtual environment for peers in '{folder}': run without --quick, which makes it"
        print(reason)
        yield {}, dict.fromkeys(PEERS, reason)
        return
    workers = {name: Worker(name, [python, ROOT / "benchmarks" / "peers.py", name]) for name in PEERS}
    try:
        found, missing = {}, {}
        for name, worker in workers.items():
            said = worker.answer()
            if "failed" in said:
                missing[name] = said["failed"]
                print(f"{name} is left out: {said['failed']}")
            else:
                found[name] = Contestant(f"{name} ({said['version']})", said["scenario"], 1, None, remote(worker), said["episode"])
        yield found, missing
    finally:
        for worker in workers.values():
            worker.end()


def remote(worker: Worker) -> Run:
    """Steps of a peer in its process, timed there."""

    def run(steps: int) -> tuple[int, float]:
        said = worker.ask({"steps": steps})
        return said["steps"], said["seconds"]

    return run


class EmptyVecEnv(VecEnv):
    """Shows its first observation for ever and does nothing else: what training costs without an environment."""

    def __init__(self, like: VecEnv) -> None:
        """Copy spaces, size and first observation."""
        super().__init__(like.num_envs, like.observation_space, like.action_space)
        self._step = (np.array(like.reset()), np.zeros(like.num_envs, np.float32), np.zeros(like.num_envs, np.bool_), [{} for _ in range(like.num_envs)])

    def reset(self) -> NDArray[np.float32]:
        """The observation."""
        return self._step[0]

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Nothing."""

    def step_wait(self) -> VecEnvStepReturn:
        """The observation again."""
        return self._step

    def close(self) -> None:
        """Nothing."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Nothing is known of any environment."""
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Nothing."""

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Nothing."""
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Never."""
        return [False] * self.num_envs


def compete_learning(config: Config, bank: TraceBank, rounds: int, rng: np.random.Generator) -> dict[str, Rates]:
    """PPO as the product trains it, on our environment and on an empty one: steps a second, (rounds,)."""
    rl = config.rl
    played: Any = learning_env(config, bank, rl.n_envs, knowledge_of(config, bank)).venv

    def learner(env: VecEnv) -> tuple[Run, int]:
        scaled = VecNormalize(env, norm_obs=False, norm_reward=rl.normalize_reward, gamma=rl.ppo.gamma)
        model = AlgorithmFactory(config).build("ppo", scaled, played.sight, 0)
        model.set_logger(Logger(folder=None, output_formats=[]))

        def run(steps: int) -> tuple[int, float]:
            before, began = model.num_timesteps, time.perf_counter()
            model.learn(steps, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
            return model.num_timesteps - before, time.perf_counter() - began

        return run, rl.n_envs * rl.ppo.n_steps

    # A second is about what one update takes, and a round is whole updates.
    return compete({f"{rl.n_envs} of ours": learner(played), f"{rl.n_envs} empty ones of the same spaces": learner(EmptyVecEnv(played))}, rounds, 1.0, rng)


def shares(config: Config, bank: TraceBank, steps: int) -> list[dict[str, Any]]:
    """Where the time of a step goes: dynamics, writing the observation, resets, and Python around them.

    The compiled step does both of the first; the observation's part is what writing all of it once more takes, without the call's own cost.
    """
    found = []
    for name, count, flatten in ((DICT, 1, False), (FLAT, 1, True), (vector("clinic", BATCH), BATCH, True)):
        if count == 1:
            env = gymnasium.make("IoTDefense-v0", disable_env_checker=True, scenario="clinic", bank=bank, config=config, flatten=flatten)
            simulation, run = env.unwrapped.simulation, single(env)  # type: ignore[attr-defined]
        else:
            env = IoTVectorEnv(count, scenario="clinic", bank=bank, config=config, flatten=flatten)
            simulation, run = env.simulation, batched(env)
        calls = steps if count == 1 else max(steps // 4, 100)
        run(calls * count)
        with stopwatch(simulation) as spent:
            _, seconds = run(calls * count)
        seconds -= spent["aside"]
        observing = spent["observation"]
        parts = {
            "dynamics": spent["step"] - observing,
            "observation": observing,
            "resets": spent["resets"],
            "python": seconds - spent["step"] - spent["resets"],
        }
        found.append({"front": name, "microseconds a call": 1e6 * seconds / calls, **{part: value / seconds for part, value in parts.items()}})
    return found


@contextmanager
def stopwatch(simulation: Simulation) -> Iterator[dict[str, float]]:
    """Sum up the seconds of the compiled step, of resets, and of observations written aside, which are no part of the run."""
    spent: dict[str, float] = {"step": 0.0, "resets": 0.0, "observation": 0.0, "aside": 0.0}
    compiled, begin = dynamics.step, simulation.begin
    everywhere, nowhere = np.arange(simulation.count), np.arange(0)
    out = np.empty((simulation.count, simulation.layout.size), np.float32)

    def look(which: NDArray[np.int64]) -> float:
        began = time.perf_counter()
        dynamics.observe(simulation.world, simulation.sites, simulation.devices, simulation.trails, which, out)
        return time.perf_counter() - began

    def step(*arguments: Any) -> None:
        began = time.perf_counter()
        compiled(*arguments)
        ended = time.perf_counter()
        spent["step"] += ended - began
        spent["observation"] += look(everywhere) - look(nowhere)
        spent["aside"] += time.perf_counter() - ended

    def begins(*arguments: Any) -> None:
        began = time.perf_counter()
        begin(*arguments)
        spent["resets"] += time.perf_counter() - began

    with mock.patch.object(dynamics, "step", step), mock.patch.object(simulation, "begin", begins):
        yield spent


def spread(rates: Rates) -> dict[str, float]:
    """Median, slowest and fastest round."""
    return {"steps a second": float(np.median(rates)), "slowest": float(rates.min()), "fastest": float(rates.max())}


def row(one: Contestant, rates: dict[str, Rates], name: str) -> dict[str, Any]:
    """A line of the table."""
    median = float(np.median(rates[name]))
    return {
        "who": one.name,
        "scenario": one.scenario,
        "environments": one.environments,
        "devices": one.devices,
        **spread(rates[name]),
        "times CartPole": float(np.median(rates[name] / rates[REFERENCE])),
        "ns a device-step": 1e9 / median / one.devices if one.devices else None,
    }


def ratios(rates: dict[str, Rates], others: dict[str, Contestant], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Our speed as multiples of each peer's, in the same round."""
    found = []
    for name, one in others.items():
        for front in (DICT, FLAT, vector("clinic", BATCH)):
            value, low, high = estimate(rates[front] / rates[name], rng)
            found.append({"peer": one.name, "front": front, "times": value, "low": low, "high": high})
    return found


def gates(contestants: dict[str, Contestant], rates: dict[str, Rates], learning: dict[str, Rates], rng: np.random.Generator) -> dict[str, Gate]:
    """What must hold. A ratio to a peer that is left out is left out, too."""
    batch = vector("clinic", BATCH)
    found = {"F.speed.vector": gate(f"environment-steps a second, clinic, {BATCH:,} environments, one thread", rates[batch], 600_000, rng)}
    if "NASim" in rates:
        for key, front, what in (("F.speed.single", FLAT, "flat"), ("F.speed.single.dict", DICT, "Dict")):
            found[key] = gate(
                f"single step through gymnasium.make with {what} observations, as a multiple of NASim medium", rates[front] / rates["NASim"], 1.0, rng
            )
    if "csle-cyborg" in rates:
        what = f"environment-steps a second, {BATCH:,} environments, as a multiple of CAGE-2 in csle-cyborg"
        found["F.speed.cage2"] = gate(what, rates[batch] / rates["csle-cyborg"], 3000, rng)
    campus = vector("campus", BATCH)
    few, many = contestants[batch].devices, contestants[campus].devices
    assert few is not None
    assert many is not None
    value, low, high = estimate(rates[batch] * few / (rates[campus] * many), rng)
    found["F.speed.devices"] = Gate(f"cost of a device-step at {many} devices, as a multiple of that at {few}", value, 1.3, "<=", low, high)
    played, empty = learning.values()
    found["F.speed.ppo"] = gate("PPO training, steps a second, as a share of the same on an empty environment of the same spaces", played / empty, 0.75, rng)
    return found


if __name__ == "__main__":
    launch(main)
