"""A peer environment in a process of its own, which steps when it is told to: `python peers.py NAME`.

Runs in the virtual environment of `requirements-peers.txt`, so it imports nothing of this product. On standard output it
first says `{"scenario": ..., "version": ..., "episode": ...}`, or `{"failed": why}`; then it answers each line `{"steps": N}` on standard
input with `{"steps": N, "seconds": ..., "episodes": ...}`. Actions are random and drawn beforehand, resets are counted in.
"""

from __future__ import annotations

import atexit
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import os
import random
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

POOL = 1024
"""Actions drawn beforehand, which are used in turn."""

CAGE_STEPS = 100
"""Steps of an episode of CAGE-2, the longest of the challenge's three."""

LINES = 20_000
"""Events in the log that is written for security-gym, whose recorded ones are no part of its package."""


class Peer:
    """An environment behind two functions, and what to call it in a table."""

    def __init__(self, package: str, scenario: str, step: Callable[[Any], bool], reset: Callable[[], Any], actions: list[Any], episode: int = 1) -> None:
        """`step` says whether the episode is over; only a multiple of `episode` steps is a fair sample, where steps cost more as an episode goes on."""
        self.words: dict[str, Any] = {"scenario": scenario, "version": f"{package} {importlib.metadata.version(package)}", "episode": episode}
        self.step, self.reset, self.actions = step, reset, actions
        self._next = 0

    def run(self, steps: int) -> dict[str, float]:
        """Play on for some steps."""
        step, reset, actions = self.step, self.reset, self.actions
        following, episodes = self._next, 0
        began = time.perf_counter()
        for i in range(steps):
            if step(actions[(following + i) % POOL]):
                reset()
                episodes += 1
        seconds = time.perf_counter() - began
        self._next = (following + steps) % POOL
        return {"steps": steps, "seconds": seconds, "episodes": episodes}


def through_gymnasium(env: Any, package: str, scenario: str, actions: list[Any]) -> Peer:
    """A peer that follows gymnasium's interface."""
    env.reset(seed=0)
    take = env.step

    def step(action: Any) -> bool:
        _, _, terminated, truncated, _ = take(action)
        return terminated or truncated

    return Peer(package, scenario, step, env.reset, actions)


def cartpole() -> Peer:
    """Gymnasium's reference."""
    gymnasium = importlib.import_module("gymnasium")
    env = gymnasium.make("CartPole-v1", disable_env_checker=True)
    return through_gymnasium(env, "gymnasium", "CartPole-v1", [random.randrange(2) for _ in range(POOL)])


def nasim() -> Peer:
    """NASim's medium network, built without a wrapper."""
    env = importlib.import_module("nasim").make_benchmark("medium", seed=0)
    return through_gymnasium(env, "nasim", "medium", [random.randrange(int(env.action_space.n)) for _ in range(POOL)])


def security_gym(mode: str) -> Peer:
    """security-gym over a log that is written for it here."""
    gym = importlib.import_module("security_gym")
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    log = Path(folder.name) / "events.db"
    kinds = ("auth_log", "syslog", "web_access", "ebpf_process", "ebpf_network", "ebpf_file")
    store = gym.EventStore(log, mode="w")
    began = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
    events = []
    for i in range(LINES):
        address, kind = f"10.0.{random.randrange(4)}.{random.randrange(256)}", kinds[i % len(kinds)]
        line = f"Jan  1 00:00:{i % 60:02d} host sshd[{i}]: Failed password for invalid user admin from {address} port {20_000 + i % 40_000} ssh2"
        events.append(gym.ParsedEvent(began + datetime.timedelta(seconds=i), kind, line, "auth_failure", src_ip=address, username="admin", pid=i))
    store.bulk_insert(events, [{"is_malicious": int(i % 4 == 0)} for i in range(LINES)])
    store.conn.close()
    env = importlib.import_module("gymnasium").make(f"SecurityLogStream-{mode}-v0", db_path=str(log), disable_env_checker=True)
    env.action_space.seed(0)
    return through_gymnasium(env, "security-gym", f"{mode}, a log of {LINES:,} lines", [env.action_space.sample() for _ in range(POOL)])


def idsgame() -> Peer:
    """gym-idsgame: the defender's half of the action is random, the attacker's is played by the environment's own random agent."""
    importlib.import_module("gym_idsgame")
    name = "idsgame-random_attack-v8"
    env = importlib.import_module("gym").make(name, disable_env_checker=True).unwrapped  # the wrapper asks for what this environment lacks
    env.reset()
    # -1 would mean that nobody attacks; any other number is replaced by what the random attacker chooses.
    actions = [(0, random.randrange(env.num_defense_actions)) for _ in range(POOL)]
    return Peer("gym-idsgame", "random_attack-v8", lambda action: env.step(action)[2], env.reset, actions)


def cyborg() -> Peer:
    """CAGE-2, as csle-cyborg packages it: its second scenario, blue against the B-line attacker."""
    # A trained agent that comes with it wants a training library when it is imported; no step uses it.
    stub: Any = types.ModuleType("stable_baselines3")
    stub.PPO = object
    sys.modules["stable_baselines3"] = stub
    main = importlib.import_module("csle_cyborg.main").Main
    attacker = importlib.import_module("csle_cyborg.agents.simple_agents.b_line").B_lineAgent
    wrapper = importlib.import_module("csle_cyborg.agents.wrappers.challenge_wrapper").ChallengeWrapper
    # The scenario comes with another package, whose own imports need a whole platform: its one file of constants is read alone.
    found = importlib.util.find_spec("gym_csle_cyborg")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'gym_csle_cyborg'")
    spec = importlib.util.spec_from_file_location("constants", Path(found.origin).parent / "constants" / "constants.py")
    assert spec is not None
    assert spec.loader is not None
    constants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(constants)
    env = wrapper(env=main(constants.CYBORG.CYBORG_SCENARIO_2_DICT, "sim", agents={"Red": attacker}), agent_name="Blue", max_steps=CAGE_STEPS)
    env.reset()
    actions = [random.randrange(int(env.action_space.n)) for _ in range(POOL)]
    return Peer("csle-cyborg", "CAGE-2, 13 hosts", lambda action: bool(env.step(action)[2]), env.reset, actions, episode=CAGE_STEPS)


PEERS: dict[str, Callable[[], Peer]] = {
    "CartPole (their gymnasium)": cartpole,
    "NASim": nasim,
    "security-gym Text": lambda: security_gym("Text"),
    "security-gym Hybrid": lambda: security_gym("Hybrid"),
    "gym-idsgame": idsgame,
    "csle-cyborg": cyborg,
}


def main() -> None:
    """Build the peer, then answer until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a peer prints is no answer
    warnings.simplefilter("ignore")
    random.seed(0)
    try:
        peer = PEERS[sys.argv[1]]()
        peer.run(peer.words["episode"])
    except Exception as error:
        # Whatever goes wrong in somebody else's package is the reason why its row is missing.
        answers.write(json.dumps({"failed": f"{type(error).__name__}: {error}"}) + "\n")
        return
    answers.write(json.dumps(peer.words) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(peer.run(json.loads(line)["steps"])) + "\n")


if __name__ == "__main__":
    main()
