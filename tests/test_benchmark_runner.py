"""The benchmark runner: who plays where, what tuning may see, and controls that take information away."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from agents.baselines import Constant, cusum_candidates, playbook_candidates, threshold_candidates
from agents.bayes import bayes_candidates
from agents.benchmark import TEST_SEED, TUNING_SEED, BenchmarkRunner, Shuffled
from agents.training import RLTrainer
from envs import IoTVectorEnv
from envs.dynamics import Order
from src.config import Config, load_config
from src.data.bank import SPLITS, TraceBank
from src.errors import UserError
from src.evaluation.analysis import BenchmarkAnalyzer
from src.evaluation.rollout import PLANNER, SIDES, play
from tests.banks import make_bank

SMALL = ["env.scenario=home", "env.horizon=60", "env.start_range=[2, 10]", "eval.episodes=24", "eval.tuning_episodes=12", "eval.bootstrap=100"]
SMALL += ["rl.n_envs=4", "rl.ppo.n_steps=16", "rl.ppo.batch_size=32", "rl.ppo.n_epochs=1", "rl.validation_episodes=4", "rl.ppo.demonstrations=100"]
SMALL += ["rl.hidden_size=8", "rl.total_timesteps=64"]
NAMES = ["no-op", "random", "best constant", "ping-pong", "threshold on risk", "threshold on anomaly", "CUSUM", "playbook", "Bayes filter", "planner"]


@pytest.fixture(scope="module")
def bank() -> TraceBank:
    return make_bank(windows=40)


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(overrides=SMALL, environ={})


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.benchmark.threshold_candidates", lambda layout, signal: list(threshold_candidates(layout, signal))[::20])
    monkeypatch.setattr("agents.benchmark.cusum_candidates", lambda layout: list(cusum_candidates(layout))[::10])
    monkeypatch.setattr("agents.benchmark.playbook_candidates", lambda layout: list(playbook_candidates(layout))[::10])
    monkeypatch.setattr("agents.benchmark.bayes_candidates", lambda *given: itertools.islice(bayes_candidates(*given), 3))
    monkeypatch.setattr("agents.benchmark.EXPLOITS", 5)


# Tuning


def test_tuning_sees_neither_test_traces_nor_other_attackers(config: Config, bank: TraceBank) -> None:
    rng = np.random.default_rng(0)
    noisy = np.array(bank.sensors)
    test = bank.split == SPLITS.index("test")
    noisy[test] = rng.random(noisy[test].shape)
    away = config.model_copy(update={"env": config.env.model_copy(update={"attackers": "held_out"})})
    tuned = [BenchmarkRunner(*pair).scripted() for pair in ((config, bank), (config, bank.with_sensors(noisy)), (away, bank))]
    assert list(tuned[0]) == NAMES
    for name in NAMES:
        assert len({(one[name].words, one[name].validation) for one in tuned}) == 1, name
    noisy = np.array(bank.sensors)
    agent = bank.split == SPLITS.index("agent")
    noisy[agent] = rng.random(noisy[agent].shape)
    other = BenchmarkRunner(config, bank.with_sensors(noisy)).scripted(["CUSUM", "planner"])
    assert other["CUSUM"].validation != tuned[0]["CUSUM"].validation
    assert other["planner"].validation == tuned[0]["planner"].validation  # it needs no sensor


def test_the_best_candidate_is_found_and_its_return_told(config: Config, bank: TraceBank) -> None:
    runner = BenchmarkRunner(config, bank)
    env = runner.env(config.eval.tuning_episodes, "agent")
    candidates = [Constant(0), *(Constant(1 + d * 5 + Order.RESTORE - 1) for d in range(6))]
    best, value = runner.best(candidates)
    returns = {one: play(env, one, TUNING_SEED).mean for one in candidates}
    assert value == returns[best]
    assert value == max(returns.values())


def test_only_what_is_named_is_built(config: Config, bank: TraceBank) -> None:
    runner = BenchmarkRunner(config, bank)
    assert list(runner.scripted(["playbook"])) == ["playbook"]
    with pytest.raises(UserError, match="did you mean 'playbook'"):
        runner.scripted(["playbok"])


# Playing


def test_sides_differ_in_who_attacks(config: Config, bank: TraceBank) -> None:
    runner = BenchmarkRunner(config, bank)
    scripted = runner.scripted(["no-op", "planner"])
    sides = {name: runner.on(name).side(scripted, {}) for name in SIDES}
    assert set(sides["seen"].attacker) - {""} <= set(config.attackers.train)
    assert set(sides["held out"].attacker) - {""} == set(config.attackers.held_out)
    assert set(sides["attack-free"].attacker) == {""}
    assert (sides["attack-free"].start == -1).all()
    assert sides["attack-free"].returns("no-op").tolist() == [[0.0] * 24]
    for name, side in sides.items():
        assert ((side.start >= 0) == (side.attacker != "")).all()
        alone = play(runner.on(name).env(24), Constant(0), TEST_SEED)
        np.testing.assert_array_equal(side.returns("no-op")[0], alone.returns)
        late = side.episodes["no-op"][0].summary["first_foothold"]
        assert (late[late >= 0] >= side.start[late >= 0]).all()


def test_groups_of_agents_play_beside_the_scripts(config: Config, bank: TraceBank, tmp_path: Path) -> None:
    folders = {seed: RLTrainer(config, bank, tmp_path).train(seed) for seed in (0, 1)}
    said: list[str] = []
    runner = BenchmarkRunner(config, bank)
    contest = runner.run({"agent": folders, "other": {0: folders[0]}}, said.append)
    assert contest.agents == ("agent", "other")
    assert list(contest.sides["held out"].episodes) == [*NAMES[:-1], "agent", "other", PLANNER]
    assert contest.sides["seen"].returns("agent").shape == (2, 24)
    np.testing.assert_array_equal(contest.sides["seen"].returns("agent")[0], contest.sides["seen"].returns("other")[0])
    assert list(contest.blinded) == ["families", "risk", "uncertainty", "anomaly"]
    assert contest.heuristic in NAMES[:-1]
    assert {row["agent"] for row in BenchmarkAnalyzer(config, contest, 6).scores} == {"agent", "other"}
    assert len(said) == 5


# Controls


def test_shuffling_moves_telemetry_and_leaves_what_the_defender_knows(config: Config, bank: TraceBank) -> None:
    env = IoTVectorEnv(64, bank=bank, config=config, flatten=True)
    flat, _ = env.reset(seed=0)
    layout = env.simulation.layout
    given: list[np.ndarray] = []

    class Listener:
        def predict(self, observation: np.ndarray, *rest: object) -> tuple[np.ndarray, str]:
            given.append(observation)
            return np.zeros(len(observation), np.int64), "memory"

    assert Shuffled(Listener(), layout, np.random.default_rng(0)).predict(flat)[1] == "memory"  # type: ignore[arg-type]
    before, after = layout.split(flat), layout.split(given[0])
    for part in ("controls", "device", "valid", "silent", "context"):
        np.testing.assert_array_equal(before[part], after[part])
    assert not np.array_equal(before["sensors"], after["sensors"])
    np.testing.assert_array_equal(np.sort(before["sensors"], axis=1), np.sort(after["sensors"], axis=1))
    # Features move with the readings of the same device.
    rows = {tuple(row) for row in np.concatenate([before["features"], before["sensors"]], axis=2).reshape(-1, 21)}
    assert {tuple(row) for row in np.concatenate([after["features"], after["sensors"]], axis=2).reshape(-1, 21)} == rows
