"""The speed benchmark: its peers stand alone, its rounds are fair, and what cannot be measured is left out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agents.vec_env import IoTSB3VecEnv
from benchmarks import env_speed
from benchmarks.peers import PEERS
from envs import IoTVectorEnv
from tests.test_architecture import imports

ROOT = Path(__file__).parents[1]


def test_the_peers_script_needs_the_standard_library_alone_to_start() -> None:
    named = imports((ROOT / "benchmarks" / "peers.py").read_text(encoding="utf-8"))
    assert {name.split(".")[0] for name in named} <= sys.stdlib_module_names


def test_every_peer_package_is_pinned() -> None:
    lines = [line.partition("#")[0].strip() for line in env_speed.REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if line and line.count("==") != 1] == []


def test_each_round_times_everybody_once_for_whole_episodes() -> None:
    asked: list[tuple[str, int]] = []

    def contestant(name: str, rate: float) -> env_speed.Run:
        def run(steps: int) -> tuple[int, float]:
            asked.append((name, steps))
            return steps, steps / rate

        return run

    rates = env_speed.compete({"quick": (contestant("quick", 1e6), 1), "slow": (contestant("slow", 900.0), 100)}, 5, 0.5, np.random.default_rng(0))
    assert {name: values.tolist() for name, values in rates.items()} == {"quick": pytest.approx([1e6] * 5), "slow": pytest.approx([900.0] * 5)}
    rounds = np.reshape([name for name, _ in asked[-10:]], (5, 2))
    assert np.sort(rounds, axis=1).tolist() == [["quick", "slow"]] * 5
    assert len(set(rounds[:, 0])) == 2, "who begins must change"
    assert {steps for name, steps in asked if name == "slow"} <= {100 * i for i in range(1, 10)}


def test_a_peer_that_does_not_start_is_left_out_and_one_that_does_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(env_speed, "own_python", lambda *_: Path(sys.executable))  # this interpreter has gymnasium, but no other peer
    with env_speed.peers(tmp_path, install=False) as (found, missing):
        assert set(found) == {"CartPole (their gymnasium)"}
        assert set(missing) == set(PEERS) - set(found)
        assert "nasim" in missing["NASim"]
        steps, seconds = found["CartPole (their gymnasium)"].run(500)
    assert steps == 500
    assert seconds > 0


def test_nothing_is_installed_unless_asked_for(tmp_path: Path) -> None:
    with env_speed.peers(tmp_path / "none", install=False) as (found, missing):
        assert found == {}
        assert set(missing) == set(PEERS)
    assert not (tmp_path / "none").exists()


def test_the_empty_environment_is_shaped_as_ours() -> None:
    played = IoTSB3VecEnv(IoTVectorEnv(3, scenario="home", flatten=True))
    empty = env_speed.EmptyVecEnv(played)
    assert (empty.num_envs, empty.observation_space, empty.action_space) == (3, played.observation_space, played.action_space)
    observation = empty.reset()
    again, rewards, dones, infos = empty.step(np.zeros(3, np.int64))
    assert (again == observation).all()
    assert again.shape == (3, *played.observation_space.shape)  # type: ignore[misc]
    assert (rewards.shape, dones.any(), infos) == ((3,), False, [{}, {}, {}])


def test_the_parts_of_a_step_are_all_of_it() -> None:
    env = IoTVectorEnv(32, scenario="home", flatten=True)
    run = env_speed.batched(env)
    with env_speed.stopwatch(env.simulation) as spent:
        _, seconds = run(32 * 300)
    # That an observation is quicker than the step it is part of holds on an idle machine only.
    assert min(spent["observation"], spent["step"]) > 0
    assert spent["resets"] > 0
    assert spent["step"] + spent["resets"] + spent["aside"] < seconds


@pytest.mark.slow
def test_without_peers_only_what_needs_none_is_judged(tmp_path: Path) -> None:
    environment = {**os.environ, "IOTDEF__COMPUTE__ARTIFACTS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "benchmarks.env_speed", "--quick"], capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["gates"]) == {"F.speed.vector", "F.speed.devices", "F.speed.ppo"}
    assert {row["peer"] for row in found["tables"]["left out"]} == set(PEERS)
