"""`IoTVectorEnv`: many environments in one call, the same worlds as as many `IoTEnv`s seeded alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.dynamics import TERMS, End
from envs.world import Simulation, at_least, open_bank, settle
from src.config import Config
from src.data.bank import TraceBank
from src.errors import UserError
from src.predictor.interface import Sensor


class IoTVectorEnv(VectorEnv):
    """A batch of `IoTEnv`s, stepped by one compiled call; spaces, reward and ends are those of `IoTEnv`.

    Autoreset is `SAME_STEP`: where an episode ends, the observation returned is the next episode's first, and the last
    one of the old episode lies in `info["final_obs"]` (flat or Dict, batched; rows of running environments are zero),
    with `info["final_info"]` holding `summary` and `end`, and `info["_final_obs"]` saying which rows count.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        *,
        scenario: Path | str | None = None,
        bank: TraceBank | Path | str | None = None,
        split: str = "agent",
        config: Config | None = None,
        sensor: Sensor | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        """Build the worlds; arguments as for `IoTEnv`."""
        if render_mode is not None:
            raise UserError("the vector front does not render; render one IoTEnv")
        num_envs = at_least(1, "num_envs", num_envs)
        self.render_mode = None
        chosen = settle(config, scenario, settings)
        self.simulation = Simulation(chosen, open_bank(bank), split, num_envs, sensor)
        self.num_envs = num_envs
        self.single_action_space = self.simulation.action_space()
        self.single_observation_space = self.simulation.observation_space()
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.autoreset_mode = AutoresetMode.SAME_STEP
        self._generators: list[np.random.Generator] = []

    @property
    def device_names(self) -> tuple[str, ...]:
        """Device of each index; stable across instances."""
        return self.simulation.network.names

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode everywhere. `seed` s seeds environment i with s + i, as gymnasium's vector environments do.

        With `options={"reset_mask": (E,) bools}`, only in the environments named there.
        """
        which = self._masked(options)
        if seed is None:
            seeds: list[int | None] = [None] * self.num_envs
        elif np.ndim(seed) == 1:  # type: ignore[arg-type]
            seeds = [None if one is None else at_least(0, "each seed", one) for one in seed]  # type: ignore[union-attr]
            if len(seeds) != self.num_envs:
                raise UserError(f"{len(seeds)} seeds were given for {self.num_envs} environments")
        else:
            first = at_least(0, "seed", seed)
            seeds = [first + i for i in range(self.num_envs)]
        fresh, named = not self._generators, set(which.tolist())
        for i, one in enumerate(seeds):
            if fresh:
                self._generators.append(np.random.Generator(np.random.PCG64(one)))
            elif one is not None and i in named:
                self._generators[i] = np.random.Generator(np.random.PCG64(one))
        self._begin(which)
        return self._present(self.simulation.observe()), {name: np.full(self.num_envs, value) for name, value in self.simulation.describe().items()}

    def _masked(self, options: dict[str, Any] | None) -> NDArray[np.int64]:
        if options is None or "reset_mask" not in options:
            return np.arange(self.num_envs)
        mask = np.asarray(options["reset_mask"])
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise UserError(f"reset_mask must be {self.num_envs} bools, at least one of them true, not {mask!r}")
        if not self._generators and not mask.all():
            raise UserError("reset_mask names some environments, and none of them runs yet: call reset() without it first")
        return np.flatnonzero(mask)

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Act in every environment: (E,) or, in joint mode, (E, D)."""
        if not self._generators:
            raise UserError("step() needs running episodes: call reset() first")
        sim = self.simulation
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape or not np.issubdtype(actions.dtype, np.integer):
            raise UserError(f"actions must be integers of shape {self.action_space.shape}, not {actions.dtype} of {actions.shape}")
        top = 5 if sim.joint else self.single_action_space.n - 1  # type: ignore[union-attr]
        if actions.min() < 0 or actions.max() > top:
            raise UserError(f"actions must lie in 0 .. {top}, not {actions.min()} .. {actions.max()}")
        flat = sim.step(np.require(actions, np.int64, ("C", "W")))
        end = sim.sites["end"].copy()
        rewards = sim.rewards.copy()
        info: dict[str, Any] = {"reward_terms": {name: sim.terms[:, i].copy() for i, name in enumerate(TERMS)}}
        over = end != End.RUNNING
        if over.any():
            which = np.flatnonzero(over)
            last = np.zeros(flat.shape, np.float32)
            last[which] = flat[which]
            columns = {}
            for name, column in sim.summaries(which).items():
                columns[name] = np.zeros(self.num_envs)
                columns[name][which] = column
            info |= {"final_obs": self._present(last), "_final_obs": over, "final_info": {"summary": columns, "end": end}, "_final_info": over}
            self._begin(which)
            sim.observe(which, flat)
        return self._present(flat), rewards, (end == End.OVERRUN) | (end == End.EVICTED), end == End.HORIZON, info

    def action_masks(self) -> NDArray[np.bool_]:
        """(E, actions) as `IoTEnv.action_masks`."""
        return self.simulation.masks()

    def snapshot(self) -> dict[str, Any]:
        """Everything that the coming steps depend on: raw bytes of the state arrays, and the generators as JSON."""
        sim = self.simulation
        return {
            "world": sim.mark,
            "sites": sim.sites.view(np.uint8).copy(),
            "devices": sim.devices.reshape(-1).view(np.uint8).copy(),
            "trails": sim.trails.copy(),
            "generators": json.dumps([generator.bit_generator.state for generator in self._generators]),
        }

    def restore(self, saved: dict[str, Any]) -> Any:
        """Go on from the `snapshot` of a batch of the same size; returns the observations there.

        Raises:
            UserError: when the snapshot is of another batch or version.
        """
        sim = self.simulation
        states = json.loads(saved["generators"])
        sizes = (saved["sites"].size, saved["devices"].size, saved["trails"].shape)
        if saved["world"] != sim.mark or len(states) != self.num_envs or sizes != (sim.sites.nbytes, sim.devices.nbytes, sim.trails.shape):
            raise UserError("the snapshot is of another batch of environments, another bank or another version; start anew")
        sim.sites[:] = saved["sites"].view(sim.sites.dtype)
        sim.devices[:] = saved["devices"].view(sim.devices.dtype).reshape(sim.devices.shape)
        sim.trails[:] = saved["trails"]
        self._generators = [np.random.Generator(np.random.PCG64()) for _ in states]
        for generator, state in zip(self._generators, states, strict=True):
            generator.bit_generator.state = state
        sim.refresh()
        return self._present(sim.observe())

    def _begin(self, which: NDArray[np.int64]) -> None:
        keys = np.array([self._generators[i].integers(0, 2**63, dtype=np.uint64) for i in which], np.uint64)
        self.simulation.begin(which, keys)

    def _present(self, flat: NDArray[np.float32]) -> Any:
        return flat if self.simulation.config.env.flatten else self.simulation.layout.named(flat)
