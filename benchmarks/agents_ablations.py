"""What each choice in the agent pays: PPO with one thing changed, as many steps each, on attackers met and never met."""

from __future__ import annotations

from typing import Any

from benchmarks.common import Gate, PartOptions
from benchmarks.trained import compared, group_rows, real_world, train

WHOLE = "as it is"
CHANGES: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "without memory": {"rl.memory": "none"},
    "eight windows in place of the belief": {"rl.memory": "none", "env.history": 8},
    "a flat network": {"rl.network": "flat", "rl.hidden_size": 256},
    "orders not masked": {"rl.masked": False},
    "a critic that sees no more than the actor": {"rl.privileged_critic": False},
    "rewards not scaled": {"rl.normalize_reward": False},
    "without demonstrations": {"rl.ppo.demonstrations": 0},
    "against harder attackers": {"attackers.difficulty": "hard"},
}


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Train, play, and compare; all meet the attackers of the evaluation, whomever they trained against."""
    world = real_world(options)
    seeds, length = compared(options)
    changes = {name: {**length, **settings} for name, settings in CHANGES.items()}
    agents = train(world, changes, seeds)
    played = {name: {key: value for key, value in settings.items() if not key.startswith("attackers.")} for name, settings in changes.items()}
    rows = group_rows(world, {name: (world.with_settings(played[name]), folders) for name, folders in agents.items()}, WHOLE)
    return {}, {"ablations": rows}
