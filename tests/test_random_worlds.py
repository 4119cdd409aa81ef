"""Random scenarios, settings and actions: nothing leaves its bounds, whatever the world (a million steps in all)."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs import IoTVectorEnv
from envs.attackers import PROFILES, Stage
from envs.scenarios import DEVICE_TYPES
from src.config import load_config
from tests.banks import make_bank

BANK = make_bank(windows=40)
EXAMPLES, ENVS, STEPS = 50, 100, 210  # 1,050,000 steps

share = st.floats(0, 1)


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    zones = [f"zone{i}" for i in range(draw(st.integers(1, 5)))]
    types = {
        f"own{i}": {
            "criticality": draw(st.floats(0.01, 100)), "restore_time": draw(st.integers(1, 30)),
            "patchable": draw(st.booleans()), "protected": draw(st.booleans()),
            "weakness": {family: draw(share) for family in ("BruteForce", "Web", "Spoofing")},
        }
        for i in range(draw(st.integers(0, 3)))
    }  # fmt: skip
    kinds = st.sampled_from([*DEVICE_TYPES, *types])
    devices = [
        {"type": draw(kinds), "zone": zones[0] if i == 0 else draw(st.sampled_from(zones)), "count": draw(st.integers(1, 4))}
        for i in range(draw(st.integers(1, 6)))
    ]
    reach = {zone: {"exposed": i == 0 or draw(st.booleans()), "reaches": draw(st.lists(st.sampled_from(zones), unique=True))} for i, zone in enumerate(zones)}
    return {"name": "random", "types": types, "zones": reach, "devices": devices}


worlds = st.fixed_dictionaries(
    {
        "action_mode": st.sampled_from(["discrete", "joint"]), "protected": st.sampled_from(["mask", "cost"]), "history": st.integers(1, 4),
        "telemetry_delay": st.integers(0, 5), "sensor_dropout": share, "detector_drift": share, "variation": share, "attack_free": share,
        "budget": st.integers(1, 300), "overrun_share": st.floats(0.05, 1), "overrun_steps": st.integers(1, 30), "smoothing": st.floats(0, 0.99),
        "attackers": st.sampled_from(["train", "held_out", "all"]),
    }
)  # fmt: skip


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(scenario=scenarios(), world=worlds, difficulty=st.sampled_from(["easy", "normal", "hard"]), seed=st.integers(0, 2**31))
def test_a_million_steps_in_random_worlds(scenario: dict[str, Any], world: dict[str, Any], difficulty: str, seed: int) -> None:
    config = load_config(overrides=[f"attackers.difficulty={difficulty}"], environ={})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.yml"
        file.write_text(yaml.safe_dump(scenario))
        env = IoTVectorEnv(ENVS, scenario=str(file), bank=BANK, config=config, flatten=True, **world)
    sim, rng = env.simulation, np.random.default_rng(seed)
    low, high = env.single_observation_space.low, env.single_observation_space.high  # type: ignore[attr-defined]
    observation, _ = env.reset(seed=seed)
    top = 6 if sim.joint else env.single_action_space.n  # type: ignore[attr-defined]
    weights = np.array([getattr(config.reward, name) for name in ("service", "damage", "action", "cleanup", "safety")])
    for _ in range(STEPS):
        assert np.isfinite(observation).all()
        assert (observation >= low).all()
        assert (observation <= high).all()
        observation, rewards, terminated, truncated, info = env.step(rng.integers(0, top, env.action_space.shape))
        terms = np.stack(list(info["reward_terms"].values()))
        np.testing.assert_allclose(rewards, -(weights @ terms), atol=1e-9)
        assert (terms >= 0).all()
        assert (terms[0] <= 1 + 1e-9).all()  # no more service can be lost than there is
        assert not (terminated & truncated).any()
        stage = sim.devices["stage"]
        assert ((stage >= Stage.CLEAN) & (stage <= Stage.IMPACT)).all()
        assert ((sim.devices["technique"] >= 0) == (stage > Stage.CLEAN)).all()
        assert (sim.sites["budget"] >= 0).all()
        for timer in ("rate_limit", "block", "isolate", "restore", "delay"):
            assert (sim.devices[timer] >= 0).all()


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(scenario=scenarios(), world=worlds)
def test_nothing_is_lost_where_nobody_attacks_or_defends(scenario: dict[str, Any], world: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.yml"
        file.write_text(yaml.safe_dump(scenario))
        calm = IoTVectorEnv(20, scenario=str(file), bank=BANK, flatten=True, **{**world, "attack_free": 1.0})
        attacked = IoTVectorEnv(20, scenario=str(file), bank=BANK, flatten=True, **{**world, "attack_free": 0.0})
    idle = np.zeros(calm.action_space.shape, np.int64)  # type: ignore[arg-type]
    for env in (calm, attacked):
        env.reset(seed=1)
        for _ in range(100):
            _, rewards, _, _, info = env.step(idle)
            assert (info["reward_terms"]["service"] == 0).all()
            if env is calm:
                assert (rewards == 0).all()


def test_every_attacker_is_somewhere_to_be_met() -> None:
    config = load_config(environ={})
    assert sorted([*config.attackers.train, *config.attackers.held_out]) == sorted(PROFILES)
