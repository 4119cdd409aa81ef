"""`IoTEnv`: defend a network of IoT devices, one environment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.dynamics import TERMS, End
from envs.world import Simulation, open_bank, settle, whole
from src.config import Config
from src.data.bank import TraceBank
from src.errors import UserError
from src.predictor.interface import Sensor

if TYPE_CHECKING:
    from envs.rendering import Viewer


class IoTEnv(gym.Env):
    """Defend a network of IoT devices against an attacker who moves through it and reacts.

    ## 1 Description
    A network of D devices carries legitimate traffic. In three episodes of four an attacker appears, probes devices, breaks
    in, holds them and does harm, and answers what the defender does. The defender sees each device's current window of
    traffic and what the risk sensors say of it, never the truth, and gives at most one order a step (10 s). Every order
    helps against something and costs legitimate service or money.

    ## 2 Actions
    `Discrete(1 + 5 D)`: 0 is MONITOR; `1 + 5 d + (k - 1)` gives order k to device d. With `action_mode="joint"`,
    `MultiDiscrete([6] * D)`, one kind a device; they count as far as the budget goes, in the order of devices. That order is
    `device_names` and never changes. An order that would change nothing, that the budget no longer covers, or that is masked,
    is passed over: no cost, no effect, no exception.

    | k | order      | effect                                                                              | service lost | cost | delay | lasts (steps)   |
    |---|------------|-------------------------------------------------------------------------------------|--------------|------|-------|-----------------|
    | 0 | MONITOR    | none                                                                                | 0            | 0    | 0     | -               |
    | 1 | RATE_LIMIT | stops 45 % of attempts on the device and of its turn to harm, and 40 % of that harm | 20 %         | .02  | 0     | 20              |
    | 2 | BLOCK      | stops 90 % of attempts and 30 % of harm, until the attacker moves to other sources  | 10 %         | .04  | 0     | 30              |
    | 3 | ISOLATE    | nothing in or out; a foothold stays and resumes on release; sensors fall silent     | 100 %        | .05  | 0     | 40              |
    | 4 | RESTORE    | down for the restore time, then clean, and patched if it can be                     | 100 %        | .10  | 1     | 4-14, by device |
    | 5 | RELEASE    | lifts 1, 2 and 3                                                                    | 0            | .01  | 0     | -               |

    Numbers are the defaults of `env.controls`. A restored device that cannot be patched is as open as before. Isolating a
    protected device is masked (`protected="mask"`) or costs the `safety` term. `action_masks()` says which actions would
    change something; it reads only what the defender knows.

    ## 3 Observations
    A `Dict` of `Box`es (float32, 1-D, device by device), or with `flatten=True` one `Box` in which the parts follow one another
    in the order below; `simulation.layout.split(flat)` gives them as (devices, floats).

    | # | key        | floats a device   | range   | what                                                                                   |
    |---|------------|-------------------|---------|----------------------------------------------------------------------------------------|
    | 1 | `features` | F (10)            | [-5, 5] | window means of `env.features`: signed logarithm, standardised on the `fit` side       |
    | 2 | `sensors`  | 11                | [0, 1]  | probability of each of 8 families (benign first), risk, uncertainty, anomaly           |
    | 3 | `past`     | (k - 1)(F + 11)   | [-5, 5] | with `history=k` > 1: features and sensors of the steps before, newest first           |
    | 4 | `trend`    | 3                 | [0, 1]  | running means of risk, uncertainty, anomaly; 0 after a restore                         |
    | 5 | `controls` | 5                 | [0, 1]  | remaining rate limit, block, isolation, restore (shares); order on its way (0/1)       |
    | 6 | `service`  | 1                 | [0, 1]  | share of legitimate traffic delivered                                                  |
    | 7 | `silent`   | 1                 | {0, 1}  | nothing was received of it (cut off, dropped, or not there yet): 1 and 2 are 0         |
    | 8 | `valid`    | 5                 | {0, 1}  | which orders would change something                                                    |
    | 9 | `device`   | 5                 | [0, 1]  | criticality and restore time (shares of the largest), protected, patchable, patched    |
    |10 | `context`  | 2 in all          | [0, 1]  | time left, orders left                                                                 |

    The higher risk, uncertainty or anomaly, the worse. Windows are read from a `TraceBank`, along their capture; a device's
    ordinary traffic is of one benign class for an episode. Options of `env`, all off by default: `telemetry_delay` (steps by
    which 1-4 arrive late), `sensor_dropout` (chance a device and step that nothing arrives), `detector_drift` (share a by which
    readings are off at the horizon, growing evenly: r + a t/T (1 - r) on some devices, r - a t/T r on the others, families
    towards 1/8), `history`, and `sensors="live"` (the model reads the windows at every step; the same to 1e-5).

    ## 4 Rewards
    `-(w_service service + w_damage damage + w_action action + w_cleanup cleanup + w_safety safety)`, weights from `reward`,
    terms in `info["reward_terms"]` (each >= 0). With criticality c summing to 1: service = sum c x traffic lost;
    damage = sum c x (1 in IMPACT, less what controls contain; 0.25 in COMPROMISED; 0 while cut off); action = cost of orders;
    cleanup = c of each restore begun; safety = protected devices isolated. An overrun also charges the damage of the steps
    that it cuts off. No term reads a sensor.

    ## 5 Start
    All devices CLEAN, no control in force. New each reset: with probability `attack_free` there is no attacker; otherwise one of
    the profiles on side `env.attackers` (docs/attackers.md) arrives at a step drawn from `start_range`, at an entry device drawn
    among those it can reach; every device's weaknesses are multiplied by a number drawn from [1 - variation, 1 + variation].

    ## 6 Ends
    `terminated`: `overrun` (devices in IMPACT hold `overrun_share` of criticality for `overrun_steps` steps) or `evicted` (the
    attacker is out of patience and of footholds). `truncated`: `horizon` steps. `info["end"]` names it.

    ## 7 Info
    At reset: `scenario, traffic (real or synthetic profile), site, sensor, sensors (stored or live), split, attackers`. At each
    step: `reward_terms`. At the end: `end`, `summary` (measures apart from the reward) and `delivered` (share of each device's
    legitimate traffic). With `expose_truth`, `truth`: stage, technique and weakness of each device, and the attacker's state.

    ## 8 Version history
    v0: first version.
    """

    metadata = {"render_modes": ["human", "rgb_array", "ansi"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        scenario: Path | str | None = None,
        *,
        bank: TraceBank | Path | str | None = None,
        split: str = "agent",
        config: Config | None = None,
        sensor: Sensor | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        """Build the world. Nothing is drawn before `reset`.

        Args:
            scenario: `solo`, `home`, `clinic`, `factory`, `campus`, or the path of a `.yml` file; the configuration's where left out.
            bank: traffic with sensor readings, or its folder; the bundled synthetic-profile bank where left out.
            split: side of the bank that is played: `calibrate`, `agent` or `test`.
            config: the whole configuration; the sections `env`, `attackers` and `reward` are read.
            sensor: what reads the windows where `env.sensors` is `live` (the contract is in `src/predictor/interface.py`).
            render_mode: None, `human` (a table in the terminal, redrawn at each step), `ansi` (the table as text) or `rgb_array`
                (a picture). Stages are shown only with `expose_truth`.
            settings: keys of the `env` section, to replace the configuration's.

        Raises:
            UserError: for an unknown or ill-typed setting, or a bank that lacks what the scenario needs.
        """
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise UserError(f"unknown render_mode '{render_mode}': allowed: None, {', '.join(self.metadata['render_modes'])}")
        self.render_mode = render_mode
        chosen = settle(config, scenario, settings)
        self.simulation = Simulation(chosen, open_bank(bank), split, 1, sensor)
        self.action_space = self.simulation.action_space()
        self.observation_space = self.simulation.observation_space()
        self._running = False
        self._viewer: Viewer | None = None

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
        if self._viewer is not None:
            self._viewer.forget()
        info = self.simulation.describe()
        if self.simulation.config.env.expose_truth:
            info["truth"] = self.simulation.truth(0)
        if self.render_mode == "human":
            self.render()
        return self._present(self.simulation.observe()), info

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
            flat = sim.step(orders[None].astype(np.int64))
        else:
            number = whole(action)
            if number is None or not 0 <= number < self.action_space.n:  # type: ignore[union-attr]
                raise UserError(f"action {action!r} is not in {self.action_space}")
            flat = sim.step(np.array([number]))
        end = int(sim.sites[0]["end"])
        terminated, truncated = end in (End.OVERRUN, End.EVICTED), end == End.HORIZON
        self._running = not (terminated or truncated)
        info: dict[str, Any] = {"reward_terms": dict(zip(TERMS, sim.terms[0].tolist(), strict=True))}
        if end:
            info["end"] = End(end).name.lower()
            info["summary"] = sim.summary(0)
            info["delivered"] = sim.delivered(0)
        if sim.config.env.expose_truth:
            info["truth"] = sim.truth(0)
        if self.render_mode == "human":
            self.render()
        return self._present(flat), float(sim.rewards[0]), terminated, truncated, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Actions that would change something (MONITOR always counts), flat; from what the defender knows alone."""
        return self.simulation.masks()[0]

    def render(self) -> NDArray[np.uint8] | str | None:  # type: ignore[override]
        """The network now: a picture (`rgb_array`), text (`ansi`), or nothing but a table on the terminal (`human`)."""
        if self.render_mode is None:
            return None
        if self._viewer is None:
            from envs.rendering import Viewer  # only those who look pay for it

            self._viewer = Viewer(self.render_mode, self.metadata["render_fps"])
        return self._viewer.show(self.simulation, self.simulation.config.env.expose_truth)

    def close(self) -> None:
        """Stop redrawing the terminal."""
        if self._viewer is not None:
            self._viewer.close()

    def _present(self, flat: NDArray[np.float32]) -> Any:
        return flat[0] if self.simulation.config.env.flatten else self.simulation.layout.named(flat[0])
