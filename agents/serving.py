"""How MLflow opens a trained agent: `log_model(..., loader="agents.serving")`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.learned import LearnedPolicy, load_policy


class ServedAgent:
    """Answers flat observations (N, size) with the likeliest actions (N,)."""

    def __init__(self, policy: LearnedPolicy) -> None:
        """Wrap a trained agent."""
        self.policy = policy

    def predict(self, model_input: NDArray[np.float32], params: dict[str, Any] | None = None) -> NDArray[np.int64]:
        """Action indices; the artifact's `meta.json` names the device and order of each."""
        return self.policy.predict(np.asarray(model_input, np.float32), deterministic=True)[0]


def _load_pyfunc(path: str) -> ServedAgent:
    return ServedAgent(load_policy(Path(path)))
