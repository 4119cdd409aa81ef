"""What a defender can know: a belief about every device, kept from observations alone by Bayes' rule.

For each attacker that may come (side `train` of the configuration; of the others it knows nothing) the belief is how likely
that one is at work, at rest or not there yet, and, were it there, how far it would be on each device. Given the attacker, devices
are held independent of one another; that one attacker is behind all of them is how evidence on one device tells about the next.
Its chances are the configuration's, slowed by the controls in force; what readings say is learned on a side of the trace bank
that is never played in an evaluation. It reads the flat observation and what any defender knows of the network, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from envs.attackers import FLOODS, PROFILE, Stage, cast, emission_table, profile_table
from envs.dynamics import FADING, LOUDNESS, Order
from envs.scenarios import FAMILIES, Network
from envs.world import KINDS, Layout
from src.config import Config, EnvConfig
from src.data.bank import TraceBank
from src.errors import UserError

Floats = NDArray[np.floating[Any]]
"""Single precision, throughout the belief."""

FRESH, KNOWN, PROBED, PROBED_ROUND, ATTACKED, ATTACKED_ROUND, HELD, IMPACT = range(8)
"""Conditions of a device: clean, clean but scouted, probed, under attack (each also round the block in force), foothold, impact."""

STAGES = (Stage.CLEAN, Stage.CLEAN, Stage.PROBED, Stage.PROBED, Stage.ATTACKED, Stage.ATTACKED, Stage.COMPROMISED, Stage.IMPACT)
"""Stage of each condition."""

CONDITIONS = len(STAGES)

LIMIT = 10.0
"""Largest logarithm of a likelihood ratio that one window is trusted with, either way."""

INDEPENDENT = 125
"""Windows that those learned from count as, however many they are: neighbours overlap, and most are of few captures."""

TRUST = 1.6
"""Exponent of the likelihoods: below 1 believes readings less, above 1 more, than their fit says."""

DOUBT = 0.01
"""Share of what is believed about who attacks that is spread evenly again each step: the attacker may be one that nobody described."""


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
class Knowledge:
    """What holds of any network: what readings say, and how each attacker behaves. P attackers, C families of attack traffic.

    Families, not classes: which web attack a window shows says less about how far the attacker is than that it shows one, and what
    is learned of the classes misleads where an attacker shows others.
    """

    weights: Floats
    """(columns, C) of a logistic regression over `_columns` of the readings."""
    offset: Floats
    """(C,)"""
    share: Floats
    """(C, P, 8) of each family in what an attacker shows on a device in each condition."""
    visible: Floats
    """(P, 8) share of steps in which it shows."""
    breaks_in: Floats
    """(P, 8) share of each family of `FAMILIES` among the ways it breaks in."""
    numbers: Floats
    """(P, n) the attackers' numbers, columns as `PROFILE` names them."""

    @classmethod
    def learn(cls, config: Config, bank: TraceBank, side: str = "calibrate") -> Knowledge:
        """From the attackers of side `train`, and the readings of one side of a bank, `calibrate` or `agent`.

        Raises:
            UserError: when the side holds no windows of something that an attacker shows.
        """
        profiles = profile_table(config.attackers, "train")
        family = np.array([FAMILIES.index(name) for name in bank.class_families])
        shown, counts = emission_table(config.attackers, "train", bank.class_names, family, bank.ranges(side))  # (P, 5, C), (P, 5)
        P = len(cast(config.attackers, "train"))
        floods = [FAMILIES.index(name) for name in FLOODS]
        classes = np.unique(np.concatenate([shown[p, stage, : counts[p, stage]] for p in range(P) for stage in Stage]))
        families = np.unique(family[classes])
        share = np.zeros((len(families), P, CONDITIONS), np.float32)
        visible, breaks_in = np.zeros((P, CONDITIONS), np.float32), np.zeros((P, len(FAMILIES)), np.float32)
        for p in range(P):
            for condition, stage in enumerate(STAGES):
                seen = family[shown[p, stage, : counts[p, stage]]]
                if len(seen):
                    showing = 1.0 - profiles[p]["stealth"] * np.where(np.isin(seen, floods), LOUDNESS, 1.0)
                    np.add.at(share[:, p, condition], np.searchsorted(families, seen), showing / showing.sum())
                    visible[p, condition] = showing.mean()
            ways = family[shown[p, Stage.ATTACKED, : counts[p, Stage.ATTACKED]]]
            breaks_in[p] = np.bincount(ways, minlength=len(FAMILIES)) / len(ways)
        numbers = np.stack([profiles[name].astype(np.float32) for name in PROFILE.names or ()], axis=1)
        return cls(*_evidence(bank, classes, family, side), share, visible, breaks_in, numbers)

    @classmethod
    def of(cls, arrays: Mapping[str, Floats]) -> Knowledge:
        """From what `arrays` gave.

        Raises:
            KeyError: when one is missing.
        """
        return cls(**{name: np.asarray(arrays[name], np.float32) for name in cls.__dataclass_fields__})

    def arrays(self) -> dict[str, Floats]:
        """To be saved."""
        return dict(vars(self))

    def ratios(self, readings: Floats) -> Floats:
        """(..., S) readings -> (..., C) how much likelier they are under each family of attack than under ordinary traffic."""
        return np.exp(np.clip(_columns(readings) @ self.weights + self.offset, -LIMIT, LIMIT))


def _columns(readings: Floats) -> Floats:
    """(..., S) logarithms of the probabilities, log-odds of the other readings."""
    families, others = readings[..., : len(FAMILIES)], readings[..., len(FAMILIES) :]
    return np.concatenate([np.log(families + 1e-3), np.log((others + 1e-3) / (1.001 - others))], axis=-1)


def _evidence(bank: TraceBank, classes: NDArray[np.int64], family: NDArray[np.int64], side: str) -> tuple[Floats, Floats]:
    """Weights and offset of a logistic regression that tells the families of attack classes (ascending) from ordinary traffic."""
    ranges = bank.ranges(side)
    rows = np.concatenate([np.arange(*ranges[c]) for c in (*np.flatnonzero(family == 0), *classes)])
    label = family[bank.label[rows]]
    # Families weigh alike, and in each its classes, so that differences of scores are logarithms of likelihood ratios.
    in_class = np.bincount(bank.label[rows], minlength=len(family))
    in_family = np.bincount(family[in_class > 0], minlength=len(FAMILIES))
    weight = 1.0 / (in_class[bank.label[rows]] * in_family[label])
    columns = _columns(np.array(bank.sensors[rows]))
    scaler = StandardScaler().fit(columns)
    # With less regularisation, readings that are good on these windows were believed on later ones where they are not.
    weight *= len(rows) / weight.sum()
    model = LogisticRegression(C=INDEPENDENT / len(rows), max_iter=1000).fit(scaler.transform(columns), label, sample_weight=weight)
    # Scaling is folded into the weights.
    weights = (model.coef_[1:] - model.coef_[0]) / scaler.scale_  # (C, columns); ordinary traffic, 0, comes first
    return weights.T.astype(np.float32), (model.intercept_[1:] - model.intercept_[0] - weights @ scaler.mean_).astype(np.float32)


class Belief:
    """Keeps the belief about one network, for a batch of episodes.

    A step is `hear` an observation, then `advance` by the orders given. What is remembered goes through the caller's hands.
    """

    INPUTS = CONDITIONS + 6
    """Floats a device that `inputs` gives."""

    def __init__(self, knowledge: Knowledge, env: EnvConfig, network: Network, layout: Layout, trust: float = TRUST) -> None:
        """Bind what is known of attackers to a network.

        Args:
            knowledge: of readings and attackers.
            env: rules of the environment.
            network: the one defended.
            layout: of its flat observations.
            trust: exponent of the likelihoods.

        Raises:
            UserError: when an order is delayed that the belief takes for prompt.
        """
        late = [name for name in ("rate_limit", "block", "isolate", "release") if getattr(env.controls, name).delay]
        if late or env.controls.restore.delay > 1:
            raise UserError(f"beliefs know no delay but one step of a restore; env.controls has one of {late[0] if late else 'restore'}")
        self.knowledge, self.layout, self.trust = knowledge, layout, trust
        self._env, self._attackers, self._devices = env, len(knowledge.visible), len(network.names)
        self._numbers = {name: knowledge.numbers[:, i, None] for i, name in enumerate(PROFILE.names or ())}  # (P, 1) each
        self._success = self._numbers["compromise"] * (knowledge.breaks_in @ network.weakness.T.astype(np.float32))  # (P, D)
        # An insider's zone is unknown; each device's is as likely as another's.
        exposed, inside = network.reach[0][network.zone], (network.zone[:, None] == network.zone).mean(axis=1)
        self._open = np.where(self._numbers["insider"] > 0, np.maximum(exposed, inside), exposed).astype(np.float32)  # (P, D) reached from the start
        self._opens = network.reach[1:][network.zone][:, network.zone].astype(np.float32)  # (D, D) reached from a foothold on each device

    @property
    def _active(self) -> slice:
        """Modes of attackers at work."""
        return slice(1, 1 + self._attackers)

    @property
    def _hidden(self) -> slice:
        """Modes of attackers in hiding."""
        return slice(1 + self._attackers, None)

    def hear(self, memory: Memory | None, observation: NDArray[np.float32], starts: Any = None) -> tuple[dict[str, Floats], Memory]:
        """Take in observations (E, size): their parts, and what is believed now.

        Args:
            memory: what `advance` gave; None where all begin.
            observation: flat.
            starts: (E,) which episodes begin with it; None: none.
        """
        parts = self.layout.split(observation)
        if memory is None:
            memory = self.fresh(len(observation))
        elif starts is not None and np.any(starts):
            begun = np.asarray(starts, np.bool_)
            pairs = zip(self.fresh(len(observation)), memory, strict=True)
            memory = Memory(*(np.where(begun.reshape(-1, *[1] * (old.ndim - 1)), new, old) for new, old in pairs))
        return parts, self.listen(memory, parts)

    def conditions(self, memory: Memory) -> Floats:
        """(E, D, 8) probability of each device's condition, whoever attacks."""
        return np.einsum("em,emds->eds", memory.modes, memory.belief)

    def at_work(self, memory: Memory) -> Floats:
        """(E, P, D, 8) probability that an attacker is at work, and the device in this condition."""
        return memory.modes[:, self._active, None, None] * memory.belief[:, self._active]

    @property
    def engage(self) -> Floats:
        """(P, 1) each attacker's chance of going from probing to attacking."""
        return self._numbers["engage"]

    def inputs(self, memory: Memory, parts: dict[str, Floats]) -> Floats:
        """(E, D, 14) what is believed, for a network to read, from about -3 to 3.

        Log-odds of each condition, and of nobody being there, someone at work, someone in hiding; logarithms of an attack's chance of
        success on the device, and of a break-in in the coming step, straight and round the block.
        """
        A, active = self._attackers, self._active
        someone = [memory.modes[:, 0], memory.modes[:, active].sum(1), memory.modes[:, self._hidden].sum(1)]
        about = np.broadcast_to(np.stack(someone, 1)[:, None], (len(memory.modes), self._devices, 3))
        sure = np.clip(np.concatenate([self.conditions(memory), about], axis=2), 1e-4, 1.0 - 1e-4)
        chances = self.chances(parts)  # (E, P, D)
        likely = memory.modes[:, active] + memory.modes[:, self._hidden] + memory.modes[:, :1] / A  # (E, P)
        there = self.at_work(memory)
        breaks = [np.einsum("ep,epd->ed", likely, chances), *((there[..., at] * chances).sum(1) for at in (ATTACKED, ATTACKED_ROUND))]
        return np.concatenate([np.log(sure / (1.0 - sure)) / 4.0, np.log(np.stack(breaks, 2) + 1e-4) / 4.0 + 1.0], axis=2).astype(np.float32)

    @staticmethod
    def step(parts: dict[str, Floats], horizon: int) -> NDArray[np.int64]:
        """(E,) steps since the episodes began."""
        return np.rint((1.0 - parts["context"][:, 0]) * horizon).astype(np.int64)

    def fresh(self, count: int) -> Memory:
        """What is believed where `count` episodes begin: nobody is there."""
        modes = np.zeros((count, 1 + 2 * self._attackers), np.float32)
        belief = np.zeros((*modes.shape, self._devices, CONDITIONS), np.float32)
        modes[:, 0] = 1.0
        belief[..., FRESH] = 1.0
        return Memory(modes, belief, np.zeros((count, self._attackers), np.float32), np.zeros((count, self._devices), np.bool_))

    def listen(self, memory: Memory, parts: dict[str, Floats]) -> Memory:
        """Take in an observation: restores that are done, and what arrived of each device."""
        modes, belief, caution, restoring = memory
        active = self._active
        done = restoring & (parts["controls"][..., 3] == 0) & (parts["controls"][..., 4] == 0)
        clean = np.zeros_like(belief)
        clean[..., FRESH] = belief[..., FRESH] + belief[..., PROBED] + belief[..., PROBED_ROUND]
        clean[..., KNOWN] = 1.0 - clean[..., FRESH]
        belief = np.where(done[:, None, :, None], clean, belief)
        heard = parts["silent"][..., 0] == 0  # (E, D)
        ratios = self.knowledge.ratios(parts["sensors"])  # (E, D, C)
        mixed = (ratios.reshape(-1, ratios.shape[-1]) @ self.knowledge.share.reshape(ratios.shape[-1], -1)).reshape(*heard.shape, self._attackers, CONDITIONS)
        visible = self.knowledge.visible[None, :, None] * (1.0 - caution)[:, :, None, None]  # (E, P, 1, 8)
        likelihood = 1.0 + visible * (mixed.swapaxes(1, 2) - 1.0)  # (E, P, D, 8), over that of ordinary traffic
        likelihood = np.where(heard[:, None, :, None], likelihood, 1.0) ** self.trust
        # The floor keeps what rounding may have made of an impossible condition from having a negative logarithm's say.
        joint = np.maximum(belief[:, active], 1e-9) * likelihood
        total = joint.sum(axis=3)  # (E, P, D)
        belief[:, active] = joint / total[..., None]
        score = np.log(np.maximum(modes, 1e-12))
        score[:, active] += np.log(total).sum(axis=2)
        modes = np.exp(score - score.max(axis=1, keepdims=True))
        return Memory(modes / modes.sum(axis=1, keepdims=True), belief, caution, restoring)

    def advance(self, memory: Memory, parts: dict[str, Floats], actions: NDArray[np.int64]) -> Memory:
        """From the beginning of a step, with its addressed orders (E,) given, to its end, before anything is seen of it."""
        modes, belief, caution = memory.modes.copy(), memory.belief.copy(), memory.caution
        active, hidden, number = self._active, self._hidden, self._numbers
        told = np.zeros((len(modes), self._devices), np.int64)
        rows, device, kind = np.arange(len(modes)), np.maximum(actions - 1, 0) // KINDS, (actions - 1) % KINDS
        changes = (actions > 0) & (parts["valid"][rows, device, kind] > 0)
        told[rows, device] = np.where(changes, kind + 1, Order.MONITOR)
        due = parts["controls"][..., 4] > 0  # a restore, the only order that takes its time
        kept = ~due & (told != Order.RELEASE)
        limit, block, isolate = ((((parts["controls"][..., i]) > 0) | (told == kind)) & kept for i, kind in enumerate((1, 2, 3)))
        restore = due | (parts["controls"][..., 3] > 0)
        down = isolate | restore

        # Who is there: someone may come; nobody's description may fit; who loses a foothold may hide; who hides comes back.
        coming = modes[:, :1] * self._hazard(self.step(parts, self._env.horizon))[:, None]
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
        success = self.chances(parts) * pace
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

    def chances(self, parts: dict[str, Floats]) -> Floats:
        """(E, P, D) of an attack's success a step."""
        return self._success * np.where(parts["device"][..., 4] > 0, self._env.controls.restore.patch_factor, 1.0)[:, None].astype(np.float32)


def _mix(modes: Floats, belief: Floats, into: slice, mass: Floats, source: Floats) -> None:
    """Let `mass` (E, P) of probability, with the conditions `source` (..., D, 8), flow into the modes `into`."""
    after = np.maximum(modes[:, into], 0.0) + mass  # what rounding took too much of is empty
    share = np.divide(mass, after, out=np.zeros_like(after), where=after > 1e-30)[..., None, None]
    belief[:, into] = belief[:, into] * (1.0 - share) + source * share
    modes[:, into] = after
