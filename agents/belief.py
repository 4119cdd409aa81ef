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

from agents.filtering import ATTACKED, ATTACKED_ROUND, CONDITIONS, FRESH, NUMBERS, Attackers, advance, listen
from envs.attackers import FLOODS, PROFILE, Stage, cast, emission_table, profile_table
from envs.dynamics import FADING, LOUDNESS, Order
from envs.scenarios import FAMILIES, Network
from envs.world import KINDS, Layout
from src.config import Config, EnvConfig
from src.data.bank import TraceBank
from src.errors import UserError

Floats = NDArray[np.floating[Any]]
"""Single precision, throughout the belief."""

STAGES = (Stage.CLEAN, Stage.CLEAN, Stage.PROBED, Stage.PROBED, Stage.ATTACKED, Stage.ATTACKED, Stage.COMPROMISED, Stage.IMPACT)
"""Stage of each condition (`agents.filtering`)."""

LIMIT = 10.0
"""Largest logarithm of a likelihood ratio that one window is trusted with, either way."""

INDEPENDENT = 125
"""Windows that those learned from count as, however many they are: neighbours overlap, and most are of few captures."""

TRUST = 2.0
"""Exponent of the likelihoods: below 1 believes readings less, above 1 more, than their fit says."""

DOUBT = 0.01
"""Share of what is believed about who attacks that is spread evenly again each step: the attacker may be one that nobody described."""


TRAITS = ("probe", "engage", "impact", "stealth", "spread")
"""Numbers of the attackers whose expected values are among `Belief.inputs`."""


class Memory(NamedTuple):
    """What the filter carries from step to step; a mode is nobody, an attacker at work, or the same attacker in hiding."""

    modes: Floats
    """(E, 1 + 2 P) probability of each mode: nobody, then each attacker at work, then each in hiding."""
    belief: Floats
    """(E, 1 + 2 P, D, 8) probability of each device's condition, given the mode."""
    caution: Floats
    """(E, P) how far setbacks slow and hide each attacker, were it there."""
    spent: Floats
    """(E, P) patience that setbacks have cost it."""
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

    INPUTS = CONDITIONS + 6 + len(TRAITS) + 1
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
        opened = np.where(self._numbers["insider"] > 0, np.maximum(exposed, inside), exposed)  # (P, D)
        rules = env.controls
        self._rules = Attackers(
            numbers=np.concatenate([self._numbers[name] for name in NUMBERS], axis=1, dtype=np.float32),
            success=self._success.astype(np.float32),
            open=opened.astype(np.float32),
            opens=network.reach[1:][network.zone][:, network.zone].astype(np.float32),
            fading=FADING,
            patched=rules.restore.patch_factor,
            limit_slows=rules.rate_limit.slows,
            block_slows=rules.block.slows,
            doubt=DOUBT,
        )

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
        """(E, D, 20) what is believed, for a network to read, from about -3 to 3.

        Log-odds of each condition, and of nobody being there, someone at work, someone in hiding; logarithms of an attack's chance of
        success on the device, and of a break-in in the coming step, straight and round the block; what is expected of the attacker: `TRAITS`,
        and the share of patience that is left.
        """
        A, active = self._attackers, self._active
        someone = [memory.modes[:, 0], memory.modes[:, active].sum(1), memory.modes[:, self._hidden].sum(1)]
        about = np.broadcast_to(np.stack(someone, 1)[:, None], (len(memory.modes), self._devices, 3))
        sure = np.clip(np.concatenate([self.conditions(memory), about], axis=2), 1e-4, 1.0 - 1e-4)
        chances = self.chances(parts)  # (E, P, D)
        likely = memory.modes[:, active] + memory.modes[:, self._hidden] + memory.modes[:, :1] / A  # (E, P)
        there = self.at_work(memory)
        breaks = [np.einsum("ep,epd->ed", likely, chances), *((there[..., at] * chances).sum(1) for at in (ATTACKED, ATTACKED_ROUND))]
        left = 1.0 - np.minimum(memory.spent / self._numbers["patience"][:, 0], 1.0)  # (E, P)
        who = [likely @ self._numbers[name] for name in TRAITS] + [(likely * left).sum(1, keepdims=True)]
        whole = np.broadcast_to(np.concatenate(who, axis=1)[:, None], (len(likely), self._devices, len(who)))
        return np.concatenate([np.log(sure / (1.0 - sure)) / 4.0, np.log(np.stack(breaks, 2) + 1e-4) / 4.0 + 1.0, whole], axis=2).astype(np.float32)

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
        unhurt = np.zeros((count, self._attackers), np.float32)
        return Memory(modes, belief, unhurt, unhurt.copy(), np.zeros((count, self._devices), np.bool_))

    def listen(self, memory: Memory, parts: dict[str, Floats]) -> Memory:
        """Take in an observation: restores that are done, and what arrived of each device."""
        modes, belief, caution, restoring = memory.modes.copy(), memory.belief.copy(), memory.caution, memory.restoring
        done = restoring & (parts["controls"][..., 3] == 0) & (parts["controls"][..., 4] == 0)
        heard, ratios, known = parts["silent"][..., 0] == 0, self.knowledge.ratios(parts["sensors"]), self.knowledge
        listen(modes, belief, caution, done, heard, ratios, known.share, known.visible, self.trust)
        return Memory(modes, belief, caution, memory.spent, restoring)

    def advance(self, memory: Memory, parts: dict[str, Floats], actions: NDArray[np.int64]) -> Memory:
        """From the beginning of a step, with its addressed orders (E,) given, to its end, before anything is seen of it."""
        told = np.zeros((len(actions), self._devices), np.int64)
        rows, device, kind = np.arange(len(actions)), np.maximum(actions - 1, 0) // KINDS, (actions - 1) % KINDS
        changes = (actions > 0) & (parts["valid"][rows, device, kind] > 0)
        told[rows, device] = np.where(changes, kind + 1, Order.MONITOR)
        due = parts["controls"][..., 4] > 0  # a restore, the only order that takes its time
        kept = ~due & (told != Order.RELEASE)
        limit, block, isolate = ((((parts["controls"][..., i]) > 0) | (told == kind)) & kept for i, kind in enumerate((1, 2, 3)))
        restore = due | (parts["controls"][..., 3] > 0)
        modes, belief, caution, spent = (part.copy() for part in memory[:4])
        cut = (told == Order.ISOLATE) & kept
        holds = block & (parts["controls"][..., 1] > 0)
        hazard, patched = self._hazard(self.step(parts, self._env.horizon)), parts["device"][..., 4] > 0
        advance(modes, belief, caution, spent, hazard, limit, block, holds, isolate | restore, due, patched, cut, self._rules)
        return Memory(modes, belief, caution, spent, restore)

    def _hazard(self, step: NDArray[np.int64]) -> Floats:
        """(E,) chance that an attacker who has not come yet comes in this step."""
        (first, last), free = self._env.start_range, self._env.attack_free
        coming = (1.0 - free) / (last - first + 1)
        inside = (step >= first) & (step <= last)
        return np.where(inside, coming / np.where(inside, free + coming * (last - step + 1), 1.0), 0.0).astype(np.float32)

    def chances(self, parts: dict[str, Floats]) -> Floats:
        """(E, P, D) of an attack's success a step."""
        return self._success * np.where(parts["device"][..., 4] > 0, self._env.controls.restore.patch_factor, 1.0)[:, None].astype(np.float32)
