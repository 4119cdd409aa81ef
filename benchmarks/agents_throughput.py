"""PPO as the product trains it, on our environment and on an empty one of the same spaces: steps a second, in turns within one run."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.common import Gate, PartOptions
from benchmarks.env_speed import compete_learning
from src.config import load_config
from src.data.bank import TraceBank


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Train in turns."""
    config = load_config(environ={})
    ours, empty = compete_learning(config, TraceBank.bundled(), 2 if options.quick else 10, np.random.default_rng(0)).items()
    shares = np.sort(ours[1] / empty[1])
    middle, low, high = (float(np.quantile(shares, q)) for q in (0.5, 0.025, 0.975))
    gate = Gate("PPO training, steps a second, as a share of the same on an empty environment of the same spaces", middle, 0.75, ">=", low, high)
    rows = [{"environments": name, "steps a second": float(np.median(rates))} for name, rates in (ours, empty)]
    return {"G.speed.ppo": gate}, {"training": rows}
