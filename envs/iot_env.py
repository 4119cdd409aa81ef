"""`IoTEnv`: defend a network of IoT devices, one environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.attackers import Stage
from envs.dynamics import TERMS, End
from envs.world import Simulation, open_bank, settle
from src.config import Config
from src.data.bank import TraceBank
from src.errors import UserError


class IoTEnv(gym.Env):
    """Defend a network of IoT devices against an attacker who moves through it and reacts.

    DOCSTRING
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        scenario: str | None = None,
        *,
        bank: TraceBank | Path | str | None = None,
        split: str = "agent",
        config: Config | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        """Build the world. Nothing is drawn before `reset`.

        Args:
            scenario: `solo`, `home` or `clinic`; the configuration's where left out.
            bank: traffic with sensor readings, or its folder; the bundled synthetic-profile bank where left out.
            split: side of the bank that is played: `calibrate`, `agent` or `test`.
            config: the whole configuration; the sections `env`, `attackers` and `reward` are read.
            render_mode: None or `ansi`.
            settings: keys of the `env` section, to replace the configuration's.

        Raises:
            UserError: for an unknown or ill-typed setting, or a bank that lacks what the scenario needs.
        """
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise UserError(f"unknown render_mode '{render_mode}': allowed: None, {', '.join(self.metadata['render_modes'])}")
        self.render_mode = render_mode
        chosen = settle(config, {**({"scenario": scenario} if scenario is not None else {}), **settings})
        self.simulation = Simulation(chosen, open_bank(bank), split, 1)
        self.action_space = self.simulation.action_space()
        self.observation_space = self.simulation.observation_space()
        self._flat = np.zeros((1, self.simulation.layout.size), np.float32)
        self._running = False

    @property
    def device_names(self) -> tuple[str, ...]:
        """Device of each index; stable across instances."""
        return self.simulation.network.names

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode. The same seed gives the same episode under the same actions."""
        super().reset(seed=seed)
        key = self.np_random.integers(0, 2**63, dtype=np.uint64)
        self.simulation.begin(np.zeros(1, np.int64), np.array([key], np.uint64))
        self._running = True
        info = self.simulation.describe()
        if self.simulation.config.env.expose_truth:
            info["truth"] = self.simulation.truth(0)
        return self._observation(), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Give an order, and let one decision interval pass.

        Raises:
            UserError: for an action outside the space, or without a running episode.
        """
        if not self._running:
            raise UserError("step() needs a running episode: call reset() first")
        sim = self.simulation
        if sim.joint:
            orders = np.asarray(action)
            if orders.shape != (sim.layout.devices,) or not np.issubdtype(orders.dtype, np.integer) or orders.min() < 0 or orders.max() > 5:
                raise UserError(f"action {action!r} is not in {self.action_space}")
            sim.step(orders[None])
        else:
            number = int(action) if np.ndim(action) == 0 and np.issubdtype(np.asarray(action).dtype, np.integer) else -1
            if not 0 <= number < self.action_space.n:  # type: ignore[union-attr]
                raise UserError(f"action {action!r} is not in {self.action_space}")
            sim.step(np.array([number]))
        end = int(sim.sites[0]["end"])
        terminated, truncated = end in (End.OVERRUN, End.EVICTED), end == End.HORIZON
        self._running = not (terminated or truncated)
        info: dict[str, Any] = {"reward_terms": dict(zip(TERMS, sim.terms[0].tolist(), strict=True))}
        if end:
            info["end"] = End(end).name.lower()
            info["summary"] = sim.summary(0)
        if sim.config.env.expose_truth:
            info["truth"] = sim.truth(0)
        return self._observation(), float(sim.rewards[0]), terminated, truncated, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Actions that would change something (MONITOR always counts), flat; from what the defender knows alone."""
        return self.simulation.masks(self._flat)[0]

    def render(self) -> str | None:
        """The network as text: a line a device (`ansi`)."""
        if self.render_mode is None:
            return None
        sim = self.simulation
        lines = [f"step {int(sim.sites[0]['step'])} of {sim.config.env.horizon}"]
        for d, name in enumerate(self.device_names):
            device = sim.devices[0, d]
            held = [f"{control} {int(device[control])}" for control in ("rate_limit", "block", "isolate", "restore") if device[control] > 0]
            truth = f"  {Stage(device['stage']).name}" if sim.config.env.expose_truth else ""
            lines.append(f"{name:>14}  risk {device['risk']:.2f}  anomaly {device['anomaly']:.2f}  {', '.join(held) or '-'}{truth}")
        return "\n".join(lines)

    def _observation(self) -> Any:
        self._flat = self.simulation.observe()
        if self.simulation.config.env.flatten:
            return self._flat[0].copy()
        return self.simulation.layout.named(self._flat[0])
