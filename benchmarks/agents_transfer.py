"""Agents trained on `clinic`, played on other networks as they are; what they are held against is tuned there."""

from __future__ import annotations

from typing import Any

from benchmarks.agents_contest import AGENT
from benchmarks.common import Gate, PartOptions
from benchmarks.trained import group_rows, real_world, train

SEEDS = 3
"""Of the contest's agents that are taken along."""

NETWORKS = ("clinic", "home", "factory")


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Play, and compare."""
    world = real_world(options)
    agents = train(world, {AGENT: {}}, min(SEEDS, options.seeds))
    rows: list[dict[str, Any]] = []
    for network in NETWORKS[:2] if options.quick else NETWORKS:
        there = world.with_settings({"env.scenario": network})
        rows += [{"network": network, **row} for row in group_rows(there, {AGENT: (there, agents[AGENT])})]
    return {}, {"other networks": rows}
