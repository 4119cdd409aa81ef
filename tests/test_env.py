"""The environment's contract with gymnasium, Stable-Baselines3 and itself."""

import copy
import hashlib
import multiprocessing
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import envs
from envs import IoTEnv, IoTVectorEnv
from envs.dynamics import TERMS, Order
from src.config import load_config
from src.errors import UserError
from tests.banks import make_bank

BANK = make_bank()
VARIANTS: list[dict[str, Any]] = [
    {"scenario": "solo"},
    {"scenario": "home", "flatten": True},
    {"scenario": "clinic"},
    {"scenario": "clinic", "action_mode": "joint", "flatten": True},
    {"scenario": "clinic", "protected": "cost"},
    {"scenario": "home", "expose_truth": True, "split": "test"},
]
ids = [" ".join(map(str, v.values())) for v in VARIANTS]


def roll(env: gymnasium.Env, seed: int, steps: int, action_seed: int = 0) -> list[tuple[bytes, float, bool, bool]]:
    """A trajectory under random actions, in comparable form."""
    rng = np.random.default_rng(action_seed)
    observation, _ = env.reset(seed=seed)
    found = []
    for _ in range(steps):
        space = env.action_space
        action = rng.integers(0, space.nvec) if isinstance(space, gymnasium.spaces.MultiDiscrete) else int(rng.integers(0, space.n))
        observation, reward, terminated, truncated, _ = env.step(action)
        flat = np.concatenate([part.ravel() for part in observation.values()]) if isinstance(observation, dict) else observation
        found.append((flat.tobytes(), float(reward), terminated, truncated))
        if terminated or truncated:
            observation, _ = env.reset()
    return found


@pytest.mark.parametrize("settings", VARIANTS, ids=ids)
def test_gymnasium_check_env_without_a_warning(settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("IoTDefense-v0", bank=BANK, **settings).unwrapped)


@pytest.mark.parametrize("settings", VARIANTS, ids=ids)
def test_sb3_check_env_without_a_warning(settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(IoTEnv(bank=BANK, **settings))


@pytest.mark.parametrize("settings", VARIANTS, ids=ids)
def test_same_seed_same_trajectory(settings: dict[str, Any]) -> None:
    assert roll(IoTEnv(bank=BANK, **settings), 3, 250) == roll(IoTEnv(bank=BANK, **settings), 3, 250)
    assert roll(IoTEnv(bank=BANK, **settings), 3, 250) != roll(IoTEnv(bank=BANK, **settings), 4, 250)


def test_another_action_gives_another_trajectory() -> None:
    assert roll(IoTEnv(bank=BANK), 3, 100, action_seed=0) != roll(IoTEnv(bank=BANK), 3, 100, action_seed=1)


def test_same_trajectory_in_a_fresh_process() -> None:
    code = (
        "import hashlib; from tests.test_env import roll, BANK; from envs import IoTEnv; "
        "print(hashlib.sha256(repr(roll(IoTEnv(bank=BANK), 5, 200)).encode()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout.split()[-1] == hashlib.sha256(repr(roll(IoTEnv(bank=BANK), 5, 200)).encode()).hexdigest()


def test_global_generators_are_untouched() -> None:
    before = np.random.get_state()[1].tobytes()  # type: ignore[index, union-attr]  # noqa: NPY002
    roll(IoTEnv(bank=BANK), 0, 100)
    assert np.random.get_state()[1].tobytes() == before  # type: ignore[index, union-attr]  # noqa: NPY002


def test_pickle_and_deepcopy_continue_alike() -> None:
    env = IoTEnv(bank=BANK)
    roll(env, 1, 60)
    env.reset(seed=9)
    env.step(3)
    twins = [env, copy.deepcopy(env), pickle.loads(pickle.dumps(env))]  # noqa: S301  (our own bytes)
    rewards = [[float(twin.step(a)[1]) for a in range(1, 40)] for twin in twins]
    assert rewards[0] == rewards[1] == rewards[2]


@pytest.mark.parametrize("settings", VARIANTS[:5], ids=ids[:5])
def test_vector_front_agrees_with_single_fronts(settings: dict[str, Any]) -> None:
    count, steps = 4, 230
    vector = IoTVectorEnv(count, bank=BANK, **settings)
    singles = [IoTEnv(bank=BANK, **settings) for _ in range(count)]
    rng = np.random.default_rng(0)
    many, _ = vector.reset(seed=20)
    ones = [env.reset(seed=20 + i)[0] for i, env in enumerate(singles)]
    for _ in range(steps):
        for i, one in enumerate(ones):
            parts = one.items() if isinstance(one, dict) else [("", one)]
            for name, part in parts:
                np.testing.assert_array_equal(many[name][i] if name else many[i], part)
        np.testing.assert_array_equal(vector.action_masks(), np.stack([env.action_masks() for env in singles]))
        space = vector.single_action_space
        shape = (count, len(space.nvec)) if isinstance(space, gymnasium.spaces.MultiDiscrete) else (count,)
        actions = rng.integers(0, 6 if len(shape) == 2 else space.n, shape)  # type: ignore[union-attr]
        many, rewards, terminated, truncated, info = vector.step(actions)
        for i, env in enumerate(singles):
            ones[i], reward, ended, cut, single_info = env.step(actions[i])
            assert (reward, ended, cut) == (rewards[i], terminated[i], truncated[i])
            assert single_info["reward_terms"] == {name: info["reward_terms"][name][i] for name in TERMS}
            if ended or cut:
                last = info["final_obs"]
                for name, part in ones[i].items() if isinstance(ones[i], dict) else [("", ones[i])]:
                    np.testing.assert_array_equal(last[name][i] if name else last[i], part)
                assert single_info["summary"] == {name: column[i] for name, column in info["final_info"]["summary"].items()}
                ones[i], _ = env.reset()


def test_a_snapshot_goes_on_alike() -> None:
    first, second = (IoTVectorEnv(3, bank=BANK, flatten=True) for _ in range(2))
    rng = np.random.default_rng(0)
    first.reset(seed=5)
    for _ in range(150):
        first.step(rng.integers(0, 61, 3))
    restored = second.restore(first.snapshot())
    np.testing.assert_array_equal(restored, first.simulation.observe())
    np.testing.assert_array_equal(second.action_masks(), first.action_masks())
    for _ in range(100):  # across the horizon, so that the generators must go on alike too
        actions = rng.integers(0, 61, 3)
        (one, gained, *_), (other, also, *_) = first.step(actions), second.step(actions)
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(gained, also)
    others = [IoTVectorEnv(2, bank=BANK, flatten=True), IoTVectorEnv(3, bank=make_bank(windows=30), flatten=True), IoTVectorEnv(3, scenario="home", bank=BANK)]
    for other in others:
        with pytest.raises(UserError, match="another batch"):
            other.restore(first.snapshot())


def test_reset_mask_starts_only_what_it_names() -> None:
    env = IoTVectorEnv(3, bank=BANK, flatten=True)
    env.reset(seed=0)
    for _ in range(10):
        env.step(np.zeros(3, np.int64))
    env.reset(seed=7, options={"reset_mask": np.array([False, True, False])})
    assert env.simulation.sites["step"].tolist() == [10, 0, 10]
    np.testing.assert_array_equal(env.simulation.observe()[1], IoTEnv(bank=BANK, flatten=True).reset(seed=8)[0])
    for wrong in (np.zeros(3, np.bool_), np.ones(2, np.bool_), [1, 0, 1]):
        with pytest.raises(UserError, match="reset_mask"):
            env.reset(options={"reset_mask": wrong})
    with pytest.raises(UserError, match="seed must be"):
        env.reset(seed=-1)


def test_seeds_may_be_given_one_by_one() -> None:
    by_number, one_by_one = (IoTVectorEnv(2, bank=BANK, flatten=True) for _ in range(2))
    np.testing.assert_array_equal(by_number.reset(seed=np.int64(4))[0], one_by_one.reset(seed=(4, 5))[0])
    with pytest.raises(UserError, match="3 seeds"):
        by_number.reset(seed=[1, 2, 3])


def test_rewards_are_the_weighted_terms() -> None:
    config = load_config()
    env = IoTEnv(bank=BANK, config=config)
    env.reset(seed=0)
    for action in np.random.default_rng(0).integers(0, 61, 60):
        _, reward, over, cut, info = env.step(action)
        assert reward == pytest.approx(-sum(getattr(config.reward, name) * value for name, value in info["reward_terms"].items()))
        assert all(value >= 0 for value in info["reward_terms"].values())
        if over or cut:
            break


def test_masks_name_the_orders_that_change_something() -> None:
    env = IoTEnv(bank=BANK, attack_free=1.0)
    env.reset(seed=0)
    block_first = 1 + Order.BLOCK - 1
    assert env.action_masks()[block_first]
    env.step(block_first)
    assert not env.action_masks()[block_first]
    assert env.action_masks()[1 + Order.RELEASE - 1]
    before = env.simulation.summary(0)["orders"]
    _, _, _, _, info = env.step(block_first)
    assert info["reward_terms"]["action"] == 0
    assert env.simulation.summary(0)["orders"] == before


def test_protected_device_is_masked_or_priced() -> None:
    index = IoTEnv(bank=BANK).device_names.index("pump-1")
    isolate = 1 + index * 5 + Order.ISOLATE - 1
    masked = IoTEnv(bank=BANK)
    masked.reset(seed=0)
    assert not masked.action_masks()[isolate]
    priced = IoTEnv(bank=BANK, protected="cost")
    priced.reset(seed=0)
    assert priced.step(isolate)[4]["reward_terms"]["safety"] == 1


def test_truth_is_in_info_only_when_asked() -> None:
    for asked in (False, True):
        env = IoTEnv(bank=BANK, expose_truth=asked)
        _, info = env.reset(seed=0)
        assert ("truth" in info) is asked
        assert ("truth" in env.step(0)[4]) is asked


def test_info_says_where_everything_comes_from() -> None:
    _, info = IoTEnv("home").reset(seed=0)
    assert info["traffic"] == "synthetic profile"
    assert info["scenario"] == "home"


def test_made_by_every_entry_point_without_an_artifact() -> None:
    assert envs.IoTEnv is IoTEnv
    for made in (gymnasium.make("IoTDefense-v0"), gymnasium.make("envs:IoTDefense-v0", scenario="solo")):
        made.reset(seed=0)
        made.step(made.action_space.sample())
    vector = gymnasium.make_vec("IoTDefense-v0", num_envs=3)
    assert isinstance(vector, IoTVectorEnv)
    vector.reset(seed=0)
    vector.step(vector.action_space.sample())


def test_import_by_module_name_alone() -> None:
    code = "import gymnasium; e = gymnasium.make('envs:IoTDefense-v0'); e.reset(seed=0); e.step(0); print('made')"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "made", done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn"])
# Python 3.12's and JAX's warnings about forking with threads do not apply to a child that only steps the environment.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_works_in_workers(method: str) -> None:
    assert method in multiprocessing.get_all_start_methods()
    vector = gymnasium.make_vec("envs:IoTDefense-v0", num_envs=2, vectorization_mode="async", vector_kwargs={"context": method}, flatten=True)
    observation, _ = vector.reset(seed=7)
    expected, _ = IoTEnv(flatten=True).reset(seed=8)
    np.testing.assert_array_equal(observation[1], expected)
    vector.step(np.array([1, 2]))
    vector.close()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: IoTEnv("klinic", bank=BANK), "scenario"),
        (lambda: IoTEnv(bank=BANK, scenari="home"), "did you mean 'scenario'"),
        (lambda: IoTEnv(bank=BANK, split="fit"), "allowed: calibrate, agent, test"),
        (lambda: IoTEnv(bank=BANK, horizon=-1), "horizon"),
        (lambda: IoTEnv(bank=BANK, features=["Colour"]), "no feature 'Colour'"),
        (lambda: IoTEnv(bank="nowhere"), "no trace-bank artifact at 'nowhere'"),
        (lambda: IoTEnv(bank=BANK, render_mode="hologram"), "render_mode"),
        (lambda: IoTEnv(bank=BANK).step(0), "reset"),
        (lambda: IoTEnv(Path("nowhere.yml"), bank=BANK), "nowhere.yml"),
        (lambda: IoTEnv(3, bank=BANK), "scenario"),  # type: ignore[arg-type]
        (lambda: IoTEnv(bank=BANK, config="config.yml"), "config must be a Config.*not 'config.yml'"),  # type: ignore[arg-type]
        (lambda: IoTEnv(bank=BANK, config={}), "config must be a Config"),  # type: ignore[arg-type]
        (lambda: IoTVectorEnv(0, bank=BANK), "num_envs"),
        (lambda: IoTVectorEnv("2", bank=BANK), "num_envs must be a whole number of at least 1, not '2'"),  # type: ignore[arg-type]
        (lambda: IoTVectorEnv(2.5, bank=BANK), "num_envs must be a whole number of at least 1, not 2.5"),  # type: ignore[arg-type]
        (lambda: IoTVectorEnv(2, bank=BANK).reset(seed=1.5), "seed must be a whole number of at least 0, not 1.5"),  # type: ignore[arg-type]
        (lambda: IoTVectorEnv(2, bank=BANK).reset(seed="12"), "seed must be a whole number of at least 0, not '12'"),  # type: ignore[arg-type]
        (lambda: IoTVectorEnv(2, bank=BANK).reset(seed=-1), "at least 0, not -1"),
        (lambda: IoTVectorEnv(2, bank=BANK).reset(seed=[3, -2]), "each seed must be a whole number of at least 0, not -2"),
        (lambda: IoTVectorEnv(2, bank=BANK).reset(seed=[3, 1.5]), "each seed must be .* not 1.5"),  # type: ignore[list-item]
        (lambda: IoTEnv("home", bank=BANK).simulation.layout.split(np.zeros(5)), "of 6 devices has 248 floats here, not 5"),
        (lambda: IoTEnv("home", bank=BANK).simulation.layout.named(np.zeros((3, 7))), "not 7"),
    ],
)
def test_wrong_use_is_one_clear_line(call: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("action", [-1, 61, 1.5, "0", None, True, np.bool_(True), np.array([3]), np.zeros(2, np.int64), [[0], [1, 2]]])
def test_actions_outside_the_space_are_refused(action: Any) -> None:
    env = IoTEnv(bank=BANK)
    env.reset(seed=0)
    with pytest.raises(UserError, match="not in"):
        env.step(action)


def test_a_scenario_may_be_a_path(tmp_path: Path) -> None:
    file = tmp_path / "greenhouse.yml"
    file.write_text((Path(envs.__file__).parent / "networks" / "home.yml").read_text(encoding="utf-8"), encoding="utf-8")
    names = IoTEnv("home", bank=BANK).device_names
    assert IoTEnv(file, bank=BANK).device_names == IoTVectorEnv(2, scenario=file, bank=BANK).device_names == names


def test_numpy_integers_are_actions() -> None:
    env = IoTEnv(bank=BANK)
    env.reset(seed=0)
    for action in (np.int64(3), np.int32(3), np.array(3), np.array(3, np.uint8), Order.BLOCK):
        env.step(action)
