"""A policy to enter on the leaderboard: `python main.py --phase eval --submit examples/submission.py:Watchful`.

Of the devices whose running risk is high, the riskiest is restored, else blocked. `docs/leaderboard.md` has the rules.
"""

import numpy as np


class Watchful:
    """Reads the batch of flat observations that it is given, and answers one action for each."""

    name = "watchful example"

    def __init__(self, facts):
        """`facts` (PublicFacts of agents/entrants.py) say where things lie; a class that needs none takes no argument."""
        self.layout = facts.layout

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        """Actions (E,) for observations (E, size), and a memory, which comes back at the next step."""
        parts = self.layout.split(observation)
        risk = parts["trend"][..., 0]  # (E, D)
        valid = parts["valid"] > 0  # (E, D, 5): RATE_LIMIT, BLOCK, ISOLATE, RESTORE, RELEASE, which are orders 1 to 5
        actions = np.zeros(len(observation), np.int64)  # MONITOR
        for order, level in ((2, 0.15), (4, 0.25)):  # the later order counts
            due = np.where(valid[..., order - 1] & (risk > level), risk, -1.0)
            device = due.argmax(axis=1)
            actions = np.where(due.max(axis=1) > 0, 1 + 5 * device + (order - 1), actions)
        return actions, state
