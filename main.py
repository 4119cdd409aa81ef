"""Command line: train the risk sensors on traffic, then the agents in the environment, evaluate, and track it all.

`python main.py --phase lstm|sae|rl|eval|all [--config config.yml] [--preset quick|default|full] [--set a.b=c ...]
[--seed N] [--resume RUN]`; with `--phase eval` also `--policy PATH|NAME` or `--submit FILE.py:ATTRIBUTE`.

`python main.py features|watch|calibrate ...` reads packets; each has its own --help.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from src.config import PRESETS, Config, changed, load_config, nearest
from src.errors import UserError

if TYPE_CHECKING:
    from src.pipeline import Run

PHASES: dict[str, Callable[[Run], None]] = {
    "lstm": lambda run: run.train_networks(),
    "sae": lambda run: run.train_autoencoder(),
    "rl": lambda run: run.train_agents(),
    "eval": lambda run: run.evaluate(),
    "all": lambda run: run.everything(),
}
"""What each phase does. What a phase needs and is missing is trained first."""

LITTLE = 2**21
"""Bytes: a disk with less is full, for no artifact fits on it."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

INSISTENCE = 0.2
"""Seconds."""

ATTACKERS = ("train", "held_out", "all")

COMMANDS = {
    "features": "the features of a capture's packets, as a table",
    "watch": "a trained agent watching traffic in shadow mode",
    "calibrate": "a sensor taken to a site by the site's own traffic",
}
"""What reads packets, each with its own options."""


class Parser(argparse.ArgumentParser):
    """Ends with one line and exit status 2 on wrong input."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(f"{message}; see python main.py --help")


def arguments(words: list[str] | None) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UserError: for an unknown option, or a missing one.
    """
    more = "commands that read packets: " + "; ".join(f"{name} ({what})" for name, what in COMMANDS.items())
    parser = Parser(prog="python main.py", description="Learn to defend a network of IoT devices, from real traffic.", epilog=more, allow_abbrev=False)
    parser.add_argument("--phase", required=True, metavar="|".join(PHASES), help="what to do; `all` does everything in order")
    parser.add_argument("--config", metavar="FILE", help="YAML file; config.yml holds every setting with its default")
    parser.add_argument("--preset", metavar="|".join(PRESETS), help="named set of overrides")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="override one setting; may be repeated")
    parser.add_argument("--seed", type=int, metavar="N", help="same as --set compute.seed=N")
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted run, with its configuration")
    parser.add_argument("--scenario", metavar="NAME|FILE", help="same as --set env.scenario=...")
    parser.add_argument("--attackers", metavar="|".join(ATTACKERS), help="same as --set env.attackers=...")
    parser.add_argument("--policy", metavar="PATH|NAME", help="with --phase eval: score one saved agent (its folder) or scripted policy (its name)")
    submit = "with --phase eval: execute a file, and score the object with `predict` in it for the leaderboard (docs/leaderboard.md)"
    parser.add_argument("--submit", metavar="FILE.py:ATTRIBUTE|MODULE:ATTRIBUTE", help=submit)
    return parser.parse_args(words)


def check(given: argparse.Namespace) -> None:
    """Refuse what does not go together.

    Raises:
        UserError: for an unknown phase or side of attackers, or an option that means nothing here.
    """
    if given.phase not in PHASES:
        raise UserError(f"unknown phase '{given.phase}': {nearest(given.phase, PHASES)}")
    if given.attackers is not None and given.attackers not in ATTACKERS:
        raise UserError(f"unknown attackers '{given.attackers}': {nearest(given.attackers, ATTACKERS)}")
    for option in ("scenario", "attackers"):
        if getattr(given, option) is not None and given.phase in ("lstm", "sae"):
            raise UserError(f"--{option} means nothing to --phase {given.phase}, which plays no episodes; allowed with: rl, eval, all")
        if getattr(given, option) is not None and given.submit is not None:
            raise UserError(f"--submit plays clinic against seen and held-out attackers, the same for everybody; leave out --{option}")
    for option in ("policy", "submit"):
        if getattr(given, option) is not None and given.phase != "eval":
            raise UserError(f"--{option} goes with --phase eval, not with --phase {given.phase}")
        if getattr(given, option) is not None and given.resume is not None:
            raise UserError(f"--{option} is over in minutes and starts anew; leave out --resume")
    if given.policy is not None and given.submit is not None:
        raise UserError("give --policy or --submit, not both")


def configuration(given: argparse.Namespace) -> Config:
    """The merged configuration; a resumed run brings its own file.

    Raises:
        UserError: for an unknown preset, setting or run.
    """
    short = {f"env.{name}": value for name in ("scenario", "attackers") if (value := getattr(given, name)) is not None}
    overrides = [*given.overrides, *([f"compute.seed={given.seed}"] if given.seed is not None else [])]
    if given.resume is None:
        return changed(load_config(given.config, given.preset, overrides), short)
    if given.config or given.preset:
        raise UserError("--resume goes on with the run's own configuration; leave out --config and --preset")
    runs = load_config(overrides=overrides).compute.artifacts / "runs"
    if not (runs / given.resume / "config.yml").is_file():
        names = sorted(path.parent.name for path in runs.glob("*/config.yml"))
        raise UserError(f"no run '{given.resume}' in '{runs}': {nearest(given.resume, names) if names else 'it holds none'}")
    return changed(load_config(runs / given.resume / "config.yml", None, overrides), short)


def job(given: argparse.Namespace, config: Config) -> Callable[[Run], None]:
    """What the words ask for.

    Raises:
        UserError: for a policy or submission that cannot be opened.
    """
    if given.policy is None and given.submit is None:
        return PHASES[given.phase]
    from src.scoring import policy_job, submission_job  # heavy imports only once the words are known to be right

    return policy_job(config, given.policy) if given.policy is not None else submission_job(config, given.submit)


def trouble(folder: Path) -> str | None:
    """What keeps a run from writing below a folder, which may not be there yet; None: nothing that can be seen."""
    there = folder.resolve()
    while not there.exists():
        there = there.parent
    left = shutil.disk_usage(there).free
    if left < LITTLE:
        return f"the disk of '{folder}' is full ({left // 1024} KiB left); make room"
    if not os.access(there, os.W_OK):
        return f"'{folder}' cannot be written any more; make it writable"
    return None


@contextlib.contextmanager
def insistent_interrupts() -> Iterator[None]:
    """Ctrl-C that is not lost.

    A compiled library that calls Python back may take any exception there for an answer: numpy takes it for a missing attribute, wherever it meets an
    enumeration. So an interrupt that is not on its way to the caller after `INSISTENCE` seconds is raised again.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield  # Ctrl-C is not ours
        return
    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return

    def interrupt(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, INSISTENCE)
        raise KeyboardInterrupt

    def insist(*_: object) -> None:
        error = sys.exception()
        while error is not None and not isinstance(error, KeyboardInterrupt):
            error = error.__context__
        if error is None:
            interrupt()
        signal.setitimer(signal.ITIMER_REAL, INSISTENCE)

    former = signal.signal(signal.SIGALRM, insist)
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, former)


def command(words: list[str]) -> int:
    """Run one of `COMMANDS` and return its exit status.

    Raises:
        UserError: for an unknown one, or wrong input.
    """
    if words[0] not in COMMANDS:
        raise UserError(f"unknown command '{words[0]}': {nearest(words[0], COMMANDS)}; training and evaluation go with --phase")
    from src.watch.commands import run

    return run(words, Parser)


def main(words: list[str] | None = None) -> int:
    """Run one invocation and return its exit status."""
    config, begun = None, False
    words = sys.argv[1:] if words is None else words
    try:
        if words and not words[0].startswith("-"):
            return command(words)
        with insistent_interrupts():
            given = arguments(words)
            check(given)
            config = configuration(given)
            work = job(given, config)
            from src.pipeline import start

            with start(config, given.phase, given.resume) as run:
                begun = True
                work(run)
    except KeyboardInterrupt:
        print("\ninterrupted" + ("" if config is None else "; go on with --resume RUN, the name that was printed at the start"), file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        # Each library says in its own way that a disk is full, and some do not say it; so the disk is looked at, not the error.
        why = trouble(config.compute.artifacts) if config is not None and (begun or not isinstance(error, UserError)) else None
        if why is not None and config is not None:
            print(f"error: {why}, then go on with --resume RUN, its folder in '{config.compute.artifacts / 'runs'}'", file=sys.stderr)
            return 1
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
            return 2
        raise
    return 0


if __name__ == "__main__":
    status = main()
    if status == INTERRUPTED:  # all is written by now, and to take the interpreter apart would take another second or more
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
