"""The duel: PettingZoo's contract, what the attacker may see and do, and that a scripted attacker is `IoTEnv`'s."""

import copy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from pettingzoo.test import parallel_api_test, parallel_seed_test
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from agents.attackers import GreedyAttacker, RandomAttacker
from agents.baselines import Constant, Random, Threshold
from agents.vec_env import IoTSB3VecEnv
from envs import IoTEnv, IoTVectorEnv
from envs.attackers import Stage
from envs.duel import MOVES, AttackerLayout, IoTDuel, IoTDuelVectorEnv, moves_allowed, view
from envs.dynamics import SCRIPTED, End, Move, Order
from envs.world import Simulation
from examples import self_play
from src.config import load_config
from src.errors import UserError
from src.evaluation.rollout import play
from tests.banks import make_bank

BANK = make_bank()
VARIANTS: list[dict[str, Any]] = [
    {},
    {"scenario": "home", "flatten": True},
    {"scenario": "solo", "attackers": "held_out"},
    {"action_mode": "joint"},
    {"attacker": "scripted"},
    {"attack_free": 0.5, "start_range": (5, 20)},
]
ids = [" ".join(map(str, v.values())) or "default" for v in VARIANTS]


def duel(**settings: Any) -> IoTDuel:
    return IoTDuel(bank=BANK, **settings)


def seat(count: int, who: Any, opponent: Any, **settings: Any) -> IoTDuelVectorEnv:
    return IoTDuelVectorEnv(count, who, opponent, bank=BANK, **settings)


def attacking(count: int, defender: Any | None = None, **settings: Any) -> IoTDuelVectorEnv:
    return seat(count, "attacker", defender or Constant(0), **settings)


def move(kind: Move, device: int = 0) -> int:
    return device * MOVES + kind


def flat(observation: Any) -> np.ndarray:
    return np.concatenate([part.ravel() for part in observation.values()]) if isinstance(observation, dict) else observation


@pytest.mark.parametrize("settings", VARIANTS, ids=ids)
def test_pettingzoo_tests_without_a_warning(settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(duel(**settings), num_cycles=500)
        parallel_seed_test(lambda: duel(**settings), num_cycles=500)


def roll(env: IoTDuel, seed: int, steps: int = 250, masked: bool = False) -> list[Any]:
    """A trajectory under random actions, in comparable form."""
    observations, infos = env.reset(seed=seed)
    for i, agent in enumerate(env.possible_agents):
        env.action_space(agent).seed(i)
    found = []
    for _ in range(steps):
        actions = {agent: env.action_space(agent).sample(infos[agent]["action_mask"] if masked else None) for agent in env.agents}
        observations, rewards, terminated, truncated, infos = env.step(actions)
        found.append(({agent: flat(seen).tobytes() for agent, seen in observations.items()}, rewards, terminated, truncated))
        if not env.agents:
            observations, infos = env.reset()
    return found


@pytest.mark.parametrize("settings", VARIANTS, ids=ids)
def test_same_seed_same_trajectory(settings: dict[str, Any]) -> None:
    assert roll(duel(**settings), 3) == roll(duel(**settings), 3)
    assert roll(duel(**settings), 3, masked=True) == roll(duel(**settings), 3, masked=True)
    assert roll(duel(**settings), 3) != roll(duel(**settings), 4)


@pytest.mark.parametrize("settings", [{}, {"scenario": "home", "flatten": True}, {"action_mode": "joint", "attack_free": 0.0}])
def test_a_scripted_attacker_gives_the_episodes_of_iotenv(settings: dict[str, Any]) -> None:
    scripted, single = duel(attacker="scripted", **settings), IoTEnv(bank=BANK, **settings)
    assert scripted.possible_agents == ["defender"]
    assert scripted.action_space("defender") == single.action_space
    assert scripted.observation_space("defender") == single.observation_space
    observations, infos = scripted.reset(seed=6)
    expected, info = single.reset(seed=6)
    rng = np.random.default_rng(0)
    episodes = 0
    while episodes < 4:
        np.testing.assert_array_equal(flat(observations["defender"]), flat(expected))
        mask = infos["defender"].pop("action_mask")
        np.testing.assert_array_equal(np.concatenate(mask) if isinstance(mask, tuple) else mask, single.action_masks())
        space = single.action_space
        action = rng.integers(0, space.nvec) if isinstance(space, gymnasium.spaces.MultiDiscrete) else int(rng.integers(space.n))  # type: ignore[union-attr]
        observations, rewards, terminated, truncated, infos = scripted.step({"defender": action})
        expected, reward, ended, cut, info = single.step(action)
        assert (rewards, terminated, truncated) == ({"defender": reward}, {"defender": ended}, {"defender": cut})
        assert infos["defender"]["reward_terms"] == info["reward_terms"]
        if ended or cut:
            episodes += 1
            observations, infos = scripted.reset()
            expected, info = single.reset()


def test_the_defender_has_the_spaces_of_iotenv_and_both_see_named_parts() -> None:
    env, single = duel(), IoTEnv(bank=BANK)
    assert env.observation_space("defender") == single.observation_space
    assert env.action_space("defender") == single.action_space
    assert env.action_space("attacker") == gymnasium.spaces.Discrete(1 + 3 * 12)
    observations, _ = env.reset(seed=0)
    assert env.observation_space("attacker").contains(observations["attacker"])
    assert list(observations["attacker"]) == ["stage", "known", "reachable", "stopped", "silent", "pressing", "exposed", "criticality", "valid", "context"]
    again, _ = duel(flatten=True).reset(seed=0)
    np.testing.assert_array_equal(again["attacker"], flat(observations["attacker"]))
    assert duel(flatten=True).observation_space("attacker").contains(again["attacker"])


def test_attacks_begin_at_once_unless_asked_otherwise() -> None:
    config = load_config(overrides=["env.attack_free=0.5"])
    env = attacking(400, config=config)
    env.reset(seed=0)
    assert (env.simulation.sites["start"] == 0).all()
    env = attacking(400, config=config, attack_free=0.5, start_range=(5, 9))
    env.reset(seed=0)
    start = env.simulation.sites["start"]
    assert 0.4 < (start < 0).mean() < 0.6
    assert start.max() == 9
    for step in range(12):
        there = (start >= 0) & (start <= step)
        np.testing.assert_array_equal(env.action_masks()[:, 1:].any(axis=1), there)
        env.step(np.full(400, move(Move.ADVANCE, 0)))
        assert (env.simulation.devices["stage"][~there] == Stage.CLEAN).all()
        assert (env.simulation.devices["stage"][there] != Stage.CLEAN).any() == there.any()


@pytest.mark.parametrize("scenario", ["solo", "home", "clinic"])
def test_bounds_hold_in_a_hundred_thousand_random_steps(scenario: str) -> None:
    count, steps = 128, 270  # three cases: 103,680 steps
    base = IoTVectorEnv(1, scenario=scenario, bank=BANK, flatten=True)
    env = attacking(count, Random(base.simulation.layout, 0), scenario=scenario, attackers="all", protected="cost")
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    ends = set()
    for _ in range(steps):
        assert env.observation_space.contains(observation)
        observation, rewards, _, _, info = env.step(rng.integers(0, env.single_action_space.n, count))  # type: ignore[attr-defined]
        assert (rewards >= 0).all()
        assert np.isfinite(rewards).all()
        if "final_info" in info:
            assert env.observation_space.contains(info["final_obs"])
            ends |= set(info["final_info"]["end"].tolist())
    assert End.HORIZON in ends


def under_way(env: IoTDuelVectorEnv, steps: int = 60) -> None:
    """Some way into the episodes, with every stage about."""
    attacker = RandomAttacker(env.layout, 0)
    observation, _ = env.reset(seed=0)
    for _ in range(steps):
        observation, *_ = env.step(attacker.predict(observation)[0])
    assert set(np.unique(env.simulation.devices["stage"])) == set(Stage)


def test_the_attacker_sees_nothing_that_only_the_defender_knows() -> None:
    env = attacking(256, overrun_steps=1000)
    under_way(env)
    sim = env.simulation
    before = view(sim)
    rng = np.random.default_rng(1)
    untouched = sim.devices["stage"] < Stage.COMPROMISED
    for name in ("rate_limit", "block", "pending", "delay", "risk", "uncertainty", "anomaly", "window", "calm", "calm_class", "weakness", "lost"):
        sim.devices[name] = rng.integers(0, 9, sim.devices.shape)
    for name in ("evaded", "patched", "shown", "attack_shown"):
        sim.devices[name] = rng.random(sim.devices.shape) < 0.5
    for name in ("isolate", "restore"):  # of a device without a foothold nobody tells the attacker
        sim.devices[name] = np.where(untouched, rng.integers(0, 9, sim.devices.shape), sim.devices[name])
    for name in ("budget", "service", "action", "cleanup", "orders", "restore", "first_response"):
        sim.sites[name] = rng.integers(0, 9, sim.count)
    np.testing.assert_array_equal(view(sim), before)
    sim.devices["isolate"] = np.where(untouched, 0, 9)
    assert (view(sim) != before).any(), "a foothold that is cut off falls silent"


def test_the_defender_sees_nothing_of_the_attackers_own_state() -> None:
    env = attacking(64)
    under_way(env)
    sim = env.simulation
    before = sim.observe()
    for name in ("known", "stopped", "pressing", "evaded"):
        sim.devices[name] = ~sim.devices[name]
    sim.sites["patience"], sim.sites["caution"] = 1.0, 0.5
    np.testing.assert_array_equal(sim.observe(), before)


def test_criticality_is_unknown_until_a_device_was_attacked() -> None:
    env = attacking(256)
    under_way(env)
    known = env.simulation.devices["known"]
    shown = env.layout.split(view(env.simulation))["criticality"][..., 0]
    assert (shown[~known] == 0).all()
    np.testing.assert_array_equal(shown, np.where(known, env.simulation.world.traits[:, 0], 0))
    assert known.any()
    assert not known.all()


def test_who_lies_low_sends_nothing_hostile_and_does_no_harm() -> None:
    env = attacking(128, overrun_steps=1000)
    under_way(env)
    sim = env.simulation
    assert sim.devices["attack_shown"].any()
    stage = sim.devices["stage"].copy()
    for _ in range(5):
        env.step(np.zeros(128, np.int64))
        assert not sim.devices["attack_shown"].any()
        running = sim.sites["step"] > 5
        np.testing.assert_array_equal(sim.devices["stage"][running], np.minimum(stage, Stage.COMPROMISED)[running])
    assert (play(env, Constant(0), seed=0).returns == 0).all()


def put(sim: Simulation, stage: Stage, **fields: Any) -> None:
    """Every device of every environment into `stage`, by a patient attacker."""
    sim.sites["patience"] = 1e9
    sim.devices["stage"] = stage
    sim.devices["known"] = stage >= Stage.ATTACKED
    sim.devices["technique"] = sim.world.emissions[sim.sites["profile"], stage, 0][:, None]
    sim.devices["hostile"] = -1
    for name, value in fields.items():
        sim.devices[name] = value


def test_advance_turns_to_a_device_that_can_be_reached_while_a_hand_is_free() -> None:
    env = attacking(64)
    sim = env.simulation
    layout, exposed = env.layout, sim.world.reach[0] >> sim.world.zone & 1 > 0
    outsiders = ~sim.world.profiles["insider"]
    for d in range(layout.devices):
        seen, _ = env.reset(seed=0)
        free = moves_allowed(layout, seen)[:, move(Move.ADVANCE, d)]
        from_outside = outsiders[sim.sites["profile"]]
        np.testing.assert_array_equal(free[from_outside], exposed[d])
        env.step(np.full(64, move(Move.ADVANCE, d)))
        np.testing.assert_array_equal(sim.devices["stage"][:, d] == Stage.PROBED, free)
        assert (np.delete(sim.devices["stage"], d, axis=1) == Stage.CLEAN).all()
    env.reset(seed=0)
    busy = np.minimum(sim.world.profiles["breadth"][sim.sites["profile"]], layout.devices - 1)
    for e, hands in enumerate(busy):
        sim.devices["stage"][e, :hands] = Stage.PROBED
    last = layout.devices - 1
    assert not moves_allowed(layout, view(sim))[:, move(Move.ADVANCE, last)].any()
    env.step(np.full(64, move(Move.ADVANCE, last)))
    assert (sim.devices["stage"][:, last] == Stage.CLEAN).all()


def test_a_scouted_device_is_attacked_at_once_and_a_cut_off_one_stops_the_attempt() -> None:
    env = attacking(32, scenario="solo")
    sim = env.simulation
    for known, isolated, stage in ((False, 0, Stage.PROBED), (True, 0, Stage.ATTACKED), (True, 9, Stage.CLEAN)):
        env.reset(seed=0)
        sim.devices["known"], sim.devices["isolate"] = known, isolated
        seen, *_ = env.step(np.full(32, move(Move.ADVANCE)))
        assert (sim.devices["stage"] == stage).all()
        assert (env.layout.split(seen)["stopped"] == (isolated > 0)).all()


def test_harm_is_done_where_the_attacker_wants_it_and_ends_when_it_withdraws() -> None:
    env = attacking(200, overrun_steps=1000)
    sim = env.simulation
    env.reset(seed=0)
    put(sim, Stage.COMPROMISED)
    for _ in range(30):
        env.step(np.full(200, move(Move.ROTATE, 1)))
    assert (sim.devices["stage"] == Stage.COMPROMISED).all()
    env.step(np.full(200, move(Move.ADVANCE, 2)))
    assert sim.devices["pressing"][:, 2].all()
    for _ in range(150):
        env.step(np.full(200, move(Move.ROTATE, 1)))
    assert (sim.devices["stage"][:, 2] == Stage.IMPACT).mean() > 0.95  # at least .05 a step
    assert (np.delete(sim.devices["stage"], 2, axis=1) == Stage.COMPROMISED).all()
    assert moves_allowed(env.layout, view(sim))[:, move(Move.WITHDRAW, 2)].all()
    assert not moves_allowed(env.layout, view(sim))[:, move(Move.WITHDRAW, 3)].any()
    for _ in range(10):
        env.step(np.full(200, move(Move.WITHDRAW, 2)))
    assert (sim.devices["stage"] == Stage.COMPROMISED).all()
    assert not sim.devices["pressing"].any()


def test_harm_comes_as_fast_as_the_profile_says() -> None:
    env = attacking(2000, scenario="solo", overrun_steps=1000)
    sim = env.simulation
    env.reset(seed=0)
    put(sim, Stage.COMPROMISED)
    env.step(np.full(2000, move(Move.ADVANCE)))
    impact = sim.world.profiles["impact"][sim.sites["profile"]].mean()
    reached = (sim.devices["stage"] == Stage.IMPACT).mean()
    assert reached == pytest.approx(impact, abs=4 * np.sqrt(impact / 2000))


def test_withdrawing_frees_a_hand() -> None:
    env = attacking(64, scenario="solo")
    sim = env.simulation
    for stage in (Stage.PROBED, Stage.ATTACKED):
        env.reset(seed=0)
        put(sim, stage)
        before = env.layout.split(view(sim))["context"][:, 3].copy()
        env.step(np.full(64, move(Move.WITHDRAW)))
        left = sim.devices["stage"][:, 0] == Stage.CLEAN
        assert left.mean() > 0.5  # the others went on before the move was made, and it was meant for what they had been
        assert (sim.devices["stage"][~left, 0] == stage + 1).all()
        assert (env.layout.split(view(sim))["context"][left, 3] > before[left]).all()


def test_rotating_gets_round_a_block_in_one_case_of_two() -> None:
    env = attacking(2000, scenario="solo")
    sim = env.simulation
    env.reset(seed=0)
    put(sim, Stage.ATTACKED, block=30)
    for chosen, share in ((move(Move.ADVANCE), 0.0), (move(Move.ROTATE), 0.5)):
        env.step(np.full(2000, chosen))
        held = sim.devices["stage"][:, 0] == Stage.ATTACKED
        assert sim.devices["evaded"][held, 0].mean() == pytest.approx(share, abs=0.05)


def test_rotating_changes_the_technique_of_an_attack() -> None:
    env = attacking(500, scenario="solo", attackers="held_out")  # profiles with techniques to choose among
    sim = env.simulation
    changed = {}
    for chosen in (move(Move.ADVANCE), move(Move.ROTATE)):
        env.reset(seed=0)
        put(sim, Stage.ATTACKED)
        before = sim.devices["technique"].copy()
        env.step(np.full(500, chosen))
        held = sim.devices["stage"] == Stage.ATTACKED
        changed[chosen] = (sim.devices["technique"] != before)[held].mean()
    assert changed[move(Move.ADVANCE)] == 0
    assert changed[move(Move.ROTATE)] > 0.2


def test_an_agent_reacts_by_itself_to_nothing() -> None:
    """Stopped attempts cost patience, but source, technique and target stay until it says so; being noticed hides nobody."""
    env = attacking(300, scenario="solo", attackers="all")
    sim = env.simulation
    env.reset(seed=0)
    put(sim, Stage.ATTACKED, isolate=50)
    technique, patience = sim.devices["technique"].copy(), sim.sites["patience"].copy()
    sim.sites["dormant"] = 5
    for _ in range(10):
        seen, *_ = env.step(np.full(300, move(Move.ADVANCE)))
    assert (sim.devices["stage"] == Stage.ATTACKED).all()
    np.testing.assert_array_equal(sim.devices["technique"], technique)
    np.testing.assert_allclose(patience - sim.sites["patience"], 5.0)
    assert (env.layout.split(seen)["stopped"] == 1).all()
    assert (sim.sites["dormant"] == 0).all()


def test_without_patience_nothing_new_is_begun_and_footholds_still_obey() -> None:
    env = attacking(64, overrun_steps=1000)
    sim = env.simulation
    env.reset(seed=0)
    put(sim, Stage.CLEAN, technique=-1)
    sim.devices["stage"][:, 0] = Stage.COMPROMISED
    sim.sites["patience"] = 0.0
    allowed = moves_allowed(env.layout, view(sim))
    assert allowed[:, move(Move.ADVANCE, 0)].all()
    assert not allowed[:, move(Move.ADVANCE, 1) :: 3].any()
    for d in (1, 2, 0):
        env.step(np.full(64, move(Move.ADVANCE, d)))
    assert (sim.devices["stage"][:, 1:] == Stage.CLEAN).all()
    assert sim.devices["pressing"][:, 0].all()


def test_masked_moves_only_let_work_go_on() -> None:
    """Each masked move leaves the next step as any other that lets work go on does."""
    env = attacking(256, overrun_steps=1000)
    under_way(env)
    allowed = moves_allowed(env.layout, view(env.simulation))
    rng = np.random.default_rng(0)
    barred = np.where(allowed, -1.0, rng.random(allowed.shape))
    some = np.flatnonzero((barred >= 0).any(axis=1))
    going = allowed & (np.arange(allowed.shape[1]) % 3 == Move.ADVANCE)
    stage = env.simulation.devices["stage"].repeat(MOVES, axis=1)
    going[:, 1:] &= (stage == Stage.PROBED) | (stage == Stage.ATTACKED) | (stage == Stage.IMPACT)
    both = some[going[some].any(axis=1)]
    assert len(both) > 100
    twin = copy.deepcopy(env)
    before = env.simulation.sites["compromises"].copy()
    env.step(barred.argmax(axis=1))
    twin.step(going.argmax(axis=1))
    opened = env.simulation.devices["stage"] != twin.simulation.devices["stage"]
    # A foothold won in this very step can open a way, or give a hand, that the mask could not know of.
    won = env.simulation.sites["compromises"] > before
    assert not opened[both][~won[both]].any()


@pytest.mark.parametrize("who", ["attacker", "defender"])
def test_a_seat_of_the_vector_front_agrees_with_single_duels(who: str) -> None:
    count = 4
    single = [duel(flatten=True, overrun_steps=5) for _ in range(count)]
    layout, orders = single[0].layout, single[0].env.simulation.layout
    rule, greedy = Threshold(orders, "risk", 0.5, Order.BLOCK, 0.7, Order.RESTORE), GreedyAttacker(layout)
    env = seat(count, who, rule if who == "attacker" else greedy, overrun_steps=5)
    many, _ = env.reset(seed=30)
    starts = [one.reset(seed=30 + i) for i, one in enumerate(single)]
    ones, masks = [seen for seen, _ in starts], [infos[who]["action_mask"] for _, infos in starts]
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(260):
        np.testing.assert_array_equal(many, np.stack([seen[who] for seen in ones]))
        np.testing.assert_array_equal(env.action_masks(), np.stack(masks))
        mine = rng.integers(0, env.single_action_space.n, count)  # type: ignore[attr-defined]
        if who == "attacker":
            mine = np.where(rng.random(count) < 0.8, greedy.predict(many)[0], mine)
        many, rewards, terminated, truncated, info = env.step(mine)
        for i, one in enumerate(single):
            actions = {
                "defender": rule.predict(ones[i]["defender"][None])[0][0] if who == "attacker" else mine[i],
                "attacker": greedy.predict(ones[i]["attacker"][None])[0][0] if who == "defender" else mine[i],
            }
            ones[i], reward, over, cut, infos = one.step(actions)
            assert (reward[who], over[who], cut[who]) == (rewards[i], terminated[i], truncated[i])
            if not one.agents:
                ended += 1
                np.testing.assert_array_equal(info["final_obs"][i], ones[i][who])
                assert infos["attacker"]["end"] == infos["defender"]["end"] == End(info["final_info"]["end"][i]).name.lower()
                ones[i], infos = one.reset()
            masks[i] = infos[who]["action_mask"]
    assert ended >= count


class Remembering:
    """An attacker who counts its steps in an episode."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        state = np.zeros(len(observation), np.int64) if state is None else state
        self.count = np.where(episode_start, 1, state + 1)
        return np.ones(len(observation), np.int64), self.count


def test_an_opponent_keeps_its_memory_and_is_told_where_an_episode_starts() -> None:
    opponent = Remembering()
    env = seat(3, "defender", opponent, horizon=10)
    env.reset(seed=0)
    for expected in (*range(1, 11), 1, 2):
        env.step(np.zeros(3, np.int64))
        assert (opponent.count == expected).all()
    env.reset(options={"reset_mask": np.array([False, True, False])})
    env.step(np.zeros(3, np.int64))
    np.testing.assert_array_equal(opponent.count, [3, 1, 3])
    np.testing.assert_array_equal(env.simulation.sites["step"], [3, 1, 3])


def test_rewards_are_weighted_damage_and_not_the_defenders_loss() -> None:
    config = load_config(overrides=["reward.damage=2.0"])
    env = duel(config=config)
    observations, infos = env.reset(seed=0)
    greedy = GreedyAttacker(env.layout)
    total = 0.0
    while env.agents:
        move_ = greedy.predict(flat(observations["attacker"])[None])[0][0]
        observations, rewards, terminated, _, infos = env.step({"defender": 1 + Order.BLOCK - 1, "attacker": move_})
        terms = infos["defender"]["reward_terms"]
        assert rewards["attacker"] == 2.0 * terms["damage"]
        assert rewards["defender"] == pytest.approx(-2.0 * terms["damage"] - sum(terms[name] for name in ("service", "action")))
        total += rewards["attacker"]
    assert total == pytest.approx(2.0 * infos["defender"]["summary"]["damage"])
    assert terminated == {"defender": True, "attacker": True}
    assert infos["attacker"]["end"] == "overrun"
    assert set(infos["attacker"]) == {"end", "action_mask"}


def test_attackers_do_more_the_better_they_are_and_less_against_a_defence() -> None:
    env = attacking(200)
    rule = Threshold(env.simulation.layout, "risk", 0.3, Order.RESTORE, 0.3, Order.RESTORE)
    damage = {}
    for name, defender in (("none", Constant(0)), ("rule", rule)):
        env = attacking(200, defender)
        for attacker in (RandomAttacker(env.layout, 0), GreedyAttacker(env.layout)):
            damage[name, type(attacker)] = play(env, attacker, seed=0).summary["damage"].mean()
    assert damage["none", GreedyAttacker] > 1.3 * damage["none", RandomAttacker] > 0
    assert damage["rule", GreedyAttacker] < 0.3 * damage["none", GreedyAttacker]


def test_stable_baselines3_takes_the_attackers_seat() -> None:
    env = IoTSB3VecEnv(attacking(3, horizon=20))  # type: ignore[arg-type]
    observation = env.reset()
    assert observation.shape == (3, AttackerLayout(12).size)
    assert np.stack(env.env_method("action_masks")).shape == (3, 37)
    for _ in range(20):
        observation, _, dones, infos = env.step(np.ones(3, np.int64))
    assert dones.all()
    assert infos[0]["terminal_observation"].shape == (AttackerLayout(12).size,)
    assert infos[0]["TimeLimit.truncated"]


class OneSeat(gymnasium.Env):
    """The attacker's seat of an `IoTDuel` as a gymnasium environment."""

    def __init__(self) -> None:
        self.duel = duel()
        self.observation_space, self.action_space = self.duel.observation_space("attacker"), self.duel.action_space("attacker")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observations, infos = self.duel.reset(seed=seed)
        return observations["attacker"], infos["attacker"]

    def step(self, action: Any) -> Any:
        return tuple(part["attacker"] for part in self.duel.step({"defender": 0, "attacker": action}))


def test_rendered_as_iotenv_is() -> None:
    env, single = (front(bank=BANK, render_mode="ansi", attack_free=0.0, start_range=(0, 0)) for front in (IoTDuel, IoTEnv))
    env.reset(seed=0)
    single.reset(seed=0)
    env.step({"defender": 2, "attacker": 0})
    single.simulation.moves[:] = Move.LIE_LOW
    single.step(2)
    assert env.render() == single.render()
    assert "gateway-1" in str(env.render())


def test_the_attackers_spaces_suit_stable_baselines3() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(OneSeat())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: duel(attacker="human"), "unknown attacker 'human': allowed: agent, scripted"),
        (lambda: duel(scenari="home"), "did you mean 'scenario'"),
        (lambda: duel(render_mode="hologram"), "render_mode"),
        (lambda: duel().step({"defender": 0, "attacker": 0}), "reset"),
        (lambda: seat(2, "referee", Constant(0)), "unknown seat 'referee'"),
        (lambda: attacking(0), "num_envs"),
        (lambda: attacking("2"), "num_envs"),  # type: ignore[arg-type]
        (lambda: AttackerLayout(6).split(np.zeros((2, 5))), "of 6 devices has 99 floats, not 5"),
        (lambda: AttackerLayout(6).named(np.zeros(94)), "not 94"),
        (lambda: attacking(2).restore(IoTVectorEnv(2, bank=BANK).snapshot()), "not of duels"),
    ],
)
def test_wrong_use_is_one_clear_line(call: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        ({"defender": 0}, "wanted for defender, attacker"),
        ({}, "nobody"),
        (None, "wanted for defender, attacker, by their names, not None"),
        ([0, 0], "by their names"),
        ({"defender": 0, "attacker": None}, "attacker's action None"),
        ({"defender": None, "attacker": 0}, "action None"),
        ({"defender": 0, "attacker": 0, "referee": 0}, "referee"),
        ({"defender": 0, "attacker": 37}, "attacker's action 37"),
        ({"defender": 0, "attacker": SCRIPTED}, "attacker's action -1"),
        ({"defender": 0, "attacker": 1.0}, "not in"),
        ({"defender": 61, "attacker": 0}, "action 61"),
    ],
)
def test_actions_outside_the_spaces_are_refused(actions: dict[str, Any], said: str) -> None:
    env = duel()
    env.reset(seed=0)
    with pytest.raises(UserError, match=said):
        env.step(actions)


def test_vector_actions_outside_the_space_are_refused() -> None:
    env = attacking(3)
    env.reset(seed=0)
    for wrong in (np.array([0, 0, 37]), np.array([0, 0, -1]), np.zeros(2, np.int64), np.zeros(3)):
        with pytest.raises(UserError, match=r"3 integers in 0 \.\. 36"):
            env.step(wrong)


class Counting:
    """Acts by how many steps its episode has, kept as a policy's memory."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Any, Any]:
        age = np.where(episode_start, 0, (state if state is not None else 0)) + 1
        return np.where(age % 2 == 0, 1, 0), age


class Starting:
    """Blocks the first device where an episode has just begun."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Any, None]:
        return np.where(episode_start, Order.BLOCK, 0), None


@pytest.mark.parametrize(("who", "opponent"), [("attacker", Starting()), ("defender", GreedyAttacker(AttackerLayout(12)))])
@pytest.mark.parametrize("before", [0, 150])
def test_a_snapshot_goes_on_alike(who: Any, opponent: Any, before: int) -> None:
    first, second = (IoTSB3VecEnv(seat(3, who, opponent)) for _ in range(2))
    assert first.env.device_names == IoTEnv(bank=BANK).device_names  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    first.seed(5)
    observation = first.reset()
    second.seed(9)
    second.reset()
    second.step(np.zeros(3, np.int64))  # so that what is restored differs from what was
    for _ in range(before):
        observation, *_ = first.step(rng.integers(0, 37, 3))
    np.testing.assert_array_equal(second.restore(first.state()), observation)
    np.testing.assert_array_equal(second.env.action_masks(), first.env.action_masks())
    for _ in range(100):  # across ends, so that the generators must go on alike too
        actions = rng.integers(0, 37, 3)
        (one, gained, *_), (other, also, *_) = first.step(actions), second.step(actions)
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(gained, also)
    with pytest.raises(UserError, match="another batch"):
        IoTSB3VecEnv(seat(2, who, opponent)).restore(first.state())


def test_a_snapshot_against_an_opponent_with_a_memory_is_refused() -> None:
    env = attacking(2, Counting())
    env.reset(seed=0)
    fresh = env.snapshot()
    env.step(np.zeros(2, np.int64))
    with pytest.raises(UserError, match="memory"):
        env.snapshot()
    env.restore(fresh)
    np.testing.assert_array_equal(env.snapshot()["starts"], [True, True])


def test_importing_envs_alone_stays_light() -> None:
    code = "import sys, envs; print(sorted({'pettingzoo', 'torch', 'stable_baselines3'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_example_runs_at_a_small_size() -> None:
    command = [sys.executable, "-W", "error", "-m", "examples.self_play", "--rounds", "1", "--steps", "4096", "--episodes", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    for name in ("scripted", "random", "greedy", "learned 1", "no-op", "rule 1"):
        assert name in done.stdout


@pytest.mark.parametrize(("word", "wrong"), [("--rounds", "0"), ("--steps", "0"), ("--episodes", "-1"), ("--seed", "-1")])
def test_the_example_checks_its_flags(word: str, wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["self_play", word, wrong])
    with pytest.raises(SystemExit) as caught:
        self_play.main()
    assert caught.value.code == 2
    assert f"argument {word}: must be at least" in capsys.readouterr().err
