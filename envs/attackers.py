"""Attackers: which traffic each shows at each stage, and how its numbers reach the kernel.

State machine of every profile (a device's stage; the dynamics are in `envs.dynamics`):

    CLEAN --probe--> PROBED --engage--> ATTACKED --compromise x weakness--> COMPROMISED --impact--> IMPACT
      ^                 |                  |                                     |                    |
      +---- abandon ----+---- abandon -----+          restore  <-----------------+--------------------+

| profile        | PROBED | ATTACKED   | COMPROMISED     | IMPACT      | ATT&CK tactics                                                        |
|----------------|--------|------------|-----------------|-------------|-----------------------------------------------------------------------|
| `botnet`       | Recon  | BruteForce | Recon           | Mirai, DDoS | Reconnaissance, Credential Access, Discovery, Impact                  |
| `web_intruder` | Recon  | Web        | Spoofing, Web   | Web, DoS    | Reconnaissance, Initial Access, Lateral Movement, Exfiltration/Impact |

A botnet answers defence with speed: it never hides, and takes the next target. A web intruder falls silent for a random
time once a foothold is cut off or lost.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from envs.scenarios import FAMILIES
from src.config import AttackerConfig, AttackersConfig
from src.errors import UserError


class Stage(IntEnum):
    """How far the attacker is on a device."""

    CLEAN = 0
    PROBED = 1
    ATTACKED = 2
    COMPROMISED = 3
    IMPACT = 4


TRAFFIC: dict[str, dict[Stage, tuple[str, ...]]] = {
    "botnet": {Stage.PROBED: ("Recon",), Stage.ATTACKED: ("BruteForce",), Stage.COMPROMISED: ("Recon",), Stage.IMPACT: ("Mirai", "DDoS")},
    "web_intruder": {Stage.PROBED: ("Recon",), Stage.ATTACKED: ("Web",), Stage.COMPROMISED: ("Spoofing", "Web"), Stage.IMPACT: ("Web", "DoS")},
}
"""Families of traffic that a device shows, by profile and stage."""

PROFILE = np.dtype(
    [
        *((name, np.float64) for name in AttackerConfig.model_fields if name not in ("breadth", "dormancy")),
        ("breadth", np.int64),
        ("dormancy", np.int64),
        ("family", np.int64),
    ]
)
"""One attacker's numbers; `family` is the technique whose weakness decides a compromise."""


def profile_table(config: AttackersConfig) -> NDArray[np.void]:
    """(profiles,) records of the configured attackers."""
    table = np.zeros(len(config.profiles), PROFILE)
    for row, name in enumerate(config.profiles):
        settings: AttackerConfig = getattr(config, name)
        for field in AttackerConfig.model_fields:
            table[row][field] = getattr(settings, field)
        table[row]["family"] = FAMILIES.index(TRAFFIC[name][Stage.ATTACKED][0])
    return table


def emission_table(config: AttackersConfig, class_family: NDArray[np.int64], ranges: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Classes of the bank that each profile shows at each stage.

    Args:
        config: who attacks.
        class_family: (C,) family of each class of the bank.
        ranges: (C, 2) windows of each class in the split that is played.

    Returns:
        (profiles, 5, C) class indices, the first `count` valid; (profiles, 5) counts. Row `CLEAN` is empty.

    Raises:
        UserError: when the bank holds no window of any family that a stage shows.
    """
    held = ranges[:, 1] > ranges[:, 0]
    classes = np.zeros((len(config.profiles), len(Stage), len(class_family)), np.int64)
    counts = np.zeros((len(config.profiles), len(Stage)), np.int64)
    for row, name in enumerate(config.profiles):
        for stage, families in TRAFFIC[name].items():
            fits = np.flatnonzero(held & np.isin(class_family, [FAMILIES.index(family) for family in families]))
            if len(fits) == 0:
                wanted = f"{' or '.join(families)} windows, which attacker '{name}' shows when a device is {stage.name}"
                raise UserError(f"the trace bank holds no {wanted}; use a bank that has them")
            classes[row, stage, : len(fits)] = fits
            counts[row, stage] = len(fits)
    return classes, counts
