"""From configuration and trace bank to the arrays of the dynamics, and the layout of what comes out of them."""

from __future__ import annotations

import hashlib
import logging
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import ValidationError

from envs import dynamics
from envs.attackers import FLOODS, cast, emission_table, profile_table
from envs.dynamics import CONTROL, DEVICE, RULES, SITE, TERMS, Order, World
from envs.scenarios import FAMILIES, Network, build_network
from src.config import Config, EnvConfig, explain
from src.data.bank import FEATURE_BOUND, TraceBank
from src.errors import UserError
from src.predictor.interface import Sensor

KINDS = len(Order) - 1
"""Addressable kinds of order: all but MONITOR."""


def action_names(devices: Sequence[str]) -> tuple[str, ...]:
    """What each addressed action does, by its index: `MONITOR`, then `BLOCK camera-1` and so on, device by device."""
    return ("MONITOR", *(f"{order.name} {name}" for name in devices for order in list(Order)[1:]))


@dataclass(frozen=True)
class Layout:
    """Where each part of the flat observation lies: one part after the other, each device by device, then `CONTEXT` floats."""

    devices: int
    features: int
    sensors: int
    history: int = 1

    CONTEXT = 2

    @cached_property
    def parts(self) -> dict[str, int]:
        """Floats a device of each part, in their order."""
        past = {"past": (self.history - 1) * (self.features + self.sensors)} if self.history > 1 else {}
        first = {"features": self.features, "sensors": self.sensors, **past}
        return {**first, "trend": 3, "controls": 5, "service": 1, "silent": 1, "valid": KINDS, "device": 5}

    @cached_property
    def width(self) -> int:
        """Floats a device."""
        return sum(self.parts.values())

    @cached_property
    def size(self) -> int:
        """Floats in all."""
        return self.devices * self.width + self.CONTEXT

    def flat_space(self) -> spaces.Box:
        """Bounds of the flat observation."""
        low, high = np.zeros(self.size, np.float32), np.ones(self.size, np.float32)
        lows, highs = self.split(low), self.split(high)
        lows["features"][:], highs["features"][:] = -FEATURE_BOUND, FEATURE_BOUND
        if self.history > 1:
            for part, bound in ((lows["past"], -FEATURE_BOUND), (highs["past"], FEATURE_BOUND)):
                part.reshape(self.devices, self.history - 1, -1)[..., : self.features] = bound
        return spaces.Box(low, high, dtype=np.float32)

    def dict_space(self) -> spaces.Dict:
        """Bounds of the observation as named parts."""
        flat = self.flat_space()
        lows, highs = self.named(flat.low), self.named(flat.high)
        return spaces.Dict({name: spaces.Box(lows[name], highs[name], dtype=np.float32) for name in lows})

    def named(self, flat: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """(..., size) -> the Dict observation: each part (..., devices x floats), device by device; views.

        One-dimensional per environment, since that is what Stable-Baselines3's MultiInputPolicy reads without a warning.

        Raises:
            UserError: for another size.
        """
        if flat.shape[-1] != self.size:
            raise UserError(f"a flat observation of {self.devices} devices has {self.size} floats here, not {flat.shape[-1]}")
        found, at = {}, 0
        for name, count in self._blocks:
            found[name] = flat[..., at : at + count]
            at += count
        return found

    @cached_property
    def _blocks(self) -> tuple[tuple[str, int], ...]:
        return (*((name, count * self.devices) for name, count in self.parts.items()), ("context", self.CONTEXT))

    def split(self, flat: Any) -> dict[str, Any]:
        """(..., size) array or tensor -> the named parts, (..., devices, floats), and `context` (..., 2); views."""
        parts = self.named(flat)
        shaped = {name: part.reshape(*part.shape[:-1], self.devices, -1) for name, part in parts.items() if name != "context"}
        return {**shaped, "context": parts["context"]}

    def join(self, parts: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """The flat observation (E, size) of named parts, as `split` gives them."""
        return np.concatenate([parts[name].reshape(len(parts[name]), -1) for name, _ in self._blocks], axis=1)

    def for_size(self, size: int) -> Layout:
        """The same with as many devices as an observation of `size` floats has."""
        return replace(self, devices=(size - self.CONTEXT) // self.width)


class Simulation:
    """A batch of environments: the state arrays, and the one implementation of reset and step that every front uses."""

    def __init__(self, config: Config, bank: TraceBank, split: str, count: int, sensor: Sensor | None = None) -> None:
        """Compile the scenario against a bank.

        Args:
            config: the sections `env`, `attackers` and `reward` are read.
            bank: windows of traffic.
            split: side of the bank.
            count: environments.
            sensor: what reads the windows where `env.sensors` is `live`.

        Raises:
            UserError: when scenario, features, split, attackers or sensor do not fit the bank.
        """
        env = config.env
        self.config, self.bank, self.split, self.count = config, bank, split, count
        self.network: Network = build_network(env.scenario)
        self.world = _world(config, bank, split, self.network)
        D = len(self.network.names)
        self.layout = Layout(D, len(env.features), len(bank.sensor_names), env.history)
        self.joint = env.action_mode == "joint"
        self.sites: NDArray[np.void] = np.zeros(count, SITE)
        self.devices: NDArray[np.void] = np.zeros((count, D), DEVICE)
        self.trails = np.full((count, D, env.history + env.telemetry_delay), dynamics.NOTHING, np.int32)
        self.moves = np.full(count, dynamics.SCRIPTED, np.int64)
        self.terms = np.zeros((count, len(TERMS)))
        self.rewards = np.zeros(count)
        self.actions: NDArray[np.int64] | None = None
        """What was ordered in the last step, (E, 1) or (E, D); for those who look on."""
        if sensor is not None and env.sensors != "live":
            raise UserError("a sensor was given, and env.sensors is 'stored': set sensors='live' for it to read along")
        self.sensor = _fitting(sensor, bank) if env.sensors == "live" else None
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
        dynamics.begin(self.world, self.sites, self.devices, self.trails, which, keys)
        if self.sensor is not None:
            self._read(self.sensor, self.devices["window"][which])

    def step(self, actions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Act in every environment: (E,) addressed orders, or (E, D) kinds in joint mode. Results lie in `rewards`, `terms`, `sites`.

        Returns:
            (E, size) a fresh array of flat observations.
        """
        out = np.empty((self.count, self.layout.size), np.float32)
        orders = self.actions = actions if self.joint else actions.reshape(-1, 1)
        state = (self.world, self.sites, self.devices, self.trails)
        if self.sensor is None:
            dynamics.step(*state, orders, self.moves, self.terms, self.rewards, out)
        else:
            dynamics.advance(*state, orders, self.moves, self.terms)
            self._read(self.sensor, self.devices["window"])
            dynamics.settle(*state, self.terms, self.rewards, out)
        return out

    def _read(self, sensor: Sensor, shown: NDArray[np.int32]) -> None:
        """Let the model read the windows shown, afresh each time, and put what it says where stored readings would lie."""
        windows = np.unique(shown)
        readings = sensor.read(self.bank.raw_windows(windows)).table()
        if readings.shape != (len(windows), len(self.bank.sensor_names)) or not ((readings >= 0) & (readings <= 1)).all():
            raise UserError("the live sensor must read numbers from 0 to 1, one row a window; it gave something else")
        self.world.table[windows, -len(self.bank.sensor_names) :] = readings

    @cached_property
    def mark(self) -> str:
        """A digest of everything that the state's indices point into: a snapshot of another world is refused by it."""
        digest = hashlib.blake2b(self.config.env.model_dump_json().encode())
        tables = [one for one in self.world if one is not self.world.table]  # into which live sensors write
        for one in (*tables, self.bank.features, self.bank.sensors):
            digest.update(np.ascontiguousarray(one).tobytes())
        return digest.hexdigest()

    def refresh(self) -> None:
        """After the state was set from outside: let a live sensor read what it points to."""
        if self.sensor is not None:
            self._read(self.sensor, np.concatenate([self.trails[self.trails >= 0], self.devices["window"].ravel()]))

    def observe(self, which: NDArray[np.int64] | None = None, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """(E, size) flat observations: a fresh array, or those rows of `out` written that `which` names."""
        if out is None:
            out = np.empty((self.count, self.layout.size), np.float32)
        dynamics.observe(self.world, self.sites, self.devices, self.trails, np.arange(self.count) if which is None else which, out)
        return out

    def allowed(self) -> NDArray[np.bool_]:
        """(E, D, 5) orders that would change something, by Order less 1; from what the defenders know."""
        out = np.empty((self.count, self.layout.devices, KINDS), np.bool_)
        dynamics.masks(self.world, self.sites, self.devices, out)
        return out

    def masks(self) -> NDArray[np.bool_]:
        """The same as flat masks over actions: (E, 1 + D x 5), or (E, D x 6) in joint mode; MONITOR always counts."""
        allowed = self.allowed()
        if self.joint:
            return np.concatenate([np.ones((*allowed.shape[:2], 1), np.bool_), allowed], axis=2).reshape(self.count, -1)
        return np.concatenate([np.ones((self.count, 1), np.bool_), allowed.reshape(self.count, -1)], axis=1)

    def describe(self) -> dict[str, Any]:
        """Where each part of the world comes from, for `info` at reset."""
        bank, env = self.bank, self.config.env
        return {
            "scenario": self.network.name, "traffic": bank.source, "site": bank.site, "sensor": bank.sensor, "sensors": env.sensors,
            "split": self.split, "attackers": env.attackers,
        }  # fmt: skip

    def truth(self, e: int) -> dict[str, Any]:
        """The hidden state of one environment, copied."""
        site = self.sites[e]
        attacker = {name: site[name].item() for name in ("start", "entry", "patience", "caution", "dormant")}
        attacker["profile"] = cast(self.config.attackers, self.config.env.attackers)[site["profile"]]
        return {**attacker, **{name: self.devices[e][name].copy() for name in ("stage", "technique", "known", "evaded", "patched", "weakness", "attack_shown")}}

    def summaries(self, which: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """What the episodes of the environments `which` came to, counted apart from the reward, (n,) each; times in steps, -1 for never.

        `healthy_service` is the share of criticality x steps in which a device was both free of footholds and in service.
        """
        site = self.sites[which]
        # What an overrun cuts off was not healthy: else losing fast would look better than holding out.
        steps = np.where(site["end"] == dynamics.End.OVERRUN, self.config.env.horizon, np.maximum(site["step"], 1))
        names = (*TERMS, "orders", "compromises", "dwell", "false_isolation", *(order.name.lower() for order in Order if order))
        return {
            **{name: site[name].astype(np.float64) for name in names},
            "steps": site["step"].astype(np.float64),
            "healthy_service": site["healthy"] / steps,
            "attacked": ((site["start"] >= 0) & (site["step"] > site["start"])).astype(np.float64),
            "first_foothold": site["first_foothold"].astype(np.float64),
            "first_response": site["first_response"].astype(np.float64),
        }

    def summary(self, e: int) -> dict[str, float]:
        """`summaries` of one environment."""
        return {name: float(column[0]) for name, column in self.summaries(np.array([e])).items()}

    def delivered(self, e: int) -> NDArray[np.float64]:
        """(D,) share of its legitimate traffic that each device got through so far."""
        return 1.0 - self.devices[e]["lost"] / max(int(self.sites[e]["step"]), 1)


def _fitting(sensor: Sensor | None, bank: TraceBank) -> Sensor:
    if sensor is None:
        raise UserError("env.sensors is 'live', and no sensor was given: pass sensor= (anything that meets src/predictor/interface.py)")
    if bank.rows is None:
        raise UserError("env.sensors is 'live', and the trace bank holds no raw rows for a model to read: train one with `python main.py --phase lstm`")
    if tuple(sensor.feature_names) != tuple(bank.row_names) or sensor.sequence_length != bank.length:
        raise UserError(
            f"the live sensor reads {len(sensor.feature_names)} features over {sensor.sequence_length} rows, the trace bank holds "
            f"{len(bank.row_names)} over {bank.length}, or in another order; use the sensor that the bank was built with"
        )
    return sensor


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
    emissions, counts = emission_table(config.attackers, env.attackers, bank.class_names, family, ranges)
    rules = np.zeros(1, RULES)
    values = {
        "horizon": env.horizon, "overrun_share": env.overrun_share, "overrun_steps": env.overrun_steps, "mask_protected": env.protected == "mask",
        "joint": env.action_mode == "joint", "budget": env.budget, "smoothing": env.smoothing, "patch_factor": env.controls.restore.patch_factor,
        "attack_free": env.attack_free, "start_first": env.start_range[0], "start_last": env.start_range[1], "variation": env.variation,
        "slowest": network.restore_time.max(), "features": len(env.features), "history": env.history, "telemetry_delay": env.telemetry_delay,
        "sensor_dropout": env.sensor_dropout, "detector_drift": env.detector_drift, **{name: getattr(config.reward, name) for name in TERMS},
    }  # fmt: skip
    for name, value in values.items():
        rules[0][name] = value
    controls = np.zeros(len(Order), CONTROL)
    for order in list(Order)[1:]:
        settings = getattr(env.controls, order.name.lower())
        for field in CONTROL.names or ():
            controls[order][field] = getattr(settings, field, 1 if field == "ttl" else 0.0)
    most, slowest = network.criticality.max(), network.restore_time.max()
    traits = np.stack([network.criticality / most, network.restore_time / slowest, network.protected, network.patchable], axis=1)  # (D, 4)
    risk = np.array(bank.sensors[:, bank.sensor_names.index("risk")]) if bank.evasive is None else np.array(bank.evasive)
    # Windows are sorted by split and class, so those of this split stand together, and sorting them by class first leaves every range where it is.
    quiet = np.arange(len(risk), dtype=np.int32)
    mine = slice(ranges[:, 0].min(), ranges[:, 1].max())
    quiet[mine] = mine.start + np.lexsort((risk[mine], bank.label[mine]))
    return World(
        rules=rules,
        controls=controls,
        profiles=profile_table(config.attackers, env.attackers),
        criticality=network.criticality,
        weakness=network.weakness,
        restore_time=network.restore_time,
        patchable=network.patchable,
        protected=network.protected,
        zone=network.zone,
        reach=(network.reach @ (np.int64(1) << np.arange(len(network.zones), dtype=np.int64))).astype(np.int64),
        traits=traits.astype(np.float32),
        emissions=emissions,
        emission_counts=counts,
        class_family=family,
        loud=np.isin(family, [FAMILIES.index(name) for name in FLOODS]),
        calm_classes=calm,
        ranges=ranges,
        quiet=quiet,
        successor=np.array(bank.successor),
        table=np.concatenate([bank.select_features(env.features), np.array(bank.sensors)], axis=1, dtype=np.float32),
    )


def open_bank(bank: TraceBank | Path | str | None) -> TraceBank:
    """A bank as given, from its folder, or the bundled one."""
    if bank is None:
        return TraceBank.bundled()
    return bank if isinstance(bank, TraceBank) else TraceBank.load(Path(bank))


def whole(value: Any) -> int | None:
    """An integer of whatever type as an int; None for anything else, truth values among it."""
    if type(value) is int:  # nearly always, and every step asks
        return value
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def at_least(least: int, name: str, value: Any) -> int:
    """The same, or a `UserError` that calls the value by its name."""
    number = whole(value)
    if number is None or number < least:
        raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return number


def settle(config: Config | None, scenario: Path | str | None, settings: dict[str, Any]) -> Config:
    """A configuration with the scenario, where one is named, and some keys of its `env` section replaced, all checked.

    Raises:
        UserError: for a configuration that is none, an unknown key or a value out of range.
    """
    if config is not None and not isinstance(config, Config):
        raise UserError(f"config must be a Config, as load_config of src/config.py makes one, not {config!r}")
    base = config or Config()
    if scenario is not None:
        settings = {"scenario": str(scenario) if isinstance(scenario, Path) else scenario, **settings}
    if not settings:
        return base
    try:
        env = EnvConfig.model_validate({**base.env.model_dump(), **settings})
    except ValidationError as error:
        raise UserError(explain(error, "IoTEnv", EnvConfig)) from error
    return base.model_copy(update={"env": env})


@cache
def _announce_compilation() -> None:
    """Say once a machine, and once a process however many environments it makes, why the first step takes seconds."""
    cache = Path(dynamics.__file__).parent / "__pycache__"
    if not any(cache.glob("dynamics.step-*.nbi")):
        logging.getLogger(__name__).warning("compiling the environment's dynamics, once on this machine (about 20 seconds) ...")
