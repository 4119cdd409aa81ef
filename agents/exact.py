"""The optimum of a network of one device, by value iteration over a model of its own.

The model is written from the rules, as probabilities, and shares no code with `envs.dynamics`, which draws its numbers: where
the environment's mean return under a policy agrees with the value computed here, both are right. The defender whom it solves for
sees the present (stage, controls, how far the attacker's patience goes, whether it has arrived), not the future: when the
attacker comes is a hazard. Backward induction over all reachable states gives its best order at each step.

It is exact for one device, one attacker who neither grows cautious nor hides (`caution` 0, `dormancy` 0) and whose techniques
all meet the same weakness, no `variation`, and a budget that cannot run out; `exact_config` is such a world, small enough for
half a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.attackers import DIFFICULTY, TRAFFIC, Stage, cast
from envs.dynamics import Order
from envs.scenarios import FAMILIES, build_network
from envs.world import Simulation
from src.config import AttackerConfig, Config
from src.data.bank import TraceBank
from src.errors import UserError
from src.evaluation.rollout import Policy

ORDERS = len(Order)


def exact_config(base: Config | None = None) -> Config:
    """The world that is solved: `solo` under a botnet, with short controls and a short horizon, everything else as in `base`.

    Controls last 3 to 5 steps, so that their expiry, renewal and lifting matter; the attacker's patience is 6, so that it can be
    worn out within the 80 steps.
    """
    base = base or Config()
    controls = base.env.controls
    short = {"rate_limit": 3, "block": 4, "isolate": 5}
    env = {
        "scenario": "solo", "variation": 0.0, "horizon": 80, "start_range": (2, 30), "budget": 80, "attackers": "train",
        "controls": controls.model_copy(update={name: getattr(controls, name).model_copy(update={"ttl": ttl}) for name, ttl in short.items()}),
    }  # fmt: skip
    attackers = {
        "train": ["botnet"],
        "held_out": [name for name in base.attackers.held_out if name != "botnet"],
        "botnet": base.attackers.botnet.model_copy(update={"caution": 0.0, "dormancy": 0, "patience": 6.0}),
    }
    return base.model_copy(update={"env": base.env.model_copy(update=env), "attackers": base.attackers.model_copy(update=attackers)})


class State(NamedTuple):
    """The device and its attacker between two steps."""

    arrived: bool = False
    stage: int = Stage.CLEAN
    known: bool = False
    """Whether the attacker has scouted the device."""
    evaded: bool = False
    """Whether the block in force was got round."""
    patched: bool = False
    noticed: bool = False
    """Whether this foothold was isolated before."""
    rate_limit: int = 0
    block: int = 0
    isolate: int = 0
    restore: int = 0
    pending: int = 0
    delay: int = 0
    patience: int = 0
    """Half setbacks that are left; 0: none."""
    overrun: int = 0
    """Steps that the overrun lasts."""

    @property
    def down(self) -> bool:
        """Cut off, or being restored."""
        return self.isolate > 0 or self.restore > 0


Branches = list[tuple[float, State]]
"""What may come, with probabilities that sum to 1."""


class Rules:
    """One step of the world, for a single device."""

    def __init__(self, config: Config) -> None:
        """Read the numbers.

        Raises:
            UserError: when the configuration is not one that is solved exactly.
        """
        env, network = config.env, build_network(config.env.scenario)
        names = cast(config.attackers, env.attackers)
        attacker: AttackerConfig = getattr(config.attackers, names[0])
        weaknesses = {network.weakness[0, FAMILIES.index(family)] for family in TRAFFIC[names[0]][Stage.ATTACKED]}
        needs = {
            "one device": len(network.names) == 1,
            "a device that may be cut off": not network.protected[0],
            "one attacker": len(names) == 1,
            "an attacker of caution 0 and dormancy 0": attacker.caution == 0 and attacker.dormancy == 0,
            "an attacker whose techniques meet one weakness": len(weaknesses) == 1,
            "variation 0": env.variation == 0,
            "a budget of at least the horizon": env.budget >= env.horizon,
            "addressed orders": env.action_mode == "discrete",
        }
        for need, met in needs.items():
            if not met:
                raise UserError(f"the exact solution needs {need}; `exact_config` is such a world")
        self.config, self.env, self.controls, self.attacker, self.weights = config, env, env.controls, attacker, config.reward
        self.speed = DIFFICULTY[config.attackers.difficulty][0]
        self.weakness, self.criticality = weaknesses.pop(), float(network.criticality[0])
        self.restore_time, self.patchable = int(network.restore_time[0]), bool(network.patchable[0])
        self.start = State(patience=int(np.ceil(2 * attacker.patience)))

    def allowed(self, state: State, order: int) -> bool:
        """Whether an order would change something."""
        if order == Order.MONITOR or state.restore or state.pending:
            return False
        return {
            Order.RATE_LIMIT: not state.rate_limit and not state.isolate,
            Order.BLOCK: not state.block and not state.isolate,
            Order.ISOLATE: not state.isolate,
            Order.RESTORE: True,
            Order.RELEASE: bool(state.rate_limit or state.block or state.isolate),
        }[Order(order)]

    def obey(self, state: State, order: int) -> tuple[State, float]:
        """Orders come into force: the state that the attacker meets, and the loss."""
        loss = 0.0
        if state.pending:
            state = state._replace(delay=state.delay - 1)
            if state.delay == 0:
                state, loss = self._in_force(state._replace(pending=0), state.pending)
        if self.allowed(state, order):
            settings = getattr(self.controls, Order(order).name.lower())
            loss += self.weights.action * settings.cost
            if settings.delay:
                return state._replace(pending=order, delay=settings.delay), loss
            state, more = self._in_force(state, order)
            loss += more
        return state, loss

    def _in_force(self, state: State, order: int) -> tuple[State, float]:
        held = state.stage >= Stage.COMPROMISED
        if order == Order.RATE_LIMIT:
            return state._replace(rate_limit=self.controls.rate_limit.ttl), 0.0
        if order == Order.BLOCK:
            return state._replace(block=self.controls.block.ttl, evaded=False), 0.0
        if order == Order.ISOLATE:
            state = state._replace(isolate=self.controls.isolate.ttl)
            return (self._worn(state._replace(noticed=True), 2) if held and not state.noticed else state), 0.0
        state = state._replace(rate_limit=0, block=0, isolate=0, evaded=False)
        if order == Order.RELEASE:
            return state, 0.0
        state = state._replace(restore=self.restore_time)
        return (self._worn(state, 8) if held else state), self.weights.cleanup * self.criticality

    @staticmethod
    def _worn(state: State, halves: int) -> State:
        return state._replace(patience=max(0, state.patience - halves))

    def attack(self, state: State) -> Branches:
        """What an attacker who has arrived makes of it: it works on the device, then turns to it anew where it let go."""
        engaged = self._work(state)
        turning = 1.0 - (1.0 - min(1.0, self.attacker.probe * self.speed)) ** self.attacker.breadth
        branches: Branches = []
        for chance, after in engaged:
            if after.stage == Stage.CLEAN and not after.down and after.patience > 0:
                turned = after._replace(stage=Stage.ATTACKED if after.known else Stage.PROBED)
                branches += [(chance * turning, turned), (chance * (1.0 - turning), after)]
            else:
                branches.append((chance, after))
        return [(chance, after) for chance, after in branches if chance > 0]

    def _work(self, state: State) -> Branches:
        attacker = self.attacker
        slowed = 1.0 - self.controls.rate_limit.slows if state.rate_limit else 1.0
        if state.stage == Stage.COMPROMISED and not state.down:
            success = min(1.0, attacker.impact * self.speed) * slowed
            return [(success, state._replace(stage=Stage.IMPACT)), (1.0 - success, state)]
        if state.stage not in (Stage.PROBED, Stage.ATTACKED):
            return [(1.0, state)]
        holds = state.block > 0 and not state.evaded
        let = 0.0 if state.down else slowed * (1.0 - self.controls.block.slows if holds else 1.0)
        stopped = 1.0 - let
        worn = self._worn(state, 1) if state.stage == Stage.ATTACKED else state
        rotates = attacker.rotate if holds else 0.0
        leaves = (1.0 - rotates) * attacker.abandon
        if state.stage == Stage.PROBED:
            success, taken = min(1.0, attacker.engage * self.speed), state._replace(stage=Stage.ATTACKED, known=True)
        else:
            success = min(1.0, attacker.compromise * self.speed) * self.weakness * (self.controls.restore.patch_factor if state.patched else 1.0)
            taken = state._replace(stage=Stage.COMPROMISED, noticed=False)
        return [
            (let * success, taken),
            (let * (1.0 - success), state),
            (stopped * rotates, worn._replace(evaded=True)),
            (stopped * leaves, worn._replace(stage=Stage.CLEAN)),
            (stopped * (1.0 - rotates - leaves), worn),
        ]

    def settle(self, state: State) -> tuple[State | None, float, float]:
        """The step's end: the state after it (None: the episode is over), the loss, and the loss a step that an overrun cuts off."""
        service, damage = self._losses(state)
        loss = self.criticality * (self.weights.service * service + self.weights.damage * damage)
        floods = state.stage == Stage.IMPACT and not state.down and self.criticality >= self.env.overrun_share - 1e-9
        state = state._replace(overrun=state.overrun + 1 if floods else 0)
        if state.overrun == self.env.overrun_steps:
            return None, loss, self.criticality * self.weights.damage * damage
        if state.arrived and state.patience == 0 and state.stage < Stage.COMPROMISED:
            return None, loss, 0.0
        return self._later(state), loss, 0.0

    def _losses(self, state: State) -> tuple[float, float]:
        """Shares of service lost, and of harm done."""
        if state.down:
            return 1.0, 0.0
        limit, block = self.controls.rate_limit, self.controls.block
        service = 1.0 - (1.0 - limit.service_loss if state.rate_limit else 1.0) * (1.0 - block.service_loss if state.block else 1.0)
        if state.stage == Stage.IMPACT:
            return service, (1.0 - limit.contains if state.rate_limit else 1.0) * (1.0 - block.contains if state.block and not state.evaded else 1.0)
        return service, 0.25 if state.stage == Stage.COMPROMISED else 0.0

    def _later(self, state: State) -> State:
        block = max(0, state.block - 1)
        later = state._replace(
            rate_limit=max(0, state.rate_limit - 1), block=block, isolate=max(0, state.isolate - 1), restore=max(0, state.restore - 1),
            evaded=state.evaded and block > 0,
        )  # fmt: skip
        if state.restore == 1:
            later = later._replace(stage=Stage.CLEAN, patched=self.patchable)
        # Matters only while a foothold lasts; one value elsewhere keeps the states fewer.
        return later if later.stage >= Stage.COMPROMISED else later._replace(noticed=False)

    def hazard(self, step: int) -> float:
        """Chance that an attacker who has not come yet comes in this step."""
        first, last = self.env.start_range
        if not first <= step <= last:
            return 0.0
        coming = (1.0 - self.env.attack_free) / (last - first + 1)
        return coming / (self.env.attack_free + coming * (last - step + 1))


@dataclass(frozen=True)
class Solution:
    """A policy of the model, and what it is worth."""

    value: float
    """Expected return of an episode."""
    orders: NDArray[np.int8]
    """(horizon, states) order at each step in each state."""
    values: NDArray[np.float64]
    """(horizon, states) expected return from there on."""


class Model:
    """All reachable states of a world of one device, and what each order leads to.

    An order and the controls that it meets lead to a *met* state, what the attacker makes of that to the next states; many states
    and orders share a met state, so the second half is worked out once for each.
    """

    def __init__(self, config: Config) -> None:
        """Find the states, outwards from the start.

        Raises:
            UserError: when the configuration is not one that is solved exactly.
        """
        self.rules = rules = Rules(config)
        states: dict[State, int] = {rules.start: 0}
        met: dict[State, int] = {}
        waiting = [rules.start]
        leads: list[list[int]] = []
        costs: list[list[float]] = []
        outcomes: list[list[tuple[float, int]]] = []
        losses: list[float] = []
        cut: list[float] = []
        arrivals: list[int] = []

        def meet(state: State) -> int:
            """Index of a met state, worked out where it is new."""
            if state in met:
                return met[state]
            index = met[state] = len(met)
            outcomes.append([])
            losses.append(0.0)
            cut.append(0.0)
            arrivals.append(-1)
            for chance, after in rules.attack(state) if state.arrived else [(1.0, state)]:
                later, loss, rest = rules.settle(after)
                losses[index] += chance * loss
                cut[index] += chance * rest
                if later is not None:
                    if later not in states:
                        states[later] = len(states)
                        waiting.append(later)
                    outcomes[index].append((chance, states[later]))
            if not state.arrived:
                arrivals[index] = meet(state._replace(arrived=True))
            return index

        for state in waiting:  # grows while it is walked
            obeyed = [rules.obey(state, order) for order in range(ORDERS)]
            leads.append([meet(after) for after, _ in obeyed])
            costs.append([loss for _, loss in obeyed])
        self.states = np.array(waiting, np.int64)  # (N, fields of State)
        self._base = self.states.max(axis=0) + 1
        codes = self._encode(self.states)
        self._sorted = np.argsort(codes)
        self._codes = codes[self._sorted]
        self._leads, self._costs = np.array(leads), np.array(costs)  # (N, 6)
        self._losses, self._cut, self._arrivals = np.array(losses), np.array(cut), np.array(arrivals)  # (M,)
        # Over leads to the state after the last one, whose value stays 0.
        filled = [one or [(0.0, len(waiting))] for one in outcomes]
        self._first = np.cumsum([0] + [len(one) for one in filled[:-1]])
        self._chance = np.array([chance for one in filled for chance, _ in one])
        self._next = np.array([index for one in filled for _, index in one])

    def solve(self) -> Solution:
        """The optimum."""
        return self._backwards(lambda step, worth: worth.argmax(axis=1))

    def evaluate(self, orders: NDArray[Any]) -> Solution:
        """What a fixed policy is worth: (states,) an order for each, or (horizon, states)."""
        return self._backwards(lambda step, worth: orders if orders.ndim == 1 else orders[step])

    def _backwards(self, choose: Callable[[int, NDArray[np.float64]], NDArray[Any]]) -> Solution:
        horizon, count = self.rules.env.horizon, len(self.states)
        orders, values = np.zeros((horizon, count), np.int8), np.zeros((horizon, count))
        later, everywhere = np.zeros(count + 1), np.arange(count)
        alone = np.flatnonzero(self._arrivals >= 0)
        for step in reversed(range(horizon)):
            met = np.add.reduceat(self._chance * later[self._next], self._first) - self._losses - self._cut * (horizon - step - 1)  # (M,)
            hazard = self.rules.hazard(step)
            met[alone] = (1.0 - hazard) * met[alone] + hazard * met[self._arrivals[alone]]
            worth = met[self._leads] - self._costs  # (N, 6)
            orders[step] = choose(step, worth)
            values[step] = later[:-1] = worth[everywhere, orders[step]]
        return Solution(float(values[0, 0]), orders, values)

    def find(self, simulation: Simulation) -> NDArray[np.int64]:
        """(E,) the state of each environment.

        Raises:
            UserError: when one is in a state that the model cannot reach, so that one of the two breaks the rules.
        """
        site, device = simulation.sites, simulation.devices[:, 0]
        held = device["stage"] >= Stage.COMPROMISED
        columns = {
            "arrived": (site["start"] >= 0) & (site["start"] < site["step"]), "noticed": device["shown"] & held,
            "patience": np.ceil(2 * site["patience"].clip(0.0)), "overrun": site["overrun"],
        }  # fmt: skip
        found = np.column_stack([columns.get(name, device[name] if name in (device.dtype.names or ()) else None) for name in State._fields]).astype(np.int64)
        codes = self._encode(found)
        at = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        strange = (self._codes[at] != codes) | (found >= self._base).any(axis=1)
        if strange.any():
            raise UserError(f"the environment is in a state that the exact model cannot reach: {State(*found[strange.argmax()].tolist())}")
        return self._sorted[at]

    def orders_of(self, policy: Callable[[Simulation], Policy], bank: TraceBank) -> NDArray[np.int64]:
        """(states,) what a policy that sees the present state, and nothing else, orders in each."""
        simulation = Simulation(self.rules.config, bank, "agent", len(self.states))
        simulation.begin(np.arange(len(self.states)), np.arange(len(self.states), dtype=np.uint64))
        columns = dict(zip(State._fields, self.states.T, strict=True))
        simulation.sites["patience"] = columns.pop("patience") / 2.0
        simulation.sites["overrun"] = columns.pop("overrun")
        arrived = columns.pop("arrived")
        simulation.sites["start"] = np.where(arrived, 0, self.rules.env.start_range[1])
        simulation.sites["step"] = arrived
        simulation.devices[:, 0]["shown"] = columns.pop("noticed")
        for name, column in columns.items():
            simulation.devices[:, 0][name] = column
        actions, _ = policy(simulation).predict(simulation.observe())
        return actions

    def _encode(self, states: NDArray[np.int64]) -> NDArray[np.int64]:
        return states @ np.concatenate([[1], np.cumprod(self._base[:-1])])

    def describe(self, solution: Solution, step: int) -> Iterator[tuple[State, Order]]:
        """What a policy does at a step, in every state."""
        for state, order in zip(self.states.tolist(), solution.orders[step].tolist(), strict=True):
            yield State(*state), Order(order)


@dataclass(frozen=True)
class ExactPolicy:
    """Plays a solution: reads the hidden state of the running simulation, as the planner does."""

    simulation: Simulation
    model: Model
    solution: Solution

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[NDArray[np.int64], None]:
        """(E,)"""
        step = self.simulation.sites["step"]
        return self.solution.orders[step, self.model.find(self.simulation)].astype(np.int64), None
