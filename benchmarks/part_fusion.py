"""What each sensor is worth in the environment (issue of the return, requirement C and G4): alone, and fused.

One network of each kind (the first seed of the protocol's), the same held-back windows, one trace bank a sensor: attackers pick their
windows against the sensor that they face. In each world a threshold rule and the Bayes filter are tuned on the `agent` traces, and play
the same episodes of `test` traces as the planner, which needs no sensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from agents.benchmark import TEST_SEED, BenchmarkRunner
from agents.planner import Planner
from benchmarks.candidates import fused_sensor
from benchmarks.common import Gate, PartOptions
from src.config import Config, load_config
from src.data.dataset import load_dataset
from src.evaluation.rollout import play
from src.evaluation.statistics import difference_estimate, mean_estimate
from src.models.fusion import Fusion
from src.models.predictor_interface import EnhancedAttackPredictor, Second
from src.training.sensors import build_bank

FUSED, BASE, TEMPORAL, ANOMALY = "fused", "base LSTM alone", "temporal LSTM alone", "anomaly alone"
RULES = ("tuned threshold", "Bayes filter")


def sensors(fused: EnhancedAttackPredictor) -> dict[str, EnhancedAttackPredictor]:
    """The fused sensor and its networks alone; `ANOMALY` reads the fused one's anomaly score and nothing else."""
    second = fused.second
    assert second is not None
    names = fused.feature_names, fused.class_names
    only = Fusion(np.array([0.0, 1.0]), 0.0, 0.0, second.fusion.attack)
    return {
        FUSED: fused,
        BASE: EnhancedAttackPredictor(fused.model, fused.detector, *names),
        TEMPORAL: EnhancedAttackPredictor(fused.model, fused.detector, *names, Second(second.model, only, second.usual)),
    }


def settings(options: PartOptions) -> Config:
    """The configuration of the main job, on real rows."""
    small = ["lstm.training.epochs=2", "temporal.training.epochs=2", "data.max_rows_per_class=1200", "eval.episodes=40", "eval.tuning_episodes=20"]
    return load_config(overrides=[f"data.root={options.root}", *(small if options.quick else [])], environ={})


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Play, and compare."""
    config = settings(options)
    dataset = load_dataset(config.data, config.compute.seed)
    fused, _ = fused_sensor(config, dataset, 0)
    assert fused.second is not None
    rng = np.random.default_rng(config.compute.seed)
    returns: dict[tuple[str, str], np.ndarray] = {}
    chosen: dict[tuple[str, str], str] = {}
    for name, sensor in sensors(fused).items():
        runner = BenchmarkRunner(config, build_bank(dataset, sensor, sensor.scale, name=name))
        env = runner.env(config.eval.episodes)
        rules = {(name, RULES[0]): runner.tune(), (name, RULES[1]): runner.tune_bayes()}
        if name == FUSED:
            rules[ANOMALY, RULES[0]] = runner.tune("anomaly")
            returns["none", "planner"] = play(env, Planner(env.simulation), TEST_SEED).returns
        for key, rule in rules.items():
            returns[key], chosen[key] = play(env, rule, TEST_SEED).returns, str(rule)
    table = []
    for (name, policy), found in returns.items():
        estimate = mean_estimate(found, config.eval.bootstrap, config.eval.confidence, rng)
        row: dict[str, Any] = {"sensor": name, "policy": policy, "return": estimate.value, "low": estimate.low, "high": estimate.high}
        over = None
        if (FUSED, policy) in returns and name != FUSED:
            over = difference_estimate(returns[FUSED, policy], found, config.eval.bootstrap, config.eval.confidence, rng)
        row |= {"fused minus this": over and over.value, "difference low": over and over.low, "difference high": over and over.high}
        table.append(row | {"rule": chosen.get((name, policy), "")})
    gates = {}
    for key, policy in zip(("threshold", "bayes"), RULES, strict=True):
        rows = [row for row in table if row["policy"] == policy and row["sensor"] in (BASE, TEMPORAL)]
        best = max(rows, key=lambda row: row["return"])
        gates[f"C.fusion.{key}"] = Gate(
            f"return under the {policy}: fused sensor minus the better network alone ({best['sensor']})",
            best["fused minus this"], 0.0, ">=", best["difference low"], best["difference high"],
        )  # fmt: skip
    weights = [
        {"input": name, "weight": float(value)}
        for name, value in zip(
            ("log-probability, base LSTM", "log-probability, temporal LSTM", "surprisal of the anomaly", "attack, constant"),
            (*fused.second.fusion.weights, fused.second.fusion.anomaly_weight, fused.second.fusion.bias),
            strict=True,
        )
    ]
    return gates, {"return in the environment by sensor": table, "weights of the fused verdict": weights}
