"""Agents and predictors trained by a Ray cluster (requirement H1): what a lost node costs, and what a cluster pays.

Everything runs on one machine: each node is a set of processes on a loopback address. The traffic is drawn from the synthetic profile. The experiment
is one `main.py --phase rl` of two groups with three seeds each, in one process, on two nodes, and on two nodes of which one is killed as soon as
both have written a checkpoint; an agent counts as the same when its weights are, to the bit, and a figure when step and value are. Needs Ray
(requirements-ray.txt).
"""
# pyright: reportMissingImports=false
# (Ray is no part of requirements.txt)

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient

from agents.manager import Job, in_turn
from agents.training import RLTrainer
from benchmarks.common import Gate, PartOptions
from benchmarks.loopback import nodes, run, wait_for
from src.artifacts import content_digest
from src.cluster.parcels import SCRATCH
from src.config import ComputeConfig, Config, load_config
from src.data.bank import TraceBank
from src.data.dataset import load_dataset
from src.errors import UserError
from src.training.lstm_trainer import LSTMTrainer

SEEDS = 3
EXPERIMENT = {
    "data.synthetic_rows_per_class": 400, "lstm.training.epochs": 1, "lstm.training.teachers": 0, "lstm.model.hidden_size": 16, "temporal.training.epochs": 1,
    "temporal.model.hidden_size": 16, "sae.training.epochs": 1, "rl.seeds": SEEDS, "rl.total_timesteps": 40_000, "rl.checkpoint_steps": 4096,
    "rl.validation_steps": 20_000, "rl.validation_episodes": 10, "rl.ppo.demonstrations": 1000, "rl.n_envs": 64, "compute.threads": 1, "env.scenario": "home",
    "rl.variants": "{A2C: {algorithm: a2c, a2c.demonstrations: 1000}}",
}  # fmt: skip
ROOMS = ("networks", "autoencoders", "sensors")
Figures = dict[tuple[str, str], list[tuple[int, float]]]
"""By nested run and metric, steps and values."""


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Tables of the experiment, of trainings side by side, and of predictors; gates on the experiment."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("this part needs Ray: make .venv-ray/.installed, then .venv-ray/bin/python -m benchmarks.scale")
    with tempfile.TemporaryDirectory() as scratch:
        experiment = lost_node(Path(scratch), {"rl.total_timesteps": 12_000} if options.quick else {})
        agents = side_by_side(Path(scratch), 20_000 if options.quick else 100_000)
        networks = predictors(Path(scratch), 1 if options.quick else 2)
    tables = {"experiment": experiment, "agents side by side": agents, "predictors": networks}
    killed = experiment[-1]
    return {
        "H1.agents": Gate("agents missing, or not those of one process, after a node was killed", float(killed["agents_wrong"]), 0, "<="),
        "H1.figures": Gate("figures missing, wrong or logged twice, after a node was killed", float(killed["figures_wrong"]), 0, "<="),
        "H1.runs": Gate(
            "nested MLflow runs of trainings that are missing, too many or not FINISHED, after a node was killed", float(killed["runs_wrong"]), 0, "<="
        ),
    }, tables


def words(artifacts: Path, settings: dict[str, Any], phase: str = "rl") -> list[str]:
    """Of the command line."""
    given = {**settings, "compute.artifacts": artifacts}
    return ["--phase", phase, *(part for key, value in given.items() for part in ("--set", f"{key}={value}"))]


def lost_node(scratch: Path, changed: dict[str, Any]) -> list[dict[str, Any]]:
    """The experiment in one process, on two nodes, and on two nodes of which one is lost."""
    settings = {**EXPERIMENT, **changed}
    run(words(scratch / "sensors", {**settings, "rl.variants": "{}"}, "lstm"))
    rows: list[dict[str, Any]] = []
    whole: tuple[dict[str, str], Figures] | None = None
    for title in ("one process", "two nodes", "two nodes, one killed"):
        artifacts = scratch / title.replace(" ", "-").replace(",", "")
        for room in ROOMS:
            shutil.copytree(scratch / "sensors" / room, artifacts / room)
        if title == "one process":
            out, seconds = run(words(artifacts, settings))
        else:
            with nodes(2) as cluster:
                killing = title.endswith("killed")

                def lose(artifacts: Path = artifacts, cluster: Any = cluster, killing: bool = killing) -> None:
                    if killing:
                        wait_for(artifacts, f"agents/*/{SCRATCH}/*/*.checkpoint", 2)
                        cluster.kill()

                out, seconds = run(words(artifacts, {**settings, "compute.engine": "ray", "compute.address": cluster.address}), lose)
        made = agents_of(artifacts), figures_of(artifacts)
        whole = whole or made
        places = re.findall(r"^trained .* on (127\.0\.0\.\d)", out, re.MULTILINE)
        rows.append(
            {
                "run": title, "seconds": seconds, "agents": len(made[0]),
                "trained_on": ", ".join(f"{place}: {places.count(place)}" for place in sorted(set(places))) or "here",
                "agents_wrong": wrong(whole[0], made[0]), "figures": sum(map(len, made[1].values())), "figures_wrong": wrong(whole[1], made[1]),
                "runs_wrong": runs_wrong(artifacts),
            }
        )  # fmt: skip
    return rows


def wrong(expected: dict[Any, Any], found: dict[Any, Any]) -> int:
    """Entries that are missing, too many, or not what they should be."""
    return sum(expected.get(key) != found.get(key) for key in {*expected, *found})


def agents_of(artifacts: Path) -> dict[str, str]:
    """Digest of each trained agent."""
    return {path.parent.relative_to(artifacts).as_posix(): content_digest(path.parent) for path in artifacts.glob("agents/*/*/checksums.json")}


def trainings(artifacts: Path) -> tuple[MlflowClient, list[Any]]:
    """Nested runs of trainings."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what MLflow uses and SQLAlchemy deprecates
        client = MlflowClient(f"sqlite:///{artifacts / 'mlflow.db'}")
        found = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return client, [one for one in found if re.search(r" seed \d+$", one.info.run_name or "") and "mlflow.parentRunId" in one.data.tags]


def figures_of(artifacts: Path) -> Figures:
    """What was logged of the agents' learning; speeds are never the same twice."""
    client, found = trainings(artifacts)
    kept: Figures = {}
    for one in found:
        for key in (key for key in one.data.metrics if not key.startswith("time/")):
            history = sorted((metric.step, metric.value) for metric in client.get_metric_history(one.info.run_id, key))
            kept.setdefault((one.info.run_name, key), []).extend(history)
    return kept


def runs_wrong(artifacts: Path) -> int:
    """Trainings that have not exactly one nested run, FINISHED."""
    _, found = trainings(artifacts)
    names = [one.info.run_name for one in found]
    expected = {f"{group} seed {seed}" for group in ("ppo", "A2C") for seed in range(SEEDS)}
    unfinished = sum(one.info.status != "FINISHED" for one in found)
    return unfinished + sum(names.count(name) != 1 for name in expected) + len(set(names) - expected)


def side_by_side(scratch: Path, steps: int) -> list[dict[str, Any]]:
    """Four trainings of the default agent on the bundled traffic, in one process and as tasks of a node with two cores."""
    from src.cluster.connection import connected

    config = load_config(overrides=[f"rl.total_timesteps={steps}", "compute.threads=1"], environ={})
    bank = TraceBank.bundled()
    rows, alone = [], 0.0
    for title, cores in (("one process", 0), ("tasks on one core", 1), ("tasks on two cores", 2)):
        jobs = [Job("agent", RLTrainer(config, bank, scratch / title), seed) for seed in range(4)]
        with contextlib.ExitStack() as stack:
            began = time.monotonic()
            if cores:
                cluster = stack.enter_context(nodes(1, cores))
                stack.enter_context(connected(ComputeConfig(engine="ray", address=cluster.address, threads=1)))
            started = time.monotonic()
            if cores:
                from src.cluster.agents import train_agents

                train_agents(jobs, lambda _: contextlib.nullcontext(), False, lambda _: None)
            else:
                in_turn(jobs, lambda _: contextlib.nullcontext(), False, lambda _: None)
            seconds = time.monotonic() - started
        alone = alone or seconds
        rate = len(jobs) * steps / seconds
        rows.append({"run": title, "trainings": len(jobs), "start_s": started - began, "seconds": seconds, "steps_a_second": rate, "speed_up": alone / seconds})
    return rows


def predictors(scratch: Path, epochs: int) -> list[dict[str, Any]]:
    """The base LSTM and the temporal LSTM at their default sizes on the synthetic profile: one process, and workers that share each batch."""
    from src.cluster.connection import connected

    rows = []
    for title, workers, threads in (("one process, one thread", 0, 1), ("one process, two threads", 0, 2), ("two workers", 2, 1)):
        config = _short(epochs, workers, threads)
        data = load_dataset(config.data, 0)
        folder = scratch / title.replace(" ", "-").replace(",", "")
        with contextlib.ExitStack() as stack:
            if workers:
                cluster = stack.enter_context(nodes(1, 2))
                stack.enter_context(connected(config.compute.model_copy(update={"address": cluster.address})))
            began = time.monotonic()
            if workers:
                from src.cluster.predictors import train_networks

                train_networks(config, data, _Nowhere(), folder, False)
            else:
                LSTMTrainer(config, data).train(folder)
            seconds = time.monotonic() - began
        metrics = _metrics(folder)
        rows.append({"run": title, "seconds": seconds, "lstm_macro_f1": metrics["lstm/macro_f1"], "temporal_macro_f1": metrics["temporal/macro_f1"]})
    return rows


def _short(epochs: int, workers: int, threads: int) -> Config:
    overrides = [f"lstm.training.epochs={epochs}", f"temporal.training.epochs={epochs}", "lstm.training.teachers=0", f"compute.threads={threads}"]
    return load_config(overrides=[*overrides, *(["compute.engine=ray", f"compute.workers={workers}"] if workers else [])], environ={})


def _metrics(folder: Path) -> dict[str, float]:
    found = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["metrics"]
    return {key: float(np.round(value, 4)) for key, value in found.items()}


class _Nowhere:
    """A log that keeps nothing."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Nothing."""

    def log_figure(self, figure: Any, path: str) -> None:
        """Nothing."""

    def log_table(self, rows: Any, path: str) -> None:
        """Nothing."""
