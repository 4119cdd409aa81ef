"""`ClassicView`: the network as one device at a time, with the four classic levels of mitigation."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.dynamics import Order
from envs.iot_env import IoTEnv
from envs.world import KINDS, at_least, whole
from src.data.bank import FEATURE_BOUND
from src.errors import UserError

CLASSIC_FEATURES: tuple[str, ...] = (
    *("Header_Length", "Protocol Type", "Rate"),
    *("fin_flag_number", "syn_flag_number", "rst_flag_number", "psh_flag_number", "ack_flag_number"),
    *("HTTP", "HTTPS", "DNS", "Telnet", "SSH", "TCP", "UDP", "DHCP", "ARP", "ICMP"),
    *("Min", "Max", "Std", "Tot size"),
)
"""22 features of both releases of CICIoT2023. Left out are those that repeat others (`AVG`, `Variance`, `LLC`, the counts), and
those that are artefacts of one release: in the classic one `IAT` is a clock and `Number` a position."""

LEVELS = (Order.MONITOR, Order.RATE_LIMIT, Order.BLOCK, Order.ISOLATE)
"""Actions, by index."""

PREDICTION = 6
"""Floats of `attack_prediction`."""


class ClassicView(gym.Wrapper):
    """One device at a time: 22 features, their history, the actions taken, a six-number prediction, and four actions.

    ## The device in focus
    The one with the highest running risk among those that are not cut off (of all, where all are), the first where several have
    it; of `solo`, the only one. Every observation is about the device in focus, the next action goes to it, and
    `info["device"]` names it. Which one that is may change from step to step.

    ## Actions
    `Discrete(4)`: 0 MONITOR, 1 RATE_LIMIT, 2 BLOCK, 3 ISOLATE, as in `IoTEnv`, given to the device in focus. MONITOR lifts
    nothing: controls run out by themselves, and there is no restoring. `action_masks()` says which would change something.

    ## Observations
    A `Dict` of `Box`es (float32, 1-D):

    | # | key                 | floats | range   | what                                                                            |
    |---|---------------------|--------|---------|---------------------------------------------------------------------------------|
    | 1 | `current_state`     | 22     | [-5, 5] | `CLASSIC_FEATURES` of the device in focus, scaled as in `IoTEnv`; 0 while silent    |
    | 2 | `state_history`     | 22 k   | [-5, 5] | its last k states, the oldest first, the current one last; 0 before the episode    |
    | 3 | `action_history`    | 4 k    | {0, 1}  | the last k actions, one-hot, the oldest first, to whichever device; 0 before       |
    | 4 | `attack_prediction` | 6      | [0, 1]  | what the sensors say of its current window, see below; 0 while silent              |

    `attack_prediction`: [0] probability of an attack (1 less that of benign traffic); [1] risk; [2] uncertainty; [3] anomaly;
    [4] confidence (probability of the likeliest family); [5] that family: Benign, DDoS, DoS, Mirai, Recon, Spoofing, Web,
    BruteForce as 0, 1/7, ... 1. Risk, uncertainty and anomaly: the higher, the worse.

    ## Rewards, start, ends, info
    `IoTEnv`'s; they concern the whole network.
    """

    def __init__(self, env: gym.Env, history: int = 10) -> None:
        """Look at an `IoTEnv` in this way.

        Args:
            env: with one addressed order a step and `features=list(CLASSIC_FEATURES)`.
            history: k, the states and actions kept.

        Raises:
            UserError: for another environment, mode or choice of features.
        """
        base = getattr(env, "unwrapped", env)
        if not isinstance(base, IoTEnv):
            raise UserError(f"ClassicView looks at an IoTEnv, not at {base}")
        super().__init__(env)
        settings = base.simulation.config.env
        if settings.action_mode != "discrete":
            raise UserError("ClassicView gives one addressed order a step: set env.action_mode to discrete, not joint")
        for place, (wanted, found) in enumerate(zip_longest(CLASSIC_FEATURES, settings.features), 1):
            if wanted != found:
                raise UserError(
                    f"ClassicView shows {len(CLASSIC_FEATURES)} features, and env.features names {len(settings.features)}, "
                    f"of which number {place} is {found or 'missing'}, not {wanted or 'left out'}: set features=list(CLASSIC_FEATURES)"
                )
        history = at_least(1, "history", history)
        self.base = base
        F = len(CLASSIC_FEATURES)
        self.observation_space = spaces.Dict(
            {
                "current_state": spaces.Box(-FEATURE_BOUND, FEATURE_BOUND, (F,), np.float32),
                "state_history": spaces.Box(-FEATURE_BOUND, FEATURE_BOUND, (F * history,), np.float32),
                "action_history": spaces.Box(0.0, 1.0, (len(LEVELS) * history,), np.float32),
                "attack_prediction": spaces.Box(0.0, 1.0, (PREDICTION,), np.float32),
            }
        )
        self.action_space = spaces.Discrete(len(LEVELS))
        self._states = np.zeros((history, base.simulation.layout.devices, F), np.float32)
        self._actions = np.zeros((history, len(LEVELS)), np.float32)
        self._focus = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """Start an episode, with nothing remembered."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._states[:] = 0.0
        self._actions[:] = 0.0
        return self._look(observation, info), info

    def step(self, action: Any) -> tuple[dict[str, NDArray[np.float32]], SupportsFloat, bool, bool, dict[str, Any]]:
        """Put the device in focus on a level.

        Raises:
            UserError: for an action outside the space, or without a running episode.
        """
        number = whole(action)
        if number is None or not 0 <= number < len(LEVELS):
            raise UserError(f"action {action!r} is not in {self.action_space}")
        order = LEVELS[number]
        observation, reward, terminated, truncated, info = self.env.step(self._focus * KINDS + int(order) if order else 0)
        self._actions[:-1] = self._actions[1:]
        self._actions[-1] = np.eye(len(LEVELS))[number]
        return self._look(observation, info), reward, terminated, truncated, info

    def action_masks(self) -> NDArray[np.bool_]:
        """(4,) levels that would change something on the device in focus; MONITOR always counts."""
        allowed = self.base.simulation.allowed()[0, self._focus]
        return np.concatenate([[True], allowed[: len(LEVELS) - 1]])

    def _look(self, observation: Any, info: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
        """Remember the states, choose the device in focus, name it in `info`, and show it."""
        layout = self.base.simulation.layout
        named = observation if isinstance(observation, dict) else layout.named(observation)
        parts = {name: named[name].reshape(layout.devices, -1) for name in ("features", "sensors", "trend", "controls", "silent")}
        self._states[:-1] = self._states[1:]
        self._states[-1] = parts["features"]
        reached = parts["controls"][:, 2:4].max(axis=1) == 0  # neither isolated nor being restored
        self._focus = int(np.where(reached | ~reached.any(), parts["trend"][:, 0], -1.0).argmax())
        d = self._focus
        prediction = np.zeros(PREDICTION, np.float32)
        if not parts["silent"][d, 0]:
            families, rest = parts["sensors"][d, :-3], parts["sensors"][d, -3:]
            likeliest = int(families.argmax())
            prediction[:] = (1.0 - families[0], *rest, families[likeliest], likeliest / (len(families) - 1))
        info["device"] = self.base.device_names[d]
        return {
            "current_state": self._states[-1, d].copy(),
            "state_history": self._states[:, d].flatten(),
            "action_history": self._actions.flatten(),
            "attack_prediction": prediction,
        }


def classic(scenario: Path | str | None = None, *, history: int = 10, **settings: Any) -> ClassicView:
    """`IoTDefenseClassic-v0`: an `IoTEnv` with `CLASSIC_FEATURES` in the classic view. `history` is the view's k, the rest `IoTEnv`'s arguments."""
    return ClassicView(IoTEnv(scenario, **{"features": list(CLASSIC_FEATURES), **settings}), history)


classic.metadata = IoTEnv.metadata  # type: ignore[attr-defined]  # gymnasium.make looks there for what can be rendered
