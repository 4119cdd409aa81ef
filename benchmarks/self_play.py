"""What comes of attacker and defender answering each other: `python -m benchmarks.self_play [--quick]`.

The rounds of `examples/self_play.py`, then every attacker against every defender, with intervals of the damage. `--quick` plays
one short round, and few episodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.common import launch, parser, write_result
from examples.self_play import SCENARIO, contest, meet
from src.evaluation.statistics import mean_estimate

SEED = 0


def main() -> None:
    """Play the rounds, measure, and write."""
    given = parser(__doc__).parse_args()
    rounds, steps, episodes = (1, 4096, 20) if given.quick else (3, 300_000, 500)
    torch.set_num_threads(1)
    attackers, defenders = contest(rounds, steps, SEED)
    rows: list[dict[str, Any]] = []
    for name, attacker in attackers.items():
        row: dict[str, Any] = {"attacker": name}
        for other, defender in defenders.items():
            met = meet(defender, attacker, episodes)
            damage = mean_estimate(met.summary["damage"], 2000, 0.95, np.random.default_rng(SEED))
            row |= {f"{other}: damage": damage.value, f"{other}: low": damage.low, f"{other}: high": damage.high, f"{other}: return": met.mean}
        rows.append(row)
    rules = [{"defender": name, "rule": str(one)} for name, one in defenders.items()]
    title = f"mean damage an episode with its 95 % interval, and the defender's mean return: {SCENARIO}, {episodes} new episodes a pair"
    write_result("self_play", "synthetic", {}, {"rules": rules, title: rows}, given.quick)


if __name__ == "__main__":
    launch(main)
