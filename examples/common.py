"""What the examples share: flags, masks, and the comparison with no-op and random on held-out traffic."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from agents.baselines import Constant, Random
from envs import IoTVectorEnv
from envs.world import Layout
from src.errors import UserError
from src.evaluation.rollout import Policy, play

TEST_SEED = 1_000_000
"""First seed of the held-out episodes; training seeds stay far below."""


def positive(text: str) -> int:
    """A word of the command line that must be a whole number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def natural(text: str) -> int:
    """A word of the command line that must be a whole number of at least 0."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {number}")
    return number


def flags(description: str | None, timesteps: int, n_envs: int) -> argparse.ArgumentParser:
    """The command line of an example, to which it may add."""
    words = argparse.ArgumentParser(description=(description or "").strip().splitlines()[0])
    words.add_argument("--timesteps", type=positive, default=timesteps, help="environment steps to train for, in all (default: %(default)s)")
    words.add_argument("--seed", type=natural, default=0, help="of training (default: %(default)s)")
    words.add_argument("--scenario", default="clinic", help="solo, home, clinic, ... (default: %(default)s)")
    words.add_argument("--n-envs", type=positive, default=n_envs, help="environments stepped together (default: %(default)s)")
    words.add_argument("--episodes", type=positive, default=200, help="held-out episodes that each policy plays (default: %(default)s)")
    return words


class Clock:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self, steps: int) -> str:
        """How long `steps` steps took; the time of this process on a CPU is beside it, since other work may share the machine."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return f"trained {steps:,} steps in {wall:.1f} s, {cpu:.1f} s of it on the CPU: {steps / wall:,.0f} and {steps / cpu:,.0f} steps/s, learning included"


def compare(name: str, policy: Policy, args: argparse.Namespace, steps: int, clock: Clock) -> None:
    """Play `policy`, no-op and random on the `test` split with the same seeds, and print their mean returns.

    Args:
        name: printed for the policy.
        policy: anything with Stable-Baselines3's `predict` over a batch of flat observations.
        args: parsed from `flags`.
        steps: environment steps that training took.
        clock: made when training began.
    """
    print(clock.read(steps))
    env = IoTVectorEnv(args.episodes, scenario=args.scenario, split="test", flatten=True)
    print(f"mean return of {args.episodes} held-out episodes ({args.scenario}, split test, seeds {TEST_SEED} ...):")
    rows: dict[str, Policy] = {name: policy, "no-op": Constant(0), "random": Random(env.simulation.layout, seed=args.seed)}
    for label, one in rows.items():
        played = play(env, one, TEST_SEED)
        error = played.returns.std() / math.sqrt(args.episodes)
        if not math.isfinite(played.mean):
            sys.exit(f"error: the mean return of {label} is not finite")
        print(f"  {label:<16} {played.mean:8.2f} +- {error:.2f}")


def masks(layout: Layout, observation: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(B, actions) which actions would change something, read out of flat observations (B, size): what `action_masks()` gives beside them."""
    valid = layout.split(observation)["valid"] > 0  # (B, D, 5)
    return np.concatenate([np.ones((len(valid), 1), np.bool_), valid.reshape(len(valid), -1)], axis=1)


def launch(main: Callable[[], None]) -> None:
    """Run an example, with one thread for torch, since these networks are too small for two.

    Wrong input ends in one line, and the exit status is 0 only where all was done.
    """
    torch.set_num_threads(1)
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
