"""What a trained agent would order on a live network, and what the comparison rule would: from readings to an observation to advice.

The observation is the environment's, written by the environment's own code (`envs.dynamics`) into its own layout. Of what it holds, a live
site cannot know all; what is shown instead is stated here and nowhere else:

* `controls` are 0, `service` 1, and the budget of `context` whole: nothing is carried out, so nothing is in force and nothing was spent;
* `patched` of `device` is 0: which device was patched is not seen from packets;
* the time left of `context` is whole: a site has no last step;
* `silent` is 1 where no whole window of a device came in the interval: not that it was cut off, which nobody here can see.

An agent that keeps a belief keeps it of what really happened, which is that its advice was not followed. What it takes to be likely before
anything is seen is the site's own rate of attacks, not that of its training, where one comes in three episodes of four.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.bayes import BayesFilter
from agents.belief import Belief, Knowledge
from agents.filtering import HELD, IMPACT
from agents.learned import KIND, LearnedPolicy, load_policy
from agents.training import RLTrainer
from envs import dynamics
from envs.dynamics import NOTHING, Order
from envs.world import KINDS, Simulation, action_names, settle
from src.artifacts import open_artifact
from src.config import Config, nearest
from src.data.bank import TraceBank
from src.errors import UserError
from src.watch.sensor import SiteSensor
from src.watch.site import Site

WEEK = 7 * 24 * 3600.0
MONITOR = np.zeros(1, np.int64)

RULE = "Bayes filter"
"""What the agent is compared with: `agents.bayes`, told what the agent's belief is told."""


class Advice(NamedTuple):
    """What is recommended for one interval: by device, the most urgent first; devices with nothing to order are left out."""

    orders: dict[int, str]
    """Of the agent, e.g. `BLOCK camera-1`."""
    rule: dict[int, str]
    """Of the comparison rule."""
    held: NDArray[np.float64]
    """(D,) what the belief gives for a foothold on each device."""


@dataclass(frozen=True)
class Trained:
    """A saved agent and the sensor from whose readings it learned."""

    policy: Path
    sensor: Path
    config: Config
    """Of the agent's training."""


def find_agent(given: str | None, artifacts: Path) -> Path:
    """The folder of a saved agent: as given (it, or the folder around it), or the one trained last.

    Raises:
        UserError: when there is none.
    """
    place = artifacts / "agents" if given is None else Path(given)
    found = [place] if (place / "policy.safetensors").is_file() else list(place.glob("*/policy.safetensors")) + list(place.glob("*/*/policy.safetensors"))
    folders = [path if path.is_dir() else path.parent for path in found]
    if not folders:
        known = [str(path.parent) for path in (artifacts / "agents").glob("*/*/policy.safetensors")]
        hint = nearest(str(given), known) if known else "none was trained yet: `python main.py --phase rl`"
        raise UserError(f"no trained agent at '{place}': {hint}")
    return max(folders, key=lambda folder: (folder / "meta.json").stat().st_mtime)


def trained_with(policy: Path, artifacts: Path, sensor: Path | None = None) -> Trained:
    """An agent with the sensor that it was trained on, found by what its artifact says of the trace bank; or with the one that is given.

    Raises:
        UserError: when the agent cannot be opened, or its sensor cannot be found.
    """
    meta = open_artifact(policy, KIND)
    config = Config.model_validate(meta["config"])
    if sensor is not None:
        return Trained(policy, sensor, config)
    trainer = {"config": config, "folder": policy.parent}
    for place in sorted((artifacts / "sensors").glob("*/bank*")):
        if place.is_dir() and RLTrainer(bank=TraceBank.load(place), **trainer).trained(int(meta["seed"])):  # type: ignore[arg-type]
            return Trained(policy, place.parent / "predictor", config)
    raise UserError(f"the sensor that agent '{policy}' was trained on is not in '{artifacts / 'sensors'}'; name it with --sensor FOLDER")


class Advisor:
    """Steps through intervals of `env.step_seconds`; readings in, advice out."""

    def __init__(self, trained: Trained, site: Site, bank: TraceBank, sensor: SiteSensor) -> None:
        """Open the agent for the site's network.

        Args:
            trained: agent and sensor.
            site: its scenario and its rate of attacks.
            bank: of home.
            sensor: that reads. What readings say is known from the agent's training, and learned again from the bank where the sensor was calibrated.

        Raises:
            UserError: when the agent does not fit the network, or was saved by another version.
        """
        told = trained.config
        self.seconds = told.env.step_seconds
        # An attack as often as the site has one, at any time; no telemetry is late or lost on purpose.
        often = site.attacks_a_week * self.seconds / WEEK * told.env.horizon
        live = {
            "flatten": True, "telemetry_delay": 0, "sensor_dropout": 0.0, "detector_drift": 0.0, "sensors": "stored", "action_mode": "discrete",
            "attack_free": max(1.0 - often, 0.0), "start_range": (0, told.env.horizon - 1),
        }  # fmt: skip
        config = settle(told, site.scenario, live)
        self.simulation = Simulation(config, bank, "test", 1)
        self.layout, network = self.simulation.layout, self.simulation.network
        self.actions = action_names(network.names)
        self.features = tuple(config.env.features)
        policy = load_policy(trained.policy, self.simulation)
        known = None if policy.belief is None or len(sensor.ordinary) else policy.belief.knowledge
        knowledge = known or Knowledge.learn(config, sensor.readings(bank, "calibrate"))
        if policy.belief is not None:
            policy = dataclasses.replace(policy, belief=Belief(knowledge, config.env, network, self.layout))
        self.policy: LearnedPolicy = policy
        self.rule = BayesFilter(config, bank, self.layout, knowledge=knowledge)
        D, self._slots = self.layout.devices, self.simulation.trails.shape[2]
        table = np.zeros((D * self._slots, self.layout.features + self.layout.sensors), np.float32)
        self.simulation.world = self.simulation.world._replace(table=table)
        self.simulation.trails[:] = NOTHING
        self.simulation.sites[0]["budget"] = config.env.budget
        self._state: Any = None
        self._rule_state: Any = None

    def observe(self, shown: Mapping[int, NDArray[np.float32]]) -> NDArray[np.float32]:
        """(1, size) the flat observation of the interval that ends now.

        Args:
            shown: by device, scaled features and readings (F + 11,) of the window that came in it.
        """
        simulation, step = self.simulation, int(self.simulation.sites[0]["step"])
        slot = (step + 1) % self._slots
        simulation.trails[0, :, slot] = NOTHING
        for device, row in shown.items():
            simulation.world.table[device * self._slots + slot] = row
            simulation.trails[0, device, slot] = device * self._slots + slot
        dynamics.sense(simulation.world, simulation.sites[0], simulation.devices[0], simulation.trails[0])
        simulation.sites[0]["step"] = step + 1
        observation = simulation.observe()
        self.layout.split(observation)["context"][:, 0] = 1.0
        return observation

    def step(self, shown: Mapping[int, NDArray[np.float32]]) -> Advice:
        """What is recommended after an interval; `shown` as for `observe`."""
        observation = self.observe(shown)
        orders, after = self._orders(self.policy, observation, self._state)
        rule, _ = self._orders(self.rule, observation, self._rule_state)
        self._state = after if self.policy.belief is None else _unheeded(self.policy.belief, self._state, observation)
        self._rule_state = _unheeded(self.rule.belief, self._rule_state, observation)
        held = self.rule.belief.conditions(self._rule_state)[0][:, [HELD, IMPACT]].sum(axis=1)
        return Advice(orders, rule, held.astype(np.float64))

    def _orders(self, policy: LearnedPolicy | BayesFilter, observation: NDArray[np.float32], state: Any) -> tuple[dict[int, str], Any]:
        """What a policy orders, and its memory after the first answer.

        It gives one order at a time, and is asked again, with the devices that it ordered for left out, until it would only watch: where nothing
        is carried out, a device that it would see to first would keep the others from their orders for ever.
        """
        asked, found, memory = observation.copy(), {}, None
        valid = self.layout.split(asked)["valid"]
        for turn in range(self.layout.devices):
            (action,), after = policy.predict(asked, state, deterministic=True)
            memory = after if turn == 0 else memory
            if action == Order.MONITOR:
                break
            device = int(action - 1) // KINDS
            found[device] = self.actions[action]
            valid[:, device] = 0.0
        return found, memory

    def forget(self, device: int) -> None:
        """Take back what was shown of a device that turned out to be none."""
        self.simulation.trails[0, device] = NOTHING
        for name in ("risk", "uncertainty", "anomaly"):
            self.simulation.devices[0][name][device] = 0.0


def _unheeded(belief: Belief, state: Any, observation: NDArray[np.float32]) -> Any:
    """What is believed at the next interval, where nothing was ordered in this one."""
    parts, heard = belief.hear(state, observation)
    return belief.advance(heard, parts, MONITOR)
