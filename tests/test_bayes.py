"""The Bayes filter: what it believes, what it may look at, and what that earns."""

import numpy as np
import pytest

from agents.baselines import Constant, Random, Threshold
from agents.bayes import BayesFilter, Foresight, bayes_candidates
from agents.belief import Knowledge, Memory
from agents.filtering import ATTACKED, HELD, IMPACT, PROBED
from envs import IoTVectorEnv
from envs.attackers import Stage
from envs.dynamics import Order
from src.config import Config
from src.evaluation.rollout import play
from tests.banks import make_bank

BANK = make_bank()


def vector(count: int, **settings: object) -> IoTVectorEnv:
    return IoTVectorEnv(count, bank=BANK, flatten=True, **settings)


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    env = vector(1)
    return BayesFilter(env.simulation.config, BANK, env.simulation.layout).belief.knowledge


def bayes(env: IoTVectorEnv, knowledge: Knowledge) -> BayesFilter:
    return BayesFilter(env.simulation.config, BANK, env.simulation.layout, knowledge=knowledge)


def window(label: str, split: str = "calibrate") -> np.ndarray:
    """Mean readings of a class."""
    low, high = BANK.ranges(split)[BANK.class_names.index(label)]
    return BANK.sensors[low:high].mean(axis=0)


def foothold(policy: BayesFilter, memory: Memory) -> np.ndarray:
    return policy.belief.conditions(memory)[..., HELD:].sum(axis=2)  # (E, D)


def test_beliefs_stay_probabilities_and_orders_allowed(knowledge: Knowledge) -> None:
    env = vector(64, attack_free=0.0, sensor_dropout=0.1)
    policy = bayes(env, knowledge)
    observation, _ = env.reset(seed=0)
    state, starts, given = None, np.ones(64, np.bool_), set()
    for _ in range(250):
        actions, state = policy.predict(observation, state=state, episode_start=starts)
        assert env.action_masks()[np.arange(64), actions].all()
        given |= set(((actions[actions > 0] - 1) % 5 + 1).tolist())
        for part in (state.modes, state.belief):
            assert part.dtype == np.float32
            assert part.min() >= -1e-5
            np.testing.assert_allclose(part.sum(axis=-1), 1.0, atol=1e-3)
        assert state.caution.min() >= 0
        assert state.caution.max() <= 1
        observation, _, terminated, truncated, _ = env.step(actions)
        starts = terminated | truncated
    assert given == {Order.BLOCK, Order.RESTORE, Order.RELEASE}


def test_belief_rises_under_evidence_on_the_device_and_a_little_elsewhere(knowledge: Knowledge) -> None:
    env = vector(2)
    policy = bayes(env, knowledge)
    observation, _ = env.reset(seed=0)
    parts = policy.belief.layout.split(observation)
    state = None
    for step in range(30):
        parts["sensors"][:] = window("BenignTraffic")
        parts["context"][:, 0] = 1.0 - step / 200
        if step >= 20:
            parts["sensors"][1, 2] = window("DictionaryBruteForce")
        _, state = policy.predict(observation, state=state)
    at_work = policy.belief.conditions(state)[..., PROBED:].sum(axis=2)  # (2, D)
    assert at_work[0].max() < 0.05
    assert at_work[1, 2] > 0.8
    assert policy.belief.conditions(state)[1, 2, ATTACKED:].sum() > 0.6  # passwords are forced there, not only scouted
    assert (at_work[1] > at_work[0]).all()  # somebody is there
    assert state.modes[1, 0] < 0.1 < 0.5 < state.modes[0, 0]


def test_a_silent_device_says_nothing(knowledge: Knowledge) -> None:
    env = vector(2)
    policy = bayes(env, knowledge)
    observation, _ = env.reset(seed=0)
    observation[1] = observation[0]
    parts = policy.belief.layout.split(observation)
    parts["context"][:, 0] = 0.9
    _, state = policy.predict(observation)
    for silent in (1.0, 0.0):
        parts["silent"][:] = silent
        parts["sensors"][0], parts["sensors"][1] = window("BenignTraffic"), window("DDoS-UDP_Fragmentation")
        _, after = policy.predict(observation, state=state, episode_start=np.zeros(2, np.bool_))
        assert np.array_equal(after.belief[0], after.belief[1]) == (silent == 1.0)


def test_belief_in_a_foothold_falls_with_the_restore(knowledge: Knowledge) -> None:
    env = vector(200, scenario="solo", attack_free=0.0)
    policy = BayesFilter(env.simulation.config, BANK, env.simulation.layout, Foresight(restore=60.0, late=5.0, thrift=0.0), knowledge=knowledge)
    observation, _ = env.reset(seed=0)
    device = env.simulation.devices[:, 0]
    state, starts = None, np.ones(200, np.bool_)
    ordered, before, after = np.zeros(200, np.bool_), [], []
    for _ in range(120):
        down = device["restore"] > 0
        done = ordered & ~down & (device["pending"] == 0)
        actions, state = policy.predict(observation, state=state, episode_start=starts)
        believed = foothold(policy, state)[:, 0]
        before += believed[actions == Order.RESTORE].tolist()
        after += believed[done].tolist()
        ordered = (ordered & ~done) | (actions == Order.RESTORE)
        observation, _, terminated, truncated, _ = env.step(actions)
        starts = terminated | truncated
        ordered &= ~starts
    assert len(before) > 50
    assert len(after) > 50
    assert np.mean(before) > 0.3
    assert np.max(after) < 0.02


def test_an_episodes_start_forgets_the_last(knowledge: Knowledge) -> None:
    env = vector(8, attack_free=0.0)
    policy = bayes(env, knowledge)
    observation, _ = env.reset(seed=0)
    state = None
    for _ in range(60):
        actions, state = policy.predict(observation, state=state)
        observation, *_ = env.step(actions)
    starts = np.arange(8) % 2 == 0
    _, forgot = policy.predict(observation, state=state, episode_start=starts)
    _, fresh = policy.predict(observation)
    _, went_on = policy.predict(observation, state=state, episode_start=np.zeros(8, np.bool_))
    for mixed, new, old in zip(forgot, fresh, went_on, strict=True):
        np.testing.assert_array_equal(mixed[starts], new[starts])
        np.testing.assert_array_equal(mixed[~starts], old[~starts])
    assert not np.allclose(forgot.belief[~starts], fresh.belief[~starts])


def test_the_hidden_state_is_not_looked_at(knowledge: Knowledge) -> None:
    env = vector(32, attack_free=0.0)
    policy = bayes(env, knowledge)
    observation, _ = env.reset(seed=0)
    state = None
    for _ in range(50):
        actions, state = policy.predict(observation, state=state)
        observation, *_ = env.step(actions)
    seen, kept = policy.predict(observation, state=state)
    sim = env.simulation
    sim.devices["stage"], sim.devices["technique"], sim.devices["evaded"] = Stage.IMPACT, 1, True
    sim.sites["profile"], sim.sites["start"], sim.sites["dormant"] = 0, -1, 9
    again, kept_again = policy.predict(observation, state=state)
    np.testing.assert_array_equal(seen, again)
    np.testing.assert_array_equal(kept.belief, kept_again.belief)


def test_a_batch_is_as_its_members_alone(knowledge: Knowledge) -> None:
    env = vector(5, attack_free=0.0)
    policy = bayes(env, knowledge)
    observation, _ = env.reset(seed=3)
    state, alone = None, [None] * 5
    for _ in range(80):
        actions, state = policy.predict(observation, state=state)
        for e in range(5):
            action, alone[e] = policy.predict(observation[e : e + 1], state=alone[e])
            assert action[0] == actions[e]
            np.testing.assert_allclose(alone[e].belief[0], state.belief[e], atol=1e-3)
        observation, *_ = env.step(actions)
    assert state.belief[..., IMPACT].max() > 0


def test_only_one_side_of_the_bank_is_learned_from(knowledge: Knowledge) -> None:
    env = vector(1)
    others = BANK.split > 0
    rng = np.random.default_rng(0)
    noisy = np.array(BANK.sensors)
    noisy[others] = rng.random(noisy[others].shape)
    same = BayesFilter(env.simulation.config, BANK.with_sensors(noisy), env.simulation.layout)
    np.testing.assert_array_equal(same.belief.knowledge.ratios(BANK.sensors), knowledge.ratios(BANK.sensors))
    noisy = np.array(BANK.sensors)
    noisy[~others] = rng.random(noisy[~others].shape)
    other = BayesFilter(env.simulation.config, BANK.with_sensors(noisy), env.simulation.layout)
    assert not np.allclose(other.belief.knowledge.ratios(BANK.sensors), knowledge.ratios(BANK.sensors))


def test_held_out_attackers_stay_unknown(knowledge: Knowledge) -> None:
    env = vector(64)
    observation, _ = env.reset(seed=0)
    base = env.simulation.config
    told = base.model_copy(update={"env": base.env.model_copy(update={"attackers": "held_out"})})
    worm = base.attackers.worm.model_copy(update={"probe": 0.9, "stealth": 0.0})
    told = told.model_copy(update={"attackers": base.attackers.model_copy(update={"worm": worm})})
    one, other = bayes(env, knowledge), BayesFilter(told, BANK, env.simulation.layout, knowledge=knowledge)
    states: list[Memory | None] = [None, None]
    for _ in range(60):
        actions, states[0] = one.predict(observation, state=states[0])
        others, states[1] = other.predict(observation, state=states[1])
        np.testing.assert_array_equal(actions, others)
        observation, *_ = env.step(actions)


def test_it_earns_more_than_rules_that_do_not_remember(knowledge: Knowledge) -> None:
    env = vector(100)
    layout = env.simulation.layout
    mine = play(env, bayes(env, knowledge), seed=0).returns
    rules = [Threshold(layout, "risk", low, Order.BLOCK, high, Order.RESTORE) for high in (0.2, 0.3, 0.4, 0.5) for low in (0.1, 0.2, 0.3) if low <= high]
    for policy in (Constant(0), Random(layout, 0), *rules):
        lead = mine - play(env, policy, seed=0).returns
        assert lead.mean() > 3 * lead.std(ddof=1) / 10
    shuffled = np.random.default_rng(0).permuted(BANK.sensors, axis=0)
    deaf = BayesFilter(Config(), BANK.with_sensors(shuffled), layout)
    lost = mine - play(env, deaf, seed=0).returns  # what it has learned from is noise, what it is shown is not
    assert lost.mean() > 3 * lost.std(ddof=1) / 10


def test_candidates_share_what_was_learned() -> None:
    env = vector(1)
    candidates = list(bayes_candidates(env.simulation.config, BANK, env.simulation.layout))
    assert len({str(candidate) for candidate in candidates}) == len(candidates) > 1
    assert len({id(candidate.belief.knowledge) for candidate in candidates}) == 1
