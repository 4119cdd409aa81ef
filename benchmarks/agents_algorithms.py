"""The six algorithms with their tuned settings, as many steps each, on attackers met and never met."""

from __future__ import annotations

from typing import Any, get_args

from benchmarks.common import Gate, PartOptions
from benchmarks.trained import compared, group_rows, real_world, train
from src.config import Algorithm


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Train, play, and compare."""
    world = real_world(options)
    seeds, length = compared(options)
    groups = {name: {**length, "rl.algorithm": name} for name in get_args(Algorithm)}
    agents = train(world, groups, seeds)
    rows = group_rows(world, {name: (world.with_settings(groups[name]), folders) for name, folders in agents.items()}, "ppo")
    return {}, {"algorithms": rows}
