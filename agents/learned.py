"""Trained agents as they are saved, opened again, and played: no algorithm and no optimiser, only what decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from torch import Tensor, nn

from agents.belief import Belief, Knowledge
from agents.networks import Actor, DeviceMemory, Shape, Values
from agents.sight import Sight
from envs.scenarios import build_network
from envs.world import Layout, Simulation
from src.artifacts import open_artifact
from src.config import Config, EnvConfig
from src.errors import UserError

KIND = "agent-policy"
"""Kind of artifact that a trained agent is."""


class Reacting(nn.Module):
    """An actor, or values of actions: scores of the actions from what is shown now."""

    def __init__(self, head: Actor | Values, quantiles: int = 1) -> None:
        """Wrap it; of `quantiles` the mean counts."""
        super().__init__()
        self.head, self.quantiles = head, quantiles

    def forward(self, shown: Tensor, state: Any) -> tuple[Tensor, Any]:
        """(E, ...) -> scores (E, actions), and the state as it was."""
        return self.head(shown).unflatten(1, (self.quantiles, -1)).mean(1), state


class Remembering(nn.Module):
    """An LSTM for each device, and the actor that reads it."""

    def __init__(self, memory: DeviceMemory) -> None:
        """Build the actor over it."""
        super().__init__()
        self.memory, self.head = memory, Actor(memory.remembering())

    def forward(self, shown: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(E, ...), states (1, E, n) each, None for fresh ones -> scores (E, actions), states."""
        if state is None:
            blank = torch.zeros(1, len(shown), self.memory.hidden_size)
            state = blank, blank
        seen, after = self.memory(shown.unsqueeze(0), state)
        return self.head(seen[0]), after


@dataclass(frozen=True)
class Network:
    """What of an algorithm's policy decides, and how it is built anew."""

    kept: Callable[[Any], dict[str, Tensor]]
    """Its weights, of a policy."""
    options: Callable[[Config], dict[str, Any]]
    """What its shape depends on, beside the common settings."""
    build: Callable[[Shape, Mapping[str, Any]], nn.Module]
    """An untrained one."""


def _weights(**parts: str) -> Callable[[Any], dict[str, Tensor]]:
    """From `name="dotted.attribute"`: the state of that part of a policy, below `name`."""

    def kept(policy: Any) -> dict[str, Tensor]:
        found = {}
        for name, place in parts.items():
            part = policy
            for step in place.split("."):
                part = getattr(part, step)
            found |= {f"{name}.{key}": tensor for key, tensor in part.state_dict().items()}
        return found

    return kept


_ACTOR = Network(_weights(head="action_net"), lambda config: {}, lambda shape, options: Reacting(Actor(shape)))
NETWORKS = {
    "ppo": _ACTOR,
    "a2c": _ACTOR,
    "maskable_ppo": _ACTOR,
    "rllib_ppo": _ACTOR,  # which `src.cluster.rllib` saves
    "dqn": Network(_weights(head="q_net.q_net"), lambda config: {}, lambda shape, options: Reacting(Values(shape))),
    "qrdqn": Network(
        _weights(head="quantile_net.quantile_net"),
        lambda config: {"quantiles": config.rl.qrdqn.n_quantiles},
        lambda shape, options: Reacting(Values(shape, options["quantiles"]), options["quantiles"]),
    ),
    "recurrent_ppo": Network(
        _weights(head="action_net", memory="lstm_actor"),
        lambda config: {"units": config.rl.recurrent_ppo.units},
        lambda shape, options: Remembering(DeviceMemory(shape, shape.devices, options["units"])),
    ),
}
"""By algorithm."""


@dataclass(frozen=True)
class LearnedPolicy:
    """A trained agent, with Stable-Baselines3's `predict` on flat batched observations. What it remembers goes through `state`."""

    network: nn.Module
    sight: Sight
    belief: Belief | None
    meta: dict[str, Any]
    generator: torch.Generator

    def predict(
        self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[np.int64], Any]:
        """Actions (E,) for observations (E, size), and what to hand in with the next ones.

        Args:
            observation: flat.
            state: what the last call gave; None where all episodes begin.
            episode_start: (E,) which episodes begin here.
            deterministic: the action with the highest score; else drawn from the policy's own random numbers (an agent that learned
                values has no chances to draw by, and takes the best).

        Raises:
            UserError: for observations of another layout.
        """
        layout = self.sight.layout
        if observation.ndim != 2 or observation.shape[1] != layout.size:
            raise UserError(
                f"this agent reads flat observations (batch, {layout.devices} devices x {layout.width} + {Layout.CONTEXT}), not {observation.shape}"
            )
        if self.belief is None:
            parts, believed, memory = layout.split(observation), None, self._cleared(state, episode_start)
        else:
            parts, state = self.belief.hear(state, observation, episode_start)
            believed, memory = self.belief.inputs(state, parts), None
        with torch.inference_mode():
            scores, after = self.network(torch.from_numpy(self.sight.show(parts, believed)), memory)
            if deterministic or self.meta["algorithm"] in ("dqn", "qrdqn"):
                actions = scores.argmax(1).numpy()
            else:
                actions = torch.multinomial(scores.softmax(1), 1, generator=self.generator).squeeze(1).numpy()
        return actions, after if self.belief is None else self.belief.advance(state, parts, actions)

    @staticmethod
    def _cleared(state: tuple[Tensor, Tensor] | None, starts: Any) -> tuple[Tensor, ...] | None:
        """An LSTM's states, zero where an episode begins."""
        if state is None or starts is None or not np.any(starts):
            return state
        kept = torch.from_numpy(1.0 - np.asarray(starts, np.float32)).view(1, -1, 1)
        return tuple(part * kept for part in state)


def load_policy(folder: Path, simulation: Simulation | None = None, seed: int = 0) -> LearnedPolicy:
    """Open a saved agent; nothing is unpickled.

    Args:
        folder: what `RLTrainer.train` returned.
        simulation: world in which it shall act, any number of devices but the same readings of each; None: the one of its training.
        seed: of the random numbers used where actions are not deterministic.

    Raises:
        UserError: when the folder is missing, is no agent, was altered, or does not fit `simulation`.
    """
    meta = open_artifact(folder, KIND)
    try:
        trained = Layout(**meta["layout"])
        told = EnvConfig.model_validate(meta["config"]["env"])
        if simulation is None:
            env, layout, network = told, trained, build_network(meta["scenario"])
        else:
            _check_fit(folder, meta, simulation)
            # How often and when somebody comes is what it was told in training, not what this world is set to: a defender cannot know.
            env = simulation.config.env.model_copy(update={"attack_free": told.attack_free, "start_range": told.start_range})
            layout, network = simulation.layout, simulation.network
        sight = Sight(layout, meta["belief"])
        options = meta["network"]
        shape = Shape(options["kind"], sight.width, sight.wide, layout.devices, options["hidden_size"], options["masked"])
        decides = NETWORKS[meta["algorithm"]].build(shape, options)
        decides.load_state_dict(load_file(folder / "policy.safetensors"))
        belief = Belief(Knowledge.of(load_arrays(folder / "knowledge.safetensors")), env, network, layout) if meta["belief"] else None
    except (KeyError, TypeError, RuntimeError, SafetensorError, ValidationError, FileNotFoundError) as error:
        raise UserError(f"agent '{folder}' was saved by another version of this program ({error.__class__.__name__}); train it again") from error
    decides.requires_grad_(False).eval()
    return LearnedPolicy(decides, sight, belief, meta, torch.Generator().manual_seed(seed))


def _check_fit(folder: Path, meta: dict[str, Any], simulation: Simulation) -> None:
    for what, trained, here in (
        ("features", meta["features"], simulation.config.env.features),
        ("sensors", meta["sensors"], list(simulation.bank.sensor_names)),
    ):
        if trained != here:
            raise UserError(
                f"agent '{folder}' was trained on the {what} {', '.join(trained)}, but this environment shows {', '.join(here)}; train another agent"
            )
    if meta["layout"]["history"] != simulation.layout.history:
        raise UserError(f"agent '{folder}' was trained with env.history {meta['layout']['history']}, not {simulation.layout.history}; train another agent")
    if meta["network"]["kind"] == "flat" and meta["devices"] != list(simulation.network.names):
        raise UserError(f"agent '{folder}' has a flat network, bound to the {len(meta['devices'])} devices of '{meta['scenario']}'; train another agent")
    if simulation.joint:
        raise UserError(f"agent '{folder}' gives one addressed order a step: set env.action_mode to discrete, not joint")
