"""The classic view: its contract, its parts against what they are taken from, and its actions."""

import copy
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from envs import IoTEnv, IoTVectorEnv
from envs.dynamics import Order
from envs.wrappers import CLASSIC_FEATURES, ClassicView, classic
from src.data.bank import TraceBank
from src.data.ciciot2023 import FEATURES_39, FEATURES_46
from src.errors import UserError

BANK = TraceBank.bundled()
F = len(CLASSIC_FEATURES)


def view(scenario: str = "clinic", history: int = 10, **settings: Any) -> ClassicView:
    return classic(scenario, history=history, bank=BANK, **settings)


def test_22_features_that_every_source_has() -> None:
    assert len(set(CLASSIC_FEATURES)) == 22
    assert set(CLASSIC_FEATURES) <= set(FEATURES_39) & set(FEATURES_46) & set(BANK.feature_names)


@pytest.mark.parametrize("scenario", ["solo", "clinic"])
def test_gymnasium_check_env_without_a_warning(scenario: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Said of every wrapper, whatever it does.
        warnings.filterwarnings("ignore", message=".*The environment .* is different from the unwrapped version.*")
        check_env(gymnasium.make("IoTDefenseClassic-v0", scenario=scenario, bank=BANK), skip_render_check=True)


@pytest.mark.parametrize("settings", [{"scenario": "solo"}, {"scenario": "clinic", "flatten": True}, {"scenario": "home", "history": 1}])
def test_sb3_check_env_without_a_warning(settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(view(**settings))


def test_made_by_its_name_alone_and_in_a_batch() -> None:
    env = gymnasium.make("envs:IoTDefenseClassic-v0", scenario="solo")
    observation, info = env.reset(seed=0)
    assert info["device"] == "camera-1"
    assert observation["current_state"].shape == (22,)
    again = gymnasium.make(env.spec)  # type: ignore[arg-type]
    assert again.observation_space == env.observation_space
    vector = gymnasium.make_vec("IoTDefenseClassic-v0", num_envs=2, vectorization_mode="sync")
    many, _ = vector.reset(seed=0)
    assert many["state_history"].shape == (2, 220)


def test_pictures_can_be_gathered_by_gymnasium() -> None:
    env = gymnasium.make("envs:IoTDefenseClassic-v0", render_mode="rgb_array_list", scenario="solo", bank=BANK)
    env.reset(seed=0)
    env.step(0)
    pictures = env.render()
    assert len(pictures) == 2  # type: ignore[arg-type]
    assert all(picture.ndim == 3 for picture in pictures)  # type: ignore[union-attr]


@pytest.mark.parametrize("flatten", [False, True])
def test_parts_are_those_of_the_device_in_focus(flatten: bool) -> None:
    k = 4
    env = view(history=k, flatten=flatten, attack_free=0.0)
    layout = env.base.simulation.layout
    rng = np.random.default_rng(0)
    seen, info = env.reset(seed=1)
    states, actions, devices = [], [], set()
    for _ in range(200):
        parts = layout.split(env.base.simulation.observe()[0])
        states.append(parts["features"].copy())
        d = env.base.device_names.index(info["device"])
        devices.add(d)
        cut = parts["controls"][:, 2:4].max(axis=1) > 0
        assert not cut[d] or cut.all()
        assert (parts["trend"][d, 0] >= parts["trend"][~cut, 0]).all()
        np.testing.assert_array_equal(seen["current_state"], states[-1][d])
        past = [np.zeros_like(states[0])] * (k - len(states)) + states[-k:]
        np.testing.assert_array_equal(seen["state_history"], np.concatenate([state[d] for state in past]))
        recent = [np.zeros(4)] * (k - len(actions)) + [np.eye(4)[a] for a in actions[-k:]]
        np.testing.assert_array_equal(seen["action_history"], np.concatenate(recent[-k:]))
        reading = parts["sensors"][d]
        if parts["silent"][d]:
            assert (seen["attack_prediction"] == 0).all()
        else:
            expected = [1 - reading[0], *reading[8:], reading[:8].max(), reading[:8].argmax() / 7]
            np.testing.assert_allclose(seen["attack_prediction"], expected, rtol=1e-6)
        actions.append(int(rng.integers(4)))
        seen, _, terminated, truncated, info = env.step(actions[-1])
        if terminated or truncated:
            break
    assert len(devices) > 3
    env.reset(seed=2)
    fresh, _ = env.reset(seed=1)
    assert (fresh["action_history"] == 0).all()
    assert (fresh["state_history"][:-F] == 0).all()


@pytest.mark.parametrize("scenario", ["solo", "clinic"])
def test_observations_once_given_do_not_change(scenario: str) -> None:
    env = view(scenario)
    first, _ = env.reset(seed=0)
    kept = copy.deepcopy(first)
    for action in (1, 2, 3):
        env.step(action)
    for name, part in kept.items():
        np.testing.assert_array_equal(first[name], part)


def test_actions_go_to_the_device_in_focus() -> None:
    env = view(attack_free=0.0)
    _, info = env.reset(seed=0)
    for level, order in ((1, Order.RATE_LIMIT), (2, Order.BLOCK), (3, Order.ISOLATE), (0, Order.MONITOR)):
        twin = copy.deepcopy(env)
        d = env.base.device_names.index(info["device"])
        _, reward, _, _, after = env.step(np.int64(level))
        expected = twin.base.step(5 * d + order if order else 0)
        assert reward == expected[1]
        assert after["reward_terms"] == expected[4]["reward_terms"]
        info = after


def test_a_device_that_is_cut_off_leaves_the_focus() -> None:
    env = view("home", attack_free=1.0)
    _, info = env.reset(seed=0)
    seen = [info["device"]]
    for _ in range(5):
        seen.append(env.step(3)[4]["device"])
    assert len(set(seen)) == 6


def test_masks_say_what_would_change_something() -> None:
    env = view("solo", attack_free=1.0)
    env.reset(seed=0)
    np.testing.assert_array_equal(env.action_masks(), [True, True, True, True])
    env.step(2)
    np.testing.assert_array_equal(env.action_masks(), [True, True, False, True])
    env.step(3)
    np.testing.assert_array_equal(env.action_masks(), [True, False, False, False])


def test_bounds_hold_and_the_same_seed_gives_the_same() -> None:
    ones, others = [], []
    for found in (ones, others):
        env = view()
        rng = np.random.default_rng(0)
        for episode in range(5):
            seen, _ = env.reset(seed=episode)
            over = False
            while not over:
                assert env.observation_space.contains(seen)
                seen, reward, terminated, truncated, _ = env.step(int(rng.integers(4)))
                found.append((seen["state_history"].tobytes(), seen["attack_prediction"].tobytes(), reward))
                over = terminated or truncated
    assert ones == others


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ClassicView(IoTEnv(bank=BANK)), "22 features, and env.features names 10"),
        (lambda: view(action_mode="joint"), "discrete"),
        (
            lambda: ClassicView(IoTEnv(bank=BANK, features=[*CLASSIC_FEATURES[:3], "Variance", *CLASSIC_FEATURES[4:]])),
            "number 4 is Variance, not fin_flag_number",
        ),
        (lambda: ClassicView(IoTEnv(bank=BANK, features=[*CLASSIC_FEATURES[1::-1], *CLASSIC_FEATURES[2:]])), "number 1 is Protocol Type, not Header_Length"),
        (lambda: ClassicView(IoTEnv(bank=BANK, features=list(CLASSIC_FEATURES[:-1]))), "names 21, of which number 22 is missing, not Tot size"),
        (lambda: ClassicView(IoTEnv(bank=BANK, features=[*CLASSIC_FEATURES, "Variance"])), "names 23, of which number 23 is Variance, not left out"),
        (lambda: view(history=0), "history"),
        (lambda: view(history="3"), "history must be a whole number of at least 1, not '3'"),  # type: ignore[arg-type]
        (lambda: view(history=2.5), "history must be a whole number of at least 1, not 2.5"),  # type: ignore[arg-type]
        (lambda: view(history=True), "history must be a whole number of at least 1, not True"),
        (lambda: ClassicView(gymnasium.make("CartPole-v1")), "IoTEnv"),
        (lambda: ClassicView("home"), "looks at an IoTEnv, not at home"),  # type: ignore[arg-type]
        (lambda: ClassicView(IoTVectorEnv(2, bank=BANK)), "looks at an IoTEnv"),  # type: ignore[arg-type]
        (lambda: view(scenari="home"), "did you mean 'scenario'"),
        (lambda: view().step(0), "reset"),
    ],
)
def test_wrong_use_is_one_clear_line(call: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("action", [-1, 4, 1.5, "0", None, True, [[0], [1, 2]]])
def test_actions_outside_the_space_are_refused(action: Any) -> None:
    env = view("solo")
    env.reset(seed=0)
    with pytest.raises(UserError, match="not in"):
        env.step(action)
