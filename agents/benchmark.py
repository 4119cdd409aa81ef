"""Plays every policy on the same held-out episodes; `src.evaluation.analysis` says how they compare."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from agents.baselines import SIGNALS, Constant, Random, Threshold, constants, cusum_candidates, playbook_candidates, threshold_candidates
from agents.bayes import BayesFilter, bayes_candidates
from agents.exploits import named, scripts
from agents.learned import load_policy
from agents.planner import Planner
from envs import IoTEnv, IoTVectorEnv
from envs.attackers import cast
from envs.recording import EpisodeRecorder, Recording, read_recording
from envs.scenarios import FAMILIES, build_network
from envs.world import Layout, Simulation
from src.config import Config, nearest
from src.data.bank import TraceBank
from src.errors import UserError
from src.evaluation.rollout import PLANNER, SIDES, Contest, Episodes, Policy, Side, play
from src.predictor.interface import Sensor

SCRIPTED = (
    "no-op", "random", "best constant", "ping-pong", "threshold on risk", "threshold on anomaly", "CUSUM", "playbook", "Bayes filter", PLANNER,
)  # fmt: skip
"""Policies to compare with, by name."""

TEST_SEED = 1_000_000
"""First seed of the held-out episodes; training and tuning stay below it."""

TUNING_SEED = 500_000
"""First seed of the episodes on which heuristics are tuned."""

BENIGN_SHARE = 0.95
"""Share of benign windows among those that devices show in play: .95 where nobody defends, .98 under the Bayes filter."""

FEWEST = 10
"""Episodes of a tuning's first round, at least."""

QUALIFYING = 4
"""A tuning's first round plays this part of the episodes, and this part of the candidates goes on to all of them."""

EXPLOITS = 60
"""Random scripts among which the best exploit is sought."""

Tell = Callable[[str], None]
P = TypeVar("P", bound=Policy)


@dataclass(frozen=True)
class Scripted:
    """A policy to compare with, as tuning left it. Called with the simulation that it plays in, it is ready to act."""

    build: Callable[[Simulation], Policy]
    words: str
    """What tuning chose."""
    validation: float
    """Mean return on the `agent` traces, attackers of training; what the best heuristic is chosen by."""
    mode: str = "discrete"
    """`env.action_mode` that its actions are of: a constant may act on all devices at once."""

    def __call__(self, simulation: Simulation) -> Policy:
        """The policy, with its memory empty."""
        return self.build(simulation)


@dataclass(frozen=True)
class Shuffled:
    """A policy that sees each device's telemetry under another device's name, another draw each step; what it knows by itself stays."""

    policy: Policy
    layout: Layout
    rng: np.random.Generator

    def predict(self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Any, Any]:
        """As the policy, on shuffled devices."""
        mixed = self.rng.permuted(np.tile(np.arange(self.layout.devices), (len(observation), 1)), axis=1)
        parts = self.layout.split(observation)
        moved = {name: np.take_along_axis(part, mixed[:, :, None], axis=1) for name, part in parts.items() if name in ("features", "sensors", "past", "trend")}
        return self.policy.predict(self.layout.join({**parts, **moved}), state, episode_start, deterministic)


class BenchmarkRunner:
    """Plays policies on one side of a trace bank."""

    def __init__(self, config: Config, bank: TraceBank, split: str = "test", sensor: Sensor | None = None) -> None:
        """Sections `env`, `attackers`, `reward` and `eval` of the configuration are read; `sensor` reads along where `env.sensors` is `live`."""
        self.config, self.bank, self.split, self.sensor = config, bank, split, sensor

    def env(self, count: int, split: str | None = None, mode: str = "discrete") -> IoTVectorEnv:
        """A batch of environments with flat observations."""
        return IoTVectorEnv(count, bank=self.bank, split=split or self.split, config=self.config, sensor=self.sensor, flatten=True, action_mode=mode)

    def on(self, side: str) -> BenchmarkRunner:
        """The runner of one of `SIDES`: the same traces, others who attack."""
        told = {"seen": {"attackers": "train"}, "held out": {"attackers": "held_out"}, "attack-free": {"attack_free": 1.0}}[side]
        env = self.config.env.model_copy(update=told)
        return BenchmarkRunner(self.config.model_copy(update={"env": env}), self.bank, self.split, self.sensor)

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

    def shuffled(self, policy: Policy, simulation: Simulation) -> Shuffled:
        """The policy, with the devices' telemetry under one another's names."""
        return Shuffled(policy, simulation.layout, np.random.default_rng(self.config.compute.seed))

    def best(self, candidates: Iterable[P]) -> tuple[P, float]:
        """The candidate with the best mean return on `agent` traces and attackers of training, never those of the evaluation; and that return.

        All play a quarter of the tuning episodes, the best quarter of them plays all (successive halving; Karnin et al. 2013).
        """
        found, total = list(candidates), self.config.eval.tuning_episodes
        ranked: list[tuple[float, P]] = []
        rounds = {max(total // QUALIFYING, FEWEST), total} if len(found) > 1 else {total}
        for count in sorted(rounds):
            envs: dict[str, IoTVectorEnv] = {}
            ranked = []
            for one in found:
                mode = _mode(one)
                if mode not in envs:
                    envs[mode] = self.on("seen").env(count, "agent", mode)
                ranked.append((play(envs[mode], one, TUNING_SEED).mean, one))
            ranked.sort(key=lambda pair: -pair[0])
            found = [one for _, one in ranked[: -(-len(ranked) // QUALIFYING)]]
        return ranked[0][1], ranked[0][0]

    def tune(self, signal: str = "risk") -> Threshold:
        """The best threshold rule on a signal, on `agent` traces, never on those of the evaluation."""
        return self.best(threshold_candidates(self._layout, signal))[0]

    def tune_bayes(self) -> BayesFilter:
        """The Bayes filter that does best on `agent` traces; what it knows of readings is from `calibrate`."""
        return self.best(bayes_candidates(self.config, self.bank, self._layout))[0]

    def champion(self, agents: Mapping[int, Path]) -> Path:
        """The trained agent that does best on `agent` traces: `test` only measures, it does not choose."""
        env = self.on("seen").env(self.config.eval.tuning_episodes, "agent")
        return max(agents.values(), key=lambda folder: play(env, load_policy(folder, env.simulation), TUNING_SEED).mean)

    def scripted(self, names: Sequence[str] | None = None) -> dict[str, Scripted]:
        """The policies to compare with, each tuned on `agent` traces and attackers of training alone; the planner, last, sees the truth.

        Args:
            names: which; all where it is None.

        Raises:
            UserError: for an unknown name.
        """
        layout, seed = self._layout, self.config.compute.seed
        makers: dict[str, Callable[[], Iterable[Policy]]] = {
            "no-op": lambda: [Constant(0)],
            "random": lambda: [Random(layout, seed)],
            "best constant": lambda: constants(self._devices).values(),
            "ping-pong": lambda: [named(layout)["ping-pong"]],
            "threshold on risk": lambda: threshold_candidates(layout, "risk"),
            "threshold on anomaly": lambda: threshold_candidates(layout, "anomaly"),
            "CUSUM": lambda: cusum_candidates(layout),
            "playbook": lambda: playbook_candidates(layout),
            "Bayes filter": lambda: bayes_candidates(self.config, self.bank, layout),
        }
        chosen = SCRIPTED if names is None else tuple(names)
        for name in chosen:
            if name not in SCRIPTED:
                raise UserError(f"no policy '{name}' to compare with: {nearest(name, SCRIPTED)}")
        return {name: self._scripted(makers[name]()) if name in makers else self._planner() for name in chosen}

    def _scripted(self, candidates: Iterable[Policy]) -> Scripted:
        policy, value = self.best(candidates)
        if isinstance(policy, Random):  # whose random numbers start anew on each side
            return Scripted(lambda simulation: Random(simulation.layout, self.config.compute.seed), "", value)
        words = next((name for name, one in constants(self._devices).items() if one == policy), "") if isinstance(policy, Constant) else str(policy)
        return Scripted(lambda _: policy, words, value, _mode(policy))

    def _planner(self) -> Scripted:
        env = self.on("seen").env(self.config.eval.tuning_episodes, "agent")
        return Scripted(Planner, "sees the truth", play(env, Planner(env.simulation), TUNING_SEED).mean)

    def exploits(self) -> dict[str, Policy]:
        """Scripts that read no sensor: those that earlier environments fell to, and the best of many random ones on `agent` traces."""
        layout = self._layout
        drawn = itertools.islice(scripts(layout, np.random.default_rng(self.config.compute.seed)), EXPLOITS)
        return {**named(layout), f"best of {EXPLOITS} random scripts": self.best(drawn)[0]}

    def constants(self, env: IoTVectorEnv, seed: int = TEST_SEED) -> dict[str, Episodes]:
        """Every single action, each repeated for the whole episode, and each kind on all devices at once."""
        joint = self.env(env.num_envs, mode="joint")
        return {name: play(joint if policy.devices else env, policy, seed) for name, policy in constants(self._devices).items()}

    def run(self, agents: Mapping[str, Mapping[int, Path]], tell: Tell = lambda _: None) -> Contest:
        """Play all policies on all sides.

        Args:
            agents: by name of a group, the folder of each trained agent by its seed; noise and shuffling are tried on the first group.
            tell: receives a line before each part.
        """
        episodes = self.config.eval.episodes
        tell("tuning the policies to compare with, on the agent's traces")
        scripted = self.scripted()
        sides = {}
        for name in SIDES:
            tell(f"playing {episodes} {name} episodes a policy")
            sides[name] = self.on(name).side(scripted, agents)
        if not agents:
            return Contest(sides, (), *_told(scripted), {}, [], {})
        first = next(iter(agents.values()))
        tell("playing the agents with noise for each sensor, with devices shuffled, and the scripted exploits")
        held_out = self.on("held out")
        blinded = {sensor: held_out.blinded(sensor).play_agents(first) for sensor in ("families", *SIGNALS)}
        env = held_out.env(episodes)
        exploits = {name: play(env, policy, TEST_SEED) for name, policy in self.exploits().items()}
        return Contest(sides, tuple(agents), *_told(scripted), blinded, held_out.play_agents(first, shuffled=True), exploits)

    def side(self, scripted: Mapping[str, Scripted], agents: Mapping[str, Mapping[int, Path]]) -> Side:
        """All policies on this runner's world: what is scripted, then the agents, then the planner."""
        count = self.config.eval.episodes
        envs = {mode: self.env(count, mode=mode) for mode in sorted({"discrete", *(one.mode for one in scripted.values())})}
        found = {name: [play(envs[one.mode], one(envs[one.mode].simulation), TEST_SEED)] for name, one in scripted.items() if name != PLANNER}
        for name, group in agents.items():
            found[name] = self.play_agents(group)
        if PLANNER in scripted:
            found[PLANNER] = [play(envs["discrete"], scripted[PLANNER](envs["discrete"].simulation), TEST_SEED)]
        # Who comes, and when, is drawn at the reset: it is the same whoever defends.
        envs["discrete"].reset(seed=TEST_SEED)
        sites = envs["discrete"].simulation.sites
        start = sites["start"].copy()
        profiles = np.array(cast(self.config.attackers, self.config.env.attackers))
        return Side(found, np.where(start >= 0, profiles[sites["profile"]], ""), start)

    def play_agents(self, agents: Mapping[int, Path], shuffled: bool = False) -> list[Episodes]:
        """The trained agents of a group, in the order of their seeds."""
        env, found = self.env(self.config.eval.episodes), []
        for _, folder in sorted(agents.items()):
            policy: Policy = load_policy(folder, env.simulation)
            found.append(play(env, self.shuffled(policy, env.simulation) if shuffled else policy, TEST_SEED))
        return found

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

    @property
    def _layout(self) -> Layout:
        return Layout(len(self._devices), len(self.config.env.features), len(self.bank.sensor_names), self.config.env.history)

    @property
    def _devices(self) -> tuple[str, ...]:
        return build_network(self.config.env.scenario).names


def _mode(policy: Policy) -> str:
    """`env.action_mode` that a policy's actions are of."""
    return "joint" if isinstance(policy, Constant) and policy.devices else "discrete"


def _told(scripted: Mapping[str, Scripted]) -> tuple[dict[str, str], dict[str, float]]:
    return {name: one.words for name, one in scripted.items()}, {name: one.validation for name, one in scripted.items()}
