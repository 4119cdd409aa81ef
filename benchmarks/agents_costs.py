"""How the agent changes as taking devices down gets dearer: trained and played with the losses of service and of cleanup scaled."""

from __future__ import annotations

from typing import Any

import numpy as np

from agents.benchmark import BenchmarkRunner
from benchmarks.common import Gate, PartOptions
from benchmarks.trained import World, compared, real_world, train

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Train, play, and count what is done."""
    world = real_world(options)
    seeds, length = compared(options)
    reward = world.config.reward
    groups = {
        str(factor): {**length, "reward.service": reward.service * factor, "reward.cleanup": reward.cleanup * factor}
        for factor in (FACTORS[1:4:2] if options.quick else FACTORS)
    }
    agents = train(world, groups, seeds)
    rows = [{"times dearer": float(name), **_habits(world.with_settings(groups[name]), folders)} for name, folders in agents.items()]
    return {}, {"cost ratio": rows}


def _habits(world: World, agents: dict[int, Any]) -> dict[str, float]:
    runner = BenchmarkRunner(world.config, world.bank)
    attacked, calm = (runner.on(side).play_agents(agents) for side in ("seen", "attack-free"))
    hours, devices = world.config.env.step_seconds / 3600.0, len(runner.env(1).simulation.network.names)

    def total(runs: list[Any], name: str) -> float:
        return float(np.sum([one.summary[name] for one in runs]))

    time, quiet = total(attacked, "steps") * hours, total(calm, "steps") * hours
    return {
        "orders an hour": total(attacked, "orders") / time,
        **{f"{kind} an hour": total(attacked, kind) / time for kind in ("rate_limit", "block", "isolate", "restore")},
        "damage": float(np.mean([one.summary["damage"] for one in attacked])),
        "service lost": float(np.mean([one.summary["service"] for one in attacked])),
        "orders an attack-free hour": total(calm, "orders") / quiet,
        "false downtime, h a device-day": total(calm, "false_isolation") * hours / (quiet / 24.0 * devices),
    }
