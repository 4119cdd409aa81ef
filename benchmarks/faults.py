"""What befalls a run on a user's machine, done to real processes: SIGKILL, Ctrl-C, disks, a tracking server, a clock that steps back.

Each function runs `main.py --phase all` at tiny sizes on synthetic traffic, does one thing to it, and says what came of it. `tests/test_crashes.py`
asserts it; `benchmarks/scale_crashes.py` measures it. Disks are mounted, so they need root on Linux; the clock needs a C compiler.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import ROOT
from src.artifacts import content_digest, open_artifact
from src.errors import UserError

if TYPE_CHECKING:
    from src.pipeline import Run  # noqa: F401  (not for its type: what the processes run, a kept result of this benchmark hangs on)

TINY = (
    "data.synthetic_rows_per_class=400", "lstm.training.epochs=1", "lstm.training.stride=10", "lstm.model.hidden_size=16", "lstm.training.loss=focal",
    "temporal.training.epochs=1", "temporal.training.stride=10", "temporal.model.hidden_size=16", "temporal.training.loss=focal",
    "sae.training.epochs=2", "sae.model.encoder_units=[8]", "sae.model.decoder_units=[8]",
    "rl.total_timesteps=2048", "rl.seeds=2", "rl.n_envs=16", "rl.ppo.n_steps=64", "rl.ppo.batch_size=256", "rl.validation_episodes=4",
    "rl.ppo.demonstrations=100", "rl.hidden_size=8",
    "eval.episodes=20", "eval.tuning_episodes=10", "eval.bootstrap=100", "env.scenario=home", "compute.threads=1",
)  # fmt: skip
"""Settings at which the whole main job takes less than a minute."""
CHECKPOINTED = ("rl.total_timesteps=8192", "rl.checkpoint_steps=1024")
"""What TINY lacks here: trainings of agents that are long enough for checkpoints."""
START = "start"
"""The phase before a run's parent stands in MLflow: imports and data."""
MOMENTS = 10
SIZES = (2, 6, 12)
"""MB of the disks that run full: in the first phase, and later."""
PATIENCE = 600
"""Seconds after which a run counts as hanging."""
AT_ONCE = 5.0
"""Seconds within which Ctrl-C must end a run."""
TENS_OF_SECONDS = 60.0
"""Seconds that a tracking server which is away may cost a run."""
ROOMS = ("networks", "autoencoders", "sensors", "agents")
"""Where artifacts lie that a run makes and the next one may use."""


@dataclass(frozen=True)
class Straight:
    """A run that nothing happens to."""

    artifacts: Path
    seconds: float
    phases: Mapping[str, tuple[float, float]]
    """First and last second of each, counted from the start of the process."""


@dataclass
class Fault:
    """What came of a fault."""

    fault: str
    expected: str
    """How a run should end."""
    seconds: float = 0.0
    """That the fault cost, or that the end took; `measures` says which."""
    measures: str = "to the end"
    status: int = 0
    """Exit status."""
    wrong: list[str] = field(default_factory=list)
    """What was not as expected."""

    def expect(self, holds: object, otherwise: str) -> None:
        """Note what is wrong."""
        if not holds:
            self.wrong.append(otherwise)

    def row(self) -> dict[str, Any]:
        """Of the table."""
        told = {"fault": self.fault, "expected": self.expected, "seconds": self.seconds, "seconds_are": self.measures, "exit_status": self.status}
        return {**told, "as_expected": not self.wrong, "wrong": "; ".join(self.wrong)}


def _hear_interrupts() -> None:
    """A shell's background job ignores Ctrl-C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Job:
    """`main.py --phase all` in a process of its own, which does not outlive the `with` block."""

    def __init__(self, artifacts: Path, *settings: str, resume: str | None = None, environ: Mapping[str, str] | None = None) -> None:
        self.artifacts = artifacts
        words = [part for item in (*TINY, *CHECKPOINTED, f"compute.artifacts={artifacts}", *settings) for part in ("--set", item)]
        words += [] if resume is None else ["--resume", resume]
        self._told = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  (closed on leaving)
        self.began = time.monotonic()
        command = [sys.executable, str(ROOT / "main.py"), "--phase", "all", *words]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=self._told,
            env={**os.environ, **(environ or {})},
            preexec_fn=_hear_interrupts,  # noqa: PLW1509  (this process has one thread)
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._told.close()

    def until(self, there: Callable[[], object]) -> None:
        """Wait until something holds, or the process has ended."""
        while not there() and self.process.poll() is None:
            if time.monotonic() - self.began > PATIENCE:
                raise UserError(f"a run has hung for {PATIENCE} s")
            time.sleep(0.02)

    def end(self, by: signal.Signals | None = None) -> tuple[int, float, str]:
        """Send a signal, if one is given, and wait: exit status, seconds since then, and what went to standard error."""
        began = time.monotonic()
        if by is not None:
            self.process.send_signal(by)
        status = self.process.wait(PATIENCE)
        seconds = time.monotonic() - began
        self._told.seek(0)
        return status, seconds, self._told.read()


def finish(artifacts: Path, *settings: str, resume: str | None = None, environ: Mapping[str, str] | None = None) -> tuple[int, float, str]:
    """A job to its end: exit status, seconds, and what went to standard error."""
    with Job(artifacts, *settings, resume=resume, environ=environ) as job:
        return job.end()


def straight(folder: Path) -> Straight:
    """Run the job with nothing happening to it.

    Raises:
        UserError: when even that fails.
    """
    began = time.time()
    status, seconds, said = finish(folder)
    if status:
        raise UserError(f"the undisturbed run failed: {said[-500:]}")
    times = [(name, start / 1000 - began, end / 1000 - began) for name, _, start, end in runs(folder)]
    (_, first, _), *nested = times
    return Straight(folder, seconds, {START: (0.0, first), **{name: (start, end) for name, start, end in nested}})


def runs(artifacts: Path) -> list[tuple[str, str, int, int]]:
    """Name, status, start and end (ms) of each MLflow run below `artifacts`, the oldest first; none where the store cannot be read yet."""
    if not (artifacts / "mlflow.db").exists():
        return []
    with contextlib.closing(sqlite3.connect(f"{(artifacts / 'mlflow.db').as_uri()}?mode=ro", uri=True)) as store:
        try:
            return store.execute("SELECT name, status, start_time, end_time FROM runs ORDER BY start_time, rowid").fetchall()
        except sqlite3.OperationalError:  # it is being made, or a killed process has left a transaction to be undone
            return []


def at_work(artifacts: Path) -> str:
    """Which phase a run is in."""
    found = [name for name, status, *_ in runs(artifacts) if status == "RUNNING"]
    return START if not runs(artifacts) else found[-1] if found[1:] else "between two phases"


def begun(artifacts: Path) -> str | None:
    """Name of the run that `--resume` takes; none where it did not come so far."""
    found = [path.parent.name for path in artifacts.glob("runs/*/config.yml")]
    return found[0] if found else None


def ends_the_same(whole: Straight, artifacts: Path) -> dict[str, Any]:
    """What a run that was disturbed, and went on, has in common with the undisturbed one."""
    (results,), (expected,) = (list(place.glob("runs/*/results.json")) for place in (artifacts, whole.artifacts))
    returns = [{row["policy"]: row["return"] for row in json.loads(path.read_text(encoding="utf-8"))["tables"]["policies"]} for path in (results, expected)]
    found, damaged = _digests(artifacts)
    return {
        "same_returns": returns[0] == returns[1],
        "same_steps": _steps(artifacts) == _steps(whole.artifacts),
        "same_artifacts": found == _digests(whole.artifacts)[0],
        "left_running": sum(status == "RUNNING" for _, status, *_ in runs(artifacts)),
        "corrupt_artifacts": len(damaged),
    }


def _steps(artifacts: Path) -> dict[str, int]:
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8"))["timesteps"] for path in artifacts.glob("agents/*/*/meta.json")}


def _digests(artifacts: Path) -> tuple[dict[str, str], list[str]]:
    """Digest of what each artifact holds, by its place; and those that do not open."""
    found, damaged = {}, []
    for meta in sorted(path for room in ROOMS for path in artifacts.glob(f"{room}/**/meta.json")):
        folder = meta.parent
        name = folder.relative_to(artifacts).as_posix()
        if not (folder / "checksums.json").exists() or any(part.startswith(".") for part in folder.relative_to(artifacts).parts):
            continue  # part of an artifact that holds it; or a temporary folder that a killed process has left
        try:
            open_artifact(folder, json.loads(meta.read_text(encoding="utf-8"))["kind"])
            found[name] = content_digest(folder)
        except (UserError, ValueError, KeyError):
            damaged.append(name)
    return found, damaged


def same(row: Mapping[str, Any]) -> bool:
    """Whether a run ended as the undisturbed one."""
    return row["same_returns"] and row["same_steps"] and row["same_artifacts"] and row["left_running"] == row["corrupt_artifacts"] == 0


def killed(whole: Straight, moment: int, folder: Path) -> dict[str, Any]:
    """SIGKILL at a moment, then go on to the end. The first moments fall into a phase each, the others anywhere; where, is drawn by number."""
    draw, phases = random.Random(moment), list(whole.phases)
    with Job(folder) as job:
        if moment < len(phases):
            phase = phases[moment]
            first, last = whole.phases[phase]
            job.until(lambda: phase in (START, at_work(folder)))
            wait = draw.random() * (last - first)
        else:
            wait = draw.random() * whole.seconds
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.process.wait(wait)
        seconds = time.monotonic() - job.began
        status, *_ = job.end(signal.SIGKILL)
    where, resume = at_work(folder), begun(folder)
    ended, after, said = finish(folder, resume=resume)
    row = {"moment": moment, "seconds": seconds, "at_work": where if status else "at its end", "resumed": resume is not None, "seconds_after": after}
    if ended:
        raise UserError(f"killed at {seconds:.1f} s ({where}), it did not go on: {said[-500:]}")
    return {**row, **ends_the_same(whole, folder)}


def interrupted(phase: str, folder: Path) -> Fault:
    """Ctrl-C in a phase, `START` or the name of a nested run, a second after it began."""
    found = Fault(f"Ctrl-C in '{phase}'", f"status 130 within {AT_ONCE:.0f} s, what is done is kept, no run left RUNNING")
    with Job(folder, "rl.total_timesteps=2000000") if phase.startswith("ppo") else Job(folder) as job:
        if phase.startswith("ppo"):
            job.until(lambda: list(folder.glob("agents/*/*.checkpoint")))
        else:
            job.until(lambda: phase == at_work(folder))
            time.sleep(1.0 if phase in (START, "predictor", "evaluation") else 0.1)
        found.status, found.seconds, said = job.end(signal.SIGINT)
    found.expect(found.status == 130, f"status {found.status}")
    found.expect(found.seconds < AT_ONCE, f"{found.seconds:.1f} s")
    found.expect("Traceback" not in said, f"a traceback: {said[-500:]}")
    found.expect(phase == START or "--resume" in said, "no word of --resume")
    found.expect(not phase.startswith("ppo") or list(folder.glob("agents/*/*.checkpoint")), "no checkpoint")
    found.expect(not [name for name, status, *_ in runs(folder) if status == "RUNNING"], "a run left RUNNING")
    return found


@contextlib.contextmanager
def mounted(place: Path, *words: str) -> Iterator[Path]:
    """A folder on which something is mounted.

    Raises:
        UserError: where that is not allowed.
    """
    place.mkdir(exist_ok=True)
    if sys.platform != "linux" or subprocess.run(["mount", *words, str(place)], check=False, capture_output=True).returncode:
        raise UserError("disks can be mounted by root on Linux only")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextlib.contextmanager
def read_only(place: Path) -> Iterator[None]:
    """A folder turned read-only, for root too. What is open already stays open.

    It is mounted elsewhere, made read-only there, where nobody has a file open, and mounted from there upon itself.
    """
    with mounted(place.with_name(f"{place.name} read-only"), "--bind", str(place)) as beside:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(beside)], check=True)
        with mounted(place, "--bind", str(beside)):
            yield


def full_disk(whole: Straight, folder: Path, megabytes: int) -> Fault:
    """A disk of a few MB runs full; then there is room."""
    found = Fault(f"a disk of {megabytes} MB runs full", "status 1 and one line that says so; with room made, it goes on to the same end")
    with mounted(folder, "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs") as disk:
        found.status, found.seconds, said = finish(disk)
        _expect_one_line(found, said, "is full", 1)
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        _expect_goes_on(found, whole, disk)
    return found


def read_only_from_the_start(folder: Path) -> Fault:
    """The folder of artifacts cannot be written."""
    found = Fault("a read-only folder from the start", "status 2 and one line that names it; nothing is written")
    folder.mkdir()
    with read_only(folder):
        found.status, found.seconds, said = finish(folder)
    _expect_one_line(found, said, "Read-only file system", 2)
    found.expect(not list(folder.iterdir()), "something was written")
    return found


def no_folder(folder: Path) -> Fault:
    """The folder of artifacts is a file."""
    found = Fault("compute.artifacts is a file", "status 2 and one line that names it; nothing is written")
    folder.write_text("mine", encoding="utf-8")
    found.status, found.seconds, said = finish(folder)
    _expect_one_line(found, said, str(folder), 2)
    found.expect(folder.read_text(encoding="utf-8") == "mine", "the file was changed")
    return found


def read_only_midway(whole: Straight, folder: Path) -> Fault:
    """The folder turns read-only while the first agent trains, and writable again later."""
    found = Fault("a folder turns read-only in the middle", "status 1 and one line that says so; writable again, it goes on to the same end")
    with Job(folder) as job:
        job.until(lambda: at_work(folder).startswith("ppo"))
        with read_only(folder):
            found.status, found.seconds, said = job.end()
    _expect_one_line(found, said, "cannot be written", 1)
    _expect_goes_on(found, whole, folder)
    return found


def _expect_one_line(found: Fault, said: str, words: str, status: int) -> None:
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    found.expect(found.status == status, f"status {found.status}: {said[-300:]}")
    found.expect(len(lines) == 1 and words in lines[0], f"said: {said[-300:]}")
    found.expect("Traceback" not in said, f"a traceback: {said[-500:]}")


def _expect_goes_on(found: Fault, whole: Straight, folder: Path) -> None:
    status, _, said = finish(folder, resume=begun(folder))
    found.expect(status == 0, f"did not go on: {said[-300:]}")
    if status == 0:
        ended = ends_the_same(whole, folder)
        found.expect(same(ended), f"another end: {ended}")


@contextlib.contextmanager
def tracking_server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """An MLflow server on the loopback, its address and the leader of its process group.

    Raises:
        UserError: when it does not come up.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    words = ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--artifacts-destination", str(folder / "files"), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *words]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            if time.monotonic() > until or server.poll() is not None:
                raise UserError(f"no tracking server: {(folder / 'log').read_text(encoding='utf-8')[-500:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def server_away(whole: Straight, folder: Path, by: signal.Signals) -> Fault:
    """The tracking server is killed in the middle (SIGKILL: nobody answers), or stands still (SIGSTOP: it takes calls and never answers)."""
    how = {signal.SIGKILL: "is killed", signal.SIGSTOP: "stands still"}[by]
    found = Fault(f"the tracking server {how}", "status 0, one warning, the same end, what was not sent is kept in a file", measures="lost")
    artifacts = folder / "artifacts"
    folder.mkdir()
    with tracking_server(folder / "server") as (address, server), Job(artifacts, f"mlflow.tracking_uri={address}") as job:
        job.until(lambda: list(artifacts.glob("autoencoders/*/meta.json")))
        os.killpg(server.pid, by)
        found.status, after, said = job.end()
    # What the undisturbed run, whose store is a file, takes from there on is no loss.
    found.seconds = after - (whole.seconds - whole.phases["autoencoder"][1])
    warned = [line for line in said.splitlines() if "MLflow" in line]
    found.expect(found.status == 0, f"status {found.status}: {said[-300:]}")
    found.expect(len(warned) == 1 and "is lost" in warned[0], f"{len(warned)} warnings: {said[-500:]}")
    found.expect(found.seconds < TENS_OF_SECONDS, f"{found.seconds:.0f} s lost")
    kept = [json.loads(line) for path in artifacts.glob("unsent-*.jsonl") for line in path.read_text(encoding="utf-8").splitlines()]
    found.expect(any("metrics" in line for line in kept) and kept[-1].get("status") == "FINISHED", f"{len(kept)} lines kept")
    found.expect(found.status == 0 and same(ends_the_same(whole, artifacts)), "another end")
    return found


def no_server(folder: Path) -> Fault:
    """Nobody listens where `mlflow.tracking_uri` points."""
    found = Fault("no tracking server from the start", "status 2 and one line that names it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        found.status, found.seconds, said = finish(folder, f"mlflow.tracking_uri={address}")
    _expect_one_line(found, said, address, 2)
    found.expect(found.seconds < TENS_OF_SECONDS, f"{found.seconds:.0f} s")
    return found


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static int (*real)(clockid_t, struct timespec *);
static time_t began;

/* The wall clock, an hour early once CLOCK_BACK_AFTER seconds have gone by. */
int clock_gettime(clockid_t id, struct timespec *now) {
    struct timespec steady;
    if (!real) {
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
        real(CLOCK_MONOTONIC, &steady);
        began = steady.tv_sec;
    }
    int failed = real(id, now);
    real(CLOCK_MONOTONIC, &steady);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) && steady.tv_sec - began >= atoi(getenv("CLOCK_BACK_AFTER")))
        now->tv_sec -= 3600;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now)
        *now = found.tv_sec;
    return found.tv_sec;
}
"""


def clock_back(whole: Straight, folder: Path) -> Fault:
    """The wall clock goes back an hour in the middle of a run: a small library stands before the C library's clock.

    Raises:
        UserError: where there is no C compiler.
    """
    found = Fault("the clock goes back an hour", "status 0, the same end, no negative duration")
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        raise UserError("a clock that steps back wants a C compiler, on Linux")
    folder.mkdir()
    (folder / "clock.c").write_text(CLOCK, encoding="utf-8")
    library = folder / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(folder / "clock.c"), "-ldl"], check=True)
    middle = int(whole.phases["ppo seed 0"][0]) + 1
    artifacts = folder / "artifacts"
    began = time.time()
    found.status, found.seconds, said = finish(artifacts, environ={"LD_PRELOAD": str(library), "CLOCK_BACK_AFTER": str(middle)})
    found.expect(found.status == 0 and same(ends_the_same(whole, artifacts)), f"status {found.status}, or another end: {said[-300:]}")
    found.expect(min((end for *_, end in runs(artifacts)), default=0) / 1000 < began, "the clock did not step")
    for path in artifacts.glob("runs/*/results.json"):
        taken = json.loads(path.read_text(encoding="utf-8"))["seconds"]
        found.expect(0 < taken < found.seconds, f"results.json tells of {taken:.0f} s")
    return found
