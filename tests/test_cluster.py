"""Trainings by a Ray cluster. What needs Ray runs where it is installed: `make test-ray`."""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import main as command_line
from agents.learned import load_policy
from agents.manager import Job, in_turn
from agents.training import RLTrainer
from benchmarks import scale_cluster
from benchmarks.loopback import Nodes, nodes
from envs import IoTVectorEnv
from src.artifacts import content_digest, new_artifact, open_artifact
from src.cluster.parcels import SCRATCH, pack, unpack
from src.config import ComputeConfig, Config, load_config
from src.data.bank import TraceBank
from src.errors import UserError
from tests.test_main import words

RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not RAY, reason="Ray is not installed: pip install -r requirements-ray.txt")
SMALL = [
    "rl.n_envs=8", "rl.hidden_size=8", "rl.total_timesteps=512", "rl.checkpoint_steps=128", "rl.validation_steps=256", "rl.validation_episodes=2",
    "rl.ppo.n_steps=16", "rl.ppo.batch_size=32", "rl.ppo.demonstrations=0", "env.scenario=home", "env.horizon=20", "env.start_range=[2, 5]",
    "compute.engine=ray", "compute.threads=1",
]  # fmt: skip


def small(*more: str) -> Config:
    return load_config(overrides=[*SMALL, *more], environ={})


# Without Ray


@pytest.mark.skipif(RAY, reason="Ray is installed")
def test_without_ray_the_user_is_told_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(words(tmp_path / "artifacts", "rl", "compute.engine=ray")) == 2
    assert "pip install -r requirements-ray.txt" in capsys.readouterr().err
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("setting", ["compute.workers=2", "compute.address=auto"])
def test_settings_of_a_cluster_mean_nothing_without_one(setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(words(tmp_path / "artifacts", "rl", setting)) == 2
    assert "goes with compute.engine 'ray'" in capsys.readouterr().err


def test_a_parcel_arrives_whole_or_not_at_all(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "sent", "thing", {}) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "data").write_bytes(b"some bytes")
    parcel = pack(tmp_path / "sent")
    unpack(parcel, tmp_path / "there" / "got")
    assert open_artifact(tmp_path / "there" / "got", "thing") == open_artifact(tmp_path / "sent", "thing")
    with pytest.raises(UserError, match=r"deep/data' was altered"):
        unpack({**parcel, "deep/data": b"some bytez"}, tmp_path / "there" / "got")
    assert pack(tmp_path / "there" / "got") == parcel
    unpack(parcel, tmp_path / "there" / "got")  # in place of what was there
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["got"]


# With Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes(2) as found:
        yield found


@pytest.fixture
def joined(cluster: Nodes) -> Iterator[None]:
    from src.cluster.connection import connected

    with connected(ComputeConfig(engine="ray", address=cluster.address, threads=1)) as told:
        assert "2 nodes, 2 cores" in told
        yield


@needs_ray
def test_nobody_at_the_address_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for address in ("127.0.0.1:9", "nowhere", "127.0.0.1:port", "127.0.0.1:99999999"):
        assert command_line.main(words(tmp_path / "artifacts", "rl", "compute.engine=ray", f"compute.address={address}")) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: no Ray cluster at compute.address '{address}'")
        assert len(said.splitlines()) == 1
    assert not (tmp_path / "artifacts").exists()


@needs_ray
@pytest.mark.filterwarnings("ignore:.*Overriding environment:UserWarning")  # RLlib registers its own, each time
def test_tasks_train_the_same_agents_and_tell_the_same_figures(joined: None, tmp_path: Path) -> None:
    from src.cluster.agents import train_agents
    from src.cluster.rllib import RLlibTrainer

    bank = TraceBank.bundled()
    found: dict[str, dict[str, Any]] = {}
    for title, carry_out in (("here", in_turn), ("there", train_agents)):
        told: dict[str, Any] = {}
        said: list[str] = []

        def watch(job: Job, told: dict[str, Any] = told) -> Any:
            rows = told.setdefault(str(job), [])
            return nullcontext(lambda metrics, step: rows.append((step, {key: value for key, value in metrics.items() if not key.startswith("time/")})))

        trainers = {
            "ppo": RLTrainer(small(), bank, tmp_path / title / "ppo"),
            "dqn": RLTrainer(small("rl.algorithm=dqn", "rl.dqn.learning_starts=64"), bank, tmp_path / title / "dqn"),
            "rllib": RLlibTrainer(small("rl.algorithm=rllib_ppo", "rl.rllib_ppo.batch_size=64"), bank, tmp_path / title / "rllib"),
        }
        jobs = [Job(name, trainer, seed) for name, trainer in trainers.items() for seed in (0, 1)]
        carry_out(jobs, watch, False, said.append)
        assert not list((tmp_path / title).glob(f"*/{SCRATCH}"))
        digests = {str(job): content_digest(job.trainer.target(job.seed)) for job in jobs}
        assert all(job.trainer.trained(job.seed) for job in jobs)
        assert "pytest" in open_artifact(jobs[0].trainer.target(0), "agent-policy")["command"]  # who asked for it, not the worker's
        found[title] = {"digests": digests, "told": told}
    assert found["there"]["digests"] == found["here"]["digests"]
    assert len(set(found["here"]["digests"].values())) == 6
    assert found["there"]["told"]
    assert all(found["there"]["told"][job] == rows for job, rows in found["here"]["told"].items())


@needs_ray
@pytest.mark.filterwarnings("ignore:.*Overriding environment:UserWarning")
def test_rllibs_agent_acts_as_rllib_says(joined: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.rllib.algorithms.ppo import PPO

    from agents.sight import Sight
    from src.cluster.rllib import RLlibTrainer

    modules = []
    plain = PPO.get_module
    monkeypatch.setattr(PPO, "get_module", lambda self, *given: modules.append(plain(self, *given)) or modules[-1])
    config = small("rl.algorithm=rllib_ppo", "rl.rllib_ppo.batch_size=64", "rl.hidden_size=16")
    folder = RLlibTrainer(config, TraceBank.bundled(), tmp_path).train(0)
    env = IoTVectorEnv(16, split="test", config=config, flatten=True)
    policy, (observation, _) = load_policy(folder, env.simulation), env.reset(seed=1)
    layout = env.simulation.layout
    for _ in range(5):
        shown = Sight(layout, belief=False).show(layout.split(observation), None)
        with torch.no_grad():
            theirs = modules[-1].forward_inference({"obs": torch.from_numpy(shown)})["action_dist_inputs"].argmax(1).numpy()
        actions, _ = policy.predict(observation, deterministic=True)
        np.testing.assert_array_equal(actions, theirs)
        observation, *_ = env.step(actions)


@needs_ray
def test_a_refusal_in_a_task_is_the_users_error(joined: None, tmp_path: Path) -> None:
    from src.cluster.agents import train_agents

    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot write"):
        train_agents([Job("agent", RLTrainer(small(), TraceBank.bundled(), blocked / "agents"), 0)], lambda _: nullcontext(), False, lambda _: None)


@needs_ray
def test_a_search_by_tune_and_one_without_share_their_study(cluster: Nodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from src.search import main

    artifacts = tmp_path / "artifacts"
    settings = [*words(artifacts, "lstm")[2:], "--set", "lstm.training.epochs=2"]
    ray = ["--set", "compute.engine=ray", "--set", f"compute.address={cluster.address}"]
    assert main(["--model", "base", "--trials", "3", *settings, *ray]) == 0
    out = capsys.readouterr().out
    assert all(f"trial {number} of 3: macro-F1" in out for number in (1, 2, 3))
    assert main(["--model", "base", "--trials", "4", *settings]) == 0  # without a cluster it goes on
    out = capsys.readouterr().out
    assert "trial 4 of 4" in out
    assert "trial 3 of" not in out
    assert not list(artifacts.glob("tune-*"))


@needs_ray
def test_workers_train_the_predictors_that_one_process_would(cluster: Nodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = {name: tmp_path / name for name in ("one", "two")}
    ray = ["compute.engine=ray", f"compute.address={cluster.address}"]
    assert command_line.main(words(artifacts["one"], "lstm", *ray)) == 0  # a single worker: the same numbers as without a cluster
    assert command_line.main(words(tmp_path / "local", "lstm")) == 0
    assert command_line.main(words(artifacts["two"], "lstm", *ray, "compute.workers=2")) == 0
    for room in ("networks", "autoencoders"):
        (local,), (one,), (two,) = (list((folder / room).iterdir()) for folder in (tmp_path / "local", artifacts["one"], artifacts["two"]))
        assert content_digest(one) == content_digest(local) != content_digest(two)
        metrics = [json.loads((folder / "meta.json").read_text())["metrics"] for folder in (local, two)]
        assert set(metrics[0]) == set(metrics[1])
    assert not list(tmp_path.glob(f"*/*/{SCRATCH}"))
    assert "attack predictor on held-out synthetic profile windows" in capsys.readouterr().out


@needs_ray
@pytest.mark.slow
def test_a_node_killed_in_the_middle_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    rows = scale_cluster.lost_node(tmp_path, {})
    assert [row["agents"] for row in rows] == [6, 6, 6]
    assert [(row["agents_wrong"], row["figures_wrong"], row["runs_wrong"]) for row in rows] == [(0, 0, 0)] * 3
    assert rows[0]["figures"] > 100
    assert "127.0.0.2" in rows[1]["trained_on"]
    assert "127.0.0.3" in rows[1]["trained_on"]
    assert rows[2]["trained_on"] == "127.0.0.2: 6"  # what the other node was at was taken over


@needs_ray
@pytest.mark.slow
def test_predictors_go_on_when_a_worker_is_lost(tmp_path: Path) -> None:
    from benchmarks.loopback import run, wait_for

    settings = {
        **scale_cluster.EXPERIMENT,
        "lstm.training.epochs": 6,
        "temporal.training.epochs": 3,
        "rl.variants": "{}",
        "compute.engine": "ray",
        "compute.workers": 2,
    }
    found = []
    for killing in (False, True):
        artifacts = tmp_path / str(killing)
        with nodes(2) as lost:

            def lose(artifacts: Path = artifacts, lost: Nodes = lost, killing: bool = killing) -> None:
                if killing:
                    wait_for(artifacts, f"networks/{SCRATCH}/*/*.checkpoint.pt", 1)
                    lost.kill()
                    lost.add()

            run(scale_cluster.words(artifacts, {**settings, "compute.address": lost.address}, "lstm"), lose)
        found.append({room: content_digest(next(iter((artifacts / room).iterdir()))) for room in ("networks", "autoencoders")})
    assert found[0] == found[1]
