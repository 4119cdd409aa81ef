"""How MLflow opens a trained agent: `log_model(..., loader="agents.serving")`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.learned import LearnedPolicy, load_policy


class ServedAgent:
    """Answers the flat observations (N, size) of one episode, in their order from its beginning, with the likeliest actions (N,).

    An agent remembers what it saw and ordered: each answer takes for granted that those before it were carried out.
    """

    def __init__(self, policy: LearnedPolicy) -> None:
        """Wrap a trained agent."""
        self.policy = policy

    def predict(self, model_input: NDArray[np.float32], params: dict[str, Any] | None = None) -> NDArray[np.int64]:
        """Action indices; the artifact's `meta.json` names the device and order of each."""
        state, actions = None, []
        for observation in np.asarray(model_input, np.float32):
            action, state = self.policy.predict(observation[None], state, deterministic=True)
            actions.append(action)
        return np.concatenate(actions)


def _load_pyfunc(path: str) -> ServedAgent:
    return ServedAgent(load_policy(Path(path)))
