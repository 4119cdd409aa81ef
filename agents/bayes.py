"""A defender that sees only observations, and reasons about them: orders weighed on what a `Belief` holds likely."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from agents.baselines import Actions, address
from agents.belief import TRUST, Belief, Floats, Knowledge, Memory
from agents.filtering import ATTACKED, ATTACKED_ROUND, HELD, IMPACT, PROBED, PROBED_ROUND
from envs.dynamics import FOOTHOLD_DAMAGE, Order
from envs.scenarios import build_network
from envs.world import KINDS, Layout
from src.config import Config
from src.data.bank import TraceBank

NEEDED = 20
"""Steps for which a block is thought to be needed."""

LIFT = 0.5
"""A block is lifted where what it saves a step is less than this share of what it costs a step."""


@dataclass(frozen=True)
class Foresight:
    """How orders are weighed, by default as tuning on `clinic` chose; `bayes_candidates` is the grid of it."""

    restore: float = 240.0
    """Steps of harm that a restore saves, where there is a foothold: for so long it would stay unsure."""
    late: float = 1.0
    """Steps by which a foothold is found late, where a break-in is not stopped."""
    thrift: float = 0.2
    """What an order must save beyond its costs: orders are counted, and one that is given now cannot be given later."""
    trust: float = TRUST
    """Exponent of the likelihoods: below 1 believes readings less, above 1 more, than their fit says."""


class BayesFilter:
    """Gives at most one order a step: of those that save enough beyond their costs, the one whose delay would cost most.

    A foothold is worth a restore where the harm that it is expected to do exceeds the restore's price if there is none. An attack
    is worth a block where the break-in that it stops would cost more. A block is lifted where it stops too little, or where it was
    got round and must be set anew. Memory goes through `predict`'s `state`, and starts afresh where `episode_start` says so.
    """

    def __init__(
        self, config: Config, bank: TraceBank, layout: Layout, foresight: Foresight | None = None, side: str = "calibrate", knowledge: Knowledge | None = None
    ) -> None:
        """Read the rules and learn from the bank.

        Args:
            config: sections `env`, `attackers` (side `train`) and `reward`.
            bank: its readings are learned from, on one side.
            layout: of the flat observations.
            foresight: how orders are weighed.
            side: of the bank to learn from, `calibrate` or `agent`.
            knowledge: what another filter of the same bank has learned, so that it is not fitted again.

        Raises:
            UserError: when the side holds no windows of something that an attacker shows, or an order is delayed that beliefs take for prompt.
        """
        network = build_network(config.env.scenario)
        self.foresight = foresight or Foresight()
        self.belief = Belief(knowledge or Knowledge.learn(config, bank, side), config.env, network, layout, self.foresight.trust)
        self._env, self._weights = config.env, config.reward
        self._criticality, self._restore_time = network.criticality.astype(np.float32), network.restore_time

    def __str__(self) -> str:
        """The weighing in words."""
        one = self.foresight
        return f"Bayes filter: restore {one.restore:g}, late {one.late:g}, thrift {one.thrift:g}, trust {one.trust:g}"

    def predict(self, observation: Floats, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Actions, Memory]:
        """(E, size) flat observations -> (E,) addressed orders, and the memory to hand in with the next ones."""
        parts, memory = self.belief.hear(state, observation, episode_start)
        actions = self.decide(memory, parts)
        return actions, self.belief.advance(memory, parts, actions)

    def decide(self, memory: Memory, parts: dict[str, Floats]) -> Actions:
        """(E,) the order of each environment, on what is believed there."""
        weights, rules, value = self._weights, self._env.controls, self._criticality
        left = (self._env.horizon - self.belief.step(parts, self._env.horizon))[:, None].astype(np.float32)
        now = self.belief.conditions(memory)
        gain = np.zeros((len(now), len(value), KINDS), np.float32)
        urgency = np.zeros_like(gain)  # what a step's delay costs

        held = now[..., HELD] + now[..., IMPACT]
        # A foothold counts double, for it will not stay one.
        harm = weights.damage * value * (2 * FOOTHOLD_DAMAGE * now[..., HELD] + now[..., IMPACT])
        price = weights.action * rules.restore.cost + value * (weights.cleanup + weights.service * np.minimum(self._restore_time, left))
        # Near the end not even a sure foothold is worth its restore.
        gain[..., Order.RESTORE - 1] = np.minimum(harm * self.foresight.restore - (1.0 - held) * price, harm * left - held * price)
        urgency[..., Order.RESTORE - 1] = harm

        there = self.belief.at_work(memory)  # (E, P, D, 8)
        success = self.belief.chances(parts) * (1.0 - memory.caution)[:, :, None]
        engage, lasts = self.belief.engage, np.minimum(NEEDED, left)
        taken = 1.0 - (1.0 - success) ** lasts[:, None]
        taken_later = (1.0 - (1.0 - engage) ** (lasts / 2)[:, None]) * (1.0 - (1.0 - success) ** (lasts / 2)[:, None])
        loss = (price + weights.damage * value * self.foresight.late) * rules.block.slows  # that a block saves, of a break-in
        upkeep = weights.service * value * rules.block.service_loss
        cost = weights.action * rules.block.cost + upkeep * lasts

        def expected(attacked: int, probed: int, of: Floats, of_probed: Floats) -> Floats:
            return (there[..., attacked] * of + there[..., probed] * of_probed).sum(axis=1) * loss

        gain[..., Order.BLOCK - 1] = expected(ATTACKED, PROBED, taken, taken_later) - cost
        urgency[..., Order.BLOCK - 1] = straight = expected(ATTACKED, PROBED, success, success * engage)
        round_it = expected(ATTACKED_ROUND, PROBED_ROUND, success, success * engage)
        remaining = parts["controls"][..., 1] * rules.block.ttl
        lift = np.where(straight + round_it < LIFT * upkeep, upkeep * np.minimum(remaining, left) - weights.action * rules.release.cost, 0.0)
        renew = expected(ATTACKED_ROUND, PROBED_ROUND, taken, taken_later) - cost - straight
        gain[..., Order.RELEASE - 1] = np.where(remaining > 0, np.maximum(lift, renew), 0.0)
        urgency[..., Order.RELEASE - 1] = np.where(renew > lift, round_it, upkeep)

        due = np.where((gain > self.foresight.thrift) & (parts["valid"] > 0), urgency, -1.0).reshape(len(now), -1)
        best = due.argmax(axis=1)
        order = np.where(due[np.arange(len(due)), best] >= 0, best % KINDS + 1, Order.MONITOR)
        return address(best // KINDS, order)


def bayes_candidates(config: Config, bank: TraceBank, layout: Layout) -> Iterator[BayesFilter]:
    """The grid that tuning walks; all learn from `calibrate`, so that `agent` is left for the choice."""
    knowledge: Knowledge | None = None
    for restore, late, thrift, trust in product((60.0, 120.0, 240.0), (1.0, 2.0), (0.0, 0.2, 0.4), (1.3, 1.6, 2.0)):
        candidate = BayesFilter(config, bank, layout, Foresight(restore, late, thrift, trust), knowledge=knowledge)
        knowledge = candidate.belief.knowledge
        yield candidate
