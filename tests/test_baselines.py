"""Scripted policies: what each orders when shown crafted observations."""

import numpy as np
import pytest

from agents.baselines import Constant, Cusum, Playbook, cusum_candidates, most_urgent, playbook_candidates
from envs import IoTVectorEnv
from envs.dynamics import Order
from envs.scenarios import FAMILIES
from envs.world import KINDS, Layout
from src.evaluation.rollout import Policy, play
from tests.banks import make_bank

LAYOUT = Layout(devices=3, features=2, sensors=11)
CALM = [0.95, 0.01, 0.01, 0.0, 0.01, 0.01, 0.005, 0.005, 0.02, 0.1, 0.3]


def shown(family: str, chance: float) -> list[float]:
    """Readings of a window that is of a family by this chance, and else benign."""
    readings = np.zeros(11)
    readings[0], readings[FAMILIES.index(family)], readings[8:] = 1 - chance, chance, (chance, 0.1, 0.3)
    return readings.tolist()


def observation(readings: dict[int, list[float]], controls: dict[int, list[float]] | None = None, barred: tuple[Order, ...] = ()) -> np.ndarray:
    """One environment's; devices that are not named are calm and free, all orders valid but those barred."""
    flat = np.zeros((1, LAYOUT.size), np.float32)
    parts = LAYOUT.split(flat)
    parts["sensors"][0], parts["valid"][:], parts["device"][0, :, 0] = CALM, 1.0, [0.5, 1.0, 0.5]
    for order in barred:
        parts["valid"][..., order - 1] = 0.0
    for device, values in readings.items():
        parts["sensors"][0, device] = values
    for device, values in (controls or {}).items():
        parts["controls"][0, device] = values
        parts["silent"][0, device] = values[2] > 0 or values[3] > 0
        if parts["silent"][0, device]:
            parts["sensors"][0, device] = 0.0
    return flat


def ordered(action: np.ndarray) -> tuple[Order, int | None]:
    number = int(action[0])
    return (Order.MONITOR, None) if number == 0 else (Order((number - 1) % KINDS + 1), (number - 1) // KINDS)


def after(policy: Policy, steps: list[np.ndarray]) -> list[tuple[Order, int | None]]:
    """What is ordered at each step."""
    state, found = None, []
    for i, flat in enumerate(steps):
        action, state = policy.predict(flat, state, episode_start=np.array([i == 0]))
        found.append(ordered(action))
    return found


# CUSUM


def test_cusum_adds_up_small_evidence_that_lasts() -> None:
    rule = Cusum(LAYOUT, "attack", drift=0.0, low=1.0, high=4.0)
    weak = observation({1: shown("Web", 0.7311)})  # log-odds of 1
    assert after(rule, [weak] * 4) == [(Order.MONITOR, None)] * 3 + [(Order.RESTORE, 1)]
    calm = observation({})  # log-odds of -2.9: what had added up is gone
    assert after(rule, [weak] * 3 + [calm] + [weak] * 3)[-1] == (Order.MONITOR, None)
    loud = observation({1: shown("DDoS", 1.0)})  # clipped: one loud window is 4 at most
    assert after(Cusum(LAYOUT, "attack", 0.0, 1.0, 6.0), [loud])[0] == (Order.MONITOR, None)


def test_cusum_blocks_on_the_way_and_releases_at_zero() -> None:
    rule = Cusum(LAYOUT, "attack", drift=0.0, low=0.5, high=4.0)
    weak, blocked = observation({0: shown("Recon", 0.7311)}), {0: [0.0, 0.9, 0.0, 0.0, 0.0]}
    held = observation({0: shown("Recon", 0.5)}, blocked, barred=(Order.BLOCK,))  # neither here nor there
    steps = [weak, weak, weak, held, observation({}, blocked), observation({}, blocked)]
    orders = after(rule, steps)
    assert orders[2] == (Order.BLOCK, 0)
    assert orders[3] == (Order.MONITOR, None)
    assert (Order.RELEASE, 0) in orders[4:]


def test_cusum_of_anomaly_reads_the_anomaly() -> None:
    odd = shown("Web", 0.0)
    odd[-1] = 0.99
    rules = [Cusum(LAYOUT, reading, 0.0, 1.0, 4.0) for reading in ("anomaly", "attack")]
    assert [after(rule, [observation({2: odd})])[0][0] for rule in rules] == [Order.RESTORE, Order.MONITOR]


def test_cusum_forgets_a_restored_device_and_keeps_a_silent_one() -> None:
    rule = Cusum(LAYOUT, "attack", drift=0.0, low=1.0, high=6.0)
    _, sums = rule.predict(observation({0: shown("Web", 0.95), 1: shown("Web", 0.95)}))
    assert sums[0, 0] == pytest.approx(2.94, abs=0.01)
    _, sums = rule.predict(observation({}, {0: [0, 0, 0, 0.5, 0], 1: [0, 0, 0.5, 0, 0]}), sums, np.array([False]))
    assert sums[0].tolist() == pytest.approx([0.0, 2.94, 0.0], abs=0.01)
    _, sums = rule.predict(observation({}), sums, np.array([True]))
    assert sums[0].tolist() == [0.0, 0.0, 0.0]


# Playbook


def playbook(**settings: float) -> Playbook:
    return Playbook(LAYOUT, **{"watch": 0.3, "confirm": 0.8, "patience": 3, "smoothing": 0.5, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "order"),
    [("DDoS", Order.RATE_LIMIT), ("Mirai", Order.RATE_LIMIT), ("Recon", Order.BLOCK), ("BruteForce", Order.BLOCK), ("Spoofing", Order.BLOCK)],
)
def test_floods_are_throttled_and_the_rest_is_blocked(family: str, order: Order) -> None:
    assert after(playbook(), [observation({2: shown(family, 0.9)})])[0] == (order, 2)


def test_what_stays_suspicious_is_isolated_then_restored() -> None:
    blocked = {1: [0.0, 0.9, 0.0, 0.0, 0.0]}
    under = observation({1: shown("BruteForce", 0.7)}, blocked, barred=(Order.BLOCK,))
    away = observation({}, {1: [0.0, 0.9, 0.9, 0.0, 0.0]}, barred=(Order.ISOLATE,))
    orders = after(playbook(patience=2), [observation({1: shown("BruteForce", 0.7)}), under, under, under, away])
    assert orders == [(Order.BLOCK, 1), (Order.MONITOR, None), (Order.MONITOR, None), (Order.ISOLATE, 1), (Order.RESTORE, 1)]


def test_the_sure_case_is_isolated_at_once_and_restored_where_it_may_not_be() -> None:
    sure = {0: shown("Web", 1.0)}
    assert after(playbook(smoothing=1.0), [observation(sure)])[0] == (Order.ISOLATE, 0)
    assert after(playbook(smoothing=1.0), [observation(sure, barred=(Order.ISOLATE,))])[0] == (Order.RESTORE, 0)


def test_what_calmed_is_released_and_peace_is_left_alone() -> None:
    assert after(playbook(), [observation({})] * 5) == [(Order.MONITOR, None)] * 5
    blocked = {0: [0.0, 0.9, 0.0, 0.0, 0.0]}
    orders = after(playbook(), [observation({0: shown("Recon", 0.9)})] + [observation({}, blocked, barred=(Order.BLOCK,))] * 3)
    assert orders[0] == (Order.BLOCK, 0)
    assert orders[-1] == (Order.RELEASE, 0)


# All of them


def test_the_later_wish_comes_first_and_then_the_more_urgent_device() -> None:
    valid = np.ones((2, 3, KINDS), bool)
    valid[1, :, Order.RESTORE - 1] = False
    due, urgency = np.ones((2, 3), bool), np.array([[0.1, 0.3, 0.2]] * 2, np.float32)
    wishes = ((Order.BLOCK, due, urgency), (Order.RESTORE, due, urgency))
    assert [ordered(action[None]) for action in most_urgent(valid, wishes)] == [(Order.RESTORE, 1), (Order.BLOCK, 1)]
    assert most_urgent(valid, ((Order.BLOCK, ~due, urgency),)).tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["cusum", "playbook"])
def test_orders_are_allowed_and_a_batch_is_as_its_members_alone(kind: str) -> None:
    env = IoTVectorEnv(4, bank=make_bank(windows=40), scenario="home", flatten=True, attack_free=0.0)
    layout = env.simulation.layout
    policy: Policy = Cusum(layout, "attack", 0.0, 0.5, 4.0) if kind == "cusum" else Playbook(layout, 0.3, 0.6, 2, 0.3)
    flat, _ = env.reset(seed=0)
    state, alone, starts, given = None, [None] * 4, np.ones(4, bool), 0
    for _ in range(120):
        actions, state = policy.predict(flat, state=state, episode_start=starts)
        assert env.action_masks()[np.arange(4), actions].all()
        for e in range(4):
            action, alone[e] = policy.predict(flat[e : e + 1], state=alone[e], episode_start=starts[e : e + 1])
            assert action[0] == actions[e]
        given += int((actions > 0).sum())
        flat, _, terminated, truncated, _ = env.step(actions)
        starts = terminated | truncated
    assert given > 10


def test_grids_are_small_and_their_best_beat_doing_nothing() -> None:
    env = IoTVectorEnv(20, bank=make_bank(windows=40), scenario="home", flatten=True)
    layout = env.simulation.layout
    idle = play(env, Constant(0), 0).mean
    for grid in (cusum_candidates, playbook_candidates):
        candidates = list(grid(layout))
        assert 20 <= len({str(one) for one in candidates}) == len(candidates) <= 60
        assert max(play(env, one, 0).mean for one in candidates[::7]) > idle
