"""What the defender may see less well: history, delay, drop-out, drift; and who attacks."""

from typing import Any

import numpy as np
import pytest

from agents.baselines import Constant, Random
from envs import IoTEnv, IoTVectorEnv
from envs.attackers import PROFILES, TRAFFIC, Stage, profile_table
from envs.scenarios import FAMILIES
from src.config import load_config
from src.data.taxonomy import LABELS
from src.errors import UserError
from src.evaluation.rollout import play
from tests.banks import make_bank

BANK = make_bank()


def episode(steps: int, **settings: Any) -> tuple[list[dict[str, np.ndarray]], IoTVectorEnv]:
    """Observations of one batch under the same random orders, as named parts."""
    env = IoTVectorEnv(8, scenario="home", bank=BANK, flatten=True, attack_free=0.0, **settings)
    rng = np.random.default_rng(0)
    layout = env.simulation.layout
    seen = [layout.split(env.reset(seed=3)[0])]
    for _ in range(steps):
        seen.append(layout.split(env.step(rng.integers(0, 31, 8))[0]))
    return seen, env


def test_history_is_what_was_seen_before_newest_first() -> None:
    plain, _ = episode(40)
    long, env = episode(40, history=4)
    width = env.simulation.layout.features + env.simulation.layout.sensors
    for t in range(41):
        past = long[t]["past"].reshape(8, 6, 3, width)
        for name in plain[0]:
            np.testing.assert_array_equal(long[t][name], plain[t][name])
        for back in range(1, 4):
            expected = np.concatenate([plain[t - back]["features"], plain[t - back]["sensors"]], axis=2) if t >= back else np.zeros((8, 6, width))
            np.testing.assert_array_equal(past[:, :, back - 1], expected)


def test_delayed_telemetry_is_the_telemetry_of_before() -> None:
    plain, _ = episode(40)
    late, _ = episode(40, telemetry_delay=3)
    for t in range(41):
        for name in ("features", "sensors", "silent"):
            nothing = np.ones_like(plain[0][name]) if name == "silent" else np.zeros_like(plain[0][name])
            np.testing.assert_array_equal(late[t][name], plain[t - 3][name] if t >= 3 else nothing)
        for name in ("controls", "service", "valid", "context"):  # what the defender knows by itself is not late
            np.testing.assert_array_equal(late[t][name], plain[t][name])


def test_nothing_from_before_a_restore_counts_after_it() -> None:
    env = IoTVectorEnv(32, scenario="solo", bank=BANK, flatten=True, attack_free=0.0, start_range=(0, 0), telemetry_delay=8, overrun_steps=1000)
    env.reset(seed=0)
    for step in range(60):
        observation, *_ = env.step(np.full(32, 4 if step == 20 else 0))  # RESTORE, a step's delay, five steps down
        trend = env.simulation.layout.split(observation)["trend"]
        if step == 19:
            assert (trend[..., 0] > 0).all()
        if 26 <= step < 33:  # back, and nothing of it has arrived since
            assert (trend == 0).all()
    assert (trend[..., 0] > 0).all()


def test_a_drifting_detectors_past_is_what_it_said_then() -> None:
    seen, env = episode(40, history=3, detector_drift=0.8)
    features = env.simulation.layout.features
    for t in range(2, 41):
        past = seen[t]["past"].reshape(8, 6, 2, -1)
        for back in (1, 2):
            np.testing.assert_array_equal(past[:, :, back - 1, features:], seen[t - back]["sensors"])


def test_dropped_readings_say_so() -> None:
    plain, _ = episode(60)
    holes, _ = episode(60, sensor_dropout=0.3)
    lost = [(h["silent"] > 0) & (p["silent"] == 0) for h, p in zip(holes[1:], plain[1:], strict=True)]
    heard = [p["silent"] == 0 for p in plain[1:]]
    assert np.sum(lost) / np.sum(heard) == pytest.approx(0.3, abs=0.03)
    for one, hole in zip(holes[1:], lost, strict=True):
        assert (one["sensors"][hole[..., 0]] == 0).all()
        assert (one["features"][hole[..., 0]] == 0).all()
    assert all((one["silent"] == 1).all() for one in episode(5, sensor_dropout=1.0)[0][1:])


def test_drifting_detectors_are_exact_at_first_and_biased_at_the_end() -> None:
    plain, _ = episode(60)
    drifting, env = episode(60, detector_drift=0.8)
    np.testing.assert_array_equal(drifting[0]["sensors"], plain[0]["sensors"])
    heard = plain[60]["silent"][..., 0] == 0
    before, after = plain[60]["sensors"][heard], drifting[60]["sensors"][heard]
    np.testing.assert_allclose(after[:, :8].sum(1), 1.0, atol=1e-5)
    share = 0.8 * 60 / env.simulation.config.env.horizon
    up = np.isclose(after[:, 8], before[:, 8] + share * (1 - before[:, 8]), atol=1e-5)
    down = np.isclose(after[:, 8], before[:, 8] * (1 - share), atol=1e-5)
    assert (up | down).all()
    assert up.any()
    assert down.any()


@pytest.mark.parametrize("settings", [{"history": 3, "telemetry_delay": 2}, {"sensor_dropout": 0.5, "detector_drift": 0.5}])
def test_options_change_what_is_seen_and_not_what_happens(settings: dict[str, Any]) -> None:
    def rewards(**extra: Any) -> np.ndarray:
        env = IoTVectorEnv(16, bank=BANK, flatten=True, **extra)
        env.reset(seed=0)
        rng = np.random.default_rng(1)
        return np.stack([env.step(rng.integers(0, 61, 16))[1] for _ in range(220)])

    np.testing.assert_array_equal(rewards(), rewards(**settings))


def test_every_label_shown_is_of_its_family_in_the_taxonomy() -> None:
    for stages in TRAFFIC.values():
        assert set(stages) == {Stage.PROBED, Stage.ATTACKED, Stage.COMPROMISED, Stage.IMPACT}
        for shown in stages.values():
            for family, labels in shown.items():
                assert all(LABELS[label].family == family for label in labels)


@pytest.mark.parametrize("name", PROFILES)
def test_every_attacker_does_harm_to_who_looks_away_and_shows_only_its_own_traffic(name: str) -> None:
    config = load_config(overrides=[f"attackers.train=[{name}]", f"attackers.held_out=[{'worm' if name != 'worm' else 'botnet'}]"], environ={})
    env = IoTVectorEnv(200, bank=BANK, config=config, flatten=True, attack_free=0.0)
    assert play(env, Constant(0), 0).summary["damage"].mean() > 1
    env.reset(seed=0)
    sim = env.simulation
    family = np.array([FAMILIES.index(one) for one in BANK.class_families])
    for _ in range(150):
        env.step(np.zeros(200, np.int64))
        for stage, shown in TRAFFIC[name].items():
            here = sim.devices["stage"] == stage
            assert np.isin(family[sim.devices["technique"][here]], [FAMILIES.index(one) for one in shown]).all()
        assert (sim.devices["known"] | (sim.devices["stage"] < Stage.ATTACKED)).all()


def test_sides_hold_their_own_attackers_and_techniques() -> None:
    shown: dict[str, set[str]] = {}
    for side in ("train", "held_out", "all"):
        env = IoTVectorEnv(400, bank=BANK, flatten=True, attackers=side, attack_free=0.0)
        config = env.simulation.config.attackers
        expected = {"train": config.train, "held_out": config.held_out, "all": [*config.train, *config.held_out]}[side]
        env.reset(seed=0)
        assert {env.simulation.truth(e)["profile"] for e in range(400)} == set(expected)
        seen: set[int] = set()
        for _ in range(120):
            env.step(np.zeros(400, np.int64))
            seen |= set(np.unique(env.simulation.devices["technique"]).tolist())
        shown[side] = {BANK.class_names[i] for i in seen if i >= 0}
    assert "XSS" not in shown["train"]
    assert "XSS" in shown["held_out"]
    with pytest.raises(UserError, match="did you mean 'XSS'"):
        IoTEnv(bank=BANK, config=load_config(overrides=["attackers.held_out_techniques=[XXS]"], environ={}))


def test_evasion_picks_what_the_sensors_find_least_suspicious() -> None:
    def risk(evasion: float) -> float:
        config = load_config(overrides=["attackers.train=[botnet]", f"attackers.botnet.evasion={evasion}", "attackers.botnet.stealth=0"], environ={})
        env = IoTVectorEnv(200, bank=BANK, config=config, flatten=True, attack_free=0.0)
        env.reset(seed=0)
        found = []
        for _ in range(120):
            env.step(np.zeros(200, np.int64))
            devices = env.simulation.devices
            found.append(BANK.sensors[devices["window"][devices["attack_shown"]], 8])
        return float(np.concatenate(found).mean())

    config = load_config(overrides=["attackers.difficulty=hard"], environ={})
    assert (profile_table(config.attackers, "all")["evasion"] < 1).all()
    assert risk(0.0) > risk(0.5) + 0.02
    assert risk(0.5) > risk(0.95) + 0.02


def test_difficulty_orders_the_damage_and_what_shows() -> None:
    tables = {name: profile_table(load_config(overrides=[f"attackers.difficulty={name}"], environ={}).attackers, "all") for name in ("easy", "normal", "hard")}
    for low, high in (("easy", "normal"), ("normal", "hard")):
        for field in ("probe", "engage", "compromise", "impact", "stealth"):
            assert (tables[low][field] < tables[high][field]).all()

    def damage(name: str) -> float:
        env = IoTVectorEnv(400, bank=BANK, config=load_config(overrides=[f"attackers.difficulty={name}"], environ={}), flatten=True)
        return float(play(env, Random(env.simulation.layout, 0), 0).summary["damage"].mean())

    assert damage("easy") < damage("normal") < damage("hard")


def test_reactions_each_change_what_the_attacker_does() -> None:
    """Against a defence that stops every attempt: sources, techniques and targets change, and the attacker slows and hides."""

    def stopped(**numbers: float) -> IoTVectorEnv:
        base = {"rotate": 0, "adapt": 0, "abandon": 0, "caution": 0, "engage": 1, "stealth": 0, "dormancy": 0, "probe": 1, **numbers}
        sets = ["attackers.train=[stealth_apt]", "attackers.held_out=[worm]", *(f"attackers.stealth_apt.{key}={value}" for key, value in base.items())]
        config = load_config(overrides=sets, environ={})
        env = IoTVectorEnv(200, scenario="solo", bank=BANK, config=config, flatten=True, attack_free=0.0, start_range=(0, 0), budget=1000)
        env.reset(seed=0)
        for step in range(12):
            env.step(np.full(200, 2 if step >= 3 else 0))
        return env

    plain = stopped()
    assert not plain.simulation.devices["evaded"].any()
    assert stopped(rotate=1).simulation.devices["evaded"].any()
    stayed, left = stopped(probe=0.4), stopped(probe=0.4, abandon=1)
    assert (left.simulation.devices["stage"] == Stage.CLEAN).mean() > (stayed.simulation.devices["stage"] == Stage.CLEAN).mean() + 0.1
    assert (stopped(caution=0.8).simulation.sites["caution"] > 0.3).any()
    assert (plain.simulation.sites["caution"] == 0).all()
    first, other = plain.simulation.devices["technique"], stopped(adapt=1).simulation.devices["technique"]
    both = (plain.simulation.devices["stage"] == Stage.ATTACKED) & (first >= 0) & (other >= 0)
    assert (first != other)[both].any()
