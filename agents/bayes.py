"""A defender that sees only observations, and reasons about them: a Bayes filter, and orders of least expected cost.

For each attacker that may come (side `train` of the configuration; it is told nothing of the others) the filter keeps how likely
that one is at work, and, given that, how far it is on each device. Given the attacker, devices are held independent of one
another; that the same attacker is behind all of them is where evidence on one device tells about the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from agents.baselines import Actions, address
from envs.attackers import Stage, cast, emission_table, profile_table
from envs.dynamics import FOOTHOLD_DAMAGE, Order
from envs.scenarios import FAMILIES, build_network
from envs.world import Layout
from src.config import Config
from src.data.bank import TraceBank

Floats = NDArray[np.float32]

FRESH, KNOWN, PROBED, ATTACKED, EVADED, HELD, IMPACT = range(7)
"""Conditions of a device that are told apart: clean, clean but scouted, probed, attacked, attacked round the block in force, foothold, impact."""

STAGES = (Stage.CLEAN, Stage.CLEAN, Stage.PROBED, Stage.ATTACKED, Stage.ATTACKED, Stage.COMPROMISED, Stage.IMPACT)
"""Stage of each condition."""


class Evidence:
    """What a window's readings say: how much likelier they are under each class of traffic than under ordinary traffic."""

    def __init__(self, bank: TraceBank, classes: NDArray[np.int64], side: str, strength: float) -> None:
        """Fit a logistic regression on one side of the bank.

        Args:
            bank: windows with readings.
            classes: attack classes to tell apart; every benign class counts as ordinary traffic.
            side: `calibrate` or `agent`.
            strength: inverse of the regularisation.
        """
        ranges = bank.ranges(side)
        benign = [c for c, family in enumerate(bank.class_families) if family == FAMILIES[0]]
        rows = np.concatenate([np.arange(*ranges[c]) for c in (*benign, *classes)])
        label = np.where(np.isin(bank.label[rows], benign), -1, bank.label[rows])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000, class_weight="balanced"))
        model.fit(self._columns(np.array(bank.sensors[rows])), label)
        scaler, regression = model[0], model[-1]
        # Balanced classes: a difference of scores is a logarithm of a ratio of likelihoods. One affine map from columns to these.
        order = np.searchsorted(regression.classes_, classes)
        weights = (regression.coef_[order] - regression.coef_[0]) / scaler.scale_
        self._weights: Floats = weights.T.astype(np.float32)  # (columns, classes)
        self._offset: Floats = (regression.intercept_[order] - regression.intercept_[0] - weights @ scaler.mean_).astype(np.float32)

    @staticmethod
    def _columns(readings: Floats) -> Floats:
        """(..., S) readings, logarithms of the probabilities and log-odds of the rest."""
        rest = readings[..., 8:]
        return np.concatenate([np.log(readings[..., :8] + 1e-3), np.log((rest + 1e-3) / (1.001 - rest))], axis=-1)

    def ratios(self, readings: Floats) -> Floats:
        """(..., S) -> (..., classes) logarithm of the likelihood under each class over that of ordinary traffic."""
        return self._columns(readings) @ self._weights + self._offset


class Memory(NamedTuple):
    """What the filter carries from step to step."""

    modes: Floats
    """(E, M) probability of each mode: nobody, each attacker at work, each attacker in hiding."""
    belief: Floats
    """(E, M, D, 7) probability of each device's condition, given the mode."""
    restoring: NDArray[np.bool_]
    """(E, D) devices down for a restore in the step that began."""


@dataclass(frozen=True)
class Foresight:
    """How the filter's orders are weighed."""

    restore: float = 8.0
    """Steps until the truth about a foothold would show by itself: what a restore now saves, if there is one."""
    block: float = 20.0
    """Steps for which a block is thought to be needed."""
    lift: float = 0.02
    """A block is lifted where the attacker is less likely than this to be at work on the device."""
    trust: float = 0.7
    """Exponent of the likelihoods: below 1, for windows that follow one another say less than independent ones."""


class BayesFilter:
    """Plays `Foresight` on the belief."""

    def __init__(self, config: Config, bank: TraceBank, layout: Layout, foresight: Foresight | None = None, side: str = "calibrate") -> None:
        self.config, self.layout, self.foresight = config, layout, foresight or Foresight()
        env, network = config.env, build_network(config.env.scenario)
        names = cast(config.attackers, "train")
        profiles = profile_table(config.attackers, "train")
        family = np.array([FAMILIES.index(name) for name in bank.class_families])
        shown, counts = emission_table(config.attackers, "train", bank.class_names, family, bank.ranges(side))  # (P, 5, C), (P, 5)
        classes = np.unique(np.concatenate([shown[p, s, : counts[p, s]] for p in range(len(names)) for s in range(5)]))
        self.evidence = Evidence(bank, classes, side, 0.1)
        P, D = len(names), len(network.names)
        self._share = np.zeros((len(classes), P, 7), np.float32)
        self._visible = np.zeros((P, 7), np.float32)
        weak = np.zeros((P, D), np.float32)
        for p in range(P):
            for s, stage in enumerate(STAGES):
                seen = shown[p, stage, : counts[p, stage]]
                if len(seen):
                    self._share[np.searchsorted(classes, seen), p, s] = 1.0 / len(seen)
                    self._visible[p, s] = 1.0 - profiles[p]["stealth"] * (0.5 if stage == Stage.IMPACT else 1.0)
            seen = shown[p, Stage.ATTACKED, : counts[p, Stage.ATTACKED]]
            weak[p] = network.weakness[:, family[seen]].mean(axis=1)
        self.P, self.D = P, D
        num = lambda n: profiles[n].astype(np.float32)[:, None]
        self._probe, self._engage, self._impact, self._rotate, self._abandon = (num(n) for n in ("probe", "engage", "impact", "rotate", "abandon"))
        self._success = num("compromise") * weak  # (P, D)
        self._breadth, self._spread = num("breadth"), num("spread")
        self._wake = 1.0 / (1.0 + num("dormancy")[:, 0])
        self._hides = profiles["dormancy"] > 0
        exposed = network.reach[0][network.zone]  # (D,)
        same = (network.zone[:, None] == network.zone[None]).mean(axis=1)
        self._open = np.where(profiles["insider"][:, None], np.maximum(exposed, same[None]), exposed[None]).astype(np.float32)  # (P, D)
        self._opens = network.reach[1:][network.zone][:, network.zone].astype(np.float32)  # (D from, D to)
        self.network = network

    # -- filter
    def _begin(self, count: int) -> Memory:
        modes = np.zeros((count, 1 + 2 * self.P), np.float32)
        modes[:, 0] = 1.0
        belief = np.zeros((count, 1 + 2 * self.P, self.D, 7), np.float32)
        belief[..., FRESH] = 1.0
        return Memory(modes, belief, np.zeros((count, self.D), np.bool_))

    def _hazard(self, step: NDArray[np.int64]) -> Floats:
        first, last = self.config.env.start_range
        free = self.config.env.attack_free
        coming = (1.0 - free) / (last - first + 1)
        left = np.clip(last - step + 1, 1, last - first + 1)
        return np.where((step >= first) & (step <= last), coming / (free + coming * left), 0.0).astype(np.float32)

    def _update(self, memory: Memory, parts: dict[str, Any]) -> Memory:
        modes, belief, restoring = memory
        P = self.P
        # restored
        done = restoring & (parts["controls"][..., 3] == 0)
        if done.any():
            clean = np.zeros_like(belief)
            clean[..., FRESH] = belief[..., FRESH] + belief[..., PROBED]
            clean[..., KNOWN] = 1.0 - clean[..., FRESH]
            belief = np.where(done[:, None, :, None], clean, belief)
        heard = parts["silent"][..., 0] == 0  # (E, D)
        log = np.clip(self.evidence.ratios(parts["sensors"]), -12.0, 12.0)
        ratio = np.exp(log).reshape(-1, log.shape[-1]) @ self._share.reshape(len(self._share), -1)
        ratio = ratio.reshape(*heard.shape, P, 7).transpose(0, 2, 1, 3)  # (E, P, D, 7)
        visible = self._visible[None, :, None, :]
        like = (1.0 - visible) + visible * ratio
        like = np.where(heard[:, None, :, None], like, 1.0) ** self.foresight.trust
        belief = belief.copy()
        belief[:, 1 : 1 + P] *= like
        total = belief[:, 1 : 1 + P].sum(axis=3)  # (E, P, D)
        belief[:, 1 : 1 + P] /= total[..., None]
        weight = np.log(total).sum(axis=2)
        weight = np.concatenate([np.zeros((len(weight), 1)), weight, np.zeros_like(weight)], axis=1)
        weight = np.log(np.maximum(modes, 1e-12)) + weight
        modes = np.exp(weight - weight.max(axis=1, keepdims=True))
        modes = (modes / modes.sum(axis=1, keepdims=True)).astype(np.float32)
        return Memory(modes, belief.astype(np.float32), restoring)

    def _mix(self, modes, belief, into, mass, source):
        """Move `mass` (E, P) of probability, with the conditions `source` (E, P, D, 7), into modes `into`."""
        before = modes[:, into]
        after = before + mass
        share = np.where(after > 0, mass / np.maximum(after, 1e-30), 0.0)[..., None, None]
        belief[:, into] = belief[:, into] * (1.0 - share) + source * share
        modes[:, into] = after

    def _predict(self, memory: Memory, parts: dict[str, Any], device, order, step) -> Memory:
        """From before the step to after it, with the orders given."""
        P = self.P
        modes, belief, _ = memory
        modes, belief = modes.copy(), belief.copy()
        controls = parts["controls"]
        rows = np.arange(len(modes))
        limit, block, isolate, restore = (controls[..., i] > 0 for i in range(4))
        due = controls[..., 4] > 0  # only restores take a step
        given = lambda o: (order == o)
        def put(array, o, value):
            hit = np.flatnonzero(order == o)
            array = array.copy()
            array[hit, device[hit]] = value
            return array
        fresh_block = put(np.zeros_like(block), Order.BLOCK, True)
        limit = put(limit, Order.RATE_LIMIT, True); block = put(block, Order.BLOCK, True); isolate = put(isolate, Order.ISOLATE, True)
        for o in (limit, block, isolate):
            hit = np.flatnonzero(order == Order.RELEASE)
            o[hit, device[hit]] = False
        limit, block, isolate = limit & ~due, block & ~due, isolate & ~due
        restore = restore | due
        down = isolate | restore
        act, hid = slice(1, 1 + P), slice(1 + P, None)
        # arrival
        mass = modes[:, :1] * self._hazard(step)[:, None]
        modes[:, :1] -= mass
        clean = np.zeros(7, np.float32); clean[FRESH] = 1.0
        self._mix(modes, belief, act, np.repeat(mass / P, P, axis=1), clean)
        # notice and wake
        held = belief[:, act, :, HELD:].sum(axis=3)  # (E,P,D)
        noticed = 1.0 - np.prod(np.where(due[:, None], 1.0 - held, 1.0), axis=2)
        noticed = noticed * self._hides * modes[:, act]
        wakes = modes[:, hid] * self._wake
        source_a, source_h = belief[:, act].copy(), belief[:, hid].copy()
        modes[:, act] -= noticed; modes[:, hid] -= wakes
        self._mix(modes, belief, hid, noticed, source_a)
        self._mix(modes, belief, act, wakes, source_h)
        # hidden: floods stop
        belief[:, hid, :, HELD] += belief[:, hid, :, IMPACT]
        belief[:, hid, :, IMPACT] = 0.0
        # active
        b = np.moveaxis(belief[:, act], 3, 0)  # 7 x (E,P,D)
        up = ~down[:, None]
        held = (b[HELD] + b[IMPACT]) * up
        hands = np.clip(self._breadth + self._spread * held.sum(2, keepdims=True) - (b[PROBED] + b[ATTACKED] + b[EVADED]).sum(2, keepdims=True), 0.0, None)
        reach = 1.0 - (1.0 - self._open) * np.exp(np.log1p(-np.minimum(held, 0.999)) @ self._opens)
        opened = (1.0 - (1.0 - self._probe / self.D) ** hands) * reach * up
        slows, holds = self.config.env.controls.rate_limit.slows, self.config.env.controls.block.slows
        rl = np.where(limit, slows, 0.0)[:, None]
        around = np.where(down[:, None], 1.0, rl)  # stops although the block was got round
        stop = np.where(down[:, None], 1.0, 1.0 - (1.0 - rl) * np.where(block, 1.0 - holds, 1.0)[:, None])
        rot = self._rotate * block[:, None]
        success = self._success * np.where(parts["device"][..., 4] > 0, self.config.env.controls.restore.patch_factor, 1.0)[:, None]
        evaded_stays = (block & ~fresh_block)[:, None]
        attacked, evaded = b[ATTACKED] + np.where(evaded_stays, 0.0, b[EVADED]), np.where(evaded_stays, b[EVADED], 0.0)
        new = np.empty_like(b)
        leaves = stop * (1 - rot) * self._abandon
        leaves_e = around * self._abandon
        new[FRESH] = b[FRESH] * (1 - opened) + b[PROBED] * leaves
        new[KNOWN] = b[KNOWN] * (1 - opened) + attacked * leaves + evaded * leaves_e
        eng = (1 - stop) * self._engage
        new[PROBED] = b[FRESH] * opened + b[PROBED] * (1 - leaves - eng)
        win, win_e = (1 - stop) * success, (1 - around) * success
        new[ATTACKED] = b[KNOWN] * opened + b[PROBED] * eng + attacked * (1 - leaves - win - stop * rot)
        new[EVADED] = attacked * stop * rot + evaded * (1 - leaves_e - win_e)
        hit = self._impact * (1 - rl) * up
        new[HELD] = attacked * win + evaded * win_e + b[HELD] * (1 - hit)
        new[IMPACT] = b[IMPACT] + b[HELD] * hit
        belief[:, act] = np.moveaxis(new, 0, 3)
        return Memory(modes, belief, restore)

    def predict(self, observation, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Actions, Memory]:
        parts = self.layout.split(observation)
        E = len(observation)
        if state is None:
            memory = self._begin(E)
        else:
            memory = state
            if episode_start is not None and episode_start.any():
                new = self._begin(E)
                memory = Memory(*(np.where(episode_start.reshape(-1, *[1] * (a.ndim - 1)), n, a) for a, n in zip(memory, new)))
        memory = self._update(memory, parts)
        step = np.rint((1.0 - parts["context"][:, 0]) * self.config.env.horizon).astype(np.int64)
        device, order = self._decide(memory, parts, step)
        memory = self._predict(memory, parts, device, order, step)
        return address(device, order), memory

    def marginal(self, memory: Memory) -> Floats:
        """(E, D, 7)"""
        return np.einsum("em,emds->eds", memory.modes, memory.belief)

    def _decide(self, memory, parts, step):
        f, env, w = self.foresight, self.config.env, self.config.reward
        P = self.P
        b = self.marginal(memory)
        c = self.network.criticality.astype(np.float32)
        left = (env.horizon - step)[:, None]
        valid = parts["valid"] > 0
        gains = np.full((len(b), self.D, 5), 0.0, np.float32)
        rt = self.network.restore_time
        restore_cost = w.action * env.controls.restore.cost + c * (w.cleanup + w.service * np.minimum(rt, left))
        held, flood = b[..., HELD], b[..., IMPACT]
        rate = w.damage * c * (2 * FOOTHOLD_DAMAGE * held + flood)
        n = np.minimum(f.restore, left)
        p = held + flood
        gains[..., Order.RESTORE - 1] = rate * n - (1 - p) * restore_cost
        gains[..., Order.RESTORE - 1] -= np.where(rate * left < restore_cost * p, 1e3, 0)
        # chance of a break-in per step of attack, by mode
        act = slice(1, 1 + P)
        patched = np.where(parts["device"][..., 4] > 0, env.controls.restore.patch_factor, 1.0)
        attack = np.einsum("em,emd,md->ed", memory.modes[:, act], memory.belief[:, act, :, ATTACKED], self._success) * patched
        evaded = np.einsum("em,emd,md->ed", memory.modes[:, act], memory.belief[:, act, :, EVADED], self._success) * patched
        probed = np.einsum("em,emd,md,md->ed", memory.modes[:, act], memory.belief[:, act, :, PROBED], self._engage.repeat(self.D, 1), self._success) * patched
        harm = restore_cost + w.damage * c * f.restore
        nb = np.minimum(f.block, left)
        block_cost = w.action * env.controls.block.cost + c * w.service * env.controls.block.service_loss * nb
        blocked = parts["controls"][..., 1] > 0
        gains[..., Order.BLOCK - 1] = (attack + f.lift * probed * nb) * nb * env.controls.block.slows * harm - block_cost
        lone = 1 - b[..., FRESH] - b[..., KNOWN]
        release = np.where(blocked & (lone < f.lift), c * w.service * env.controls.block.service_loss * parts["controls"][..., 1] * env.controls.block.ttl - w.action * env.controls.release.cost, 0)
        again = np.where(blocked, evaded * nb * env.controls.block.slows * harm - block_cost - attack * 2 * harm, 0)
        gains[..., Order.RELEASE - 1] = np.maximum(release, again)
        gains = np.where(valid, gains, 0.0)
        gains[..., Order.RATE_LIMIT - 1] = 0
        gains[..., Order.ISOLATE - 1] = 0
        flat = gains.reshape(len(b), -1)
        best = flat.argmax(axis=1)
        due = flat[np.arange(len(b)), best] > 0
        device = best // 5
        return device, np.where(due, best % 5 + 1, 0)
