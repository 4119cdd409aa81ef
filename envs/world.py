"""From configuration and trace bank to the arrays of the dynamics, and the layout of what comes out of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import ValidationError

from envs import dynamics
from envs.attackers import emission_table, profile_table
from envs.dynamics import CONTROL, DEVICE, RULES, SITE, TERMS, Order, World
from envs.scenarios import FAMILIES, Network, build_network
from src.config import Config, EnvConfig, explain
from src.data.bank import FEATURE_BOUND, TraceBank
from src.errors import UserError

KINDS = len(Order) - 1
"""Addressable kinds of order: all but MONITOR."""


@dataclass(frozen=True)
class Layout:
    """Where each part of the observation lies. Per device `width` floats, devices one after the other, then `CONTEXT` floats."""

    devices: int
    features: int
    sensors: int

    CONTEXT = 2

    @property
    def parts(self) -> dict[str, slice]:
        """Slices inside one device's floats, by the name that the Dict observation gives them."""
        sizes = {"features": self.features, "sensors": self.sensors, "trend": 3, "controls": 5, "service": 1, "silent": 1, "valid": KINDS, "device": 5}
        ends = np.cumsum(list(sizes.values())).tolist()
        return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}

    @property
    def width(self) -> int:
        """Floats a device."""
        return self.parts["device"].stop

    @property
    def size(self) -> int:
        """Floats in all."""
        return self.devices * self.width + self.CONTEXT

    def flat_space(self) -> spaces.Box:
        """Bounds of the flat observation."""
        low = np.zeros(self.size, np.float32)
        high = np.ones(self.size, np.float32)
        bounded = np.zeros(self.width, np.bool_)
        bounded[self.parts["features"]] = True
        low[: -self.CONTEXT][np.tile(bounded, self.devices)] = -FEATURE_BOUND
        high[: -self.CONTEXT][np.tile(bounded, self.devices)] = FEATURE_BOUND
        return spaces.Box(low, high, dtype=np.float32)

    def dict_space(self) -> spaces.Dict:
        """Bounds of the observation as named parts."""
        flat = self.flat_space()
        lows, highs = self.named(flat.low), self.named(flat.high)
        return spaces.Dict({name: spaces.Box(lows[name], highs[name], dtype=np.float32) for name in lows})

    def named(self, flat: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """(..., size) -> the Dict observation: each part (..., devices x floats), device by device; copies.

        One-dimensional per environment, since that is what Stable-Baselines3's MultiInputPolicy reads without a warning.
        """
        return {name: part.reshape(*flat.shape[:-1], -1).copy() for name, part in self.split(flat).items()}

    def split(self, flat: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """(..., size) -> the named parts, (..., devices, floats) and (..., 2); views where numpy can."""
        table = flat[..., : -self.CONTEXT].reshape(*flat.shape[:-1], self.devices, self.width)  # (..., D, K)
        return {**{name: table[..., part] for name, part in self.parts.items()}, "context": flat[..., -self.CONTEXT :]}


class Simulation:
    """A batch of environments: the state arrays, and the one implementation of reset and step that every front uses."""

    def __init__(self, config: Config, bank: TraceBank, split: str, count: int) -> None:
        """Compile the scenario against a bank.

        Raises:
            UserError: when scenario, features, split or attackers do not fit the bank.
        """
        self.config, self.bank, self.split, self.count = config, bank, split, count
        self.network: Network = build_network(config.env.scenario)
        self.world = _world(config, bank, split, self.network)
        D = len(self.network.names)
        self.layout = Layout(D, self.world.features.shape[1], self.world.sensors.shape[1])
        self.joint = config.env.action_mode == "joint"
        self.sites: NDArray[np.void] = np.zeros(count, SITE)
        self.devices: NDArray[np.void] = np.zeros((count, D), DEVICE)
        self.orders = np.zeros((count, D), np.int64)
        self.terms = np.zeros((count, len(TERMS)))
        self.rewards = np.zeros(count)
        _announce_compilation()

    def action_space(self) -> spaces.Discrete | spaces.MultiDiscrete:
        """One environment's actions."""
        D = self.layout.devices
        return spaces.MultiDiscrete([len(Order)] * D) if self.joint else spaces.Discrete(1 + D * KINDS)

    def observation_space(self) -> spaces.Box | spaces.Dict:
        """One environment's observations."""
        return self.layout.flat_space() if self.config.env.flatten else self.layout.dict_space()

    def begin(self, which: NDArray[np.int64], keys: NDArray[np.uint64]) -> None:
        """Start the episodes that `keys` name in the environments `which`."""
        self.sites[which] = np.zeros((), SITE)
        self.devices[which] = np.zeros((), DEVICE)
        dynamics.begin(self.world, self.sites, self.devices, which, keys)

    def step(self, actions: NDArray[np.int64]) -> None:
        """Act in every environment: (E,) addressed orders, or (E, D) kinds in joint mode. Results lie in `rewards`, `terms`, `sites`."""
        if self.joint:
            self.orders[:] = actions
        else:
            dynamics.decode(actions, self.orders)
        dynamics.step(self.world, self.sites, self.devices, self.orders, self.terms, self.rewards)

    def observe(self) -> NDArray[np.float32]:
        """(E, size) a fresh array of flat observations."""
        out = np.empty((self.count, self.layout.size), np.float32)
        dynamics.observe(self.world, self.sites, self.devices, out)
        return out

    def masks(self, flat: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Actions that would change something, from flat observations (E, size): (E, 1 + D x 5), or (E, D x 6) in joint mode."""
        allowed = self.layout.split(flat)["valid"] > 0  # (E, D, 5)
        if self.joint:
            return np.concatenate([np.ones((*allowed.shape[:2], 1), np.bool_), allowed], axis=2).reshape(len(flat), -1)
        return np.concatenate([np.ones((len(flat), 1), np.bool_), allowed.reshape(len(flat), -1)], axis=1)

    def describe(self) -> dict[str, Any]:
        """Where each part of the world comes from, for `info` at reset."""
        bank = self.bank
        return {"scenario": self.config.env.scenario, "traffic": bank.source, "site": bank.site, "sensor": bank.sensor, "split": self.split}

    def truth(self, e: int) -> dict[str, Any]:
        """The hidden state of one environment, copied."""
        attacker = {name: self.sites[e][name].item() for name in ("profile", "start", "patience", "dormant")}
        return {**attacker, **{name: self.devices[e][name].copy() for name in ("stage", "technique", "evaded", "patched")}}

    def summary(self, e: int) -> dict[str, float]:
        """What the episode came to, counted apart from the reward. Times are in steps, -1 where it never happened.

        `healthy_service` is the share of criticality x steps in which a device was both free of footholds and in service.
        """
        site = self.sites[e]
        steps = max(int(site["step"]), 1)
        found = {name: float(site[name]) for name in (*TERMS, "orders", "compromises", "dwell", "false_isolation", *(o.name.lower() for o in Order if o))}
        return {
            **found,
            "steps": float(site["step"]),
            "healthy_service": float(site["healthy"]) / steps,
            "attacked": float(site["start"] >= 0 and site["step"] > site["start"]),
            "first_foothold": float(site["first_foothold"]),
            "first_response": float(site["first_response"]),
        }


def _world(config: Config, bank: TraceBank, split: str, network: Network) -> World:
    env = config.env
    try:
        family = np.array([FAMILIES.index(name) for name in bank.class_families])
    except ValueError as error:
        raise UserError(f"the trace bank has a class of an unknown family ({error}): allowed: {', '.join(FAMILIES)}") from error
    ranges = bank.ranges(split)
    calm = np.flatnonzero((family == 0) & (ranges[:, 1] > ranges[:, 0]))
    if len(calm) == 0:
        raise UserError(f"the trace bank holds no benign windows in split '{split}', and every device shows some")
    emissions, counts = emission_table(config.attackers, family, ranges)
    rules = np.zeros(1, RULES)
    values = {
        "horizon": env.horizon, "overrun_share": env.overrun_share, "overrun_steps": env.overrun_steps, "mask_protected": env.protected == "mask",
        "budget": env.budget, "smoothing": env.smoothing, "patch_factor": env.controls.restore.patch_factor, "attack_free": env.attack_free,
        "start_first": env.start_range[0], "start_last": env.start_range[1],
        "service": config.reward.service, "damage": config.reward.damage, "action": config.reward.action,
        "cleanup": config.reward.cleanup, "safety": config.reward.safety,
    }  # fmt: skip
    for name, value in values.items():
        rules[0][name] = value
    controls = np.zeros(len(Order), CONTROL)
    for order in list(Order)[1:]:
        settings = getattr(env.controls, order.name.lower())
        for field in CONTROL.names or ():
            controls[order][field] = getattr(settings, field, 1 if field == "ttl" else 0.0)
    return World(
        rules=rules,
        controls=controls,
        profiles=profile_table(config.attackers),
        criticality=network.criticality,
        weakness=network.weakness,
        restore_time=network.restore_time,
        patchable=network.patchable,
        protected=network.protected,
        zone=network.zone,
        reach=network.reach,
        emissions=emissions,
        emission_counts=counts,
        calm_classes=calm,
        ranges=ranges,
        successor=np.array(bank.successor),
        features=bank.select_features(env.features),
        sensors=np.array(bank.sensors),
    )


def open_bank(bank: TraceBank | Path | str | None) -> TraceBank:
    """A bank as given, from its folder, or the bundled one."""
    if bank is None:
        return TraceBank.bundled()
    return bank if isinstance(bank, TraceBank) else TraceBank.load(Path(bank))


def settle(config: Config | None, scenario: str | None, settings: dict[str, Any]) -> Config:
    """A configuration with the scenario, where one is named, and some keys of its `env` section replaced, all checked.

    Raises:
        UserError: for an unknown key or a value out of range.
    """
    base = config or Config()
    if scenario is not None:
        settings = {"scenario": scenario, **settings}
    if not settings:
        return base
    try:
        env = EnvConfig.model_validate({**base.env.model_dump(), **settings})
    except ValidationError as error:
        raise UserError(explain(error, "IoTEnv", EnvConfig)) from error
    return base.model_copy(update={"env": env})


def _announce_compilation() -> None:
    """Say once a machine why the first step takes seconds."""
    cache = Path(dynamics.__file__).parent / "__pycache__"
    if not any(cache.glob("dynamics.step-*.nbi")):
        logging.getLogger(__name__).warning("compiling the environment's dynamics, once on this machine (about 20 seconds) ...")
