"""The rules of the world, compiled, batch first, and free of side effects beyond their arguments.

State is two record arrays with a leading environment axis: `sites` (E,) and `devices` (E, D); each field of them is a
structure-of-arrays view (`devices["stage"]` is (E, D)). `World` gathers what does not change in an episode. Every random
number is a hash of (the episode's key, step, device, purpose), so it depends neither on the batch nor on the order of
evaluation: environment i of a batch equals a single environment with the same key.

One step is `transition` (orders, attacker), `emit` (traffic shown), `reward_terms` (losses of the step, counted while
controls are in force), `ended`, and, after the clocks, `observe`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from envs.attackers import Stage


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
        ("key", np.uint64), ("step", np.int64), ("profile", np.int64), ("start", np.int64), ("patience", np.float64),
        ("dormant", np.int64), ("overrun", np.int64), ("budget", np.int64), ("end", np.int64),
        # What the episode's summary is made of; none of it is observed.
        ("service", np.float64), ("damage", np.float64), ("action", np.float64), ("cleanup", np.float64), ("safety", np.float64),
        ("healthy", np.float64), ("orders", np.int64), ("compromises", np.int64), ("dwell", np.int64),
        ("false_isolation", np.int64), ("first_foothold", np.int64), ("first_response", np.int64),
        ("rate_limit", np.int64), ("block", np.int64), ("isolate", np.int64), ("restore", np.int64), ("release", np.int64),
    ]
)  # fmt: skip
"""One environment. `start` is -1 in an attack-free episode."""

DEVICE = np.dtype(
    [
        ("stage", np.int64), ("technique", np.int64), ("window", np.int64), ("calm", np.int64), ("hostile", np.int64),
        ("rate_limit", np.int64), ("block", np.int64), ("isolate", np.int64), ("restore", np.int64),
        ("pending", np.int64), ("delay", np.int64), ("evaded", np.bool_), ("patched", np.bool_), ("shown", np.bool_),
        ("attack_shown", np.bool_), ("silent", np.bool_),
        ("risk", np.float32), ("uncertainty", np.float32), ("anomaly", np.float32),
    ]
)  # fmt: skip
"""One device: attack stage and class shown; window shown and the two cursors; remaining steps of each control; order on its way;
whether the block was got round, the hole is closed, the isolation of this foothold was noticed, the window shown is an attack's,
the device was cut off in the step that ended;
running means of the sensors."""

CONTROL = np.dtype(
    [("cost", np.float64), ("delay", np.int64), ("ttl", np.int64), ("service_loss", np.float64), ("slows", np.float64), ("contains", np.float64)]
)
"""One kind of order."""

RULES = np.dtype(
    [
        ("horizon", np.int64), ("overrun_share", np.float64), ("overrun_steps", np.int64), ("mask_protected", np.bool_), ("budget", np.int64),
        ("smoothing", np.float32), ("patch_factor", np.float64), ("attack_free", np.float64), ("start_first", np.int64), ("start_last", np.int64),
        *((name, np.float64) for name in TERMS),
    ]
)  # fmt: skip
"""Rules and reward weights."""

FOOTHOLD_DAMAGE = 0.25
"""Damage of a foothold, as a share of impact's."""

# Purposes of random numbers.
_START, _FREE, _PROFILE, _CALM, _CALM_CLASS, _HOSTILE, _TECHNIQUE, _ADVANCE, _STOP, _ROTATE, _ABANDON, _STEALTH, _DORMANT, _PROBE, _TARGET = range(15)


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
    reach: NDArray[np.bool_]
    """(1 + Z, Z)"""
    emissions: NDArray[np.int64]
    """(P, 5, C) classes shown"""
    emission_counts: NDArray[np.int64]
    """(P, 5)"""
    calm_classes: NDArray[np.int64]
    """(n,) benign classes"""
    ranges: NDArray[np.int64]
    """(C, 2)"""
    successor: NDArray[np.int32]
    """(W,)"""
    features: NDArray[np.float32]
    """(W, F)"""
    sensors: NDArray[np.float32]
    """(W, S)"""


@njit(cache=True, inline="always")
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


@njit(cache=True)
def _pick(u, low, high):
    """An integer in [low, high) from a number in [0, 1)."""
    return low + min(int(u * (high - low)), high - low - 1)


@njit(cache=True)
def begin(world, sites, devices, which, keys):
    """Draw the episodes that `keys` name, for the environments `which`, whose records were set to zero before."""
    rules = world.rules[0]
    for i in range(len(which)):
        e = which[i]
        key = keys[i]
        site = sites[e]
        site.key = key
        site.profile = _pick(uniform(key, 0, -1, _PROFILE), 0, len(world.profiles))
        free = uniform(key, 0, -1, _FREE) < rules.attack_free
        site.start = -1 if free else _pick(uniform(key, 0, -1, _START), rules.start_first, rules.start_last + 1)
        site.patience = world.profiles[site.profile].patience
        site.budget = rules.budget
        site.first_foothold = -1
        site.first_response = -1
        for d in range(devices.shape[1]):
            device = devices[e, d]
            chosen = world.calm_classes[_pick(uniform(key, -1, d, _CALM_CLASS), 0, len(world.calm_classes))]
            device.technique = -1
            device.calm = _pick(uniform(key, -1, d, _CALM), world.ranges[chosen, 0], world.ranges[chosen, 1])
            device.window = device.calm


@njit(cache=True)
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


@njit(cache=True)
def _notice(world, site, setback):
    """The attacker loses patience and may fall silent."""
    profile = world.profiles[site.profile]
    site.patience -= setback
    if profile.dormancy > 0:
        u = uniform(site.key, site.step, -1, _DORMANT)
        site.dormant = max(site.dormant, 1 + int(-np.log(1.0 - u) * profile.dormancy))


@njit(cache=True)
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
            _notice(world, site, 1.0)
    else:
        device.rate_limit = 0
        device.block = 0
        device.isolate = 0
        device.evaded = False
        if order == Order.RESTORE:
            device.restore = world.restore_time[d]
            site.cleanup += world.criticality[d]
            if foothold:
                _notice(world, site, 4.0)


@njit(cache=True)
def _obey(world, site, devices, e, orders):
    """Orders that are due take effect; new ones are paid for, and wait out their delay."""
    spare = world.rules[0].mask_protected
    for d in range(devices.shape[1]):
        device = devices[e, d]
        if device.pending != 0:
            device.delay -= 1
            if device.delay <= 0:
                order = device.pending
                device.pending = 0
                _take_effect(world, site, device, d, order)
        order = orders[e, d]
        if order != Order.MONITOR and valid(site, device, spare and world.protected[d], order):
            site.budget -= 1
            site.orders += 1
            site.action += world.controls[order].cost
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
            if world.controls[order].delay == 0:
                _take_effect(world, site, device, d, order)
            else:
                device.pending = order
                device.delay = world.controls[order].delay


@njit(cache=True)
def _turn(world, site, device, d, stage):
    """A device enters `stage`, and shows one of the classes that the attacker shows there."""
    device.stage = stage
    count = world.emission_counts[site.profile, stage]
    if count == 0:
        device.technique = -1
        return
    chosen = world.emissions[site.profile, stage, _pick(uniform(site.key, site.step, d, _TECHNIQUE), 0, count)]
    if chosen != device.technique:
        device.technique = chosen
        device.hostile = -1


@njit(cache=True)
def _attempt(world, site, device, d):
    """The attacker works on a device that was probed or is under attack."""
    profile = world.profiles[site.profile]
    key, step = site.key, site.step
    if device.stage == Stage.PROBED:
        chance = profile.engage
    else:
        weakness = world.weakness[d, profile.family] * (world.rules[0].patch_factor if device.patched else 1.0)
        chance = profile.compromise * weakness
    stop = 0.0
    if device.rate_limit > 0:
        stop = world.controls[Order.RATE_LIMIT].slows
    holds = device.block > 0 and not device.evaded
    if holds:
        stop = 1.0 - (1.0 - stop) * (1.0 - world.controls[Order.BLOCK].slows)
    if device.isolate > 0 or device.restore > 0:
        stop = 1.0
    if uniform(key, step, d, _STOP) < stop:
        if device.stage == Stage.ATTACKED:
            site.patience -= 0.5
        if holds and uniform(key, step, d, _ROTATE) < profile.rotate:
            device.evaded = True
        elif uniform(key, step, d, _ABANDON) < profile.abandon:
            _turn(world, site, device, d, Stage.CLEAN)
    elif uniform(key, step, d, _ADVANCE) < chance:
        _turn(world, site, device, d, device.stage + 1)
        if device.stage == Stage.COMPROMISED:
            device.shown = False
            site.compromises += 1
            if site.first_foothold < 0:
                site.first_foothold = step


@njit(cache=True)
def _attack(world, site, devices, e):
    """The attacker moves on every device, then turns to new ones."""
    profile = world.profiles[site.profile]
    D = devices.shape[1]
    key, step = site.key, site.step
    if site.start < 0 or step < site.start:
        return
    footholds = 0
    busy = 0
    if site.dormant > 0:
        site.dormant -= 1
        for d in range(D):  # whoever hides stops the flood, and keeps the foothold
            if devices[e, d].stage == Stage.IMPACT:
                _turn(world, site, devices[e, d], d, Stage.COMPROMISED)
        return
    for d in range(D):
        device = devices[e, d]
        if device.stage == Stage.PROBED or device.stage == Stage.ATTACKED:
            _attempt(world, site, device, d)
        elif device.stage == Stage.COMPROMISED and device.isolate == 0 and device.restore == 0:
            stop = world.controls[Order.RATE_LIMIT].slows if device.rate_limit > 0 else 0.0
            if uniform(key, step, d, _ADVANCE) < profile.impact * (1.0 - stop):
                _turn(world, site, device, d, Stage.IMPACT)
        footholds += device.stage >= Stage.COMPROMISED and device.isolate == 0 and device.restore == 0
        busy += device.stage == Stage.PROBED or device.stage == Stage.ATTACKED
    if site.patience <= 0.0:
        return
    for hand in range(profile.breadth + footholds - busy):
        if uniform(key, step, hand, _PROBE) >= profile.probe:
            continue
        d = _pick(uniform(key, step, hand, _TARGET), 0, D)
        device = devices[e, d]
        if device.stage != Stage.CLEAN or device.isolate > 0 or device.restore > 0:
            continue
        reached = world.reach[0, world.zone[d]]
        for other in range(D):
            held = devices[e, other]
            if held.stage >= Stage.COMPROMISED and held.isolate == 0 and held.restore == 0:
                reached = reached or world.reach[1 + world.zone[other], world.zone[d]]
        if reached:
            _turn(world, site, device, d, Stage.PROBED)


@njit(cache=True)
def transition(world, sites, devices, orders):
    """Orders, then the attacker. `orders` is (E, D) of `Order`; one that changes nothing is passed over."""
    for e in range(len(sites)):
        _obey(world, sites[e], devices, e, orders)
        _attack(world, sites[e], devices, e)


@njit(cache=True)
def _follow(world, cursor, key, step, d, purpose, chosen):
    """The window after `cursor` in its capture, or a random one of class `chosen` where there is none."""
    if cursor >= 0 and world.successor[cursor] >= 0:
        return np.int64(world.successor[cursor])
    return _pick(uniform(key, step, d, purpose), world.ranges[chosen, 0], world.ranges[chosen, 1])


@njit(cache=True)
def emit(world, sites, devices):
    """Choose the window that each device shows, and keep the running means of what the sensors say of it."""
    decay = world.rules[0].smoothing
    risk_at = world.sensors.shape[1] - 3
    for e in range(len(sites)):
        site = sites[e]
        for d in range(devices.shape[1]):
            device = devices[e, d]
            chosen = world.calm_classes[_pick(uniform(site.key, site.step, d, _CALM_CLASS), 0, len(world.calm_classes))]
            device.calm = _follow(world, device.calm, site.key, site.step, d, _CALM, chosen)
            device.window = device.calm
            device.attack_shown = False
            if device.technique >= 0 and site.dormant == 0:
                stealth = world.profiles[site.profile].stealth * (0.5 if device.stage == Stage.IMPACT else 1.0)
                if uniform(site.key, site.step, d, _STEALTH) >= stealth:
                    device.hostile = _follow(world, device.hostile, site.key, site.step, d, _HOSTILE, device.technique)
                    device.window = device.hostile
                    device.attack_shown = True
            # Kept, since the controls' clocks run on before the defender looks: what was cut off in this step has shown nothing.
            device.silent = device.isolate > 0 or device.restore > 0
            if not device.silent:
                reading = world.sensors[device.window]
                device.risk = decay * device.risk + (1 - decay) * reading[risk_at]
                device.uncertainty = decay * device.uncertainty + (1 - decay) * reading[risk_at + 1]
                device.anomaly = decay * device.anomaly + (1 - decay) * reading[risk_at + 2]


@njit(cache=True)
def service_loss(controls, device):
    """Share of a device's legitimate traffic that its controls cost."""
    if device.isolate > 0 or device.restore > 0:
        return 1.0
    kept = 1.0
    if device.rate_limit > 0:
        kept *= 1.0 - controls[Order.RATE_LIMIT].service_loss
    if device.block > 0:
        kept *= 1.0 - controls[Order.BLOCK].service_loss
    return 1.0 - kept


@njit(cache=True)
def _harm(controls, device):
    """Damage that a device does this step, before criticality."""
    if device.stage < Stage.COMPROMISED or device.isolate > 0 or device.restore > 0:
        return 0.0
    if device.stage == Stage.COMPROMISED:
        return FOOTHOLD_DAMAGE
    kept = 1.0
    if device.rate_limit > 0:
        kept *= 1.0 - controls[Order.RATE_LIMIT].contains
    if device.block > 0 and not device.evaded:
        kept *= 1.0 - controls[Order.BLOCK].contains
    return kept


@njit(cache=True)
def reward_terms(world, sites, devices, terms):
    """Write the losses of this step, (E, 5) by `TERMS`, unweighted. `transition` left the orders' costs in the site's sums."""
    controls = world.controls
    for e in range(len(sites)):
        site = sites[e]
        service = 0.0
        damage = 0.0
        safety = 0.0
        for d in range(devices.shape[1]):
            device = devices[e, d]
            down = device.isolate > 0 or device.restore > 0
            loss = service_loss(controls, device)
            service += world.criticality[d] * loss
            damage += world.criticality[d] * _harm(controls, device)
            safety += world.protected[d] and device.isolate > 0
            foothold = device.stage >= Stage.COMPROMISED
            if not foothold:
                site.healthy += world.criticality[d] * (1.0 - loss)
            site.dwell += foothold and not down
            site.false_isolation += down and device.stage == Stage.CLEAN
        terms[e, 0] = service
        terms[e, 1] = damage
        terms[e, 4] = safety
        site.service += service
        site.damage += damage
        site.safety += safety


@njit(cache=True)
def ended(world, sites, devices, terms):
    """Decide whether the episode ends; an overrun charges the damage of the steps that it cuts off."""
    rules = world.rules[0]
    for e in range(len(sites)):
        site = sites[e]
        lost = 0.0
        footholds = 0
        for d in range(devices.shape[1]):
            device = devices[e, d]
            if device.stage == Stage.IMPACT and device.isolate == 0 and device.restore == 0:
                lost += world.criticality[d]
            footholds += device.stage >= Stage.COMPROMISED
        site.overrun = site.overrun + 1 if lost >= rules.overrun_share else 0
        site.step += 1
        if site.overrun >= rules.overrun_steps:
            site.end = End.OVERRUN
            rest = terms[e, 1] * (rules.horizon - site.step)
            terms[e, 1] += rest
            site.damage += rest
        elif site.start >= 0 and site.step > site.start and site.patience <= 0.0 and footholds == 0:
            site.end = End.EVICTED
        elif site.step >= rules.horizon:
            site.end = End.HORIZON


@njit(cache=True)
def tick(world, sites, devices):
    """Clocks of controls run down; a restore that is done leaves the device clean, and patched if it can be."""
    for e in range(len(sites)):
        for d in range(devices.shape[1]):
            device = devices[e, d]
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
                    device.risk = 0.0  # what was seen before the re-imaging says nothing about the device now
                    device.uncertainty = 0.0
                    device.anomaly = 0.0


@njit(cache=True)
def step(world, sites, devices, orders, terms, rewards):
    """One step of every environment; losses to `terms` (E, 5), weighted rewards to `rewards` (E,)."""
    rules = world.rules[0]
    for e in range(len(sites)):  # the orders' costs of this step are what the sums grow by
        terms[e, 2] = -sites[e].action
        terms[e, 3] = -sites[e].cleanup
    transition(world, sites, devices, orders)
    for e in range(len(sites)):
        terms[e, 2] += sites[e].action
        terms[e, 3] += sites[e].cleanup
    emit(world, sites, devices)
    reward_terms(world, sites, devices, terms)
    ended(world, sites, devices, terms)
    tick(world, sites, devices)
    for e in range(len(sites)):
        rewards[e] = -(
            rules.service * terms[e, 0] + rules.damage * terms[e, 1] + rules.action * terms[e, 2] + rules.cleanup * terms[e, 3] + rules.safety * terms[e, 4]
        )


@njit(cache=True)
def observe(world, sites, devices, out):
    """Write what the defender sees, (E, D x K + 2), in the layout of `envs.world.Layout`."""
    rules = world.rules[0]
    F = world.features.shape[1]
    S = world.sensors.shape[1]
    controls = world.controls
    spare = rules.mask_protected
    most = world.criticality.max()
    slowest = world.restore_time.max()
    for e in range(len(sites)):
        site = sites[e]
        i = 0
        for d in range(devices.shape[1]):
            device = devices[e, d]
            silent = device.silent
            for f in range(F):
                out[e, i + f] = 0.0 if silent else world.features[device.window, f]
            i += F
            for s in range(S):
                out[e, i + s] = 0.0 if silent else world.sensors[device.window, s]
            i += S
            out[e, i] = device.risk
            out[e, i + 1] = device.uncertainty
            out[e, i + 2] = device.anomaly
            out[e, i + 3] = device.rate_limit / controls[Order.RATE_LIMIT].ttl
            out[e, i + 4] = device.block / world.controls[Order.BLOCK].ttl
            out[e, i + 5] = device.isolate / world.controls[Order.ISOLATE].ttl
            out[e, i + 6] = device.restore / slowest
            out[e, i + 7] = device.pending != 0
            out[e, i + 8] = 1.0 - service_loss(controls, device)
            out[e, i + 9] = silent
            for order in range(1, 6):
                out[e, i + 9 + order] = valid(site, device, spare and world.protected[d], order)
            out[e, i + 15] = world.criticality[d] / most
            out[e, i + 16] = world.restore_time[d] / slowest
            out[e, i + 17] = world.protected[d]
            out[e, i + 18] = world.patchable[d]
            out[e, i + 19] = device.patched
            i += 20
        out[e, i] = 1.0 - site.step / rules.horizon
        out[e, i + 1] = site.budget / rules.budget


@njit(cache=True)
def decode(actions, orders):
    """Addressed orders (E,), 0 = none, 1 + 5 x device + kind - 1, into `orders` (E, D)."""
    for e in range(len(actions)):
        for d in range(orders.shape[1]):
            orders[e, d] = 0
        if actions[e] > 0:
            orders[e, (actions[e] - 1) // 5] = 1 + (actions[e] - 1) % 5
