"""The agents' benchmark at a tiny size: every part but the speed runs, on the bundled bank, and says what it should."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import agents_ablations, agents_algorithms, agents_ceiling, agents_contest, agents_costs, agents_transfer, report, trained
from benchmarks.common import PartOptions
from benchmarks.trained import World
from src.config import load_config
from src.data.bank import TraceBank

TINY = ["env.scenario=home", "env.horizon=40", "env.start_range=[2, 5]", "eval.episodes=24", "eval.tuning_episodes=12", "eval.bootstrap=100"]
TINY += [
    "rl.total_timesteps=128",
    "rl.n_envs=4",
    "rl.ppo.n_steps=16",
    "rl.ppo.batch_size=32",
    "rl.ppo.n_epochs=1",
    "rl.validation_episodes=4",
    "rl.ppo.demonstrations=100",
]
TINY += ["rl.hidden_size=8"]
OPTIONS = PartOptions(quick=True, root=Path(), shared=Path(), seeds=2)
PARTS = (agents_ceiling, agents_contest, agents_algorithms, agents_ablations, agents_transfer, agents_costs)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(load_config(overrides=TINY, environ={}), TraceBank.bundled(), None)
    for part in PARTS:
        monkeypatch.setattr(part, "real_world", lambda options: world)
    monkeypatch.setattr(trained, "cache_folder", lambda: tmp_path)
    for name, candidates in (("threshold", 12), ("cusum", 8), ("playbook", 8), ("bayes", 8)):
        plain = getattr(__import__("agents.benchmark", fromlist=["benchmark"]), f"{name}_candidates")
        monkeypatch.setattr(f"agents.benchmark.{name}_candidates", lambda *given, plain=plain, step=candidates: list(plain(*given))[::step])


def test_the_contest_and_other_networks(tmp_path: Path) -> None:
    gates, tables = agents_contest.measure(OPTIONS)
    assert {"G5.score", "G5.score.seen", "G5.improvement", "G5.drop", "G5.constant_scale", "G5.exploits", "G5.shuffled", "G5.noise.risk"} <= set(gates)
    assert {row["policy"] for row in tables["policies, held out"]} >= {"no-op", "CUSUM", "playbook", "Bayes filter", "PPO", "planner"}
    assert [row["steps"] for row in tables["trainings"]] == [128, 128]
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("policy.safetensors")}
    assert len(stamps) == 2
    _, other = agents_transfer.measure(OPTIONS)  # on `clinic` and `home`, though trained on `home`: the same weights
    rows = other["other networks"]
    assert [(row["network"], row["side"]) for row in rows] == [(name, side) for name in ("clinic", "home") for side in ("seen", "held out")]
    assert len({row["return"] for row in rows}) == 4
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("policy.safetensors")} == stamps  # none was trained again
    shown = {key for key in (*report.POLICIES, "false_isolations_per_device_day") if not key.endswith("__interval")}
    assert shown <= set(tables["policies, attack-free"][0])


def test_a_group_is_held_against_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents_ablations, "CHANGES", {name: agents_ablations.CHANGES[name] for name in (agents_ablations.WHOLE, "without memory")})
    monkeypatch.setitem(agents_ablations.CHANGES, "without demonstrations", {"rl.ppo.demonstrations": 0})
    _, tables = agents_ablations.measure(OPTIONS)
    rows = [row for row in tables["ablations"] if row["side"] == "held out"]
    whole, other, _ = rows
    assert whole["minus as it is"] is None
    assert other["minus as it is"] == pytest.approx(other["return"] - whole["return"])
    assert other["low"] <= other["minus as it is"] <= other["high"]
    assert whole["H"] == pytest.approx((whole["return"] - whole["Bayes filter"]) / (whole["planner"] - whole["Bayes filter"]))


def test_algorithms_and_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents_algorithms, "get_args", lambda _: ("ppo", "a2c"))
    _, tables = agents_algorithms.measure(OPTIONS)
    assert {row["agents"] for row in tables["algorithms"]} == {"ppo", "a2c"}
    _, tables = agents_costs.measure(OPTIONS)
    assert [row["times dearer"] for row in tables["cost ratio"]] == [0.5, 2.0]
    assert all(np.isfinite(list(row.values())).all() for row in tables["cost ratio"])


def test_perfect_readings_leave_the_filter_little_to_wonder_about() -> None:
    _, tables = agents_ceiling.measure(OPTIONS)
    rows = {(row["side"], row["readings"]): row for row in tables["perfect readings"]}
    for side in ("seen", "held out"):
        plain, sure = rows[side, "as they are"], rows[side, "never wrong"]
        assert plain["H of the Bayes filter"] == 0.0
        assert plain["planner"] == sure["planner"]  # who reads nothing
        assert sure["threshold on risk"] > plain["threshold on risk"]
