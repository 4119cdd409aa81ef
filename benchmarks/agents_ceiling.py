"""How much of the way to the planner readings can be the reason for: the same world, with readings that name the family of every window.

An attacker shows itself in few steps, whatever the sensors. What the Bayes filter earns when no reading is ever wrong says how much of the
distance to the planner, who sees the hidden state itself, better sensors or a better use of them could win at the most by its way of deciding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.common import Gate, PartOptions
from benchmarks.trained import World, levels, real_world, references
from envs.scenarios import FAMILIES
from src.data.bank import TraceBank
from src.evaluation.rollout import PLANNER


def perfect(bank: TraceBank) -> TraceBank:
    """The bank with readings that are never wrong and never in doubt."""
    family = np.array([FAMILIES.index(name) for name in bank.class_families])[bank.label]
    readings = np.zeros(bank.sensors.shape, np.float32)
    for column, name in enumerate(bank.sensor_names):
        if name.startswith("probability:"):
            readings[:, column] = family == FAMILIES.index(name.removeprefix("probability:"))
        elif name != "uncertainty":
            readings[:, column] = family != 0
    return bank.with_sensors(readings)


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Tune and play the rules on real readings, and on perfect ones."""
    world = real_world(options)
    worlds = {"as they are": world, "never wrong": World(world.config, perfect(world.bank), None)}
    tuned = {name: references(one) for name, one in worlds.items()}
    rows = []
    for side in ("seen", "held out"):
        played = {name: levels(one, side, tuned[name]) for name, one in worlds.items()}
        zero = played["as they are"]["Bayes filter"].mean()
        for name, found in played.items():
            share = (found["Bayes filter"].mean() - zero) / (found[PLANNER].mean() - zero)
            row = {"side": side, "readings": name, "H of the Bayes filter": float(share)}
            rows.append({**row, **{policy: float(values.mean()) for policy, values in found.items()}})
    return {}, {"perfect readings": rows}
