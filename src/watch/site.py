"""Which device of a scenario an address on the wire is: from a site file, or learned as devices speak.

A site file is YAML: a scenario, and the addresses of its devices; what has another address is then no device. Where it names no address, those
that speak become the scenario's devices, in the order in which they do.

    scenario: home                       # shipped, or the path of a .yml file, seen from the site file
    devices:
      hub-1: 00:17:88:0a:0b:0c           # a MAC address, an IPv4 address, or a list of them
      camera-1: [192.168.1.195]
    attacks_a_week: 1                    # how often somebody attacks this site
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from envs.scenarios import Network, build_network
from src.config import Section, explain, nearest, read_yaml
from src.data.packets import ARP, DROPPED, Headers
from src.errors import UserError

MOST_GATEWAYS = 1024
"""Addresses of gateways that are remembered; more can only be made up."""
NOBODY = -1

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_OWN_NETWORKS = tuple(
    (int(network.network_address), int(network.netmask))
    for network in map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "0.0.0.0/32"))
)
"""IPv4 networks whose addresses are given inside a site."""


class Site(Section):
    """What a site file says."""

    scenario: str = Field(min_length=1)
    """Shipped scenario, or the path of a .yml file."""
    devices: dict[str, str | list[str]] = Field(default={})
    """MAC and IPv4 addresses by device name."""
    attacks_a_week: float = Field(default=1.0, gt=0, le=1000)
    """How often somebody attacks: what an agent takes an attack to be likely by. In training one comes in three episodes of four."""


def load_site(name: str) -> Site:
    """A site file by its path; a shipped scenario, or a scenario's own file, is a site without addresses.

    Raises:
        UserError: for a file that is missing or malformed.
    """
    path = Path(name)
    if path.suffix not in (".yml", ".yaml"):
        return Site(scenario=name)
    tree = read_yaml(path, f"site '{name}'")
    if not isinstance(tree, dict):
        raise UserError(f"site '{name}' must hold 'scenario' and 'devices', not {type(tree).__name__}")
    if "zones" in tree:
        return Site(scenario=name)
    try:
        site = Site.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, f"site '{name}'", Site)) from error
    if site.scenario.endswith((".yml", ".yaml")):
        return site.model_copy(update={"scenario": str(path.parent / site.scenario)})
    return site


class Roster:
    """Tells whose a frame is. It is of the devices that sent it and received it."""

    def __init__(self, site: Site) -> None:
        """Take the addresses that the site file names.

        Raises:
            UserError: for an unknown scenario or device, an address that is none, or one of two devices.
        """
        self.network: Network = build_network(site.scenario)
        self.names = self.network.names
        self.report: Counter[str] = Counter()
        """`frames of no device`: counted by IPv4 and ARP alone."""
        self.learned: dict[int, int] = {}
        """Device by the MAC address that it was learned by."""
        self._macs: dict[int, int] = {}
        self._addresses: dict[int, int] = {}
        self._gateways: set[int] = set()
        for name, given in site.devices.items():
            if name not in self.names:
                raise UserError(f"site: unknown device '{name}' of scenario '{self.network.name}': {nearest(name, self.names)}")
            for text in [given] if isinstance(given, str) else given:
                self._add(name, text.strip().lower().replace("-", ":"))
        named = {*self._macs.values(), *self._addresses.values()}
        self._free = [] if named else list(range(len(self.names)))
        self._settle()

    def _add(self, name: str, text: str) -> None:
        device = self.names.index(name)
        if _MAC.fullmatch(text):
            table, number = self._macs, int(text.replace(":", ""), 16)
        else:
            try:
                table, number = self._addresses, int(ipaddress.IPv4Address(text))
            except ValueError:
                raise UserError(f"site: device '{name}': '{text}' is no MAC address (00:17:88:0a:0b:0c) and no IPv4 address (192.168.1.195)") from None
        if table.setdefault(number, device) != device:
            raise UserError(f"site: '{text}' is both {self.names[table[number]]} and {name}")

    def _settle(self) -> None:
        """Sorted tables of what is known, to look many addresses up at once."""
        self._tables = []
        for known in ({**self._macs, **self.learned}, self._addresses):
            keys = np.array(sorted(known), np.uint64)
            self._tables.append((keys, np.array([known[int(key)] for key in keys], np.int64)))

    def owners(self, headers: Headers) -> tuple[NDArray[np.int64], list[int]]:
        """(n, 2) devices that sent and received each frame, `NOBODY` where it is none's; and devices that were learned by mistake.

        A device that turns out to be the way out of the site (it sends what was sent outside) is none: its place is free again, and its traffic
        so far is to be forgotten.
        """
        mistaken = self._learn(headers) if self._free or self.learned else []
        (macs, device), (addresses, other) = self._tables
        found = np.full((len(headers.kind), 2), NOBODY)
        for end in range(2):
            found[:, end] = _look_up(macs, device, headers.hardware[:, end])
            if len(addresses):
                missing = found[:, end] == NOBODY
                found[missing, end] = _look_up(addresses, other, headers.address[missing, end].astype(np.uint64))
        self.report["frames of no device"] += int(((found == NOBODY).all(axis=1) & (headers.kind != DROPPED)).sum())
        return found, mistaken

    def _learn(self, headers: Headers) -> list[int]:
        """Give devices without an address those that speak."""
        spoken = headers.kind != DROPPED
        sender, address = headers.hardware[spoken, 0], headers.address[spoken, 0]
        inside = (headers.kind[spoken] == ARP) | np.logical_or.reduce([(address & np.uint32(mask)) == network for network, mask in _OWN_NETWORKS])
        mistaken, changed = [], False
        for outside in np.unique(sender[~inside]).tolist():
            if outside not in self._gateways and len(self._gateways) < MOST_GATEWAYS:
                self._gateways.add(outside)
                if outside in self.learned:
                    mistaken.append(self.learned.pop(outside))
                    changed = True
        self._free = sorted([*self._free, *mistaken])
        if not self._free:
            if changed:
                self._settle()
            return mistaken
        first = np.unique(sender[inside], return_index=True)[1]
        for one in sender[inside][np.sort(first)].tolist():
            known = one in self.learned or one in self._gateways
            if self._free and not known and one and not (one >> 40) & 1:
                self.learned[one] = self._free.pop(0)
                changed = True
        if changed:
            self._settle()
        return mistaken

    def addresses(self) -> dict[str, list[str]]:
        """What is known now, as a site file writes it."""
        found: dict[str, list[str]] = {}
        for number, device in {**self._macs, **self.learned}.items():
            found.setdefault(self.names[device], []).append(":".join(f"{number:012x}"[i : i + 2] for i in range(0, 12, 2)))
        for number, device in self._addresses.items():
            found.setdefault(self.names[device], []).append(str(ipaddress.IPv4Address(number)))
        return {name: found[name] for name in self.names if name in found}


def _look_up(keys: NDArray[np.uint64], values: NDArray[np.int64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    if len(keys) == 0:
        return np.full(len(wanted), NOBODY)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], NOBODY)


def site_text(scenario: str, addresses: dict[str, list[str]]) -> str:
    """A site file's content."""
    tree: dict[str, Any] = {"scenario": scenario, "devices": addresses}
    return yaml.safe_dump(tree, sort_keys=False)
