"""The rules of the world: bounds, invariants, and what each order does."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import kstest

from agents.baselines import Constant, Random, address
from envs import IoTVectorEnv
from envs.attackers import Stage
from envs.dynamics import End, Order, uniform
from envs.scenarios import FAMILIES as ENV_FAMILIES
from envs.scenarios import SCENARIOS
from src.config import load_config
from src.data.taxonomy import FAMILIES
from src.evaluation.rollout import play
from tests.banks import make_bank

BANK = make_bank()


def vector(count: int, **settings: object) -> IoTVectorEnv:
    return IoTVectorEnv(count, bank=BANK, flatten=True, **settings)


def fields(env: IoTVectorEnv, name: str) -> np.ndarray:
    return env.simulation.devices[name]


def test_families_are_those_of_the_taxonomy() -> None:
    assert ENV_FAMILIES == FAMILIES


def test_hashed_numbers_are_uniform_and_independent_in_every_argument() -> None:
    base = [np.uint64(12345), 7, 3, 5]
    for argument in range(4):
        draws = np.empty(20_000)
        for i in range(len(draws)):
            arguments = list(base)
            arguments[argument] = np.uint64(i) if argument == 0 else i
            draws[i] = uniform(*arguments)
        assert kstest(draws, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03
        assert len(np.unique(draws)) == len(draws)


@pytest.mark.parametrize("mode", ["discrete", "joint"])
@pytest.mark.parametrize("scenario", SCENARIOS[:3])
def test_bounds_hold_in_a_million_random_steps(scenario: str, mode: str) -> None:
    count, steps = 512, 330  # six cases: 1,013,760 steps
    env = vector(count, scenario=scenario, action_mode=mode, protected="cost")
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    low, high = env.single_observation_space.low, env.single_observation_space.high  # type: ignore[attr-defined]
    top = 6 if mode == "joint" else env.single_action_space.n  # type: ignore[attr-defined]
    for _ in range(steps):
        observation, rewards, *_ = env.step(rng.integers(0, top, env.action_space.shape))
        assert (observation >= low).all()
        assert (observation <= high).all()
        assert np.isfinite(rewards).all()
        assert (rewards <= 0).all()
        stage = fields(env, "stage")
        assert stage.min() >= Stage.CLEAN
        assert stage.max() <= Stage.IMPACT


def test_a_clean_network_left_alone_loses_nothing() -> None:
    episodes = play(vector(64, attack_free=1.0), Constant(0), seed=0)
    assert (episodes.returns == 0).all()
    assert (episodes.summary["compromises"] == 0).all()
    np.testing.assert_allclose(episodes.summary["healthy_service"], 1.0)


def test_no_service_is_lost_without_controls() -> None:
    episodes = play(vector(64), Constant(0), seed=0)
    assert (episodes.summary["service"] == 0).all()
    assert episodes.summary["damage"].max() > 0


def test_each_end_occurs_in_a_thousand_random_episodes() -> None:
    env = vector(1000)
    episodes = play(env, Random(env.simulation.layout, seed=0), seed=0)
    assert set(np.unique(episodes.end)) == {End.OVERRUN, End.EVICTED, End.HORIZON}


def test_a_quarter_of_the_episodes_is_free_of_attack() -> None:
    env = vector(4000)
    env.reset(seed=0)
    share = (env.simulation.sites["start"] < 0).mean()
    assert share == pytest.approx(load_config().env.attack_free, abs=0.03)


def overrun_state(env: IoTVectorEnv, stage: Stage) -> None:
    """Put every device of every environment into `stage`, with the attacker present and patient."""
    sim = env.simulation
    sim.sites["start"] = 0
    sim.sites["patience"] = 1e9
    sim.devices["stage"] = stage
    sim.devices["technique"] = sim.world.emissions[sim.sites["profile"], stage, 0][:, None]
    sim.devices["hostile"] = -1


def test_a_device_keeps_its_own_benign_traffic_for_an_episode() -> None:
    bank = dataclasses.replace(BANK, class_families=("Benign", "Benign", *BANK.class_families[2:]))  # two sites' devices, say
    env = IoTVectorEnv(50, bank=bank, flatten=True, attack_free=1.0)
    env.reset(seed=0)
    first = bank.label[fields(env, "window")].copy()
    assert {0, 1} == set(np.unique(first).tolist())
    for _ in range(150):
        env.step(np.zeros(50, np.int64))
        np.testing.assert_array_equal(bank.label[fields(env, "window")], first)


def test_everything_in_impact_is_overrun_even_where_all_of_it_is_asked_for() -> None:
    for scenario in SCENARIOS:
        env = vector(2, scenario=scenario, overrun_share=1.0, overrun_steps=3)
        env.reset(seed=0)
        overrun_state(env, Stage.IMPACT)
        for _ in range(3):
            *_, info = env.step(np.zeros(2, np.int64))
        assert (info["final_info"]["end"] == End.OVERRUN).all()


def test_losing_fast_does_not_look_healthier_than_holding_out() -> None:
    quick, slow = (play(vector(300, attack_free=0.0, overrun_steps=steps), Constant(0), seed=0) for steps in (5, 1000))
    assert quick.summary["steps"].mean() < slow.summary["steps"].mean() - 20
    assert quick.summary["healthy_service"].mean() < slow.summary["healthy_service"].mean() + 0.05
    assert quick.summary["dwell"].mean() > 0.5 * slow.summary["dwell"].mean()


def test_an_attacker_that_lies_low_shows_nothing() -> None:
    env = vector(64, attack_free=0.0)
    env.reset(seed=0)
    overrun_state(env, Stage.COMPROMISED)
    env.simulation.sites["dormant"] = 3
    for step in range(4):
        env.step(np.zeros(64, np.int64))
        assert fields(env, "attack_shown").any() == (step == 3)


def test_isolation_stops_damage_and_keeps_the_foothold() -> None:
    env = vector(32, protected="cost", overrun_steps=1000)
    env.reset(seed=0)
    overrun_state(env, Stage.COMPROMISED)
    isolate = address(np.zeros(32, np.int64), Order.ISOLATE)
    env.step(isolate)
    for _ in range(10):
        env.step(np.zeros(32, np.int64))
    assert (fields(env, "stage")[:, 0] == Stage.COMPROMISED).all()
    observation, *_ = env.step(np.zeros(32, np.int64))
    parts = env.simulation.layout.split(observation)
    assert (parts["sensors"][:, 0] == 0).all()
    assert (parts["silent"][:, 0] == 1).all()
    assert (parts["service"][:, 0] == 0).all()


def test_restore_cleans_takes_its_time_and_patches_only_what_can_be_patched() -> None:
    env = vector(16, attack_free=1.0)
    env.reset(seed=0)
    sim = env.simulation
    for d, name in enumerate(sim.network.names):
        env.reset(seed=0)
        overrun_state(env, Stage.COMPROMISED)
        sim.sites["dormant"] = 1000  # nobody re-enters meanwhile
        env.step(address(np.full(16, d), Order.RESTORE))
        down = 0
        while (fields(env, "stage")[:, d] == Stage.COMPROMISED).all():
            env.step(np.zeros(16, np.int64))
            down += 1
        assert down == sim.network.restore_time[d] + load_config().env.controls.restore.delay - 1, name
        assert (fields(env, "stage")[:, d] == Stage.CLEAN).all()
        assert (fields(env, "patched")[:, d] == sim.network.patchable[d]).all()


def test_a_device_that_was_cut_off_has_shown_nothing_until_it_is_back_for_a_step() -> None:
    env = vector(64, attack_free=0.0, overrun_steps=1000)
    env.reset(seed=0)
    overrun_state(env, Stage.IMPACT)
    sim = env.simulation
    sim.sites["patience"] = -1.0  # the attacker turns to no new device
    d = sim.network.names.index("printer-1")
    observation, *_ = env.step(address(np.full(64, d), Order.RESTORE))
    back = np.zeros(64, np.bool_)
    for _ in range(12):
        down = fields(env, "restore")[:, d] > 0
        observation, *_ = env.step(np.zeros(64, np.int64))
        parts = sim.layout.split(observation)
        finished = down & (fields(env, "restore")[:, d] == 0)
        back |= finished
        assert (parts["silent"][finished, d] == 1).all()
        assert (parts["sensors"][finished, d] == 0).all()
        clean = back & ~finished & (fields(env, "stage")[:, d] == Stage.CLEAN)
        assert (sim.bank.label[fields(env, "window")[clean, d]] == 0).all()
        assert (parts["silent"][clean, d] == 0).all()
    assert back.all()


def test_a_block_holds_until_the_attacker_gets_round_it() -> None:
    env = vector(400, scenario="solo", attack_free=0.0)
    env.reset(seed=0)
    overrun_state(env, Stage.ATTACKED)
    fallen = {}
    for blocked in (False, True):
        env.reset(seed=0)
        overrun_state(env, Stage.ATTACKED)
        env.step(np.full(400, int(Order.BLOCK) if blocked else 0))
        for _ in range(5):
            env.step(np.zeros(400, np.int64))
        fallen[blocked] = (env.simulation.sites["compromises"] > 0).mean()
        if blocked:
            assert fields(env, "evaded").any()
    assert fallen[True] < 0.6 * fallen[False]


def test_isolate_release_cycles_earn_nothing() -> None:
    env = vector(200, scenario="solo", attack_free=0.0, protected="cost", budget=200)
    env.reset(seed=0)
    overrun_state(env, Stage.COMPROMISED)
    patience = env.simulation.sites["patience"].copy()
    for _ in range(10):
        env.step(np.full(200, int(Order.ISOLATE)))
        env.step(np.full(200, int(Order.RELEASE)))
    lost = patience - env.simulation.sites["patience"]
    assert (lost <= 1.0).all()


def test_masks_do_not_depend_on_the_hidden_state() -> None:
    env = vector(8)
    env.reset(seed=0)
    env.step(np.arange(8))
    sim = env.simulation
    before = sim.masks()
    sim.devices["stage"] = Stage.IMPACT
    sim.devices["evaded"] = True
    sim.sites["patience"] = 0
    np.testing.assert_array_equal(before, sim.masks())
    assert sim.masks().any(axis=1).all()


def test_attacker_emits_only_windows_of_its_families() -> None:
    env = vector(256, attack_free=0.0)
    env.reset(seed=0)
    sim = env.simulation
    low, high = sim.bank.ranges("agent")[:, 0], sim.bank.ranges("agent")[:, 1]
    for _ in range(120):
        env.step(np.zeros(256, np.int64))
        shown = sim.devices["attack_shown"]
        window, technique = sim.devices["window"], sim.devices["technique"]
        label = sim.bank.label[window]
        assert (label[shown] == technique[shown]).all()
        assert (sim.bank.label[window[~shown]] == 0).all()
        inside = (window >= low[label]) & (window < high[label])
        assert inside.all()
