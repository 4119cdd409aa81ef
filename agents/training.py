"""Training of agents: one seed at a time, resumable, saved as an artifact that needs no unpickling."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize

from agents.checkpoints import own_randomness, remove_checkpoint, restore_checkpoint, write_checkpoint
from agents.factory import AlgorithmFactory
from agents.networks import DeviceSetNetwork
from agents.vec_env import IoTSB3VecEnv
from envs import IoTVectorEnv
from envs.dynamics import TERMS, End, Order
from envs.scenarios import build_network
from envs.world import KINDS, Layout, Simulation
from src.artifacts import new_artifact, open_artifact
from src.config import Config
from src.data.bank import TraceBank
from src.errors import UserError
from src.predictor.interface import Sensor

KIND = "agent-policy"
"""Kind of artifact that a trained agent is."""

OnMetrics = Callable[[dict[str, float], int], None]
"""Receives a rollout's metrics and the steps taken so far."""


def identity(config: Config) -> dict[str, Any]:
    """What an agent depends on: settings, and the network that the scenario's file holds; not how many others are trained, nor how often it is saved."""
    parts = {name: getattr(config, name).model_dump(mode="json") for name in ("env", "attackers", "reward", "rl")}
    network = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(build_network(config.env.scenario)).items()}
    return {**parts, "network": network, "rl": {key: value for key, value in parts["rl"].items() if key not in ("seeds", "checkpoint_rollouts")}}


class RLTrainer:
    """Trains agents on the `agent` split of a trace bank.

    A run that was interrupted goes on from its last checkpoint and ends with the weights it would have had anyway.
    """

    def __init__(self, config: Config, bank: TraceBank, folder: Path, sensor: Sensor | None = None) -> None:
        """`folder` receives one artifact a seed, and checkpoints while it trains; `sensor` reads along where `env.sensors` is `live`."""
        self.config, self.bank, self.folder, self.sensor = config, bank, folder, sensor

    def target(self, seed: int) -> Path:
        """Where the agent of a seed is saved."""
        return self.folder / f"{self.config.rl.algorithm}-{seed}"

    def trained(self, seed: int) -> bool:
        """Whether the agent of a seed is there, whole, and of this configuration and bank.

        Raises:
            UserError: when it was altered.
        """
        target = self.target(seed)
        return target.exists() and open_artifact(target, KIND)["mark"] == self._mark(seed)

    def train(self, seed: int, on_metrics: OnMetrics | None = None, resume: bool = False) -> Path:
        """Train one agent and save it; global random numbers and torch's threads are left as they were.

        Args:
            seed: same seed, same configuration and bank: same weights.
            on_metrics: called after every update.
            resume: go on from the checkpoint of an interrupted run, or return at once where the agent is already trained.

        Returns:
            Folder of the artifact: `policy.safetensors` and `meta.json`.

        Raises:
            UserError: when configuration or bank differ from the interrupted run's, or the folder cannot be written.
        """
        target, checkpoint = self.target(seed), self.folder / f"{self.config.rl.algorithm}-{seed}.checkpoint"
        mark = self._mark(seed)
        if resume and self.trained(seed) and not checkpoint.exists():
            return target
        with own_randomness(), _one_thread():
            env = IoTVectorEnv(self.config.rl.n_envs, bank=self.bank, split="agent", config=self.config, sensor=self.sensor, flatten=True)
            model, scaler = self._model(env, seed)
            if resume and checkpoint.exists():
                restore_checkpoint(checkpoint, mark, model, scaler)
            total = self.config.rl.total_timesteps
            progress = _Progress(f"agent, seed {seed}", total)
            watcher = _Watcher(self.config, checkpoint, mark, scaler, on_metrics, progress)
            with progress:
                model.learn(max(total - model.num_timesteps, 0), watcher, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
            self._save(target, mark, model, env.simulation, seed)
        remove_checkpoint(checkpoint)
        return target

    def _model(self, env: IoTVectorEnv, seed: int) -> tuple[PPO, VecNormalize]:
        rl = self.config.rl
        # Only rewards are scaled, and only where `normalize_reward` says so: observations are bounded as they come.
        scaler = VecNormalize(IoTSB3VecEnv(env), norm_obs=False, norm_reward=rl.normalize_reward, gamma=rl.gamma)
        model = AlgorithmFactory(self.config).build(rl.algorithm, scaler, env.simulation.layout, seed)
        model.set_logger(Logger(folder=None, output_formats=[]))
        return model, scaler

    def _mark(self, seed: int) -> str:
        """What a run depends on, as a digest: a checkpoint of another run is not gone on from."""
        digest = hashlib.sha256(json.dumps([identity(self.config), seed], sort_keys=True).encode())
        for array in (self.bank.features, self.bank.sensors, self.bank.successor, self.bank.label, self.bank.split):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _save(self, target: Path, mark: str, model: PPO, simulation: Simulation, seed: int) -> None:
        network: DeviceSetNetwork = model.policy.network  # type: ignore[assignment]
        names = simulation.network.names
        meta = {
            "mark": mark,
            "algorithm": self.config.rl.algorithm,
            "seed": seed,
            "timesteps": model.num_timesteps,
            "config": self.config.model_dump(mode="json"),
            "hidden_size": self.config.rl.hidden_size,
            "layout": dataclasses.asdict(simulation.layout),
            "scenario": self.config.env.scenario,
            "devices": names,
            "actions": ["MONITOR", *(f"{order.name} {name}" for name in names for order in list(Order)[1:])],
            "features": self.config.env.features,
            "sensors": self.bank.sensor_names,
            "traffic": {"source": self.bank.source, "site": self.bank.site, "sensor": self.bank.sensor, "split": simulation.split},
        }
        with new_artifact(target, KIND, meta) as folder:
            save_file({name: tensor.contiguous() for name, tensor in network.cpu().state_dict().items()}, folder / "policy.safetensors")


@dataclass(frozen=True)
class LearnedPolicy:
    """A trained agent, with Stable-Baselines3's `predict` on flat batched observations."""

    network: DeviceSetNetwork
    meta: dict[str, Any]
    generator: torch.Generator

    def predict(
        self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[np.int64], None]:
        """Actions (E,) for observations (E, size); the likeliest, or drawn from the policy's own random numbers.

        Raises:
            UserError: for observations of another layout.
        """
        width = self.network.layout.width
        if observation.ndim != 2 or observation.shape[1] < width + Layout.CONTEXT or (observation.shape[1] - Layout.CONTEXT) % width:
            raise UserError(f"this agent reads flat observations (batch, devices x {width} + {Layout.CONTEXT}), not {observation.shape}")
        with torch.inference_mode():
            logits, _ = self.network(torch.from_numpy(np.ascontiguousarray(observation, np.float32)))
            if deterministic:
                return logits.argmax(1).numpy(), None
            return torch.multinomial(logits.softmax(1), 1, generator=self.generator).squeeze(1).numpy(), None


def load_policy(folder: Path, simulation: Simulation | None = None, seed: int = 0) -> LearnedPolicy:
    """Open a saved agent; nothing is unpickled.

    Args:
        folder: what `RLTrainer.train` returned.
        simulation: world in which it shall act; any number of devices, but the same readings of each.
        seed: of the random numbers used where actions are not deterministic.

    Raises:
        UserError: when the folder is missing, is no agent, was altered, or does not fit `simulation`.
    """
    meta = open_artifact(folder, KIND)
    try:
        layout = Layout(**meta["layout"])
        network = DeviceSetNetwork(layout, meta["hidden_size"])
        network.load_state_dict(load_file(folder / "policy.safetensors"))
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"agent '{folder}' was saved by another version of this program ({error.__class__.__name__}); train it again") from error
    if simulation is not None:
        _check_fit(folder, meta, simulation)
    network.requires_grad_(False).eval()
    return LearnedPolicy(network, meta, torch.Generator().manual_seed(seed))


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
    if simulation.joint:
        raise UserError(f"agent '{folder}' gives one addressed order a step: set env.action_mode to discrete, not joint")


class _Progress:
    """A bar on a terminal, and nothing elsewhere."""

    def __init__(self, what: str, total: int) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(what, total=total, note="")

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, note: str) -> None:
        self._bar.update(self._task, completed=done, note=note)


class _Watcher(BaseCallback):
    """Counts what happens in a rollout, reports it after the update, and writes checkpoints between updates."""

    def __init__(self, config: Config, checkpoint: Path, mark: str, scaler: VecNormalize, on_metrics: OnMetrics | None, progress: _Progress) -> None:
        super().__init__()
        self._config, self._checkpoint, self._mark, self._scaler = config, checkpoint, mark, scaler
        self._on_metrics, self._progress = on_metrics, progress
        self._episodes: list[dict[str, Any]] = []
        self._shares = np.zeros(len(Order))
        self._rollouts = 0
        self._began = time.perf_counter()

    def _on_step(self) -> bool:
        dones = self.locals["dones"]
        if dones.any():
            self._episodes += [self.locals["infos"][e] for e in np.flatnonzero(dones)]
        return True

    def _on_rollout_end(self) -> None:
        actions = self.model.rollout_buffer.actions.astype(np.int64).ravel()  # type: ignore[attr-defined]
        kinds = np.where(actions == 0, 0, 1 + (actions - 1) % KINDS)
        self._shares = np.bincount(kinds, minlength=len(Order)) / len(kinds)
        self._rollouts += 1

    def _on_rollout_start(self) -> None:
        # Here, not at a rollout's end, the update is done and the environments wait in the state that the next rollout starts from.
        if self._rollouts > 0:
            if self._rollouts % self._config.rl.checkpoint_rollouts == 0:
                write_checkpoint(self._checkpoint, self._mark, self.model, self._scaler)  # type: ignore[arg-type]
            self._report()
        self._began = time.perf_counter()

    def _on_training_end(self) -> None:
        if self._rollouts > 0:
            self._report()

    def _report(self) -> None:
        metrics = self._measure()
        self._episodes.clear()
        self._progress.update(self.num_timesteps, f"return {metrics['rollout/reward_mean']:.2f}" if "rollout/reward_mean" in metrics else "")
        if self._on_metrics is not None:
            self._on_metrics(metrics, self.num_timesteps)

    def _measure(self) -> dict[str, float]:
        """One rollout's figures. Means over episodes are left out where none ended in it."""
        learned = self.logger.name_to_value
        samples = self._config.rl.n_envs * self._config.rl.n_steps
        metrics = {
            "train/entropy": -float(learned["train/entropy_loss"]),
            "train/value_loss": float(learned["train/value_loss"]),
            "train/approx_kl": float(learned["train/approx_kl"]),
            "train/clip_fraction": float(learned["train/clip_fraction"]),
            "train/explained_variance": float(learned["train/explained_variance"]),
            "train/learning_rate": float(learned["train/learning_rate"]),
            "time/fps": samples / (time.perf_counter() - self._began),
            **{f"actions/{order.name.lower()}": float(self._shares[order]) for order in Order},
        }
        if self._episodes:
            ends = np.array([info["end"] for info in self._episodes])
            metrics |= {
                "rollout/reward_mean": float(np.mean([info["episode"]["r"] for info in self._episodes])),
                "rollout/length_mean": float(np.mean([info["episode"]["l"] for info in self._episodes])),
                **{f"ends/{end.name.lower()}": float(np.mean(ends == end)) for end in End if end},
                **{
                    f"reward/{name}": -getattr(self._config.reward, name) * float(np.mean([info["summary"][name] for info in self._episodes])) for name in TERMS
                },
            }
        return metrics


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: the matrices are so small that a second one gains little, and waiting for it costs a factor of ten on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
