"""The benchmark scripts at small size, and the gates that must hold at any size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report import rendered
from src.evaluation.tables import Gate

ROOT = Path(__file__).parents[1]
FIELDS = {"name", "command", "commit", "data", "seconds", "machine", "gates", "tables"}


def test_the_environment_is_worth_solving_at_small_size(tmp_path: Path) -> None:
    environment = {**os.environ, "IOTDEF__COMPUTE__ARTIFACTS": str(tmp_path / "artifacts"), "IOTDEF__COMPUTE__THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "benchmarks.env_gates", "--quick"], capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == FIELDS
    # The synthetic profile's attacks stand out more than real ones, so what hangs on the sensors' faults is asked of real rows only.
    real = found["data"] == "real"
    asked = {
        key: gate for key, gate in found["gates"].items() if real or key.startswith(("F.gate1", "F.gate3.risk", "F.gate4", "F.gate5", "F.gate6", "F.gate7"))
    }
    assert {key.split(".")[1] for key in asked} >= {f"gate{number}" for number in (1, 3, 4, 5, 6, 7)}
    unmet = {key for key, gate in asked.items() if not gate["met"]}
    # 200 episodes do not tell how little the filter misses a reading of three that repeat much of each other, by networks trained for a few
    # epochs; the committed result asks that of 500 and of the trained sensor.
    assert unmet <= {f"F.gate3.Bayes_filter.noise_for_{reading}" for reading in ("risk", "uncertainty", "anomaly")}
    assert not real or found["gates"]["F.gate3.Bayes_filter.noise_for_risk"]["value"] > 0


def test_the_environment_is_worth_solving_in_the_committed_result() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "env_gates.json").read_text(encoding="utf-8"))
    unmet = {key for key, gate in found["gates"].items() if not gate["met"]}
    # The uncertainty is how far networks disagree that stand in the probabilities: this gate is open, and docs/results.md says so.
    assert unmet == {"F.gate3.Bayes_filter.noise_for_uncertainty"}


@pytest.mark.slow
def test_self_play_at_small_size() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.self_play", "--quick"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == FIELDS
    rules, rows = found["tables"].values()
    assert [row["defender"] for row in rules] == ["no-op", "rule 1"]
    assert [row["attacker"] for row in rows] == ["scripted", "random", "greedy", "learned 1"]
    assert all(row[f"{name}: low"] <= row[f"{name}: damage"] <= row[f"{name}: high"] for row in rows for name in ("no-op", "rule 1"))


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_are_whole(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert set(found) == FIELDS
    assert not found["commit"].endswith("-dirty"), "measure from a clean commit"
    for gate in found["gates"].values():
        assert set(gate) == {"what", "value", "low", "high", "op", "target", "met"}


def test_gates_judge_by_value_or_by_interval() -> None:
    assert Gate("x", 0.95, 0.9, ">=", 0.85, 1.0).met
    assert not Gate("x", 0.95, 0.9, ">=", 0.85, 1.0, by_interval=True).met
    assert not Gate("x", 0.2, 0.1, "<=").met
    assert Gate("x", 0.05, 0.1, "<=", 0.0, 0.09, by_interval=True).met
    assert not Gate("x", 0.0, 0.0, ">").met


def test_documents_are_filled_between_marks_only() -> None:
    text = "before\n<!-- results env_gates -->\nstale\n<!-- end -->\nafter\n"
    once = rendered(text)
    assert "stale" not in once
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert rendered(once) == once
