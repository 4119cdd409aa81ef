"""Networks to defend: devices, zones and who reaches whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.config import nearest
from src.errors import UserError

FAMILIES = ("Benign", "DDoS", "DoS", "Mirai", "Recon", "Spoofing", "Web", "BruteForce")
"""Families of traffic, in the order of the sensors' columns; a test holds them equal to the taxonomy's."""


@dataclass(frozen=True)
class DeviceType:
    """What devices of a kind have in common."""

    criticality: float
    """Service value a step, relative to other devices."""
    restore_time: int
    """Steps that a re-imaging takes."""
    patchable: bool
    """Whether a restore also closes the hole."""
    protected: bool
    """Never to be isolated: somebody's safety hangs on its connection."""
    weakness: dict[str, float]
    """Success of a technique family against it, in [0, 1]; a family left out never succeeds."""


DEVICE_TYPES: dict[str, DeviceType] = {
    "camera": DeviceType(1.0, 5, True, False, {"BruteForce": 0.9, "Web": 0.6, "Spoofing": 0.4}),
    "lock": DeviceType(2.0, 6, True, False, {"BruteForce": 0.5, "Web": 0.4, "Spoofing": 0.6}),
    "hub": DeviceType(3.0, 8, True, False, {"BruteForce": 0.5, "Web": 0.8, "Spoofing": 0.5}),
    "plug": DeviceType(0.5, 4, False, False, {"BruteForce": 0.8, "Web": 0.5, "Spoofing": 0.3}),
    "speaker": DeviceType(0.5, 4, True, False, {"BruteForce": 0.4, "Web": 0.6, "Spoofing": 0.5}),
    "thermostat": DeviceType(1.0, 5, False, False, {"BruteForce": 0.6, "Web": 0.7, "Spoofing": 0.4}),
    "monitor": DeviceType(3.0, 8, True, False, {"BruteForce": 0.5, "Web": 0.5, "Spoofing": 0.6}),
    "pump": DeviceType(4.0, 14, False, True, {"BruteForce": 0.6, "Web": 0.5, "Spoofing": 0.6}),
    "imaging": DeviceType(3.0, 12, True, False, {"BruteForce": 0.4, "Web": 0.7, "Spoofing": 0.5}),
    "gateway": DeviceType(4.0, 10, True, False, {"BruteForce": 0.4, "Web": 0.6, "Spoofing": 0.4}),
    "printer": DeviceType(0.5, 4, False, False, {"BruteForce": 0.7, "Web": 0.8, "Spoofing": 0.4}),
}
"""Types of device. Weaknesses follow what each is known for: cameras and plugs for default passwords, hubs and printers for their web pages."""


@dataclass(frozen=True)
class Scenario:
    """A network. `devices` pairs a type with a zone; `reach` names, for each zone, the zones that a foothold there can attack."""

    name: str
    devices: tuple[tuple[str, str], ...]
    exposed: tuple[str, ...]
    """Zones that the internet reaches."""
    reach: dict[str, tuple[str, ...]]


SCENARIOS: dict[str, Scenario] = {
    "solo": Scenario("solo", (("camera", "home"),), ("home",), {"home": ("home",)}),
    "home": Scenario(
        "home",
        (("hub", "home"), ("camera", "home"), ("camera", "home"), ("lock", "home"), ("plug", "home"), ("speaker", "home")),
        ("home",),
        {"home": ("home",)},
    ),
    "clinic": Scenario(
        "clinic",
        (
            ("gateway", "office"), ("printer", "office"), ("camera", "office"), ("camera", "office"),
            ("lock", "building"), ("thermostat", "building"), ("camera", "building"), ("hub", "building"),
            ("monitor", "ward"), ("monitor", "ward"), ("pump", "ward"), ("imaging", "ward"),
        ),
        ("office", "building"),
        {"office": ("office", "building", "ward"), "building": ("building", "office"), "ward": ("ward",)},
    ),
}  # fmt: skip
"""Networks that ship: `solo` 1 device, `home` 6, `clinic` 12 in 3 zones."""


@dataclass(frozen=True)
class Network:
    """A scenario as arrays over its D devices and Z zones. Device order is the scenario's, and so are action indices."""

    names: tuple[str, ...]
    """(D,) e.g. `camera-2`."""
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


def build_network(name: str) -> Network:
    """Arrays of a shipped scenario.

    Raises:
        UserError: for an unknown name.
    """
    if name not in SCENARIOS:
        raise UserError(f"unknown scenario '{name}': {nearest(name, SCENARIOS)}")
    scenario = SCENARIOS[name]
    types = [DEVICE_TYPES[kind] for kind, _ in scenario.devices]
    kinds = [kind for kind, _ in scenario.devices]
    names = tuple(f"{kind}-{kinds[: i + 1].count(kind)}" for i, kind in enumerate(kinds))
    zones = tuple(scenario.reach)
    reach = np.array([[z in scenario.exposed for z in zones], *([z in scenario.reach[row] for z in zones] for row in zones)])
    criticality = np.array([kind.criticality for kind in types])
    return Network(
        names=names,
        zones=zones,
        criticality=criticality / criticality.sum(),
        weakness=np.array([[kind.weakness.get(family, 0.0) for family in FAMILIES] for kind in types]),
        restore_time=np.array([kind.restore_time for kind in types]),
        patchable=np.array([kind.patchable for kind in types]),
        protected=np.array([kind.protected for kind in types]),
        zone=np.array([zones.index(zone) for _, zone in scenario.devices]),
        reach=reach,
    )
