"""The way to a Ray cluster: one that runs, or one of this machine alone, started for the run and stopped after it."""
# pyright: reportMissingImports=false
# (Ray is no part of requirements.txt)

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from src.config import ComputeConfig
from src.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nobody is told that it runs
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a task without a GPU sees what its machine has, as it does without Ray
    "RAY_TRAIN_V2_ENABLED": "1",
}


def reach(address: str) -> None:
    """Find out whether anything listens at `host:port`, for Ray itself would try for minutes.

    Raises:
        UserError: when nothing does, or it is no address.
    """
    import socket

    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"no Ray cluster at compute.address '{address}': {reason}; give host:port as `ray start` prints it, auto, or null") from error


@contextlib.contextmanager
def connected(compute: ComputeConfig) -> Iterator[str]:
    """Stay connected inside the block, and yield what the cluster is, in words.

    Workers import this checkout, which must lie at the same path on every node, with the same packages installed.

    Raises:
        UserError: when Ray is not installed, or there is no cluster at `compute.address`.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError("compute.engine is 'ray', but Ray is not installed: pip install -r requirements-ray.txt (docs/cluster.md)") from error
    if compute.address not in (None, "auto"):
        reach(compute.address)
    home = os.environ.get("PYTHONPATH")
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), *([home] if home else [])]), "OMP_NUM_THREADS": str(compute.threads)}}
    try:
        if compute.address is None:
            # An address in the environment, or a cluster that some other user of this machine has left running, is not this run's.
            with _without("RAY_ADDRESS"):
                ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
        else:
            ray.init(address=compute.address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster at compute.address '{compute.address}': {' '.join(str(error).split())[:200]}") from error
    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
        yield f"Ray {ray.__version__}, {len(alive)} node{'s' if len(alive) > 1 else ''}, {ray.cluster_resources().get('CPU', 0):g} cores"
    finally:
        ray.shutdown()


@contextlib.contextmanager
def at_home(folder: Path) -> Iterator[None]:
    """Work where the driver was started, as far as there is such a folder here: relative paths of the configuration begin there."""
    with contextlib.chdir(folder) if folder.is_dir() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    before = os.environ.pop(name, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
