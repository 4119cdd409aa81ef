"""Statistics, scores, gates and the report of an evaluation, against cases that are known by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import trim_mean

from src.config import load_config
from src.evaluation.analysis import CONSTANT, SHUFFLED, BenchmarkAnalyzer, detection_steps
from src.evaluation.figures import attacker_figure, comparison_figure, profile_figure, safety_figure
from src.evaluation.report import write_report
from src.evaluation.rollout import PLANNER, Contest, Episodes, Side
from src.evaluation.statistics import Resamples, estimated, ratio
from src.evaluation.tables import Gate, result

CONFIG = load_config(overrides=["eval.bootstrap=300"], environ={})


def resamples(count: int, runs: int = 1, strata: np.ndarray | None = None, draws: int = 400) -> Resamples:
    return Resamples.draw(np.zeros(count, np.int64) if strata is None else strata, [runs], draws, np.random.default_rng(0))


# Statistics


def test_means_between_quantiles_are_the_trimmed_mean_and_the_tail() -> None:
    values = np.random.default_rng(1).normal(size=(3, 40))
    drawn = resamples(40, 3)
    assert drawn.between(values, 0.25, 0.75)[0] == pytest.approx(trim_mean(values.ravel(), 0.25))
    assert drawn.between(values, 0.0, 0.05)[0] == pytest.approx(np.sort(values.ravel())[:6].mean())
    assert drawn.between(values, 0.0, 1.0) == pytest.approx(drawn.means(values))
    # A value that the quantile cuts counts in part: of 1, 2, ..., 10 the lowest 15 % are 1 and half of 2.
    assert resamples(10).between(np.arange(1.0, 11)[None], 0.0, 0.15)[0] == pytest.approx((1 + 0.5 * 2) / 1.5)


def test_intervals_of_a_mean_are_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(2).normal(size=(1, 400))
    estimate = estimated(resamples(400, draws=4000).means(values), 0.95)
    width = 2 * 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.low == pytest.approx(width, rel=0.06)
    # Runs that differ, episodes that do not: the interval is over runs.
    runs = np.repeat(np.array([[0.0], [1.0]]), 50, axis=1)
    spread = resamples(50, 2, draws=4000).means(runs)[1:]
    assert sorted(set(spread)) == [0.0, 0.5, 1.0]
    assert np.mean(spread == 0.5) == pytest.approx(0.5, abs=0.03)


def test_episodes_are_drawn_inside_their_stratum() -> None:
    strata = np.array([0] * 3 + [1] * 7)
    values = np.where(strata == 0, 10.0, 0.0)[None]
    assert resamples(10, strata=strata).means(values) == pytest.approx(np.full(401, 3.0))


def test_probability_of_improvement_counts_runs_by_task_with_ties_half() -> None:
    tasks = np.array([0, 0, 1, 1, -1])
    mine = np.array([[1.0, 3.0, 0.0, 0.0, -99.0], [0.0, 0.0, 5.0, 5.0, -99.0]])  # scores by task: 2, 0; 0, 5
    other = np.array([[1.0, 1.0, 0.0, 0.0, 99.0]])  # 1; 0
    # Task 0: one run of two is better; task 1: a tie and a win. The last episode is of no task.
    assert resamples(5, 2, tasks).improvement(mine, other, tasks)[0] == pytest.approx((0.5 + 0.75) / 2)
    assert resamples(5, 2, tasks).improvement(mine, mine, tasks)[0] == pytest.approx(0.5)


def test_profiles_fall_from_one_to_zero() -> None:
    values = np.array([[1.0, 2.0, 3.0, 4.0]])
    shares = resamples(4).profile(values, np.array([0.0, 1.0, 2.5, 4.0]))[0]
    assert shares.tolist() == [1.0, 0.75, 0.5, 0.0]


def test_ratios_without_a_scale_are_not_hidden() -> None:
    assert ratio(np.array([1.0, 1.0]), np.array([2.0, -1.0]))[1] > 1e6


def test_detection_counts_until_the_end_where_it_never_came() -> None:
    summary = {"attacked": np.array([1.0, 1.0, 0.0]), "first_response": np.array([12.0, -1.0, -1.0]), "steps": np.array([200.0, 50.0, 200.0])}
    steps = detection_steps(summary, np.array([10, 20, -1]))
    assert steps[:2].tolist() == [2.0, 30.0]
    assert np.isnan(steps[2])


def test_a_gate_may_ask_more_of_the_value_than_of_the_interval() -> None:
    assert Gate("x", 0.3, 0.25, ">=", 0.01, 0.6, beyond=0.0).met
    assert not Gate("x", 0.3, 0.25, ">=", 0.0, 0.6, beyond=0.0).met
    assert not Gate("x", 0.2, 0.25, ">=", 0.1, 0.3, beyond=0.0).met


# Scores and gates of a contest made by hand


def episodes(returns: np.ndarray, attacked: np.ndarray) -> Episodes:
    count = len(returns)
    names = ("service", "damage", "action", "cleanup", "safety", "orders", "compromises", "dwell", "false_isolation", "healthy_service")
    names += ("rate_limit", "block", "isolate", "restore", "release")
    summary = {name: np.zeros(count) for name in names}
    summary |= {"steps": np.full(count, 100.0), "attacked": attacked.astype(float), "first_response": np.full(count, -1.0), "isolate": np.ones(count)}
    return Episodes(returns, summary, np.full(count, 3))


def contest(agent: float, spread: float = 1.0, runs: int = 3, count: int = 200) -> Contest:
    """Mean returns: best constant -100, heuristic -20, planner 0, agent as given; noise costs 5, the best exploit has -60."""
    rng = np.random.default_rng(0)
    levels = {"no-op": -150.0, CONSTANT: -100.0, "CUSUM": -20.0, "agent": agent, PLANNER: 0.0}
    sides = {}
    luck = {}
    for side, attackers in (("seen", ["botnet", "scanner"]), ("held out", ["worm", "stealth_apt"]), ("attack-free", [""])):
        attacker = np.array([*attackers, ""])[np.arange(count) % (len(attackers) + 1)]
        luck[side] = rng.normal(0, spread, count)
        luck[side] -= luck[side].mean()  # so that means are as told
        played = {}
        for name, level in levels.items():
            lucks = [rng.normal(0, 0.1, count) for _ in range(runs if name == "agent" else 1)]
            played[name] = [episodes(level + luck[side] + one - one.mean(), attacker != "") for one in lucks]
        sides[side] = Side(played, attacker, np.where(attacker != "", 10, -1))
    held_out = sides["held out"]
    worse = [episodes(run.returns - 5.0, held_out.attacker != "") for run in held_out.episodes["agent"]]
    exploit = {"ping-pong": episodes(-60 + luck["held out"], held_out.attacker != "")}
    validation = {name: level for name, level in levels.items() if name != "agent"}
    return Contest(sides, ("agent",), {"CUSUM": "drift 0"}, validation, {"risk": worse}, worse, exploit)


def analyzed(agent: float, **settings: float) -> BenchmarkAnalyzer:
    return BenchmarkAnalyzer(CONFIG, contest(agent, **settings), devices=12)  # type: ignore[arg-type]


def test_scores_stand_between_heuristic_and_planner() -> None:
    found = analyzed(-10.0)
    assert found.contest.heuristic == "CUSUM"  # not the planner, which no operator has
    row = found.scores[1]
    assert (row["side"], row["heuristic"], row["best_here"]) == ("held out", "CUSUM", "CUSUM")
    assert row["H"] == pytest.approx(0.5)
    assert 0.45 < row["H_low"] < 0.5 < row["H_high"] < 0.55
    assert row["constant_scale"] == pytest.approx(0.9)
    assert row["improvement"] == row["episodes_won"] == 1.0
    gates = found.gates()
    assert all(gate.met for gate in gates.values())
    assert set(gates) == {f"G5.{name}" for name in ("score", "score.seen", "improvement", "drop", "constant_scale", "exploits", "noise.risk", "shuffled")}
    assert gates["G5.exploits"].value == pytest.approx(50.0, abs=0.1)
    assert gates["G5.noise.risk"].value == pytest.approx(5.0)
    assert gates["G5.drop"].value == pytest.approx(0.0)


def test_an_agent_no_better_than_the_heuristic_fails_its_gates() -> None:
    gates = analyzed(-21.0).gates()
    assert not any(gates[f"G5.{name}"].met for name in ("score", "score.seen", "improvement"))
    assert gates["G5.score"].value == pytest.approx(-0.05)
    assert gates["G5.constant_scale"].met


def test_the_drop_is_on_each_sides_own_scale() -> None:
    played = contest(-10.0)
    away = played.sides["held out"].episodes
    for name, runs in away.items():  # attackers that do half as much harm to everybody: nothing is lost
        away[name] = [Episodes(run.returns / 2, run.summary, run.end) for run in runs]
    assert BenchmarkAnalyzer(CONFIG, played, 12).gates()["G5.drop"].value == pytest.approx(0.0, abs=1e-6)
    away["agent"] = [Episodes(run.returns - 7.5, run.summary, run.end) for run in away["agent"]]
    gate = BenchmarkAnalyzer(CONFIG, played, 12).gates()["G5.drop"]
    assert gate.value == pytest.approx(0.15)
    assert not gate.met


def test_luck_that_all_share_does_not_widen_a_difference() -> None:
    """Episodes are paired by seed, in the joint bootstrap too."""
    found = analyzed(-10.0, spread=30.0)
    alone, ahead = found.policies["held out"][3], found.difference("held out", "agent", "CUSUM")
    assert alone["high"] - alone["low"] > 5
    assert ahead.high - ahead.low < 0.2
    assert ahead.value == pytest.approx(10.0)


def test_rows_measure_apart_from_the_reward() -> None:
    rows = {row["policy"]: row for row in analyzed(-10.0).policies["attack-free"]}
    assert list(rows) == ["no-op", CONSTANT, "CUSUM", "agent", PLANNER]
    # One isolation an episode of 100 steps of 10 s, 12 devices: 12 x 1000 / 86400 device-days.
    assert rows["agent"]["false_isolations_per_device_day"] == pytest.approx(86400 / 12000)
    assert rows["agent"]["steps_to_detect"] is None  # nobody came
    assert rows["CUSUM"]["rule"] == "drift 0"
    seen = {row["policy"]: row for row in analyzed(-10.0).policies["seen"]}
    assert seen["agent"]["steps_to_detect"] == 90.0
    assert seen["agent"]["detected"] == 0.0


def test_a_contest_without_agents_has_rows_and_no_gates() -> None:
    played = contest(-10.0)
    for side in played.sides.values():
        del side.episodes["agent"]
    found = BenchmarkAnalyzer(CONFIG, Contest(played.sides, (), {}, played.validation, {}, [], {}), 12)
    assert found.gates() == {}
    assert found.scores == []
    assert found.ablations == {}
    assert len(found.policies["seen"]) == 4


def test_the_report_shows_every_number_and_leaves_out_what_is_not_there(tmp_path: Path) -> None:
    found = analyzed(-10.0)
    shown = [CONSTANT, "CUSUM", "agent", PLANNER]
    drawn = {
        "comparison": comparison_figure(found.policies, "agent", "made-up"),
        "profile": profile_figure(found.profile("held out", shown), "agent", "made-up"),
        "attackers": attacker_figure(found.attackers, shown, "agent", "made-up"),
        "safety": safety_figure(found.policies["attack-free"], "agent", "made-up"),
    }
    figures = {"missing": tmp_path / "missing.png"}
    for name, figure in drawn.items():
        figures[name] = tmp_path / f"{name}.png"
        figure.savefig(figures[name])
    tables = {
        "policies": found.policies["seen"], "policies, held out": found.policies["held out"], "policies, attack-free": found.policies["attack-free"],
        "scores": found.scores, "by attacker": found.attackers,
        "agent's loss by shuffled observations": [{"control": SHUFFLED, "value": 5.0, "low": 4.9, "high": 5.1}],
    }  # fmt: skip
    page = write_report(tmp_path / "report.html", "A <title>", result("x", "synthetic", 1.0, 1, found.gates(), tables), figures).read_text()
    assert "A &lt;title&gt;" in page
    assert page.count("<img ") == 4
    for said in ("0.50 <small>", "stealth_apt", "G5.score", "drift 0", "5.00 <small>[4.90, 5.10]</small>", ">met<"):
        assert said in page, said
    assert not any(word in page for word in ("nan", "None", "inf<", "Infinity"))
    assert "http" not in page  # nothing is fetched
    bare = write_report(tmp_path / "bare.html", "bare", result("x", "synthetic", 1.0, 1, {}, {}), {}).read_text()
    assert "<h2>" not in bare
    json.dumps(tables)
