"""A defender that sees only observations, and reasons about them: a Bayes filter, and orders weighed on what it believes.

For each attacker that may come (side `train` of the configuration; of the others it knows nothing) the filter keeps how likely
that one is at work, at rest or not there yet, and, were it there, how far it would be on each device. Given the attacker, devices
are held independent of one another; that one attacker is behind all of them is how evidence on one device tells about the next.
Its chances are the configuration's, slowed by the controls in force; what readings say is learned on a side of the trace bank
that is never played in an evaluation. It reads the flat observation and what any defender knows of the network, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from agents.baselines import Actions, address
from envs.attackers import FLOODS, Stage, cast, emission_table, profile_table
from envs.dynamics import FADING, FOOTHOLD_DAMAGE, LOUDNESS, Order
from envs.scenarios import FAMILIES, build_network
from envs.world import KINDS, Layout
from src.config import Config
from src.data.bank import TraceBank
from src.errors import UserError

Floats = NDArray[np.floating[Any]]
"""Single precision, throughout the filter."""

FRESH, KNOWN, PROBED, PROBED_ROUND, ATTACKED, ATTACKED_ROUND, HELD, IMPACT = range(8)
"""Conditions of a device: clean, clean but scouted, probed, under attack (each also round the block in force), foothold, impact."""

STAGES = (Stage.CLEAN, Stage.CLEAN, Stage.PROBED, Stage.PROBED, Stage.ATTACKED, Stage.ATTACKED, Stage.COMPROMISED, Stage.IMPACT)
"""Stage of each condition."""

CONDITIONS = len(STAGES)

LIMIT = 10.0
"""Largest logarithm of a likelihood ratio that one window is trusted with, either way."""

DOUBT = 0.01
"""Share of what is believed about who attacks that is spread evenly again each step: the attacker may be one that nobody described."""

NEEDED = 20
"""Steps for which a block is thought to be needed."""

LIFT = 0.5
"""A block is lifted where what it saves a step is less than this share of what it costs a step."""


class Evidence:
    """What a window's readings say: how much likelier they are under each class of attack than under ordinary traffic."""

    def __init__(self, bank: TraceBank, classes: NDArray[np.int64], side: str) -> None:
        """Fit a logistic regression.

        Args:
            bank: windows with readings.
            classes: attack classes to tell apart, ascending; all benign classes together are ordinary traffic.
            side: of the bank, `calibrate` or `agent`.
        """
        ranges = bank.ranges(side)
        benign = np.flatnonzero([family == FAMILIES[0] for family in bank.class_families])
        rows = np.concatenate([np.arange(*ranges[c]) for c in (*benign, *classes)])
        label = np.where(np.isin(bank.label[rows], benign), -1, bank.label[rows])
        columns = self._columns(np.array(bank.sensors[rows]))
        scaler = StandardScaler().fit(columns)
        # Neighbouring windows overlap, so a side holds far fewer independent ones than rows; hence the strong regularisation.
        model = LogisticRegression(C=0.03, max_iter=1000, class_weight="balanced").fit(scaler.transform(columns), label)
        # Classes weigh alike, so differences of scores are logarithms of likelihood ratios. Scaling is folded into the weights.
        weights = (model.coef_[1:] - model.coef_[0]) / scaler.scale_  # (classes, columns); ordinary traffic, -1, comes first
        self._weights: Floats = weights.T.astype(np.float32)
        self._offset: Floats = (model.intercept_[1:] - model.intercept_[0] - weights @ scaler.mean_).astype(np.float32)

    @staticmethod
    def _columns(readings: Floats) -> Floats:
        """(..., S) logarithms of the probabilities, log-odds of the other readings."""
        families, others = readings[..., : len(FAMILIES)], readings[..., len(FAMILIES) :]
        return np.concatenate([np.log(families + 1e-3), np.log((others + 1e-3) / (1.001 - others))], axis=-1)

    def ratios(self, readings: Floats) -> Floats:
        """(..., S) readings -> (..., classes) likelihood ratios."""
        return np.exp(np.clip(self._columns(readings) @ self._weights + self._offset, -LIMIT, LIMIT))


class Memory(NamedTuple):
    """What the filter carries from step to step; a mode is nobody, an attacker at work, or the same attacker in hiding."""

    modes: Floats
    """(E, 1 + 2 P) probability of each mode: nobody, then each attacker at work, then each in hiding."""
    belief: Floats
    """(E, 1 + 2 P, D, 8) probability of each device's condition, given the mode."""
    caution: Floats
    """(E, P) how far setbacks slow and hide each attacker, were it there."""
    restoring: NDArray[np.bool_]
    """(E, D) devices down for a restore in the step that began."""


@dataclass(frozen=True)
class Foresight:
    """How orders are weighed; `bayes_candidates` is the grid of it."""

    restore: float = 60.0
    """Steps of harm that a restore saves, where there is a foothold: for so long it would stay unsure."""
    late: float = 5.0
    """Steps by which a foothold is found late, where a break-in is not stopped."""
    trust: float = 1.3
    """Exponent of the likelihoods: below 1 believes readings less, above 1 more, than their fit says."""


class BayesFilter:
    """Gives at most one order a step: of those that save more than they cost, the one whose delay would cost most.

    A foothold is worth a restore where the harm that it is expected to do exceeds the restore's price if there is none. An attack
    is worth a block where the break-in that it stops would cost more. A block is lifted where it stops too little, or where it was
    got round and must be set anew. Memory goes through `predict`'s `state`, and starts afresh where `episode_start` says so.
    """

    def __init__(
        self, config: Config, bank: TraceBank, layout: Layout, foresight: Foresight | None = None, side: str = "calibrate", evidence: Evidence | None = None
    ) -> None:
        """Read the rules and learn from the bank.

        Args:
            config: sections `env`, `attackers` (side `train`) and `reward`.
            bank: its readings are learned from, on one side.
            layout: of the flat observations.
            foresight: how orders are weighed.
            side: of the bank to learn from, `calibrate` or `agent`.
            evidence: what another filter of the same bank has learned, so that it is not fitted again.

        Raises:
            UserError: when the side holds no windows of something that an attacker shows, or an order is delayed that the filter takes for prompt.
        """
        env, network = config.env, build_network(config.env.scenario)
        late = [name for name in ("rate_limit", "block", "isolate", "release") if getattr(env.controls, name).delay]
        if late or env.controls.restore.delay > 1:
            raise UserError(f"the Bayes filter knows no delay but one step of a restore; env.controls has one of {late[0] if late else 'restore'}")
        profiles = profile_table(config.attackers, "train")
        family = np.array([FAMILIES.index(name) for name in bank.class_families])
        shown, counts = emission_table(config.attackers, "train", bank.class_names, family, bank.ranges(side))  # (P, 5, C), (P, 5)
        P, D = len(cast(config.attackers, "train")), len(network.names)
        floods = [FAMILIES.index(name) for name in FLOODS]
        classes = np.unique(np.concatenate([shown[p, stage, : counts[p, stage]] for p in range(P) for stage in Stage]))
        self.layout, self.foresight, self.evidence = layout, foresight or Foresight(), evidence or Evidence(bank, classes, side)
        self._env, self._weights, self._attackers, self._devices = env, config.reward, P, D
        self._share = np.zeros((len(classes), P, CONDITIONS), np.float32)  # of each class in what shows
        self._visible = np.zeros((P, CONDITIONS), np.float32)  # share of steps in which it shows
        weakness = np.zeros((P, D), np.float32)
        for p in range(P):
            for condition, stage in enumerate(STAGES):
                seen = shown[p, stage, : counts[p, stage]]
                if len(seen):
                    visible = 1.0 - profiles[p]["stealth"] * np.where(np.isin(family[seen], floods), LOUDNESS, 1.0)
                    self._share[np.searchsorted(classes, seen), p, condition] = visible / visible.sum()
                    self._visible[p, condition] = visible.mean()
            weakness[p] = network.weakness[:, family[shown[p, Stage.ATTACKED, : counts[p, Stage.ATTACKED]]]].mean(axis=1)
        self._numbers = {name: profiles[name].astype(np.float32)[:, None] for name in profiles.dtype.names or ()}  # (P, 1) each
        self._success = self._numbers["compromise"] * weakness  # (P, D)
        self._criticality, self._restore_time = network.criticality.astype(np.float32), network.restore_time
        # An insider's zone is unknown; each device's is as likely as another's.
        exposed, inside = network.reach[0][network.zone], (network.zone[:, None] == network.zone).mean(axis=1)
        self._open = np.where(profiles["insider"][:, None], np.maximum(exposed, inside), exposed).astype(np.float32)  # (P, D) reached from the start
        self._opens = network.reach[1:][network.zone][:, network.zone].astype(np.float32)  # (D, D) reached from a foothold on each device

    def __str__(self) -> str:
        """The weighing in words."""
        return f"Bayes filter: restore {self.foresight.restore:g}, late {self.foresight.late:g}, trust {self.foresight.trust:g}"

    def predict(self, observation: Floats, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Actions, Memory]:
        """(E, size) flat observations -> (E,) addressed orders, and the memory to hand in with the next ones."""
        parts = self.layout.split(observation)
        memory = self._fresh(len(observation)) if state is None else state
        if state is not None and episode_start is not None and np.any(episode_start):
            begun = np.asarray(episode_start, np.bool_)
            pairs = zip(self._fresh(len(observation)), memory, strict=True)
            memory = Memory(*(np.where(begun.reshape(-1, *[1] * (old.ndim - 1)), new, old) for new, old in pairs))
        memory = self._listen(memory, parts)
        step = np.rint((1.0 - parts["context"][:, 0]) * self._env.horizon).astype(np.int64)
        device, order = self._decide(memory, parts, step)
        return address(device, order), self._advance(memory, parts, device, order, step)

    def conditions(self, memory: Memory) -> Floats:
        """(E, D, 8) probability of each device's condition, whoever attacks."""
        return np.einsum("em,emds->eds", memory.modes, memory.belief)

    @property
    def _active(self) -> slice:
        """Modes of attackers at work."""
        return slice(1, 1 + self._attackers)

    @property
    def _hidden(self) -> slice:
        """Modes of attackers in hiding."""
        return slice(1 + self._attackers, None)

    def _fresh(self, count: int) -> Memory:
        modes = np.zeros((count, 1 + 2 * self._attackers), np.float32)
        belief = np.zeros((*modes.shape, self._devices, CONDITIONS), np.float32)
        modes[:, 0] = 1.0
        belief[..., FRESH] = 1.0
        return Memory(modes, belief, np.zeros((count, self._attackers), np.float32), np.zeros((count, self._devices), np.bool_))

    def _listen(self, memory: Memory, parts: dict[str, Floats]) -> Memory:
        """Take in an observation: restores that are done, and what arrived of each device."""
        modes, belief, caution, restoring = memory
        active = self._active
        done = restoring & (parts["controls"][..., 3] == 0) & (parts["controls"][..., 4] == 0)
        clean = np.zeros_like(belief)
        clean[..., FRESH] = belief[..., FRESH] + belief[..., PROBED] + belief[..., PROBED_ROUND]
        clean[..., KNOWN] = 1.0 - clean[..., FRESH]
        belief = np.where(done[:, None, :, None], clean, belief)
        heard = parts["silent"][..., 0] == 0  # (E, D)
        ratios = self.evidence.ratios(parts["sensors"])  # (E, D, classes)
        mixed = (ratios.reshape(-1, ratios.shape[-1]) @ self._share.reshape(ratios.shape[-1], -1)).reshape(*heard.shape, self._attackers, CONDITIONS)
        visible = self._visible[None, :, None] * (1.0 - caution)[:, :, None, None]  # (E, P, 1, 8)
        likelihood = 1.0 + visible * (mixed.swapaxes(1, 2) - 1.0)  # (E, P, D, 8), over that of ordinary traffic
        likelihood = np.where(heard[:, None, :, None], likelihood, 1.0) ** self.foresight.trust
        # The floor keeps what rounding may have made of an impossible condition from having a negative logarithm's say.
        joint = np.maximum(belief[:, active], 1e-9) * likelihood
        total = joint.sum(axis=3)  # (E, P, D)
        belief[:, active] = joint / total[..., None]
        score = np.log(np.maximum(modes, 1e-12))
        score[:, active] += np.log(total).sum(axis=2)
        modes = np.exp(score - score.max(axis=1, keepdims=True))
        return Memory(modes / modes.sum(axis=1, keepdims=True), belief, caution, restoring)

    def _advance(self, memory: Memory, parts: dict[str, Floats], device: NDArray[np.int64], order: NDArray[np.int64], step: NDArray[np.int64]) -> Memory:
        """From the beginning of a step, with its orders given, to its end, before anything is seen of it."""
        modes, belief, caution = memory.modes.copy(), memory.belief.copy(), memory.caution
        active, hidden, number = self._active, self._hidden, self._numbers
        told = np.zeros((len(modes), self._devices), np.int64)
        told[np.arange(len(modes)), device] = order
        due = parts["controls"][..., 4] > 0  # a restore, the only order that takes its time
        kept = ~due & (told != Order.RELEASE)
        limit, block, isolate = ((((parts["controls"][..., i]) > 0) | (told == kind)) & kept for i, kind in enumerate((1, 2, 3)))
        restore = due | (parts["controls"][..., 3] > 0)
        down = isolate | restore

        # Who is there: someone may come; nobody's description may fit; who loses a foothold may hide; who hides comes back.
        coming = modes[:, :1] * self._hazard(step)[:, None]
        modes[:, :1] -= coming
        clean = np.eye(CONDITIONS, dtype=np.float32)[FRESH]
        _mix(modes, belief, active, np.repeat(coming / self._attackers, self._attackers, axis=1), clean)
        spread = modes[:, active] * DOUBT
        whole = spread.sum(axis=1, keepdims=True)
        mean = np.einsum("ep,epds->eds", spread, belief[:, active]) / np.maximum(whole, 1e-30)[..., None]
        modes[:, active] -= spread
        _mix(modes, belief, active, np.repeat(whole / self._attackers, self._attackers, axis=1), mean[:, None])
        lost = np.where(due[:, None], belief[:, active, :, HELD:].sum(axis=3), 0.0)  # (E, P, D)
        hides = (1.0 - np.prod(1.0 - lost, axis=2)) * (number["dormancy"][:, 0] > 0) * modes[:, active]
        wakes = modes[:, hidden] / (1.0 + number["dormancy"][:, 0])
        modes[:, active] -= hides
        modes[:, hidden] -= wakes
        left = belief[:, active].copy()
        _mix(modes, belief, active, wakes, belief[:, hidden])
        _mix(modes, belief, hidden, hides, left)
        belief[:, hidden, :, HELD] += belief[:, hidden, :, IMPACT]
        belief[:, hidden, :, IMPACT] = 0.0

        # What an attacker at work does on each device; (E, P, D) throughout.
        b = np.moveaxis(belief[:, active], 3, 0)
        rules = self._env.controls
        caution = 1.0 - (1.0 - caution * FADING) * (1.0 - number["caution"][:, 0]) ** lost.sum(axis=2)
        pace, up = (1.0 - caution)[:, :, None], ~down[:, None]
        footholds = (b[HELD] + b[IMPACT]) * up
        busy = b[PROBED : ATTACKED_ROUND + 1].sum(axis=(0, 3))[:, :, None]
        hands = np.maximum(number["breadth"] + number["spread"] * footholds.sum(axis=2, keepdims=True) - busy, 0.0)
        reached = 1.0 - (1.0 - self._open) * np.exp(np.log1p(-np.minimum(footholds, 0.999)) @ self._opens)
        turns = (1.0 - (1.0 - number["probe"] * pace / self._devices) ** hands) * reached * up
        slowed = limit[:, None] * np.float32(rules.rate_limit.slows)
        stop_round = np.maximum(down[:, None], slowed)
        stop = 1.0 - (1.0 - stop_round) * (1.0 - block[:, None] * np.float32(rules.block.slows))
        rounds = stop * number["rotate"] * block[:, None]
        leaves, leaves_round = (stop - rounds) * number["abandon"], stop_round * number["abandon"]
        engages, engages_round = ((1.0 - each) * number["engage"] * pace for each in (stop, stop_round))
        success = self._chances(parts) * pace
        wins, wins_round = (1.0 - stop) * success, (1.0 - stop_round) * success
        bursts = number["impact"] * (1.0 - slowed) * pace * up
        holds = (block & (parts["controls"][..., 1] > 0))[:, None]  # what was got round is another block than one set now
        probed, probed_round = b[PROBED] + np.where(holds, 0.0, b[PROBED_ROUND]), np.where(holds, b[PROBED_ROUND], 0.0)
        attacked, attacked_round = b[ATTACKED] + np.where(holds, 0.0, b[ATTACKED_ROUND]), np.where(holds, b[ATTACKED_ROUND], 0.0)
        caution = 1.0 - (1.0 - caution) * (1.0 - number["caution"][:, 0]) ** (attacked * stop + attacked_round * stop_round).sum(axis=2)
        after = np.empty_like(b)
        after[FRESH] = b[FRESH] * (1.0 - turns) + probed * leaves + probed_round * leaves_round
        after[KNOWN] = b[KNOWN] * (1.0 - turns) + attacked * leaves + attacked_round * leaves_round
        after[PROBED] = b[FRESH] * turns + probed * (1.0 - leaves - engages - rounds)
        after[PROBED_ROUND] = probed * rounds + probed_round * (1.0 - leaves_round - engages_round)
        after[ATTACKED] = b[KNOWN] * turns + probed * engages + attacked * (1.0 - leaves - wins - rounds)
        after[ATTACKED_ROUND] = attacked * rounds + probed_round * engages_round + attacked_round * (1.0 - leaves_round - wins_round)
        after[HELD] = attacked * wins + attacked_round * wins_round + b[HELD] * (1.0 - bursts)
        after[IMPACT] = b[IMPACT] + b[HELD] * bursts
        belief[:, active] = np.moveaxis(after, 0, 3)
        return Memory(modes, belief, caution.astype(np.float32), restore)

    def _hazard(self, step: NDArray[np.int64]) -> Floats:
        """(E,) chance that an attacker who has not come yet comes in this step."""
        (first, last), free = self._env.start_range, self._env.attack_free
        coming = (1.0 - free) / (last - first + 1)
        inside = (step >= first) & (step <= last)
        return np.where(inside, coming / np.where(inside, free + coming * (last - step + 1), 1.0), 0.0).astype(np.float32)

    def _chances(self, parts: dict[str, Floats]) -> Floats:
        """(E, P, D) of an attack's success a step."""
        return self._success * np.where(parts["device"][..., 4] > 0, self._env.controls.restore.patch_factor, 1.0)[:, None].astype(np.float32)

    def _decide(self, memory: Memory, parts: dict[str, Floats], step: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(E,) device and order of each environment."""
        weights, rules, value = self._weights, self._env.controls, self._criticality
        left = (self._env.horizon - step)[:, None].astype(np.float32)
        now = self.conditions(memory)
        gain = np.zeros((len(now), self._devices, KINDS), np.float32)
        urgency = np.zeros_like(gain)  # what a step's delay costs

        held = now[..., HELD] + now[..., IMPACT]
        # A foothold counts double, for it will not stay one.
        harm = weights.damage * value * (2 * FOOTHOLD_DAMAGE * now[..., HELD] + now[..., IMPACT])
        price = weights.action * rules.restore.cost + value * (weights.cleanup + weights.service * np.minimum(self._restore_time, left))
        # Near the end not even a sure foothold is worth its restore.
        gain[..., Order.RESTORE - 1] = np.minimum(harm * self.foresight.restore - (1.0 - held) * price, harm * left - held * price)
        urgency[..., Order.RESTORE - 1] = harm

        there = memory.modes[:, self._active, None, None] * memory.belief[:, self._active]  # (E, P, D, 8)
        success = self._chances(parts) * (1.0 - memory.caution)[:, :, None]
        engage, lasts = self._numbers["engage"], np.minimum(NEEDED, left)
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

        due = np.where((gain > 0) & (parts["valid"] > 0), urgency, -1.0).reshape(len(now), -1)
        best = due.argmax(axis=1)
        return best // KINDS, np.where(due[np.arange(len(due)), best] >= 0, best % KINDS + 1, Order.MONITOR)


def _mix(modes: Floats, belief: Floats, into: slice, mass: Floats, source: Floats) -> None:
    """Let `mass` (E, P) of probability, with the conditions `source` (..., D, 8), flow into the modes `into`."""
    after = np.maximum(modes[:, into], 0.0) + mass  # what rounding took too much of is empty
    share = np.divide(mass, after, out=np.zeros_like(after), where=after > 1e-30)[..., None, None]
    belief[:, into] = belief[:, into] * (1.0 - share) + source * share
    modes[:, into] = after


def bayes_candidates(config: Config, bank: TraceBank, layout: Layout) -> Iterator[BayesFilter]:
    """The grid that tuning walks; all learn from `calibrate`, so that `agent` is left for the choice."""
    evidence: Evidence | None = None
    for restore, late, trust in product((30.0, 60.0, 120.0), (2.0, 5.0), (1.0, 1.3, 1.6)):
        candidate = BayesFilter(config, bank, layout, Foresight(restore, late, trust), evidence=evidence)
        evidence = candidate.evidence
        yield candidate
