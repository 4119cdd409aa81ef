"""The rules of the world, compiled, batch first, and free of side effects beyond their arguments.

State has a leading environment axis: two record arrays, `sites` (E,) and `devices` (E, D), each field of which is a
structure-of-arrays view (`devices["stage"]` is (E, D)), and `trails` (E, D, L), the windows received of late. `World` gathers
what does not change in an episode. Every random number is a hash of (the episode's key, step, device, purpose), so it depends
neither on the batch nor on the order of evaluation: environment i of a batch equals a single environment with the same key.

One step of an environment is `transition` (orders, attacker), `emit` (traffic shown), `sense` (readings that arrive),
`reward_terms` (losses of the step, counted while controls are in force), `ended`, `tick` (clocks) and `observe`. Each works on
one row of the arrays; `step` runs them all for every row.

All of it stands in one file, records and constants too: numba's cache of compiled code notices changes of that file alone.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from envs.attackers import Stage

# Nothing here allocates or keeps an array, so counting references to them is left out: it was more than half of a step.
_COMPILED: dict[str, Any] = {"cache": True, "_nrt": False, "error_model": "numpy"}
_INNER: dict[str, Any] = {**_COMPILED, "forceinline": True}


class Order(IntEnum):
    """Kinds of action. The first four are the classic levels of mitigation."""

    MONITOR = 0
    RATE_LIMIT = 1
    BLOCK = 2
    ISOLATE = 3
    RESTORE = 4
    RELEASE = 5


class End(IntEnum):
    """Why an episode ended."""

    RUNNING = 0
    OVERRUN = 1
    EVICTED = 2
    HORIZON = 3


TERMS = ("service", "damage", "action", "cleanup", "safety")
"""Terms of the reward, each a loss before its weight."""

SITE = np.dtype(
    [
        ("key", np.uint64), ("step", np.int64), ("profile", np.int64), ("start", np.int64), ("entry", np.int64), ("patience", np.float64),
        ("caution", np.float64), ("dormant", np.int64), ("overrun", np.int64), ("budget", np.int64), ("end", np.int64),
        # What the episode's summary is made of; none of it is observed.
        ("service", np.float64), ("damage", np.float64), ("action", np.float64), ("cleanup", np.float64), ("safety", np.float64),
        ("healthy", np.float64), ("orders", np.int64), ("compromises", np.int64), ("dwell", np.int64),
        ("false_isolation", np.int64), ("first_foothold", np.int64), ("first_response", np.int64),
        ("rate_limit", np.int64), ("block", np.int64), ("isolate", np.int64), ("restore", np.int64), ("release", np.int64),
    ]
)  # fmt: skip
"""One environment. `start` is -1 in an attack-free episode; `entry` is the device to which the attacker turns first."""

DEVICE = np.dtype(
    [
        ("lost", np.float64), ("stage", np.int32), ("technique", np.int32),
        ("calm_class", np.int32), ("window", np.int32), ("calm", np.int32), ("hostile", np.int32),
        ("rate_limit", np.int32), ("block", np.int32), ("isolate", np.int32), ("restore", np.int32), ("pending", np.int32), ("delay", np.int32),
        ("since", np.int32),
        ("weakness", np.float32), ("risk", np.float32), ("uncertainty", np.float32), ("anomaly", np.float32),
        ("known", np.bool_), ("evaded", np.bool_), ("patched", np.bool_), ("shown", np.bool_), ("attack_shown", np.bool_),
        ("stopped", np.bool_), ("pressing", np.bool_),
    ],
    align=True,
)  # fmt: skip
"""One device: legitimate traffic lost so far, in steps' worth; attack stage and class shown; the benign class that is its own; window shown
and the two cursors; remaining steps of each control; order on its way; this episode's factor on its weaknesses; step of its last re-
imaging; running means of the sensors; whether the attacker has scouted it, the block was got round, the hole is closed, the isolation of
this foothold was noticed, the window shown is an attack's, the attacker's last attempt was stopped, and an attacker who is an agent wants
impact here."""

CONTROL = np.dtype(
    [("cost", np.float64), ("delay", np.int64), ("ttl", np.int64), ("service_loss", np.float64), ("slows", np.float64), ("contains", np.float64)]
)
"""One kind of order."""

RULES = np.dtype(
    [
        ("horizon", np.int64), ("overrun_share", np.float64), ("overrun_steps", np.int64),
        ("mask_protected", np.bool_), ("joint", np.bool_), ("budget", np.int64),
        ("smoothing", np.float32), ("patch_factor", np.float64), ("attack_free", np.float64), ("start_first", np.int64), ("start_last", np.int64),
        ("variation", np.float64), ("slowest", np.int64), ("features", np.int64), ("history", np.int64),
        ("telemetry_delay", np.int64), ("sensor_dropout", np.float64), ("detector_drift", np.float64), *((name, np.float64) for name in TERMS),
    ]
)  # fmt: skip
"""Rules and reward weights; `slowest` is the longest restore time, `features` how many columns of a window's table are features, the rest being readings."""

FOOTHOLD_DAMAGE = 0.25
"""Damage of a foothold, as a share of impact's."""

LEAST_CHOICE = 20
"""Windows among which an evading attacker picks at the least: one alone, over and over, would be the plainest of fingerprints."""

LOUDNESS = 0.5
"""Share of its stealth that is left to an attacker who floods."""

SCRIPTED = -1
"""The move of an attacker who follows its profile; others are `Move` + 3 x device, or 0 to lie low."""

ROTATION = 0.5
"""Chance that an agent's ROTATE gets round a block; a profile does it by the way, after stopped attempts, with its own `rotate`."""

FADING = 0.9
"""Share of the attacker's caution that is left after a step."""

NOTHING = -1
"""In a trail: nothing was received."""


class Move(IntEnum):
    """What an attacker who is an agent can do in a step; index `move + 3 x device` but for LIE_LOW. `envs.duel` says what each does."""

    LIE_LOW = 0
    ADVANCE = 1
    ROTATE = 2
    WITHDRAW = 3


# Purposes of random numbers.
(
    _START, _FREE, _PROFILE, _ENTRY, _VARIATION, _CALM, _CALM_CLASS, _HOSTILE, _TECHNIQUE, _STEALTH, _EVADE,
    _ADVANCE, _STOP, _ROTATE, _ADAPT, _ADAPTED, _ABANDON, _DORMANT, _PROBE, _TARGET, _DROPOUT, _DRIFT,
) = range(22)  # fmt: skip


class World(NamedTuple):
    """What does not change in an episode. D devices, Z zones, P profiles, W windows, C classes of traffic."""

    rules: NDArray[np.void]
    """(1,) RULES"""
    controls: NDArray[np.void]
    """(6,) CONTROL, by Order"""
    profiles: NDArray[np.void]
    """(P,) PROFILE"""
    criticality: NDArray[np.float64]
    """(D,)"""
    weakness: NDArray[np.float64]
    """(D, 8)"""
    restore_time: NDArray[np.int64]
    """(D,)"""
    patchable: NDArray[np.bool_]
    """(D,)"""
    protected: NDArray[np.bool_]
    """(D,)"""
    zone: NDArray[np.int64]
    """(D,)"""
    reach: NDArray[np.int64]
    """(1 + Z,) zones reached, as bits: from the internet, then from a foothold in each zone"""
    traits: NDArray[np.float32]
    """(D, 4) what the defender knows of each device: criticality, restore time, protected, patchable"""
    emissions: NDArray[np.int64]
    """(P, 5, C) classes shown"""
    emission_counts: NDArray[np.int64]
    """(P, 5)"""
    class_family: NDArray[np.int64]
    """(C,)"""
    loud: NDArray[np.bool_]
    """(C,) floods, which can hide half as well as other traffic"""
    calm_classes: NDArray[np.int64]
    """(n,) benign classes"""
    ranges: NDArray[np.int64]
    """(C, 2)"""
    quiet: NDArray[np.int32]
    """(W,) the windows of each range, least suspicious first"""
    successor: NDArray[np.int32]
    """(W,)"""
    table: NDArray[np.float32]
    """(W, F + S) features, then readings"""


@njit(**_INNER)
def uniform(key, step, device, purpose):
    """A number in [0, 1): SplitMix64's finaliser (Steele et al. 2014) over the four arguments."""
    x = key ^ (np.uint64(step + 1) * np.uint64(0x9E3779B97F4A7C15))
    x ^= np.uint64(device + 1) * np.uint64(0xC2B2AE3D27D4EB4F)
    x ^= np.uint64(purpose + 1) * np.uint64(0x165667B19E3779F9)
    for _ in range(2):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return float(x >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(**_INNER)
def _pick(u, low, high):
    """An integer in [low, high) from a number in [0, 1)."""
    return low + min(int(u * (high - low)), high - low - 1)


@njit(**_COMPILED)
def begin(world, sites, devices, trails, which, keys):
    """Draw the episodes that `keys` name, for the environments `which`, whose records were set to zero before."""
    rules = world.rules[0]
    D = devices.shape[1]
    for i in range(len(which)):
        e = which[i]
        key = keys[i]
        site = sites[e]
        site.key = key
        site.profile = _pick(uniform(key, 0, -1, _PROFILE), 0, len(world.profiles))
        profile = world.profiles[site.profile]
        free = uniform(key, 0, -1, _FREE) < rules.attack_free
        site.start = -1 if free else _pick(uniform(key, 0, -1, _START), rules.start_first, rules.start_last + 1)
        site.entry = _entry(world, D, uniform(key, 0, -1, _ENTRY), profile.insider)
        site.patience = profile.patience
        site.budget = rules.budget
        site.first_foothold = -1
        site.first_response = -1
        trails[e] = NOTHING
        for d in range(D):
            device = devices[e, d]
            device.weakness = 1.0 + rules.variation * (2.0 * uniform(key, 0, d, _VARIATION) - 1.0)
            chosen = world.calm_classes[_pick(uniform(key, -1, d, _CALM_CLASS), 0, len(world.calm_classes))]
            device.technique = -1
            device.hostile = -1
            device.calm_class = chosen
            device.calm = _pick(uniform(key, -1, d, _CALM), world.ranges[chosen, 0], world.ranges[chosen, 1])
            device.window = device.calm
            if rules.sensor_dropout == 0.0 or uniform(key, -1, d, _DROPOUT) >= rules.sensor_dropout:
                trails[e, d, 0] = device.window


@njit(**_INNER)
def _entry(world, D, u, insider):
    """The device to which the attacker turns first: any for an insider, else one that the internet reaches."""
    count = 0
    for d in range(D):
        count += insider or (world.reach[0] >> world.zone[d]) & 1
    chosen = _pick(u, 0, count)
    for d in range(D):
        if insider or (world.reach[0] >> world.zone[d]) & 1:
            if chosen == 0:
                return d
            chosen -= 1
    return 0


@njit(**_INNER)
def valid(site, device, spared, order):
    """Whether an order would change something; `spared` devices are never cut off. Reads only what the defender knows."""
    if order == Order.MONITOR or device.restore > 0 or device.pending != 0 or site.budget <= 0:
        return False
    if order == Order.RATE_LIMIT:
        return device.rate_limit == 0 and device.isolate == 0
    if order == Order.BLOCK:
        return device.block == 0 and device.isolate == 0
    if order == Order.ISOLATE:
        return device.isolate == 0 and not spared
    if order == Order.RELEASE:
        return device.rate_limit + device.block + device.isolate > 0
    return order == Order.RESTORE


@njit(**_INNER)
def _setback(world, site, cost):
    """The attacker loses patience, and goes on more slowly and better hidden for a while."""
    caution = world.profiles[site.profile].caution
    site.patience -= cost
    site.caution += caution * (1.0 - site.caution)


@njit(**_INNER)
def _notice(world, site, d, cost):
    """A setback that shows the attacker that it was seen: it may fall silent."""
    _setback(world, site, cost)
    dormancy = world.profiles[site.profile].dormancy
    if dormancy > 0:
        u = uniform(site.key, site.step, d, _DORMANT)
        site.dormant = max(site.dormant, 1 + int(-np.log(1.0 - u) * dormancy))


@njit(**_INNER)
def _take_effect(world, site, device, d, order):
    """An order comes into force."""
    foothold = device.stage >= Stage.COMPROMISED
    if (order == Order.ISOLATE or order == Order.RESTORE) and device.stage >= Stage.ATTACKED and site.first_response < 0:
        site.first_response = site.step
    if order == Order.RATE_LIMIT:
        device.rate_limit = world.controls[order].ttl
    elif order == Order.BLOCK:
        device.block = world.controls[order].ttl
        device.evaded = False
    elif order == Order.ISOLATE:
        device.isolate = world.controls[order].ttl
        if foothold and not device.shown:  # once a foothold, or isolate/release cycles would wear the attacker out for nothing
            device.shown = True
            _notice(world, site, d, 1.0)
    else:
        device.rate_limit = 0
        device.block = 0
        device.isolate = 0
        device.evaded = False
        if order == Order.RESTORE:
            device.restore = world.restore_time[d]
            site.cleanup += world.criticality[d]
            if foothold:
                _notice(world, site, d, 4.0)


@njit(**_INNER)
def _count(site, order):
    site.orders += 1
    if order == Order.RATE_LIMIT:
        site.rate_limit += 1
    elif order == Order.BLOCK:
        site.block += 1
    elif order == Order.ISOLATE:
        site.isolate += 1
    elif order == Order.RESTORE:
        site.restore += 1
    else:
        site.release += 1


@njit(**_INNER)
def _obey(world, site, devices, action):
    """Orders that are due take effect; new ones are paid for, and wait out their delay."""
    rules = world.rules[0]
    addressed = np.int64(-1)
    kind = np.int64(0)
    if not rules.joint and action[0] > 0:
        addressed = (action[0] - 1) // 5
        kind = 1 + (action[0] - 1) % 5
    for d in range(len(devices)):
        device = devices[d]
        if rules.joint:
            kind = action[d]
        ordered = (rules.joint or d == addressed) and valid(site, device, rules.mask_protected and world.protected[d], kind)
        if device.pending != 0:  # after the question whether the new one counts, which is answered as the mask answered it
            device.delay -= 1
            if device.delay <= 0:
                order = device.pending
                device.pending = 0
                _take_effect(world, site, device, d, order)
        if ordered:
            control = world.controls[kind]
            site.budget -= 1
            site.action += control.cost
            _count(site, kind)
            if control.delay == 0:
                _take_effect(world, site, device, d, kind)
            else:
                device.pending = kind
                device.delay = control.delay


@njit(**_INNER)
def _turn(world, site, device, d, stage, purpose):
    """A device enters `stage`, and shows one of the classes that the attacker shows there."""
    device.stage = stage
    device.known = device.known or stage >= Stage.ATTACKED
    count = world.emission_counts[site.profile, stage]
    if count == 0:
        device.technique = -1
        return
    chosen = world.emissions[site.profile, stage, _pick(uniform(site.key, site.step, d, purpose), 0, count)]
    if chosen != device.technique:
        device.technique = chosen
        device.hostile = -1


@njit(**_INNER)
def _down(device):
    return device.isolate > 0 or device.restore > 0


@njit(**_INNER)
def _attempt(world, site, device, d, scripted):
    """The attacker works on a device that was probed or is under attack; a stopped attempt changes source, technique or target.

    Who is an agent decides for itself what to change.
    """
    profile = world.profiles[site.profile]
    key, step = site.key, site.step
    if device.stage == Stage.PROBED:
        chance = profile.engage
    else:
        weakness = min(1.0, world.weakness[d, world.class_family[device.technique]] * device.weakness)
        chance = profile.compromise * weakness * (world.rules[0].patch_factor if device.patched else 1.0)
    stop = 0.0
    if device.rate_limit > 0:
        stop = world.controls[Order.RATE_LIMIT].slows
    holds = device.block > 0 and not device.evaded
    if holds:
        stop = 1.0 - (1.0 - stop) * (1.0 - world.controls[Order.BLOCK].slows)
    if _down(device):
        stop = 1.0
    device.stopped = stop > 0.0 and uniform(key, step, d, _STOP) < stop
    if device.stopped:
        if device.stage == Stage.ATTACKED:
            _setback(world, site, 0.5)
        if not scripted:
            return
        if holds and uniform(key, step, d, _ROTATE) < profile.rotate:
            device.evaded = True
        elif uniform(key, step, d, _ABANDON) < profile.abandon:
            _turn(world, site, device, d, Stage.CLEAN, _TECHNIQUE)
        elif device.stage == Stage.ATTACKED and uniform(key, step, d, _ADAPT) < profile.adapt:
            _turn(world, site, device, d, Stage.ATTACKED, _ADAPTED)
    elif uniform(key, step, d, _ADVANCE) < chance * (1.0 - site.caution):
        _turn(world, site, device, d, device.stage + 1, _TECHNIQUE)
        if device.stage == Stage.COMPROMISED:
            device.shown = False
            device.pressing = False
            site.compromises += 1
            if site.first_foothold < 0:
                site.first_foothold = step


@njit(**_INNER)
def _press(world, site, device, d):
    """From a foothold to impact."""
    stop = world.controls[Order.RATE_LIMIT].slows if device.rate_limit > 0 else 0.0
    if uniform(site.key, site.step, d, _ADVANCE) < world.profiles[site.profile].impact * (1.0 - stop) * (1.0 - site.caution):
        _turn(world, site, device, d, Stage.IMPACT, _TECHNIQUE)


@njit(**_INNER)
def _open(world, site, device, d, reached):
    """The attacker turns to a device, if it can reach it; what it has scouted before it attacks at once."""
    if device.stage == Stage.CLEAN and (reached >> world.zone[d]) & 1:
        device.stopped = _down(device)
        if not device.stopped:
            _turn(world, site, device, d, Stage.ATTACKED if device.known else Stage.PROBED, _TECHNIQUE)


@njit(**_INNER)
def _obeyed(world, site, device, d, kind, reached, hands):
    """One move of an attacker who is an agent: `kind` on a device."""
    if kind == Move.ADVANCE:
        if device.stage == Stage.CLEAN:
            if hands > 0:
                _open(world, site, device, d, reached)
        elif device.stage == Stage.COMPROMISED and not _down(device):
            if not device.pressing:
                _press(world, site, device, d)
            device.pressing = True
    elif kind == Move.ROTATE:
        if device.stage != Stage.CLEAN and not _down(device):
            if device.block > 0 and uniform(site.key, site.step, d, _ROTATE) < ROTATION:
                device.evaded = True
            if device.stage == Stage.ATTACKED:
                _turn(world, site, device, d, Stage.ATTACKED, _ADAPTED)
    elif device.stage == Stage.PROBED or device.stage == Stage.ATTACKED:
        _turn(world, site, device, d, Stage.CLEAN, _TECHNIQUE)
    elif not _down(device):
        device.pressing = False
        if device.stage == Stage.IMPACT:
            _turn(world, site, device, d, Stage.COMPROMISED, _TECHNIQUE)


@njit(**_INNER)
def _attack(world, site, devices, move):
    """The attacker moves on every device, then turns to new ones."""
    profile = world.profiles[site.profile]
    D = len(devices)
    key, step = site.key, site.step
    if site.start < 0 or step < site.start:
        return
    site.caution *= FADING
    if move == Move.LIE_LOW:
        site.dormant = 1
    elif move > 0:
        site.dormant = 0  # who is an agent decides for itself when to hide
    if site.dormant > 0:
        for d in range(D):  # whoever hides stops the flood, and keeps the foothold
            if devices[d].stage == Stage.IMPACT:
                _turn(world, site, devices[d], d, Stage.COMPROMISED, _TECHNIQUE)
        return
    scripted = move == SCRIPTED
    target = (move - 1) // 3  # of an agent's move
    before = devices[max(target, 0)].stage
    footholds = 0
    busy = 0
    reached = world.reach[0]
    if profile.insider:
        reached |= np.int64(1) << world.zone[site.entry]
    for d in range(D):
        device = devices[d]
        stage = device.stage
        if stage == Stage.CLEAN:
            continue
        if stage == Stage.PROBED or stage == Stage.ATTACKED:
            _attempt(world, site, device, d, scripted)
        elif stage == Stage.COMPROMISED and (scripted or device.pressing) and not _down(device):
            _press(world, site, device, d)
        if device.stage >= Stage.COMPROMISED and not _down(device):
            footholds += 1
            reached |= world.reach[1 + world.zone[d]]
        busy += device.stage == Stage.PROBED or device.stage == Stage.ATTACKED
    hands = profile.breadth + profile.spread * footholds - busy if site.patience > 0.0 else 0
    if not scripted:
        if devices[target].stage == before:  # else the device went on meanwhile, and the move was meant for what it had been
            _obeyed(world, site, devices[target], target, 1 + (move - 1) % 3, reached, hands)
        return
    for hand in range(hands):
        if uniform(key, step, hand, _PROBE) < profile.probe * (1.0 - site.caution):
            first = footholds == 0 and not devices[site.entry].known and hand == 0
            d = site.entry if first else _pick(uniform(key, step, hand, _TARGET), 0, D)
            _open(world, site, devices[d], d, reached)


@njit(**_INNER)
def transition(world, site, devices, action, move):
    """Orders, then the attacker.

    `action` holds the addressed order (1,), 0 = none, 1 + 5 x device + kind - 1, or in joint mode a kind a device (D,); an order that
    changes nothing is passed over. `move` is `SCRIPTED` or a `Move`.
    """
    _obey(world, site, devices, action)
    _attack(world, site, devices, move)


@njit(**_INNER)
def emit(world, site, devices, trail):
    """Choose the window that each device shows, and note in `trail` (D, L) which of them are received."""
    rules = world.rules[0]
    profile = world.profiles[site.profile]
    key, step = site.key, site.step
    slot = (step + 1) % trail.shape[1]
    hidden = site.dormant > 0
    for d in range(len(devices)):
        device = devices[d]
        following = world.successor[device.calm]
        if following < 0:
            low, high = world.ranges[device.calm_class]
            following = np.int32(_pick(uniform(key, step, d, _CALM), low, high))
        device.calm = following
        device.window = following
        device.attack_shown = False
        if device.technique >= 0 and not hidden:
            visible = (1.0 - profile.stealth * (LOUDNESS if world.loud[device.technique] else 1.0)) * (1.0 - site.caution)
            if uniform(key, step, d, _STEALTH) < visible:
                following = world.successor[device.hostile] if device.hostile >= 0 else np.int32(-1)
                evades = profile.evasion > 0.0 and uniform(key, step, d, _EVADE) < profile.evasion
                if following < 0 or evades:
                    low, high = world.ranges[device.technique]
                    if evades:
                        high = min(high, low + max(LEAST_CHOICE, int(np.ceil((high - low) * (1.0 - profile.evasion)))))
                    following = world.quiet[_pick(uniform(key, step, d, _HOSTILE), low, high)]
                device.hostile = following
                device.window = following
                device.attack_shown = True
        heard = not _down(device) and (rules.sensor_dropout == 0.0 or uniform(key, step, d, _DROPOUT) >= rules.sensor_dropout)
        trail[d, slot] = device.window if heard else NOTHING


@njit(**_INNER)
def _drifted(rules, site, d, column, columns, reading, when):
    """A reading of a detector that is off by now: families fade to evenly spread, the others go towards alarm on some devices, towards calm on the rest.

    `column` counts the `columns` readings alone; the last three are risk, uncertainty and anomaly.
    """
    share = rules.detector_drift * when / rules.horizon
    alarm = 1.0 if uniform(site.key, 0, d, _DRIFT) < 0.5 else 0.0
    target = 1.0 / (columns - 3) if column < columns - 3 else alarm
    return np.float32(reading + share * (target - reading))


@njit(**_INNER)
def sense(world, site, devices, trail):
    """Keep the running means of what the sensors say, from the windows that arrive in this step."""
    rules = world.rules[0]
    due = site.step + 1 - rules.telemetry_delay
    if due < 0:
        return
    slot = due % trail.shape[1]
    decay = rules.smoothing
    table = world.table
    S = table.shape[1] - rules.features
    column = table.shape[1] - 3
    for d in range(len(devices)):
        window = trail[d, slot]
        device = devices[d]
        if window < 0 or due <= device.since:
            continue
        risk, uncertainty, anomaly = table[window, column], table[window, column + 1], table[window, column + 2]
        if rules.detector_drift > 0.0:
            risk = _drifted(rules, site, d, S - 3, S, risk, due)
            uncertainty = _drifted(rules, site, d, S - 2, S, uncertainty, due)
            anomaly = _drifted(rules, site, d, S - 1, S, anomaly, due)
        device.risk = decay * device.risk + (np.float32(1.0) - decay) * risk
        device.uncertainty = decay * device.uncertainty + (np.float32(1.0) - decay) * uncertainty
        device.anomaly = decay * device.anomaly + (np.float32(1.0) - decay) * anomaly


@njit(**_INNER)
def service_loss(controls, device):
    """Share of a device's legitimate traffic that its controls cost."""
    if _down(device):
        return 1.0
    kept = 1.0
    if device.rate_limit > 0:
        kept *= 1.0 - controls[Order.RATE_LIMIT].service_loss
    if device.block > 0:
        kept *= 1.0 - controls[Order.BLOCK].service_loss
    return 1.0 - kept


@njit(**_INNER)
def _harm(controls, device):
    """Damage that a device with a foothold, not cut off, does this step, before criticality."""
    if device.stage == Stage.COMPROMISED:
        return FOOTHOLD_DAMAGE
    kept = 1.0
    if device.rate_limit > 0:
        kept *= 1.0 - controls[Order.RATE_LIMIT].contains
    if device.block > 0 and not device.evaded:
        kept *= 1.0 - controls[Order.BLOCK].contains
    return kept


@njit(**_INNER)
def reward_terms(world, site, devices, terms):
    """Write service, damage and safety losses of this step into `terms` (5,), by `TERMS`, unweighted."""
    service = 0.0
    damage = 0.0
    safety = 0.0
    healthy = 0.0
    for d in range(len(devices)):
        device = devices[d]
        criticality = world.criticality[d]
        foothold = device.stage >= Stage.COMPROMISED
        loss = 0.0
        if device.rate_limit + device.block + device.isolate + device.restore > 0:
            loss = service_loss(world.controls, device)
            device.lost += loss
            service += criticality * loss
            safety += world.protected[d] and device.isolate > 0
            site.false_isolation += _down(device) and device.stage == Stage.CLEAN
        if foothold:
            if not _down(device):
                damage += criticality * _harm(world.controls, device)
                site.dwell += 1
        else:
            healthy += criticality * (1.0 - loss)
    terms[0] = service
    terms[1] = damage
    terms[4] = safety
    site.healthy += healthy
    site.service += service
    site.damage += damage
    site.safety += safety


@njit(**_INNER)
def ended(world, site, devices, terms):
    """Count the step, and decide whether the episode ends; an overrun charges the damage, and the footholds, of the steps that it cuts off."""
    rules = world.rules[0]
    lost = 0.0
    footholds = 0
    open_footholds = 0
    for d in range(len(devices)):
        device = devices[d]
        if device.stage >= Stage.COMPROMISED:
            footholds += 1
            open_footholds += not _down(device)
            if device.stage == Stage.IMPACT and not _down(device):
                lost += world.criticality[d]
    site.overrun = site.overrun + 1 if lost >= rules.overrun_share - 1e-9 else 0
    site.step += 1
    if site.overrun >= rules.overrun_steps:
        site.end = End.OVERRUN
        rest = terms[1] * (rules.horizon - site.step)
        terms[1] += rest
        site.damage += rest
        site.dwell += open_footholds * (rules.horizon - site.step)
    elif site.start >= 0 and site.step > site.start and site.patience <= 0.0 and footholds == 0:
        site.end = End.EVICTED
    elif site.step >= rules.horizon:
        site.end = End.HORIZON


@njit(**_INNER)
def tick(world, site, devices):
    """Clocks of controls run down; a restore that is done leaves the device clean, and patched if it can be."""
    for d in range(len(devices)):
        device = devices[d]
        if device.rate_limit + device.block + device.isolate + device.restore == 0:
            continue
        device.rate_limit = max(0, device.rate_limit - 1)
        device.isolate = max(0, device.isolate - 1)
        if device.block > 0:
            device.block -= 1
            if device.block == 0:
                device.evaded = False
        if device.restore > 0:
            device.restore -= 1
            if device.restore == 0:
                device.stage = Stage.CLEAN
                device.technique = -1
                device.hostile = -1
                device.patched = world.patchable[d]
                device.since = site.step
                device.risk = 0.0  # what was seen before the re-imaging says nothing about the device now
                device.uncertainty = 0.0
                device.anomaly = 0.0


@njit(**_INNER)
def _advance(world, site, devices, trail, action, move, terms):
    """The first half of a step: what happens, and what it shows. The orders' costs are what the site's sums grow by."""
    terms[2] = -site.action
    terms[3] = -site.cleanup
    transition(world, site, devices, action, move)
    terms[2] += site.action
    terms[3] += site.cleanup
    emit(world, site, devices, trail)
    if move == SCRIPTED and site.dormant > 0:  # after the traffic: who does nothing shows nothing
        site.dormant -= 1


@njit(**_INNER)
def _settle(world, site, devices, trail, terms):
    """The second half: what the sensors say of it and what it costs. Returns the reward."""
    rules = world.rules[0]
    sense(world, site, devices, trail)
    reward_terms(world, site, devices, terms)
    ended(world, site, devices, terms)
    tick(world, site, devices)
    loss = rules.service * terms[0] + rules.damage * terms[1] + rules.action * terms[2] + rules.cleanup * terms[3] + rules.safety * terms[4]
    return 0.0 - loss  # not -loss, which would be -0.0 where nothing is lost


@njit(**_COMPILED)
def step(world, sites, devices, trails, actions, moves, terms, rewards, out):
    """One step of every environment: losses to `terms` (E, 5), weighted rewards to `rewards` (E,), what the defender sees to `out` (E, size).

    `actions` is (E, 1) or, in joint mode, (E, D); `moves` (E,); see `transition`.
    """
    for e in range(len(sites)):
        _advance(world, sites[e], devices[e], trails[e], actions[e], moves[e], terms[e])
        rewards[e] = _settle(world, sites[e], devices[e], trails[e], terms[e])
        _look(world, sites[e], devices[e], trails[e], out[e])


@njit(**_COMPILED)
def advance(world, sites, devices, trails, actions, moves, terms):
    """The first half of `step`, for sensors that must read the windows shown before it goes on."""
    for e in range(len(sites)):
        _advance(world, sites[e], devices[e], trails[e], actions[e], moves[e], terms[e])


@njit(**_COMPILED)
def settle(world, sites, devices, trails, terms, rewards, out):
    """The second half of `step`."""
    for e in range(len(sites)):
        rewards[e] = _settle(world, sites[e], devices[e], trails[e], terms[e])
        _look(world, sites[e], devices[e], trails[e], out[e])


@njit(**_INNER)
def _write(rules, table, site, d, window, when, features, sensors):
    """Write a window's features and readings, or zeros where nothing was received."""
    F, S = len(features), len(sensors)
    if window < 0:
        features[:] = 0.0
        sensors[:] = 0.0
        return
    row = table[window]
    for i in range(F):
        features[i] = row[i]
    for i in range(S):
        sensors[i] = row[F + i]
    if rules.detector_drift > 0.0:
        for i in range(S):
            sensors[i] = _drifted(rules, site, d, i, S, sensors[i], when)


@njit(**_INNER)
def _look(world, site, devices, trail, out):
    """What the defender sees of one environment, in the layout of `envs.world.Layout`: one part after the other, device by device."""
    rules = world.rules[0]
    table, controls, traits, protected = world.table, world.controls, world.traits, world.protected  # each mention of a field of `world` costs
    D = len(devices)
    F = rules.features
    S = table.shape[1] - F
    L = trail.shape[1]
    older = rules.history - 1
    now = site.step - rules.telemetry_delay
    sensors, past = D * F, D * (F + S)
    trend = past + D * older * (F + S)
    held = trend + 3 * D
    service = held + 5 * D
    silent = service + D
    may = silent + D
    known = may + 5 * D
    limit, block = 1.0 / controls[Order.RATE_LIMIT].ttl, 1.0 / controls[Order.BLOCK].ttl
    isolate, restore = 1.0 / controls[Order.ISOLATE].ttl, 1.0 / rules.slowest
    for d in range(D):
        device = devices[d]
        window = trail[d, now % L] if now >= 0 else np.int32(NOTHING)
        _write(rules, table, site, d, window, now, out[d * F : d * F + F], out[sensors + d * S : sensors + d * S + S])
        for back in range(older):
            before = trail[d, (now - back - 1) % L] if now > back else np.int32(NOTHING)
            at = past + (d * older + back) * (F + S)
            _write(rules, table, site, d, before, now - back - 1, out[at : at + F], out[at + F : at + F + S])
        out[trend + 3 * d] = device.risk
        out[trend + 3 * d + 1] = device.uncertainty
        out[trend + 3 * d + 2] = device.anomaly
        at = held + 5 * d
        out[at] = device.rate_limit * limit
        out[at + 1] = device.block * block
        out[at + 2] = device.isolate * isolate
        out[at + 3] = device.restore * restore
        out[at + 4] = device.pending != 0
        out[service + d] = 1.0 - service_loss(controls, device)
        out[silent + d] = window < 0
        spared = rules.mask_protected and protected[d]
        at = may + 5 * d
        for order in range(1, 6):
            out[at + order - 1] = valid(site, device, spared, order)
        at = known + 5 * d
        for i in range(4):
            out[at + i] = traits[d, i]
        out[at + 4] = device.patched
    out[known + 5 * D] = 1.0 - site.step / rules.horizon
    out[known + 5 * D + 1] = site.budget / rules.budget


@njit(**_COMPILED)
def observe(world, sites, devices, trails, which, out):
    """Write what the defenders of the environments `which` see into those rows of `out` (E, size)."""
    for i in range(len(which)):
        e = which[i]
        _look(world, sites[e], devices[e], trails[e], out[e])


@njit(**_COMPILED)
def masks(world, sites, devices, out):
    """Write which orders would change something, (E, D, 5) by Order less 1."""
    rules = world.rules[0]
    for e in range(len(sites)):
        for d in range(devices.shape[1]):
            spared = rules.mask_protected and world.protected[d]
            for order in range(1, 6):
                out[e, d, order - 1] = valid(sites[e], devices[e, d], spared, order)
