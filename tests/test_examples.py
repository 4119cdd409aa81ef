"""The examples run as a user runs them, the guide's code works, and the environment bears what client libraries do to it."""

import argparse
import copy
import importlib.util
import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as vector_wrappers
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecCheckNan, VecEnv, VecFrameStack, VecNormalize

import examples.common
from agents.baselines import Constant, Random
from agents.vec_env import IoTSB3VecEnv
from envs import IoTEnv, IoTVectorEnv
from src.evaluation.rollout import play

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "using.md").read_text(encoding="utf-8")

# Example, the package that it needs, and the smallest run that trains at all.
EXAMPLES = [
    ("sb3_ppo", "stable_baselines3", ["--timesteps", "512", "--n-envs", "4"]),
    ("maskable_ppo", "sb3_contrib", ["--timesteps", "512", "--n-envs", "4"]),
    ("recurrent_ppo", "sb3_contrib", ["--timesteps", "256", "--n-envs", "4"]),
    ("cleanrl_ppo", "torch", ["--timesteps", "1024", "--n-envs", "4"]),
    ("cleanrl_ppo", "torch", ["--timesteps", "512", "--n-envs", "4", "--device-set"]),
    ("torchrl_ppo", "torchrl", ["--timesteps", "512", "--n-envs", "4"]),
    ("rllib_ppo", "ray", ["--timesteps", "512", "--n-envs", "2"]),
]


def run(name: str, *arguments: str, limit: float = 280) -> subprocess.CompletedProcess[str]:
    """An example in a process of its own."""
    return subprocess.run([sys.executable, "-m", f"examples.{name}", *arguments], capture_output=True, text=True, check=False, cwd=ROOT, timeout=limit)


def table(printed: str) -> dict[str, tuple[float, float]]:
    """Mean return and standard error of each policy that an example printed."""
    rows = re.findall(r"^  (\S.*?) +(\S+) \+- (\S+)$", printed, flags=re.MULTILINE)
    return {label: (float(mean), float(error)) for label, mean, error in rows}


@pytest.mark.parametrize(("name", "package", "arguments"), EXAMPLES, ids=[f"{e[0]}{' device-set' * ('--device-set' in e[2])}" for e in EXAMPLES])
def test_example_trains_and_prints_a_finite_comparison(name: str, package: str, arguments: list[str]) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (requirements-ray.txt, requirements-examples.txt)")
    done = run(name, *arguments, "--scenario", "home", "--episodes", "20", "--seed", "3")
    assert done.returncode == 0, done.stderr
    found = table(done.stdout)
    assert len(found) == 3, done.stdout
    assert all(math.isfinite(number) for row in found.values() for number in row)
    env = IoTVectorEnv(20, scenario="home", split="test", flatten=True)
    assert found["no-op"][0] == pytest.approx(play(env, Constant(0), examples.common.TEST_SEED).mean, abs=0.006)
    assert found["random"][0] == pytest.approx(play(env, Random(env.simulation.layout, seed=3), examples.common.TEST_SEED).mean, abs=0.006)


def test_every_example_is_tested_and_shown_in_the_guide() -> None:
    files = {path.stem for path in (ROOT / "examples").glob("*_ppo.py")}
    assert files == {name for name, _, _ in EXAMPLES}
    assert all(f"examples/{name}.py" in GUIDE for name in files)


def test_wrong_input_is_one_line_and_a_failure() -> None:
    done = run("cleanrl_ppo", "--scenario", "hom")
    assert done.returncode != 0
    assert re.fullmatch(r"error: .*'hom'.*\n", done.stderr), done.stderr


@pytest.mark.parametrize("words", ["--episodes 0", "--timesteps 0", "--n-envs -1", "--seed -1", "--episodes 2.5"])
def test_wrong_numbers_are_refused_with_the_command_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        examples.common.flags("Trains.", timesteps=1, n_envs=1).parse_args(words.split())
    assert caught.value.code == 2
    assert f"argument {words.split()[0]}:" in capsys.readouterr().err


def test_building_a_command_line_leaves_torch_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        examples.common.flags("Trains.", timesteps=1, n_envs=1)
        assert torch.get_num_threads() == 2
        examples.common.launch(lambda: None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_examples_need_no_benchmark() -> None:
    for path in (ROOT / "examples").glob("*.py"):
        assert "benchmarks" not in {
            line.split()[1].split(".")[0] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(("import ", "from "))
        }


def test_comparison_is_on_held_out_traffic_with_equal_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []

    def spy(env: IoTVectorEnv, policy: Any, seed: int) -> Any:
        seen.append((env.simulation.split, env.num_envs, seed))
        return play(env, policy, seed)

    monkeypatch.setattr(examples.common, "play", spy)
    examples.common.compare("always 1", Constant(1), argparse.Namespace(scenario="solo", episodes=3, seed=0), 1, examples.common.Clock())
    assert seen == [("test", 3, examples.common.TEST_SEED)] * 3


def test_a_return_that_is_not_finite_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(env: IoTVectorEnv, policy: Any, seed: int) -> Any:
        played = play(env, policy, seed)
        played.returns[0] = np.nan
        return played

    monkeypatch.setattr(examples.common, "play", broken)
    with pytest.raises(SystemExit, match="not finite"):
        examples.common.compare("x", Constant(1), argparse.Namespace(scenario="solo", episodes=2, seed=0), 1, examples.common.Clock())


def test_masks_are_read_out_of_observations() -> None:
    env = IoTVectorEnv(5, scenario="clinic", flatten=True)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    for _ in range(60):
        np.testing.assert_array_equal(examples.common.masks(env.simulation.layout, observation), env.action_masks())
        observation, *_ = env.step(env.action_space.sample())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("sb3_ppo", "300000"), ("maskable_ppo", "300000"), ("recurrent_ppo", "200000"), ("cleanrl_ppo", "300000")])
def test_example_learns(name: str, steps: str) -> None:
    found = table(run(name, "--scenario", "home", "--timesteps", steps, limit=600).stdout)
    (trained, error), *others = found.values()
    assert all(trained - 3 * error > mean + 3 * spread for mean, spread in others)


def test_guide_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    # `__name__` as in a module: dataclasses and pickles of what a block defines look it up.
    names: dict[str, Any] = {"__name__": "using"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/using.md block {number + 1}", "exec"), names)


def test_files_that_the_guide_names_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", GUIDE):
        assert (ROOT / "docs" / link).exists(), link


make = partial(gymnasium.make, "envs:IoTDefense-v0", scenario="home", flatten=True)
"""The environment as gymnasium makes it. No function of this module, whose imports each spawned worker would repeat."""


WRAPPED: dict[str, Callable[[], gymnasium.Env]] = {
    "FlattenObservation": lambda: wrappers.FlattenObservation(make(flatten=False)),
    "FilterObservation": lambda: wrappers.FilterObservation(make(flatten=False), ["sensors", "context"]),
    "FrameStackObservation": lambda: wrappers.FrameStackObservation(make(), 4),
    "NormalizeObservation": lambda: wrappers.NormalizeObservation(make()),
    "RecordEpisodeStatistics": lambda: wrappers.RecordEpisodeStatistics(make()),
    "NormalizeReward": lambda: wrappers.NormalizeReward(make()),
    "Autoreset": lambda: wrappers.Autoreset(make()),
    "PassiveEnvChecker": lambda: wrappers.PassiveEnvChecker(make(flatten=False)),
}


@pytest.mark.parametrize("build", WRAPPED.values(), ids=WRAPPED.keys())
def test_wrapped_by_gymnasium(build: Callable[[], gymnasium.Env]) -> None:
    env = build()
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    ended = 0
    for _ in range(410):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert observation in env.observation_space
        assert math.isfinite(float(reward))
        if terminated or truncated:
            ended += 1
            if isinstance(env, wrappers.RecordEpisodeStatistics):
                assert info["episode"]["l"] == info["summary"]["steps"]
            if not isinstance(env, wrappers.Autoreset):
                env.reset()
    assert ended >= 2


def test_time_limit_truncates() -> None:
    for env in (wrappers.TimeLimit(make(), 50), make(max_episode_steps=50)):
        env.reset(seed=0)
        ends = [env.step(0)[3] for _ in range(50)]
        assert ends == [False] * 49 + [True]


def test_masks_are_reached_through_wrappers() -> None:
    env = wrappers.RecordEpisodeStatistics(make())
    env.reset(seed=0)
    np.testing.assert_array_equal(env.get_wrapper_attr("action_masks")(), env.unwrapped.action_masks())  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["fork", "spawn"])
# Warnings about forking a process with threads do not apply to a child that only steps the environment.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_asynchronous_workers_play_the_same_episodes(method: str) -> None:
    vector = AsyncVectorEnv([make] * 2, context=method, autoreset_mode=AutoresetMode.SAME_STEP)
    batch = IoTVectorEnv(2, scenario="home", flatten=True)
    try:
        np.testing.assert_array_equal(vector.reset(seed=4)[0], batch.reset(seed=4)[0])
        rng = np.random.default_rng(0)
        ended = 0
        for _ in range(210):
            actions = rng.integers(0, 31, 2)
            (one, gained, *ends, info), (other, also, *others, batched) = vector.step(actions), batch.step(actions)
            np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(gained, also)
            np.testing.assert_array_equal(ends, others)
            for i in np.flatnonzero(np.logical_or(*ends)):
                ended += 1
                np.testing.assert_array_equal(info["final_obs"][i], batched["final_obs"][i])
        assert ended >= 2
        np.testing.assert_array_equal(vector.call("action_masks"), batch.action_masks())
    finally:
        vector.close()


VECTORS: dict[str, Callable[[], Any]] = {
    "SyncVectorEnv": lambda: SyncVectorEnv([make] * 3),
    "NormalizeReward": lambda: vector_wrappers.NormalizeReward(IoTVectorEnv(3, scenario="home", flatten=True)),
    "TransformReward": lambda: vector_wrappers.TransformReward(IoTVectorEnv(3, scenario="home", flatten=True), lambda reward: 0.1 * reward),
    "RecordEpisodeStatistics": lambda: vector_wrappers.RecordEpisodeStatistics(IoTVectorEnv(3, scenario="home", flatten=True)),
    "DictInfoToList": lambda: vector_wrappers.DictInfoToList(IoTVectorEnv(3, scenario="home", flatten=True)),
}


@pytest.mark.parametrize("build", VECTORS.values(), ids=VECTORS.keys())
def test_batches_under_vector_wrappers(build: Callable[[], Any]) -> None:
    env = build()
    env.action_space.seed(0)
    env.reset(seed=0)
    ended = 0
    for _ in range(210):
        observation, rewards, terminated, truncated, info = env.step(env.action_space.sample())
        assert observation in env.observation_space
        assert np.isfinite(rewards).all()
        for i in np.flatnonzero(terminated | truncated):
            ended += 1
            if isinstance(env, vector_wrappers.DictInfoToList):
                assert info[i]["final_info"]["summary"]["steps"] <= 200
    assert ended >= 3


def twins(original: Any) -> list[Any]:
    """The object, a deep copy and one that was pickled."""
    return [original, copy.deepcopy(original), pickle.loads(pickle.dumps(original))]  # noqa: S301 - our own bytes


def test_copies_of_batches_go_on_alike() -> None:
    rng = np.random.default_rng(0)
    env = IoTVectorEnv(3, scenario="home", flatten=True)
    env.reset(seed=1)
    for _ in range(50):
        env.step(rng.integers(0, 31, 3))
    script = rng.integers(0, 31, (250, 3))
    played = [[one.step(actions)[1].tolist() for actions in script] for one in twins(env)]
    assert played[0] == played[1] == played[2]
    wrapped = IoTSB3VecEnv(IoTVectorEnv(3, scenario="home", flatten=True))
    wrapped.seed(1)
    wrapped.reset()
    played = [[one.step(actions)[1].tolist() for actions in script] for one in twins(wrapped)]
    assert played[0] == played[1] == played[2]


def walk(env: VecEnv) -> int:
    """Episodes that end in 210 random steps, each with what Stable-Baselines3 expects of an end."""
    rng = np.random.default_rng(0)
    env.seed(6)
    env.reset()
    ended = 0
    for _ in range(210):
        _, rewards, dones, infos = env.step(rng.integers(0, 31, env.num_envs))
        assert np.isfinite(rewards).all()
        for i in np.flatnonzero(dones):
            ended += 1
            assert infos[i]["episode"]["l"] == infos[i]["summary"]["steps"]
            assert "terminal_observation" in infos[i]
    return ended


SB3: dict[str, Callable[[VecEnv], VecEnv]] = {
    "bare": lambda env: env,
    "VecNormalize": VecNormalize,
    "VecFrameStack": lambda env: VecFrameStack(env, 3),
    "VecCheckNan": lambda env: VecCheckNan(env, raise_exception=True),
}


@pytest.mark.parametrize("wrap", SB3.values(), ids=SB3.keys())
def test_under_sb3_wrappers(wrap: Callable[[VecEnv], VecEnv]) -> None:
    assert walk(wrap(IoTSB3VecEnv(IoTVectorEnv(3, scenario="home", flatten=True)))) >= 3


@pytest.mark.parametrize("start", [None, "fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_made_by_sb3(start: str | None) -> None:
    settings: dict[str, Any] = {} if start is None else {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": start}}
    env = make_vec_env(IoTEnv, 2, env_kwargs={"scenario": "home", "flatten": True}, **settings)
    try:
        env.seed(6)
        expected, _ = IoTEnv("home", flatten=True).reset(seed=7)
        np.testing.assert_array_equal(env.reset()[1], expected)  # type: ignore[index]
        assert np.stack(env.env_method("action_masks")).shape == (2, 31)
        assert walk(env) >= 2
    finally:
        env.close()


def test_made_by_sb3_by_name() -> None:
    env = make_vec_env("IoTDefense-v0", 2, env_kwargs={"scenario": "home", "flatten": True})  # which asks for `rgb_array`
    assert walk(env) >= 2


def test_sb3_batch_answers_for_some_of_its_environments() -> None:
    env = IoTSB3VecEnv(IoTVectorEnv(3, scenario="home", flatten=True))
    env.seed(0)
    env.reset()
    env.step(np.array([2, 0, 0]))
    masks = env.env_method("action_masks", indices=[0, 2])
    assert not masks[0][2]  # the block is in force there
    assert masks[1][2]
    assert env.has_attr("action_masks")
    assert not env.has_attr("nothing of this name")
