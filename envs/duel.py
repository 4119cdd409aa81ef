"""`IoTDuel`: the attacker is an agent too. A PettingZoo environment, and one seat of it as a gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from envs.attackers import Stage
from envs.dynamics import SCRIPTED, TERMS, Move
from envs.iot_env import IoTEnv
from envs.vector_env import IoTVectorEnv
from envs.world import Simulation, whole
from src.config import Config
from src.data.bank import TraceBank
from src.errors import UserError
from src.predictor.interface import Sensor

MOVES = len(Move) - 1
"""Moves that name a device: all but LIE_LOW."""

_PARTS = {"stage": 5, "known": 1, "reachable": 1, "stopped": 1, "silent": 1, "pressing": 1, "exposed": 1, "criticality": 1, "valid": MOVES}
_SKILLS = ("engage", "compromise", "impact", "stealth", "insider")
_DAMAGE = TERMS.index("damage")

Duellist = Literal["defender", "attacker"]


class Opponent(Protocol):
    """Anything with Stable-Baselines3's `predict`; observations are flat, and like actions batched."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[NDArray[Any], Any]:
        """Actions for a batch of observations, and the policy's memory (or None)."""
        ...


@dataclass(frozen=True)
class AttackerLayout:
    """Where each part of the attacker's flat observation lies: one part after the other, each device by device, then `CONTEXT` floats."""

    devices: int

    CONTEXT = 4 + len(_SKILLS)

    @cached_property
    def size(self) -> int:
        """Floats in all."""
        return self.devices * sum(_PARTS.values()) + self.CONTEXT

    def space(self, flatten: bool) -> spaces.Box | spaces.Dict:
        """Everything lies in [0, 1]."""
        if flatten:
            return spaces.Box(0.0, 1.0, (self.size,), np.float32)
        return spaces.Dict({name: spaces.Box(0.0, 1.0, part.shape, np.float32) for name, part in self.named(np.zeros(self.size, np.float32)).items()})

    def named(self, flat: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """(..., size) -> the Dict observation: each part (..., devices x floats), device by device; views.

        Raises:
            UserError: for another size.
        """
        if flat.shape[-1] != self.size:
            raise UserError(f"an attacker's flat observation of {self.devices} devices has {self.size} floats, not {flat.shape[-1]}")
        found, at = {}, 0
        for name, count in (*((name, count * self.devices) for name, count in _PARTS.items()), ("context", self.CONTEXT)):
            found[name] = flat[..., at : at + count]
            at += count
        return found

    def split(self, flat: Any) -> dict[str, Any]:
        """(..., size) array or tensor -> the named parts, (..., devices, floats), and `context` (..., 9); views."""
        parts = self.named(flat)
        return {name: part if name == "context" else part.reshape(*part.shape[:-1], self.devices, -1) for name, part in parts.items()}


def view(sim: Simulation) -> NDArray[np.float32]:
    """(E, size) what the attackers see, in the layout of `AttackerLayout`: nothing that only the defender knows."""
    world, site, device = sim.world, sim.sites, sim.devices
    layout = AttackerLayout(sim.layout.devices)
    profile = world.profiles[site["profile"]]  # (E,)
    stage = device["stage"]  # (E, D)
    foothold = stage >= Stage.COMPROMISED
    silent = foothold & ((device["isolate"] > 0) | (device["restore"] > 0))
    working = (stage == Stage.PROBED) | (stage == Stage.ATTACKED)
    answers = foothold & ~silent
    reached = world.reach[0] | np.bitwise_or.reduce(np.where(answers, world.reach[1 + world.zone], 0), axis=1)
    reached |= np.where(profile["insider"], np.int64(1) << world.zone[site["entry"]], 0)
    reachable = (reached[:, None] >> world.zone) & 1 > 0
    hands = np.maximum(0, profile["breadth"] + profile["spread"] * answers.sum(axis=1) - working.sum(axis=1)) * (site["patience"] > 0)
    present = ((site["start"] >= 0) & (site["step"] >= site["start"]))[:, None]
    pressing = device["pressing"] & foothold

    out = np.empty((sim.count, layout.size), np.float32)
    parts = layout.split(out)
    parts["stage"][:] = stage[..., None] == np.arange(len(Stage))
    for name, column in (
        ("known", device["known"]), ("reachable", reachable), ("stopped", device["stopped"]), ("silent", silent), ("pressing", pressing),
        ("exposed", world.reach[0] >> world.zone & 1), ("criticality", device["known"] * world.traits[:, 0]),
    ):  # fmt: skip
        parts[name][..., 0] = column
    valid = parts["valid"]
    valid[..., Move.ADVANCE - 1] = present & np.where(stage == Stage.CLEAN, reachable & (hands > 0)[:, None], working | answers)
    valid[..., Move.ROTATE - 1] = present & (working | answers)
    valid[..., Move.WITHDRAW - 1] = present & (working | answers & (pressing | (stage == Stage.IMPACT)))
    context = parts["context"]
    context[:, 0] = np.clip(site["patience"] / profile["patience"], 0.0, 1.0)
    context[:, 1] = site["caution"]
    context[:, 2] = 1.0 - site["step"] / world.rules[0]["horizon"]
    context[:, 3] = hands / (profile["breadth"] + profile["spread"] * layout.devices)
    for i, skill in enumerate(_SKILLS):
        context[:, 4 + i] = profile[skill]
    return out


def moves_allowed(layout: AttackerLayout, seen: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(..., 1 + 3 D) moves that would change something, of flat observations (..., size); LIE_LOW always counts."""
    valid = layout.named(seen)["valid"] > 0
    return np.concatenate([np.ones((*valid.shape[:-1], 1), np.bool_), valid], axis=-1)


def _immediate(settings: dict[str, Any]) -> dict[str, Any]:
    """An attacker who is an agent is there from the first step on, unless the settings say otherwise."""
    return {"attack_free": 0.0, "start_range": (0, 0), **settings}


class IoTDuel(ParallelEnv):
    """Defend a network of IoT devices against an attacker who learns as well.

    ## Description
    `IoTEnv` with two agents, `defender` and `attacker`, who act at once in every step: first the defender's order, then the
    attacker's move. Who attacks, and so how good it is at what (`skills` below), is drawn from `attackers` at each reset, as in
    `IoTEnv`; what it does is the agent's choice. Neither sees what only the other knows.

    With `attacker="scripted"` there is only the `defender`, and every episode equals that of an `IoTEnv` seeded alike.

    ## The defender
    Actions, observations and rewards are those of `IoTEnv` under the same settings.

    ## The attacker's actions
    `Discrete(1 + 3 D)`: 0 is LIE_LOW; `1 + 3 d + (k - 1)` makes move k on device d. Whatever the move, unless it is LIE_LOW,
    work that was begun goes on by itself on every device, with the chances of the attacker's profile: PROBED devices come under
    attack, attacked ones fall, footholds told to do harm come to do it.

    | k | move     | effect                                                                                               |
    |---|----------|------------------------------------------------------------------------------------------------------|
    | 0 | LIE_LOW  | nothing is tried and nothing hostile is sent in this step; harm stops (IMPACT falls back to a foothold) |
    | 1 | ADVANCE  | CLEAN: turn to it, if it can be reached and a hand is free (a scouted device is attacked at once, others are probed first); COMPROMISED: do harm, from now on; else: go on |
    | 2 | ROTATE   | move to other sources, which gets round a block in one case of two; on an attacked device also change the technique |
    | 3 | WITHDRAW | PROBED, ATTACKED: leave it (a hand is free again); IMPACT, or told to do harm: stop, and keep the foothold quietly |

    An attacker works on as many devices at once as its profile has hands (`breadth`, and `spread` more for each foothold that
    answers). A stopped attempt to break in costs patience, and so does a foothold isolated or lost; without patience no new
    device is turned to. Where a scripted attacker would change source, technique or target by itself, or hide when it was
    noticed, an agent decides. `infos["attacker"]["action_mask"]` says which moves would change something, as far as the attacker
    can know before the defender's order, and allows ADVANCE where work goes on anyway, for that is how to let it go on without a
    change; the others are passed over, and work goes on too.

    ## The attacker's observations
    A `Dict` of `Box`es in [0, 1] (float32, 1-D, device by device), or with `flatten=True` one `Box` with the parts in this order.

    | key           | floats a device | what                                                                                 |
    |---------------|-----------------|--------------------------------------------------------------------------------------|
    | `stage`       | 5               | how far it is there: CLEAN, PROBED, ATTACKED, COMPROMISED or IMPACT (one is 1)         |
    | `known`       | 1               | it was attacked before, so nothing need be probed                                    |
    | `reachable`   | 1               | from the internet, from inside, or from a foothold that answers                       |
    | `stopped`     | 1               | the last attempt there was stopped (by a limit, a block, or because nothing answered) |
    | `silent`      | 1               | a foothold that does not answer: isolated, or being restored (lost patience tells which) |
    | `pressing`    | 1               | a foothold told to do harm                                                            |
    | `exposed`     | 1               | the internet reaches its zone                                                         |
    | `criticality` | 1               | what it is worth, as a share of the most; 0 until `known`                             |
    | `valid`       | 3               | which of ADVANCE, ROTATE, WITHDRAW would change something                             |
    | `context`     | 9 in all        | patience (share of the first), caution, time left, free hands (share), then its skills: `engage`, `compromise`, `impact`, `stealth`, `insider` |

    ## Rewards
    The defender's is `IoTEnv`'s. The attacker's is `w_damage damage` of the step: the damage that the defender is charged, an
    overrun's included. The two do not sum to zero: service lost to mitigation, orders, cleanup and safety cost the defender and
    bring the attacker nothing, for it is after the devices. Were they its gain, it would learn to make the defender harm itself by
    false alarms, and a defender's thrift would be its loss.

    ## Start, ends, info
    With an attacker who is an agent, `attack_free` is 0 and `start_range` (0, 0) unless they are given here, whatever the
    configuration says; else all is as in `IoTEnv`. Both agents end together, and `infos[agent]["end"]` names how. The defender's
    `info` is `IoTEnv`'s. `action_mask` is what `action_space(agent).sample(mask)` takes (int8; a tuple a device in joint mode).
    `render_mode` as in `IoTEnv`; the attacker's stages are shown only with `expose_truth`.

    ## Version history
    v0: first version.
    """  # noqa: E501  (tables)

    metadata = {**IoTEnv.metadata, "name": "iot_duel_v0", "is_parallelizable": True}  # noqa: RUF012

    def __init__(
        self,
        scenario: Path | str | None = None,
        *,
        attacker: Literal["agent", "scripted"] = "agent",
        bank: TraceBank | Path | str | None = None,
        split: str = "agent",
        config: Config | None = None,
        sensor: Sensor | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        """Build the world; arguments as for `IoTEnv`.

        Args:
            scenario: name of a network, or the path of a `.yml` file.
            attacker: `agent`, or `scripted` for the attackers of `IoTEnv`.
            bank: traffic with sensor readings, or its folder.
            split: side of the bank that is played.
            config: the whole configuration.
            sensor: what reads the windows where `env.sensors` is `live`.
            render_mode: None, `human`, `ansi` or `rgb_array`.
            settings: keys of the `env` section, to replace the configuration's.

        Raises:
            UserError: for an unknown or ill-typed setting, or a bank that lacks what the scenario needs.
        """
        if attacker not in ("agent", "scripted"):
            raise UserError(f"unknown attacker '{attacker}': allowed: agent, scripted")
        self.render_mode = render_mode
        self.played = attacker == "agent"
        chosen = _immediate(settings) if self.played else settings
        self.env = IoTEnv(scenario, bank=bank, split=split, config=config, sensor=sensor, render_mode=render_mode, **chosen)
        D = self.env.simulation.layout.devices
        self.layout = AttackerLayout(D)
        self._flat = self.env.simulation.config.env.flatten
        self.observation_spaces: dict[str, spaces.Space] = {"defender": self.env.observation_space}
        self.action_spaces: dict[str, spaces.Space] = {"defender": self.env.action_space}
        if self.played:
            self.observation_spaces["attacker"] = self.layout.space(self._flat)
            self.action_spaces["attacker"] = spaces.Discrete(1 + MOVES * D)
        self.possible_agents = list(self.action_spaces)
        self.agents: list[str] = []

    @property
    def device_names(self) -> tuple[str, ...]:
        """Device of each index; stable across instances."""
        return self.env.device_names

    def observation_space(self, agent: str) -> spaces.Space:
        """What an agent sees."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """What an agent can do."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Start an episode. The same seed gives the same episode under the same actions."""
        observation, info = self.env.reset(seed=seed)
        self.agents = list(self.possible_agents)
        return self._seen(observation, info, {})

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Let both agents act, and one decision interval pass.

        Raises:
            UserError: for an action outside its space, agents other than those that play, or without a running episode.
        """
        if not self.agents:
            raise UserError("step() needs a running episode: call reset() first")
        if not isinstance(actions, Mapping):
            raise UserError(f"actions are wanted for {', '.join(self.agents)}, by their names, not {actions!r}")
        if set(actions) != set(self.agents):
            raise UserError(f"actions are wanted for {', '.join(self.agents)}, and were given for {', '.join(map(str, actions)) or 'nobody'}")
        sim = self.env.simulation
        sim.moves[0] = self._move(actions["attacker"]) if self.played else SCRIPTED
        observation, reward, terminated, truncated, info = self.env.step(actions["defender"])
        observations, infos = self._seen(observation, info, {"end": info["end"]} if "end" in info else {})
        rewards = {"defender": float(reward)}
        if self.played:
            rewards["attacker"] = float(sim.config.reward.damage * sim.terms[0, _DAMAGE])
        agents = self.agents
        if terminated or truncated:
            self.agents = []
        return observations, rewards, dict.fromkeys(agents, terminated), dict.fromkeys(agents, truncated), infos

    def _move(self, action: Any) -> int:
        number = whole(action)
        if number is None or not 0 <= number <= MOVES * self.layout.devices:
            raise UserError(f"attacker's action {action!r} is not in {self.action_spaces['attacker']}")
        return number

    def _seen(self, observation: Any, info: dict[str, Any], told: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Both agents' observations and infos."""
        mask: Any = self.env.action_masks().astype(np.int8)
        if self.env.simulation.joint:
            mask = tuple(mask.reshape(self.layout.devices, -1))
        observations, infos = {"defender": observation}, {"defender": {**info, "action_mask": mask}}
        if self.played:
            flat = view(self.env.simulation)[0]
            observations["attacker"] = flat if self._flat else self.layout.named(flat)
            infos["attacker"] = {**told, "action_mask": moves_allowed(self.layout, flat).astype(np.int8)}
        return observations, infos

    def render(self) -> Any:
        """What `IoTEnv.render` shows."""
        return self.env.render()

    def close(self) -> None:
        """Stop redrawing the terminal."""
        self.env.close()


class _Batch(IoTVectorEnv):
    """Keeps what the attackers saw last before episodes begin anew."""

    ending: NDArray[np.float32]

    def _begin(self, which: NDArray[np.int64]) -> None:
        self.ending = view(self.simulation)
        super()._begin(which)


class IoTDuelVectorEnv(VectorEnv):
    """One seat of many duels, the other being held by a policy: for training and evaluation at compiled speed.

    Spaces (flat) and rewards are those of the seat's agent in `IoTDuel`; autoreset and `info` are `IoTVectorEnv`'s. Environment i
    equals an `IoTDuel` seeded alike, under the same actions.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int, seat: Duellist, opponent: Opponent, *, scenario: Path | str | None = None, **settings: Any) -> None:
        """Build the worlds.

        Args:
            num_envs: how many.
            seat: who acts through `step`.
            opponent: who holds the other seat; it sees flat observations, and acts `deterministic`.
            scenario: as for `IoTEnv`.
            settings: the other arguments of `IoTVectorEnv`.
        """
        if seat not in ("defender", "attacker"):
            raise UserError(f"unknown seat '{seat}': allowed: defender, attacker")
        self.batch = _Batch(num_envs, scenario=scenario, **_immediate({**settings, "flatten": True}))
        self.num_envs, self.seat, self.opponent = self.batch.num_envs, seat, opponent
        self.layout = AttackerLayout(self.simulation.layout.devices)
        attacks = seat == "attacker"
        self.single_observation_space = self.layout.space(flatten=True) if attacks else self.batch.single_observation_space
        self.single_action_space = spaces.Discrete(1 + MOVES * self.layout.devices) if attacks else self.batch.single_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.autoreset_mode = AutoresetMode.SAME_STEP
        self._faced: NDArray[np.float32] = np.zeros(0, np.float32)
        self._memory: Any = None
        self._starts = np.ones(num_envs, np.bool_)

    @property
    def simulation(self) -> Simulation:
        """The worlds."""
        return self.batch.simulation

    @property
    def device_names(self) -> tuple[str, ...]:
        """Device of each index; stable across instances."""
        return self.batch.device_names

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode everywhere, or where `options` says so; seeds and options as for `IoTVectorEnv`."""
        observation, info = self.batch.reset(seed=seed, options=options)
        self._starts = self._starts | np.asarray((options or {}).get("reset_mask", True))
        return self._present(observation), info

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Act in every environment, after the opponent was asked."""
        actions = np.asarray(actions)
        theirs, self._memory = self.opponent.predict(self._faced, state=self._memory, episode_start=self._starts.copy(), deterministic=True)
        orders, moves = (theirs, actions) if self.seat == "attacker" else (actions, theirs)
        top = MOVES * self.layout.devices
        if moves.shape != (self.num_envs,) or not np.issubdtype(moves.dtype, np.integer) or moves.min() < 0 or moves.max() > top:
            raise UserError(f"the attackers' actions must be {self.num_envs} integers in 0 .. {top}")
        self.simulation.moves[:] = moves
        observation, rewards, terminated, truncated, info = self.batch.step(orders)
        self._starts = terminated | truncated
        if self.seat == "attacker":
            rewards = self.simulation.config.reward.damage * info["reward_terms"]["damage"]
            if "final_obs" in info:
                info["final_obs"] = np.where(self._starts[:, None], self.batch.ending, np.float32(0.0))
        return self._present(observation), rewards, terminated, truncated, info

    def action_masks(self) -> NDArray[np.bool_]:
        """(E, actions) what would change something, for the seat's agent."""
        return moves_allowed(self.layout, view(self.simulation)) if self.seat == "attacker" else self.batch.action_masks()

    def snapshot(self) -> dict[str, Any]:
        """`IoTVectorEnv.snapshot`, and where episodes have just begun. What the opponent draws from is its own, and not in it.

        Raises:
            UserError: when the opponent carries a memory from step to step: what that is, only its policy knows.
        """
        if self._memory is not None:
            raise UserError("the opponent has a memory, which a snapshot cannot keep: take one against an opponent without")
        return {**self.batch.snapshot(), "starts": self._starts.copy()}

    def restore(self, saved: dict[str, Any]) -> NDArray[np.float32]:
        """Go on from the `snapshot` of a batch of duels of the same size; returns the observations there.

        Raises:
            UserError: when the snapshot is of another batch or version.
        """
        if "starts" not in saved:
            raise UserError("the snapshot is not of duels; start anew")
        observation = self.batch.restore(saved)
        self._starts = saved["starts"].copy()
        self._memory = None
        return self._present(observation)

    def _present(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the seat sees; what the other one sees is kept for it."""
        seen = view(self.simulation)
        mine, self._faced = (seen, observation) if self.seat == "attacker" else (observation, seen)
        return mine
