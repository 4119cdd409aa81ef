"""Attackers: which traffic each shows at each stage, and how its numbers reach the kernel.

State machine of every profile (a device's stage; the dynamics are in `envs.dynamics`; docs/attackers.md draws it):

    CLEAN --probe--> PROBED --engage--> ATTACKED --compromise x weakness--> COMPROMISED --impact--> IMPACT
      ^                 |                  |                                     |                    |
      +---- abandon ----+---- abandon -----+          restore  <-----------------+--------------------+

Reactions, each by a number of the profile: a stopped attempt may change the source (`rotate`), the technique (`adapt`) or the
target (`abandon`); every setback slows and hides the attacker for a while (`caution`), and one that shows that it was noticed
silences it (`dormancy`) and wears it out (`patience`).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from envs.scenarios import FAMILIES
from src.config import AttackerConfig, AttackersConfig, nearest
from src.errors import UserError


class Stage(IntEnum):
    """How far the attacker is on a device."""

    CLEAN = 0
    PROBED = 1
    ATTACKED = 2
    COMPROMISED = 3
    IMPACT = 4


Shown = dict[str, tuple[str, ...]]
"""Labels by family."""

_SCAN: Shown = {"Recon": ("Recon-HostDiscovery", "Recon-PortScan", "Recon-OSScan", "Recon-PingSweep", "VulnerabilityScan")}
_QUIET_SCAN: Shown = {"Recon": ("Recon-OSScan", "VulnerabilityScan")}
_PASSWORDS: Shown = {"BruteForce": ("DictionaryBruteForce",)}
_WEB: Shown = {"Web": ("SqlInjection", "CommandInjection", "XSS", "BrowserHijacking", "Uploading_Attack")}
_SPOOF: Shown = {"Spoofing": ("MITM-ArpSpoofing", "DNS_Spoofing")}
_HOLD: Shown = {"Web": ("Backdoor_Malware", "Uploading_Attack")}
_FLOOD: Shown = {
    "Mirai": ("Mirai-greeth_flood", "Mirai-greip_flood", "Mirai-udpplain"),
    "DDoS": (
        *(f"DDoS-{name}" for name in ("ICMP_Flood", "UDP_Flood", "TCP_Flood", "PSHACK_Flood", "SYN_Flood", "RSTFINFlood", "SynonymousIP_Flood")),
        *(f"DDoS-{name}" for name in ("ICMP_Fragmentation", "UDP_Fragmentation", "ACK_Fragmentation", "HTTP_Flood", "SlowLoris")),
    ),
}
_OUTAGE: Shown = {"DoS": ("DoS-UDP_Flood", "DoS-TCP_Flood", "DoS-SYN_Flood", "DoS-HTTP_Flood")}

TRAFFIC: dict[str, dict[Stage, Shown]] = {
    "scanner": {Stage.PROBED: _SCAN, Stage.ATTACKED: _PASSWORDS, Stage.COMPROMISED: _SCAN, Stage.IMPACT: {**_SCAN, **_OUTAGE}},
    "botnet": {Stage.PROBED: _SCAN, Stage.ATTACKED: _PASSWORDS, Stage.COMPROMISED: _SCAN, Stage.IMPACT: _FLOOD},
    "web_intruder": {Stage.PROBED: _SCAN, Stage.ATTACKED: _WEB, Stage.COMPROMISED: {**_SPOOF, **_HOLD}, Stage.IMPACT: {**_HOLD, **_OUTAGE}},
    "brute_forcer": {Stage.PROBED: _SCAN, Stage.ATTACKED: _PASSWORDS, Stage.COMPROMISED: _HOLD, Stage.IMPACT: {**_HOLD, **_OUTAGE}},
    "spoofer": {Stage.PROBED: _QUIET_SCAN, Stage.ATTACKED: _SPOOF, Stage.COMPROMISED: _SPOOF, Stage.IMPACT: {**_SPOOF, **_HOLD}},
    "stealth_apt": {Stage.PROBED: _QUIET_SCAN, Stage.ATTACKED: {**_WEB, **_PASSWORDS}, Stage.COMPROMISED: {**_SPOOF, **_HOLD}, Stage.IMPACT: _HOLD},
    "worm": {Stage.PROBED: _SCAN, Stage.ATTACKED: {**_WEB, **_PASSWORDS}, Stage.COMPROMISED: _SCAN, Stage.IMPACT: _FLOOD},
}
"""CICIoT2023 labels that a device shows, by profile and stage; of what shows at ATTACKED, the family decides which weakness counts."""

FLOODS = ("DDoS", "DoS", "Mirai")
"""Families that can hide half as well as others."""

PROFILES = tuple(TRAFFIC)
"""Names of the attackers; `AttackersConfig` holds the numbers of each."""

DIFFICULTY = {"easy": (0.7, 1.3, 0.0), "normal": (1.0, 1.0, 1.0), "hard": (1.3, 0.7, 1.5)}
"""By name: factors on the chances to probe, engage, compromise and reach impact; on the visible share of steps (1 - stealth); on evasion."""

PROFILE = np.dtype(
    [
        *((name, np.float64) for name in AttackerConfig.model_fields if name not in ("breadth", "spread", "dormancy", "insider")),
        ("breadth", np.int64), ("spread", np.int64), ("dormancy", np.int64), ("insider", np.bool_),
    ]
)  # fmt: skip
"""One attacker's numbers."""


def cast(config: AttackersConfig, side: str) -> tuple[str, ...]:
    """Profiles that come on a side: `train`, `held_out`, or `all` of both."""
    return tuple({"train": config.train, "held_out": config.held_out, "all": [*config.train, *config.held_out]}[side])


def check_techniques(config: AttackersConfig) -> None:
    """Refuse a held-out technique that no attacker shows.

    Raises:
        UserError: with the nearest match.
    """
    known = {label for stages in TRAFFIC.values() for shown in stages.values() for group in shown.items() for label in (group[0], *group[1])}
    for label in config.held_out_techniques:
        if label not in known:
            raise UserError(f"attackers.held_out_techniques: no attacker shows '{label}': {nearest(label, sorted(known))}")


def profile_table(config: AttackersConfig, side: str) -> NDArray[np.void]:
    """(profiles,) records of the attackers on a side, at the configured difficulty."""
    speed, visible, evasion = DIFFICULTY[config.difficulty]
    names = cast(config, side)
    table = np.zeros(len(names), PROFILE)
    for row, name in zip(table, names, strict=True):
        settings: AttackerConfig = getattr(config, name)
        for field in AttackerConfig.model_fields:
            row[field] = getattr(settings, field)
        for field in ("probe", "engage", "compromise", "impact"):
            row[field] = min(1.0, row[field] * speed)
        row["stealth"] = max(0.0, 1.0 - (1.0 - row["stealth"]) * visible)
        row["evasion"] = min(0.95, row["evasion"] * evasion)
    return table


def emission_table(
    config: AttackersConfig, side: str, names: tuple[str, ...], family: NDArray[np.int64], ranges: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Classes of the bank that each profile shows at each stage.

    A bank whose captures name only the family stands in for each of its labels; a stage none of whose labels are in the bank
    shows other classes of the same families. On side `train`, `held_out_techniques` are left out.

    Args:
        config: who attacks.
        side: `train`, `held_out` or `all`.
        names: (C,) classes of the bank.
        family: (C,) family of each.
        ranges: (C, 2) windows of each in the split that is played.

    Returns:
        (profiles, 5, C) class indices, the first `count` valid; (profiles, 5) counts. Row `CLEAN` is empty.

    Raises:
        UserError: for a technique that nobody shows, or when the bank holds no window of any family that a stage shows.
    """
    cast_names = cast(config, side)
    check_techniques(config)
    barred = np.isin(names, config.held_out_techniques if side == "train" else [])
    held = (ranges[:, 1] > ranges[:, 0]) & ~barred
    classes = np.zeros((len(cast_names), len(Stage), len(names)), np.int64)
    counts = np.zeros((len(cast_names), len(Stage)), np.int64)
    for row, attacker in enumerate(cast_names):
        for stage, shown in TRAFFIC[attacker].items():
            of_family = np.isin(family, [FAMILIES.index(one) for one in shown])
            labels = [label for group in shown.values() for label in group]
            fits = np.flatnonzero(held & of_family & np.isin(names, [*labels, *shown]))
            if len(fits) == 0:
                fits = np.flatnonzero(held & of_family)
            if len(fits) == 0:
                wanted = f"{' or '.join(shown)} windows, which attacker '{attacker}' shows when a device is {stage.name}"
                raise UserError(f"the trace bank holds no {wanted}; use a bank that has them, or bar fewer attackers.held_out_techniques")
            classes[row, stage, : len(fits)] = fits
            counts[row, stage] = len(fits)
    return classes, counts
