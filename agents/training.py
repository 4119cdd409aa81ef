"""Training of agents: one seed at a time, resumable, saved as an artifact that needs no unpickling."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize

from agents.belief import Belief, Knowledge
from agents.checkpoints import own_randomness, remove_checkpoint, restore_checkpoint, write_checkpoint
from agents.demonstrations import TAUGHT, imitate
from agents.factory import AlgorithmFactory, believes, sight
from agents.learned import KIND, NETWORKS
from agents.vec_env import IoTSB3VecEnv, ShownVecEnv
from envs import IoTVectorEnv
from envs.dynamics import TERMS, End, Order
from envs.scenarios import build_network
from envs.world import KINDS, Simulation, action_names
from src.artifacts import new_artifact, open_artifact
from src.config import Config
from src.data.bank import TraceBank
from src.predictor.interface import Sensor

OnMetrics = Callable[[dict[str, float], int], None]
"""Receives metrics and the steps taken so far."""

VALIDATION_SEED = 400_000
"""First seed of the episodes on which training is validated."""

REPORT_STEPS = 4096
"""Environment steps between two reports, at the least."""


def identity(config: Config) -> dict[str, Any]:
    """What an agent depends on: settings, and the network that the scenario's file holds; not how many others are trained, nor how often it is saved."""
    parts = {name: getattr(config, name).model_dump(mode="json") for name in ("env", "attackers", "reward", "rl")}
    own = ("algorithm", "total_timesteps", "n_envs", "memory", "privileged_critic", "network", "hidden_size", "masked")
    own += ("normalize_reward", "validation_steps", "validation_episodes", config.rl.algorithm)
    network = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(build_network(config.env.scenario)).items()}
    return {**parts, "network": network, "rl": {key: parts["rl"][key] for key in own}}


def knowledge_of(config: Config, bank: TraceBank) -> Knowledge | None:
    """What the belief rests on, where the configured agent is shown one."""
    return Knowledge.learn(config, bank) if believes(config) else None


def learning_env(config: Config, bank: TraceBank, count: int, knowledge: Knowledge | None, sensor: Sensor | None = None) -> VecNormalize:
    """A batch on `agent` traces as the configured agent is shown it; only rewards are scaled, and only where `rl.normalize_reward` says so.

    Args:
        config: sections `env`, `attackers`, `reward` and `rl`.
        bank: windows of traffic.
        count: environments.
        knowledge: `knowledge_of` the same.
        sensor: what reads along where `env.sensors` is `live`.
    """
    env = IoTVectorEnv(count, bank=bank, split="agent", config=config, sensor=sensor, flatten=True)
    layout, rl = env.simulation.layout, config.rl
    belief = None if knowledge is None else Belief(knowledge, config.env, env.simulation.network, layout)
    shown = ShownVecEnv(IoTSB3VecEnv(env), sight(config, layout), belief)
    return VecNormalize(shown, norm_obs=False, norm_reward=rl.normalize_reward, gamma=getattr(rl, rl.algorithm).gamma)


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
            Folder of the artifact: `policy.safetensors`, `meta.json`, and `knowledge.safetensors` where the agent is shown a belief.

        Raises:
            UserError: when configuration or bank differ from the interrupted run's, or the folder cannot be written.
        """
        target, checkpoint = self.target(seed), self.folder / f"{self.config.rl.algorithm}-{seed}.checkpoint"
        mark = self._mark(seed)
        if resume and self.trained(seed) and not checkpoint.exists():
            return target
        with own_randomness(), _one_thread():
            knowledge = knowledge_of(self.config, self.bank)
            model, scaler = self._model(seed, knowledge)
            total, rl = self.config.rl.total_timesteps, self.config.rl
            judging = learning_env(self.config, self.bank, rl.validation_episodes, knowledge, self.sensor)
            validation = _Validation(judging, rl.validation_episodes, max(rl.validation_steps // rl.n_envs, 1))
            progress = _Progress(f"agent, seed {seed}", total)
            watcher = _Watcher(self.config, checkpoint, mark, scaler, validation, on_metrics, progress)
            if resume and checkpoint.exists():
                validation.take_up(restore_checkpoint(checkpoint, mark, model, scaler))
            elif rl.algorithm in TAUGHT and (steps := getattr(rl, rl.algorithm).demonstrations):
                imitate(model, scaler, self.config, self.bank, knowledge or Knowledge.learn(self.config, self.bank), steps, seed)
            with progress:
                model.learn(max(total - model.num_timesteps, 0), [validation, watcher], log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
            if validation.weights is not None:
                model.policy.load_state_dict(validation.weights)
            self._save(target, model, scaler, seed, knowledge, validation)
        remove_checkpoint(checkpoint)
        return target

    def _model(self, seed: int, knowledge: Knowledge | None) -> tuple[BaseAlgorithm, VecNormalize]:
        scaler = learning_env(self.config, self.bank, self.config.rl.n_envs, knowledge, self.sensor)
        model = AlgorithmFactory(self.config).build(self.config.rl.algorithm, scaler, scaler.venv.sight, seed)  # type: ignore[attr-defined]
        model.set_logger(Logger(folder=None, output_formats=[]))
        return model, scaler

    def _mark(self, seed: int) -> str:
        """What a run depends on, as a digest: a checkpoint of another run is not gone on from."""
        digest = hashlib.sha256(json.dumps([identity(self.config), seed], sort_keys=True).encode())
        for array in (self.bank.features, self.bank.sensors, self.bank.successor, self.bank.label, self.bank.split):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _told(self, simulation: Simulation, seed: int, steps: int) -> dict[str, Any]:
        """What `meta.json` says of an agent, whoever trained it: of this configuration, without a belief."""
        names, rl = simulation.network.names, self.config.rl
        return {
            "mark": self._mark(seed),
            "algorithm": rl.algorithm,
            "seed": seed,
            "timesteps": steps,
            "config": self.config.model_dump(mode="json"),
            "layout": dataclasses.asdict(simulation.layout),
            "network": {"kind": rl.network, "hidden_size": rl.hidden_size, "masked": rl.masked, **NETWORKS[rl.algorithm].options(self.config)},
            "belief": False,
            "scenario": self.config.env.scenario,
            "devices": names,
            "actions": action_names(names),
            "features": self.config.env.features,
            "sensors": self.bank.sensor_names,
            "traffic": {"source": self.bank.source, "site": self.bank.site, "sensor": self.bank.sensor, "split": simulation.split},
        }

    def _save(self, target: Path, model: BaseAlgorithm, scaler: VecNormalize, seed: int, knowledge: Knowledge | None, validation: _Validation) -> None:
        shown: ShownVecEnv = scaler.venv  # type: ignore[assignment]
        simulation: Simulation = shown.venv.env.simulation  # type: ignore[attr-defined]
        meta = {**self._told(simulation, seed, model.num_timesteps), "belief": knowledge is not None, "validation": validation.best_mean_reward}
        with new_artifact(target, KIND, meta) as folder:
            kept = NETWORKS[self.config.rl.algorithm].kept(model.policy)
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}, folder / "policy.safetensors")
            if knowledge is not None:
                save_arrays({name: np.ascontiguousarray(array) for name, array in knowledge.arrays().items()}, folder / "knowledge.safetensors")


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


class _Validation(EvalCallback):
    """Stable-Baselines3's evaluation, on the same episodes each time; keeps the weights that did best there."""

    def __init__(self, env: VecNormalize, episodes: int, every: int) -> None:
        """`every` so many calls."""
        env.training, env.norm_reward = False, False
        super().__init__(env, n_eval_episodes=episodes, eval_freq=every, verbose=0, warn=False)
        self.weights: dict[str, torch.Tensor] | None = None
        self.done_at = -1

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq == 0:
            self._validate()
        return True

    def _on_training_end(self) -> None:
        if self.done_at != self.num_timesteps and self.num_timesteps > 0:
            self._validate()

    def _validate(self) -> None:
        best, frequency, learned = self.best_mean_reward, self.eval_freq, dict(self.logger.name_to_value)
        self.eval_env.seed(VALIDATION_SEED)
        self.eval_freq = 1  # due, whichever call this is
        super()._on_step()
        self.eval_freq, self.done_at = frequency, self.num_timesteps
        self.logger.name_to_value.update(learned)  # which the evaluation has written out, to nowhere
        if self.best_mean_reward > best:
            self.weights = {name: tensor.detach().clone() for name, tensor in self.model.policy.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"calls": self.n_calls, "best": self.best_mean_reward, "weights": self.weights, "done_at": self.done_at, "last": self.last_mean_reward}

    def take_up(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.n_calls, self.best_mean_reward, self.weights, self.done_at = state["calls"], state["best"], state["weights"], state["done_at"]
        self.last_mean_reward = state["last"]


class _Watcher(BaseCallback):
    """Counts what happens, reports it after updates, and writes checkpoints between them."""

    def __init__(
        self, config: Config, checkpoint: Path, mark: str, scaler: VecNormalize, validation: _Validation, on_metrics: OnMetrics | None, progress: _Progress
    ) -> None:
        super().__init__()
        self._config, self._checkpoint, self._mark, self._scaler, self._validation = config, checkpoint, mark, scaler, validation
        self._on_metrics, self._progress = on_metrics, progress
        self._episodes: list[dict[str, Any]] = []
        self._counts = np.zeros(len(Order))
        self._began, self._reported, self._saved = time.perf_counter(), -1, -1

    def _on_training_start(self) -> None:
        self._reported = self._saved = self.num_timesteps

    def _on_step(self) -> bool:
        actions, dones = np.asarray(self.locals["actions"]).ravel(), self.locals["dones"]
        self._counts += np.bincount(np.where(actions == 0, 0, 1 + (actions - 1) % KINDS), minlength=len(Order))
        if dones.any():
            self._episodes += [self.locals["infos"][e] for e in np.flatnonzero(dones)]
        return True

    def _on_rollout_start(self) -> None:
        # Here, not at a rollout's end, the update is done and the environments wait in the state that the next rollout starts from.
        if self.num_timesteps - self._saved >= self._config.rl.checkpoint_steps:
            write_checkpoint(self._checkpoint, self._mark, self.model, self._scaler, self._validation.state())
            self._saved = self.num_timesteps
        if self.num_timesteps - self._reported >= REPORT_STEPS:
            self._report()

    def _on_training_end(self) -> None:
        if self.num_timesteps > self._reported:
            self._report()

    def _report(self) -> None:
        metrics = self._measure()
        self._progress.update(self.num_timesteps, f"return {metrics['rollout/reward_mean']:.2f}" if "rollout/reward_mean" in metrics else "")
        if self._on_metrics is not None:
            self._on_metrics(metrics, self.num_timesteps)
        self._episodes.clear()
        self._counts[:] = 0.0
        self._began, self._reported = time.perf_counter(), self.num_timesteps

    def _measure(self) -> dict[str, float]:
        """Figures since the last report. Means over episodes are left out where none ended."""
        learned = self.logger.name_to_value
        steps = max(self._counts.sum(), 1.0)
        metrics = {
            **{name: float(value) for name, value in learned.items() if name.startswith("train/") and isinstance(value, (int, float, np.number))},
            "time/fps": (self.num_timesteps - self._reported) / (time.perf_counter() - self._began),
            **{f"actions/{order.name.lower()}": float(self._counts[order] / steps) for order in Order},
        }
        if "train/entropy_loss" in metrics:
            metrics["train/entropy"] = -metrics.pop("train/entropy_loss")
        if "rollout/exploration_rate" in learned:
            metrics["train/exploration_rate"] = float(learned["rollout/exploration_rate"])
        if self._validation.done_at > self._reported:
            metrics |= {"validation/reward_mean": self._validation.last_mean_reward, "validation/reward_best": self._validation.best_mean_reward}
        if self._episodes:
            ends = np.array([info["end"] for info in self._episodes])
            summary = {name: np.array([info["summary"][name] for info in self._episodes]) for name in self._episodes[0]["summary"]}
            answered = (summary["first_response"] >= 0) & (summary["first_foothold"] >= 0)
            metrics |= {
                "rollout/reward_mean": float(np.mean([info["episode"]["r"] for info in self._episodes])),
                "rollout/length_mean": float(np.mean([info["episode"]["l"] for info in self._episodes])),
                **{f"ends/{end.name.lower()}": float(np.mean(ends == end)) for end in End if end},
                **{f"reward/{name}": -getattr(self._config.reward, name) * float(summary[name].mean()) for name in TERMS},
                "rollout/steps_to_contain": float(summary["dwell"].sum() / max(summary["compromises"].sum(), 1.0)),
            }
            if answered.any():
                late = np.maximum(summary["first_response"] - summary["first_foothold"], 0.0)
                metrics["rollout/steps_to_detect"] = float(late[answered].mean())
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
