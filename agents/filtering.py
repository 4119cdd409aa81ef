"""Bayes' rule for a batch of episodes, compiled: what `agents.belief` does to its memory at every observation and every order.

E environments, P attackers, M = 1 + 2 P modes (nobody, each attacker at work, each in hiding), D devices, 8 conditions, C families of
attack traffic. All of it stands in one file: numba's cache of compiled code notices changes of that file alone, so that rules and
attackers come in as arguments.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

FRESH, KNOWN, PROBED, PROBED_ROUND, ATTACKED, ATTACKED_ROUND, HELD, IMPACT = range(8)
"""Conditions of a device: clean, clean but scouted, probed, under attack (each also round the block in force), foothold, impact."""

CONDITIONS = 8

_FLOOR = 1e-9
"""Keeps what rounding may have made of an impossible condition from having a negative logarithm's say."""

_COMPILED = {"cache": True, "error_model": "numpy"}
_INNER = {**_COMPILED, "inline": "always"}


class Attackers(NamedTuple):
    """What the rule reads of the attackers and of the world that they move in."""

    numbers: NDArray[np.float32]
    """(P, 9) breadth, spread, probe, engage, impact, rotate, abandon, caution, dormancy: `NUMBERS`."""
    success: NDArray[np.float32]
    """(P, D) chance of an attack's success a step, on a device that was never patched."""
    open: NDArray[np.float32]
    """(P, D) chance that a device can be reached from the start."""
    opens: NDArray[np.float32]
    """(D, D) whether a foothold on the first reaches the second."""
    fading: float
    """Share of an attacker's caution that is left a step later."""
    patched: float
    """Weakness left after a patch, as a share of the original."""
    limit_slows: float
    """Share of attempts that fail because of a rate limit."""
    block_slows: float
    """Share of attempts that fail because of a block."""
    doubt: float
    """Share of what is believed about who attacks that is spread evenly again each step."""


NUMBERS = ("breadth", "spread", "probe", "engage", "impact", "rotate", "abandon", "caution", "dormancy")


@njit(**_COMPILED)
def listen(modes, belief, caution, done, heard, ratios, share, visible, trust):
    """Take in an observation, in place.

    Args:
        modes: (E, M)
        belief: (E, M, D, 8)
        caution: (E, P)
        done: (E, D) devices whose restore is over.
        heard: (E, D) devices of which something arrived.
        ratios: (E, D, C) how much likelier the readings are under each family than under ordinary traffic.
        share: (C, P, 8) of each family in what an attacker shows.
        visible: (P, 8) share of steps in which it shows.
        trust: exponent of the likelihoods.
    """
    E, M, D, _ = belief.shape
    C, P, _ = share.shape
    joint, score = np.empty(CONDITIONS), np.empty(M)
    for e in range(E):
        for m in range(M):
            score[m] = math.log(max(modes[e, m], 1e-12))
        for d in range(D):
            if done[e, d]:
                for m in range(M):
                    row = belief[e, m, d]
                    clean = row[FRESH] + row[PROBED] + row[PROBED_ROUND]
                    row[:] = 0.0
                    row[FRESH], row[KNOWN] = clean, 1.0 - clean
            if not heard[e, d]:
                continue
            for p in range(P):
                total = 0.0
                for s in range(CONDITIONS):
                    if s != PROBED_ROUND and s != ATTACKED_ROUND:  # which look as they do straight
                        likelihood, shown = 1.0, visible[p, s] * (1.0 - caution[e, p])
                        if shown > 0.0:
                            mixed = 0.0
                            for c in range(C):
                                mixed += ratios[e, d, c] * share[c, p, s]
                            likelihood = math.exp(trust * math.log(1.0 + shown * (mixed - 1.0)))
                    joint[s] = max(belief[e, 1 + p, d, s], _FLOOR) * likelihood
                    total += joint[s]
                for s in range(CONDITIONS):
                    belief[e, 1 + p, d, s] = joint[s] / total
                score[1 + p] += math.log(total)
        largest, whole = score.max(), 0.0
        for m in range(M):
            score[m] = math.exp(score[m] - largest)
            whole += score[m]
        for m in range(M):
            modes[e, m] = score[m] / whole


@njit(**_INNER)
def _mix(modes, belief, e, m, mass, source):
    """Let `mass` of probability, with the conditions `source` (D, 8), flow into the mode `m`."""
    after = max(modes[e, m], 0.0) + mass  # what rounding took too much of is empty
    if after > 1e-30:
        part = mass / after
        for d in range(belief.shape[2]):
            for s in range(CONDITIONS):
                belief[e, m, d, s] = belief[e, m, d, s] * (1.0 - part) + source[d, s] * part
    modes[e, m] = after


@njit(**_COMPILED)
def advance(modes, belief, caution, spent, hazard, limit, block, holds, down, due, patched, cut, attackers):
    """From the beginning of a step, with its orders given, to its end, in place.

    Args:
        modes: (E, M)
        belief: (E, M, D, 8)
        caution: (E, P)
        spent: (E, P) patience that setbacks have cost each attacker, were it there.
        hazard: (E,) chance that an attacker who has not come yet comes in this step.
        limit: (E, D) devices that are throttled in this step.
        block: (E, D) or blocked.
        holds: (E, D) or blocked since before: what was got round is another block than one set now.
        down: (E, D) or cut off or being restored.
        due: (E, D) devices whose restore begins.
        patched: (E, D) devices that were patched.
        cut: (E, D) devices whose isolation begins.
        attackers: see `Attackers`.
    """
    E, P = caution.shape
    D = belief.shape[2]
    numbers, success, opened, opens, fading, weaker, limit_slows, block_slows, doubt = attackers
    clean, mean, left = np.zeros((D, CONDITIONS)), np.empty((D, CONDITIONS)), np.empty((D, CONDITIONS))
    clean[:, FRESH] = 1.0
    spread, logs = np.empty(P), np.empty(D)
    for e in range(E):
        # Someone may come.
        coming = modes[e, 0] * hazard[e]
        modes[e, 0] -= coming
        for p in range(P):
            before = max(modes[e, 1 + p], 0.0)
            spent[e, p] *= before / max(before + coming / P, 1e-30)
            _mix(modes, belief, e, 1 + p, coming / P, clean)
        # Nobody's description may fit.
        whole = 0.0
        for p in range(P):
            spread[p] = modes[e, 1 + p] * doubt
            whole += spread[p]
        mean[:] = 0.0
        for p in range(P):
            part = spread[p] / max(whole, 1e-30)
            for d in range(D):
                for s in range(CONDITIONS):
                    mean[d, s] += part * belief[e, 1 + p, d, s]
            modes[e, 1 + p] -= spread[p]
        for p in range(P):
            _mix(modes, belief, e, 1 + p, whole / P, mean)
        for p in range(P):
            at, hid = 1 + p, 1 + P + p
            breadth, spreads, probe, engage, impact, rotate, abandon, cautious, dormancy = numbers[p]
            # Who loses a foothold may hide; who hides comes back.
            kept, lost = 1.0, 0.0
            for d in range(D):
                if cut[e, d]:
                    spent[e, p] += belief[e, at, d, HELD] + belief[e, at, d, IMPACT]
                if due[e, d]:
                    foothold = belief[e, at, d, HELD] + belief[e, at, d, IMPACT]
                    kept *= 1.0 - foothold
                    lost += foothold
            hides = (1.0 - kept) * modes[e, at] if dormancy > 0.0 else 0.0
            wakes = modes[e, hid] / (1.0 + dormancy)
            modes[e, at] -= hides
            modes[e, hid] -= wakes
            left[:] = belief[e, at]
            _mix(modes, belief, e, at, wakes, belief[e, hid])
            _mix(modes, belief, e, hid, hides, left)
            for d in range(D):
                belief[e, hid, d, HELD] += belief[e, hid, d, IMPACT]
                belief[e, hid, d, IMPACT] = 0.0

            # What an attacker at work does on each device.
            wary = 1.0 - (1.0 - caution[e, p] * fading) * (1.0 - cautious) ** lost
            pace, busy, held = 1.0 - wary, 0.0, 0.0
            for d in range(D):
                row = belief[e, at, d]
                foothold = 0.0 if down[e, d] else row[HELD] + row[IMPACT]
                logs[d] = math.log1p(-min(foothold, 0.999))
                held += foothold
                busy += row[PROBED] + row[PROBED_ROUND] + row[ATTACKED] + row[ATTACKED_ROUND]
            turning = 1.0 - (1.0 - probe * pace / D) ** max(breadth + spreads * held - busy, 0.0)
            setbacks = 0.0
            for d in range(D):
                row = belief[e, at, d]
                up = 0.0 if down[e, d] else 1.0
                far = 0.0
                for k in range(D):
                    far += logs[k] * opens[k, d]
                turns = turning * (1.0 - (1.0 - opened[p, d]) * math.exp(far)) * up
                slowed = limit_slows if limit[e, d] else 0.0
                stop_round = 1.0 if down[e, d] else slowed
                stop = 1.0 - (1.0 - stop_round) * (1.0 - block_slows) if block[e, d] else stop_round
                rounds = stop * rotate if block[e, d] else 0.0
                leaves, leaves_round = (stop - rounds) * abandon, stop_round * abandon
                engages, engages_round = (1.0 - stop) * engage * pace, (1.0 - stop_round) * engage * pace
                chance = success[p, d] * pace * (weaker if patched[e, d] else 1.0)
                wins, wins_round = (1.0 - stop) * chance, (1.0 - stop_round) * chance
                bursts = impact * (1.0 - slowed) * pace * up
                probed, attacked, probed_round, attacked_round = row[PROBED], row[ATTACKED], row[PROBED_ROUND], row[ATTACKED_ROUND]
                if not holds[e, d]:
                    probed, attacked, probed_round, attacked_round = probed + probed_round, attacked + attacked_round, 0.0, 0.0
                setbacks += attacked * stop + attacked_round * stop_round
                fresh, known, foothold = row[FRESH], row[KNOWN], row[HELD]
                row[FRESH] = fresh * (1.0 - turns) + probed * leaves + probed_round * leaves_round
                row[KNOWN] = known * (1.0 - turns) + attacked * leaves + attacked_round * leaves_round
                row[PROBED] = fresh * turns + probed * (1.0 - leaves - engages - rounds)
                row[PROBED_ROUND] = probed * rounds + probed_round * (1.0 - leaves_round - engages_round)
                row[ATTACKED] = known * turns + probed * engages + attacked * (1.0 - leaves - wins - rounds)
                row[ATTACKED_ROUND] = attacked * rounds + probed_round * engages_round + attacked_round * (1.0 - leaves_round - wins_round)
                row[HELD] = attacked * wins + attacked_round * wins_round + foothold * (1.0 - bursts)
                row[IMPACT] += foothold * bursts
            spent[e, p] += 4.0 * lost + 0.5 * setbacks  # and 1 for a foothold cut off, above: as `envs.dynamics` counts setbacks
            caution[e, p] = 1.0 - (1.0 - wary) * (1.0 - cautious) ** setbacks
