"""Agents trained as tasks of a Ray cluster: every seed of every group is one, whichever node takes it.

A task whose node dies is started again elsewhere, and goes on from its last checkpoint where the nodes share the artifacts' disk, else from the
start; either way it ends with the same weights. The figures of a training are kept beside its checkpoint and handed over with the finished agent,
so that each is logged once however often the training was started.
"""
# pyright: reportMissingImports=false
# (Ray is no part of requirements.txt)

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from agents.manager import Job, Say, Trainer, Watch
from src.artifacts import command, issued_by
from src.cluster.connection import at_home
from src.cluster.parcels import SCRATCH, Parcel, pack, unpack
from src.config import Config
from src.data.bank import TraceBank
from src.errors import UserError

TRIES = 10
"""How often a task is started again whose node or process has died."""
CORES = 1.0
"""Cores of a task: agents train on one thread."""

Row = tuple[dict[str, float], int]
"""Metrics, and the steps taken so far."""


class Made(NamedTuple):
    """What a task hands over."""

    rows: list[Row]
    parcel: Parcel
    seconds: float
    node: str


def train_agents(jobs: Sequence[Job], watch: Watch, resume: bool, say: Say) -> None:
    """Train all jobs as tasks, and keep each agent, and log its figures, as soon as it is there. A `CarryOut`.

    Raises:
        UserError: what the first task to fail says, or that a task's process died too often; the others are given up.
    """
    if not jobs:
        return
    say(f"training {len(jobs)} agents as tasks")
    shared: dict[int, Any] = {}
    for job in jobs:
        for thing in (job.trainer.bank, job.trainer.sensor):
            if id(thing) not in shared:
                shared[id(thing)] = ray.put(_in_memory(thing))
    waiting = {}
    for job in jobs:
        place = scratch(job)
        if not resume:
            shutil.rmtree(place, ignore_errors=True)
        trainer = job.trainer
        given = type(trainer), trainer.config, shared[id(trainer.bank)], place, shared[id(trainer.sensor)], job.seed, Path.cwd(), command()
        waiting[_train.remote(*given)] = job
    try:
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            made = received(done)
            job = waiting.pop(done)
            with watch(job) as on_metrics:
                for metrics, step in made.rows:
                    if on_metrics is not None:
                        on_metrics(metrics, step)
                unpack(made.parcel, job.trainer.target(job.seed))
            shutil.rmtree(scratch(job), ignore_errors=True)
            with contextlib.suppress(OSError):  # it holds what other tasks are at
                scratch(job).parent.rmdir()
            say(f"trained {job} ({made.seconds:.0f} s on {made.node}; {len(jobs) - len(waiting)} of {len(jobs)})")
    finally:
        for task in waiting:
            ray.cancel(task, force=True)


def scratch(job: Job) -> Path:
    """Where the worker keeps what it is at."""
    target = job.trainer.target(job.seed).resolve()
    return target.parent / SCRATCH / target.name


def received(task: Any) -> Any:
    """What a task gave.

    Raises:
        UserError: when it refused its input, or its process died too often.
    """
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except RayError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"a task of the Ray cluster was lost {TRIES} times over: {reason}; look at that node, then go on with --resume") from error


def _in_memory(thing: Any) -> Any:
    """The trace bank with its arrays in memory: a memory map would be found only where its file is."""
    if not isinstance(thing, TraceBank):
        return thing
    arrays = {name: np.asarray(value) for name, value in vars(thing).items() if isinstance(value, np.ndarray)}
    found = object.__new__(TraceBank)  # checked when it was opened
    found.__dict__.update({**vars(thing), **arrays})
    return found


@ray.remote(num_cpus=CORES, max_retries=TRIES)
def _train(kind: Callable[..., Trainer], config: Config, bank: TraceBank, folder: Path, sensor: Any, seed: int, home: Path, issued: str) -> Made:
    """Train one agent on this node, in `folder`, going on from what lies there."""
    began = time.monotonic()
    rows = Rows(folder / "rows.jsonl")
    with at_home(home), issued_by(issued):
        target = kind(config, bank, folder, sensor).train(seed, rows.add, resume=True)
    return Made(rows.read(), pack(target), time.monotonic() - began, ray.util.get_node_ip_address())


class Rows:
    """Figures of a training, a line each in a file. Of a step that was told twice, since a training went on from before it, the later line counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, metrics: dict[str, float], step: int) -> None:
        """Keep a row."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps([metrics, step]))  # the line before may have been cut off

    def read(self) -> list[Row]:
        """All rows, in the order of their steps."""
        found: dict[int, Row] = {}
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        for line in lines:
            with contextlib.suppress(ValueError):  # empty, or cut off when the process was killed
                metrics, step = json.loads(line)
                found[int(step)] = metrics, int(step)
        return [found[step] for step in sorted(found)]
