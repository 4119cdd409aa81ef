"""Networks to defend: devices, zones and who reaches whom, from YAML files (`docs/scenarios.md` tells how to write one)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from src.config import Section, Share, explain, nearest, read_yaml
from src.errors import UserError

FAMILIES = ("Benign", "DDoS", "DoS", "Mirai", "Recon", "Spoofing", "Web", "BruteForce")
"""Families of traffic, in the order of the sensors' columns; a test holds them equal to the taxonomy's."""

SCENARIOS = ("solo", "home", "clinic", "factory", "campus")
"""Networks that ship, by size: 1, 6, 12, 40 and 105 devices."""

MOST_ZONES = 62
"""Reachability is kept as the bits of one integer."""

Name = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.\-]*$")]
"""Letters, digits, space, `_`, `.` and `-`."""


class DeviceType(Section):
    """What devices of a kind have in common."""

    criticality: float = Field(gt=0, le=1000)
    """Service value a step, relative to other devices."""
    restore_time: int = Field(ge=1, le=1000)
    """Steps that a re-imaging takes."""
    patchable: bool = True
    """Whether a restore also closes the hole."""
    protected: bool = False
    """Never to be isolated: somebody's safety hangs on its connection."""
    weakness: dict[Literal["BruteForce", "Web", "Spoofing"], Share]
    """Success of a technique family against it, in [0, 1]; a family left out never succeeds."""


def _kind(criticality: float, restore_time: int, patchable: bool, protected: bool, brute_force: float, web: float, spoofing: float) -> DeviceType:
    weakness = {"BruteForce": brute_force, "Web": web, "Spoofing": spoofing}
    return DeviceType(criticality=criticality, restore_time=restore_time, patchable=patchable, protected=protected, weakness=weakness)  # type: ignore[arg-type]


DEVICE_TYPES: dict[str, DeviceType] = {
    #                     value  restore  patch  protected  passwords  web  spoofing
    "camera": _kind(1.0, 5, True, False, 0.9, 0.6, 0.4),
    "lock": _kind(2.0, 6, True, False, 0.5, 0.4, 0.6),
    "hub": _kind(3.0, 8, True, False, 0.5, 0.8, 0.5),
    "plug": _kind(0.5, 4, False, False, 0.8, 0.5, 0.3),
    "speaker": _kind(0.5, 4, True, False, 0.4, 0.6, 0.5),
    "thermostat": _kind(1.0, 5, False, False, 0.6, 0.7, 0.4),
    "monitor": _kind(3.0, 8, True, False, 0.5, 0.5, 0.6),
    "pump": _kind(4.0, 14, False, True, 0.6, 0.5, 0.6),
    "imaging": _kind(3.0, 12, True, False, 0.4, 0.7, 0.5),
    "gateway": _kind(4.0, 10, True, False, 0.4, 0.6, 0.4),
    "printer": _kind(0.5, 4, False, False, 0.7, 0.8, 0.4),
    "sensor": _kind(0.5, 4, False, False, 0.6, 0.3, 0.6),
    "hmi": _kind(3.0, 10, True, False, 0.6, 0.7, 0.5),
    "plc": _kind(4.0, 14, False, True, 0.5, 0.4, 0.7),
    "robot": _kind(3.0, 12, True, True, 0.4, 0.5, 0.6),
}
"""Types of device. Weaknesses follow what each is known for: cameras and plugs for default passwords, hubs and printers for
their web pages, field devices for protocols that trust whoever speaks."""


class Zone(Section):
    """A part of the network."""

    exposed: bool = False
    """Whether the internet reaches it."""
    reaches: list[Name] = Field(default=[])
    """Zones that a foothold here can attack; its own is not implied."""


class Devices(Section):
    """One or more devices of a type in a zone."""

    type: Name
    """One of the built-in types or of the file's own."""
    zone: Name
    """One of the file's zones."""
    count: int = Field(default=1, ge=1, le=1000)
    """How many."""


class Scenario(Section):
    """A network, as its YAML file says it."""

    name: Name
    """Shown in results."""
    types: dict[Name, DeviceType] = Field(default={})
    """Device types of this network's own; one with a built-in name replaces it here."""
    zones: dict[Name, Zone] = Field(min_length=1, max_length=MOST_ZONES)
    """By name, in the order of their indices."""
    devices: list[Devices] = Field(min_length=1)
    """In the order of their indices, which is the order of actions."""

    @model_validator(mode="after")
    def _names_fit(self) -> Scenario:
        known = DEVICE_TYPES | self.types
        for zone in self.zones.values():
            for other in zone.reaches:
                if other not in self.zones:
                    raise ValueError(f"zones: 'reaches' names the unknown zone '{other}': {nearest(other, self.zones)}")
        for row in self.devices:
            if row.type not in known:
                raise ValueError(f"devices: unknown type '{row.type}': {nearest(row.type, known)}")
            if row.zone not in self.zones:
                raise ValueError(f"devices: unknown zone '{row.zone}': {nearest(row.zone, self.zones)}")
        if not any(self.zones[row.zone].exposed for row in self.devices):
            raise ValueError("no device stands in an exposed zone, so no attacker could enter: mark a zone 'exposed: true'")
        if sum(row.count for row in self.devices) > 10_000:
            raise ValueError("a network may hold 10,000 devices at most")
        return self


@dataclass(frozen=True)
class Network:
    """A scenario as arrays over its D devices and Z zones. Device order is the scenario's, and so are action indices."""

    name: str
    names: tuple[str, ...]
    """(D,) e.g. `camera-2`."""
    types: tuple[str, ...]
    """(D,) e.g. `camera`."""
    zones: tuple[str, ...]
    """(Z,)"""
    criticality: NDArray[np.float64]
    """(D,) sums to 1."""
    weakness: NDArray[np.float64]
    """(D, 8) by family."""
    restore_time: NDArray[np.int64]
    """(D,) steps."""
    patchable: NDArray[np.bool_]
    """(D,)"""
    protected: NDArray[np.bool_]
    """(D,)"""
    zone: NDArray[np.int64]
    """(D,) index into `zones`."""
    reach: NDArray[np.bool_]
    """(1 + Z, Z): row 0 is the internet, row 1 + z a foothold in zone z."""


def load_scenario(name: str) -> Scenario:
    """A shipped scenario by its name, or one's own by the path of its `.yml` file.

    Raises:
        UserError: for an unknown name, a missing or malformed file, or a file whose parts do not fit each other.
    """
    own = name.endswith((".yml", ".yaml"))
    if not own and name not in SCENARIOS:
        raise UserError(f"unknown scenario '{name}': {nearest(name, SCENARIOS)}, or the path of a .yml file")
    path = Path(name) if own else Path(__file__).parent / "networks" / f"{name}.yml"
    tree = read_yaml(path, f"scenario '{name}'")
    if not isinstance(tree, dict):
        raise UserError(f"scenario '{name}' must hold 'name', 'zones' and 'devices', not {type(tree).__name__}")
    try:
        return Scenario.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, f"scenario '{name}'", Scenario)) from error


def build_network(name: str) -> Network:
    """Arrays of a scenario; `name` as for `load_scenario`."""
    scenario = load_scenario(name)
    known = DEVICE_TYPES | scenario.types
    rows = [(row.type, row.zone) for row in scenario.devices for _ in range(row.count)]
    kinds = [kind for kind, _ in rows]
    types = [known[kind] for kind in kinds]
    zones = tuple(scenario.zones)
    criticality = np.array([kind.criticality for kind in types])
    weaknesses: list[dict[str, float]] = [{**kind.weakness} for kind in types]
    seen: dict[str, int] = {}
    names = []
    for kind in kinds:
        seen[kind] = seen.get(kind, 0) + 1
        names.append(f"{kind}-{seen[kind]}")
    return Network(
        name=scenario.name,
        names=tuple(names),
        types=tuple(kinds),
        zones=zones,
        criticality=criticality / criticality.sum(),
        weakness=np.array([[by_family.get(family, 0.0) for family in FAMILIES] for by_family in weaknesses]),
        restore_time=np.array([kind.restore_time for kind in types]),
        patchable=np.array([kind.patchable for kind in types]),
        protected=np.array([kind.protected for kind in types]),
        zone=np.array([zones.index(zone) for _, zone in rows]),
        reach=np.array([[zone.exposed for zone in scenario.zones.values()], *([z in zone.reaches for z in zones] for zone in scenario.zones.values())]),
    )
