"""Attacker and defender answer each other in turn: `python -m examples.self_play [--rounds 3] [--steps 300000]`.

The defender takes the threshold rule on risk that does best against the scripted attackers, and an attacker learns against that
rule, by MaskablePPO (Huang and Ontañón 2022). In the next round the rule is tuned against that attacker, which then learns on
against the new rule: alternating best responses, as far as a grid and PPO find them. In the end every attacker meets every
defender in new episodes over the same traces, beside a random attacker and a greedy one. The traffic is the bundled synthetic bank.
The table of docs/duel.md, with intervals, is measured by `python -m benchmarks.self_play`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from sb3_contrib import MaskablePPO
from stable_baselines3.common.vec_env import VecNormalize

from agents.attackers import GreedyAttacker, RandomAttacker
from agents.baselines import Constant, Threshold
from agents.vec_env import IoTSB3VecEnv
from envs import IoTVectorEnv
from envs.duel import AttackerLayout, IoTDuelVectorEnv, Opponent, moves_allowed
from envs.dynamics import Order
from envs.world import Layout
from examples.common import launch, natural, positive
from src.evaluation.rollout import Episodes, play
from src.evaluation.tables import print_table

SCENARIO = "clinic"
TUNING_SEED, TEST_SEED = 500_000, 1_000_000


@dataclass(frozen=True)
class Learned:
    """A trained attacker. It keeps to the moves that its observation allows, and draws among them: who can be foreseen can be stopped."""

    model: MaskablePPO
    layout: AttackerLayout

    def predict(self, observation: NDArray[np.float32], state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[Any, Any]:
        """(E,)"""
        return self.model.predict(observation, deterministic=False, action_masks=moves_allowed(self.layout, observation))


def rules(layout: Layout) -> Iterable[Threshold]:
    """The defenders to choose among: a mild order above one level of risk, a strong one above another."""
    for high in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        for strong in (Order.ISOLATE, Order.RESTORE):
            yield Threshold(layout, "risk", high, strong, high, strong)
            yield Threshold(layout, "risk", high / 2, Order.BLOCK, high, strong, calm=high / 4)


def tuned(attacker: Opponent | None) -> Threshold:
    """The defender's best response among the rules; None is the attackers' own script, under the settings of `IoTEnv`."""
    env = IoTVectorEnv(100, scenario=SCENARIO, flatten=True) if attacker is None else IoTDuelVectorEnv(100, "defender", attacker, scenario=SCENARIO)
    return max(rules(env.simulation.layout), key=lambda rule: play(env, rule, TUNING_SEED).mean)


def learn(defender: Opponent, steps: int, seed: int, former: Learned | None) -> Learned:
    """The attacker's best response, as far as it learns it, from what it knew before."""
    env = IoTDuelVectorEnv(128, "attacker", defender, scenario=SCENARIO)
    scaled = VecNormalize(IoTSB3VecEnv(env), norm_obs=False)
    model = MaskablePPO(
        "MlpPolicy", scaled, n_steps=32, batch_size=1024, n_epochs=4, learning_rate=1e-3, gamma=0.99, ent_coef=0.01,
        seed=seed, device="cpu", policy_kwargs={"net_arch": [64, 64]},
    )  # fmt: skip
    if former is not None:
        model.policy.load_state_dict(former.model.policy.state_dict())
    return Learned(model.learn(steps), env.layout)


def meet(defender: Opponent, attacker: Opponent | None, episodes: int) -> Episodes:
    """New episodes; None is the attackers' own script, present from the first step like the others."""
    if attacker is None:
        return play(IoTVectorEnv(episodes, scenario=SCENARIO, flatten=True, attack_free=0.0, start_range=(0, 0)), defender, TEST_SEED)
    return play(IoTDuelVectorEnv(episodes, "defender", attacker, scenario=SCENARIO), defender, TEST_SEED)


def contest(rounds: int, steps: int, seed: int) -> tuple[dict[str, Opponent | None], dict[str, Opponent]]:
    """Attackers and defenders by name, after so many rounds of answering each other; says on the way what they came to."""
    began = time.perf_counter()
    layout = AttackerLayout(IoTVectorEnv(1, scenario=SCENARIO).simulation.layout.devices)
    attackers: dict[str, Opponent | None] = {"scripted": None, "random": RandomAttacker(layout, seed), "greedy": GreedyAttacker(layout)}
    defenders: dict[str, Opponent] = {"no-op": Constant(0)}
    attacker: Learned | None = None
    for turn in range(1, rounds + 1):
        rule = tuned(attacker)
        if rule not in defenders.values():
            defenders[f"rule {turn}"] = rule
        attackers[f"learned {turn}"] = attacker = learn(rule, steps, seed + turn, attacker)
        print(f"round {turn}, {time.perf_counter() - began:.0f} s: the best rule is {rule}; learned {turn} had {steps:,} steps against it", flush=True)
    return attackers, defenders


def main() -> None:
    """Play the rounds, and print who does how much damage to whom."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rounds", type=positive, default=3)
    words.add_argument("--steps", type=positive, default=300_000, help="of the attacker's training, a round")
    words.add_argument("--episodes", type=positive, default=500, help="of each pair's meeting")
    words.add_argument("--seed", type=natural, default=0)
    given = words.parse_args()
    attackers, defenders = contest(given.rounds, given.steps, given.seed)
    rows: list[dict[str, Any]] = []
    for name, attacker in attackers.items():
        met = {other: meet(defender, attacker, given.episodes) for other, defender in defenders.items()}
        rows.append({"attacker": name, **{f"under {other}": float(episodes.summary["damage"].mean()) for other, episodes in met.items()}})
    title = f"mean damage an episode: {SCENARIO}, {given.episodes} new episodes a pair"
    print_table(title, rows, {key: key for key in rows[0]}, Console(width=130))


if __name__ == "__main__":
    launch(main)
