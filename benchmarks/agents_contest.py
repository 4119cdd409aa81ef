"""The agent of the default configuration against every policy to compare with, on attackers met and never met: the gates of G5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agents.benchmark import BenchmarkRunner
from agents.learned import load_policy
from benchmarks.common import ROOT, Gate, PartOptions
from benchmarks.trained import real_world, train
from envs.scenarios import build_network
from src.evaluation.analysis import BenchmarkAnalyzer
from src.evaluation.figures import attacker_figure, comparison_figure, profile_figure, safety_figure
from src.evaluation.rollout import PLANNER

AGENT = "PPO"

SHOWN = ("threshold on risk", "Bayes filter")
"""Policies beside agent and planner in the figures of attackers and of the performance profile."""


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Train, play, and compare."""
    world = real_world(options)
    agents = train(world, {AGENT: {}}, options.seeds)
    contest = BenchmarkRunner(world.config, world.bank).run(agents, print)
    found = BenchmarkAnalyzer(world.config, contest, len(build_network(world.config.env.scenario).names))
    shown = [AGENT, *SHOWN, PLANNER]
    profile = found.profile("held out", shown)
    if not options.quick:
        _draw(found, profile)
    tables = {
        **{f"policies, {side}": rows for side, rows in found.policies.items()},
        "scores": found.scores,
        "attackers": found.attackers,
        "return lost, held out": [{"without": name, "value": one.value, "low": one.low, "high": one.high} for name, one in found.ablations.items()],
        "performance profile, held out": profile,
        "trainings": [{"seed": seed, **_validated(folder)} for seed, folder in agents[AGENT].items()],
    }
    return found.gates(), tables


def _validated(folder: Path) -> dict[str, Any]:
    meta = load_policy(folder).meta
    return {"steps": meta["timesteps"], "validation": meta["validation"]}


def _draw(found: BenchmarkAnalyzer, profile: list[dict[str, Any]]) -> None:
    place = ROOT / "docs" / "images"
    for name, figure in {
        "agents_comparison": comparison_figure(found.policies, AGENT, "real"),
        "agents_profile": profile_figure(profile, AGENT, "real"),
        "agents_attackers": attacker_figure(found.attackers, [AGENT, *SHOWN, PLANNER], AGENT, "real"),
        "agents_safety": safety_figure(found.policies["attack-free"], AGENT, "real"),
    }.items():
        figure.savefig(place / f"{name}.png", dpi=80)
