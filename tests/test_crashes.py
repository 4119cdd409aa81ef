"""The main job is killed, interrupted, and run out of disk, as a user's machine would do it; nothing is lost and nothing is half written."""

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.artifacts import open_artifact
from tests.test_main import TINY

ROOT = Path(__file__).parents[1]
MOMENTS = 10
PATIENCE = 600
"""Seconds after which a run counts as hanging."""

pytestmark = pytest.mark.slow


def command(artifacts: Path, *more: str) -> list[str]:
    settings = (part for item in [*TINY, f"compute.artifacts={artifacts}", *more] for part in ("--set", item))
    return [sys.executable, str(ROOT / "main.py"), "--phase", "all", *settings]


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(words: list[str]) -> str:
    with start(words) as process:
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said


def run_of(artifacts: Path) -> Path:
    (found,) = (artifacts / "runs").iterdir()
    return found


def outcome(artifacts: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Return of each policy, and steps of each agent."""
    results = json.loads((run_of(artifacts) / "results.json").read_text(encoding="utf-8"))
    steps = {path.parent.name: json.loads(path.read_text(encoding="utf-8"))["timesteps"] for path in artifacts.glob("agents/*/*/meta.json")}
    return {row["policy"]: row["return"] for row in results["tables"]["policies"]}, steps


def check_whole(artifacts: Path) -> None:
    """Every artifact opens, with its checksums; nothing temporary lies about; no run is left running."""
    for meta in artifacts.glob("*/*/**/meta.json"):
        if "mlruns" not in meta.parts and (meta.parent / "checksums.json").exists():
            open_artifact(meta.parent, json.loads(meta.read_text(encoding="utf-8"))["kind"])
    with contextlib.closing(sqlite3.connect(artifacts / "mlflow.db")) as store:
        found = store.execute("SELECT name, status FROM runs").fetchall()
    assert {status for _, status in found} <= {"FINISHED", "FAILED"}, found


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nothing happens to, and its seconds."""
    artifacts = tmp_path_factory.mktemp("straight")
    began = time.perf_counter()
    finish(command(artifacts))
    return artifacts, time.perf_counter() - began


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed_at_any_moment_it_goes_on_to_the_same_end(moment: int, straight: tuple[Path, float], tmp_path: Path) -> None:
    whole, seconds = straight
    wait = (moment + random.Random(moment).random()) / MOMENTS * seconds  # spread over all phases
    with start(command(tmp_path)) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=wait)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
    begun = (tmp_path / "runs").exists() and (run_of(tmp_path) / "config.yml").exists()
    finish(command(tmp_path, *()) if not begun else [*command(tmp_path), "--resume", run_of(tmp_path).name])
    assert outcome(tmp_path) == outcome(whole)
    check_whole(tmp_path)


def test_an_interrupt_ends_within_seconds_with_a_checkpoint(straight: tuple[Path, float], tmp_path: Path) -> None:
    words = command(tmp_path, "rl.total_timesteps=2000000", "rl.checkpoint_steps=2048")
    with start(words) as process:
        until = time.monotonic() + PATIENCE
        while not list(tmp_path.glob("agents/*/*checkpoint*")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert "--resume" in said
    assert time.monotonic() - began < 5
    assert list(tmp_path.glob("agents/*/*checkpoint*"))
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        assert not store.execute("SELECT name FROM runs WHERE status = 'RUNNING'").fetchall()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of a few MB; mounting needs a privileged user on Linux."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = sys.platform == "linux" and os.geteuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], check=False, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root on Linux only")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_said_in_one_line_and_the_run_goes_on_once_there_is_room(small_disk: Path, straight: tuple[Path, float]) -> None:
    words = command(small_disk)
    with start(words) as process:
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, said
    (last,) = (line for line in said.splitlines() if line.startswith("error:"))
    assert "is full" in last
    assert "Traceback" not in said
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    finish([*words, "--resume", run_of(small_disk).name])
    assert outcome(small_disk) == outcome(straight[0])
    check_whole(small_disk)
