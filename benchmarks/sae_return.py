"""What the anomaly score is worth in the environment (requirement E7): the return with it and without it, known attacks and new ones.

In the first world sensors know every class, and rules are tuned and played against the attackers of training. In each of the others a
family is left out: neither the networks nor the rules have met it, and it is played by attackers who need it. The sensor `without` has
the same networks, an anomaly that says nothing, and a risk of the networks alone. In the other worlds networks are trained for fewer epochs
and without teachers. `PCA` reads the distance from the benign subspace in place of the autoencoder's score. All play the same episodes of
`test` traces. One training of each: intervals are over episodes and know nothing of seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.benchmark import TEST_SEED, BenchmarkRunner
from agents.planner import Planner
from benchmarks.candidates import autoencoder, base_lstm, temporal_lstm
from benchmarks.common import Gate, PartOptions
from src.config import Config, load_config
from src.data.dataset import Dataset, load_dataset, without_family
from src.evaluation.rollout import play
from src.evaluation.statistics import difference_estimate, mean_estimate
from src.models.predictor_interface import Detector, EnhancedAttackPredictor
from src.models.subspace import BenignSubspace
from src.training.autoencoder import AutoencoderTrainer
from src.training.fused import join
from src.training.sensors import build_bank

WITH, WITHOUT, PCA = "with the autoencoder's anomaly", "without anomaly", "with PCA's anomaly"
KNOWN = "none"
RULES = ("threshold on risk", "threshold on anomaly", "Bayes filter")
Table = list[dict[str, Any]]


@dataclass(frozen=True)
class World:
    """Who rules are tuned against, and who comes."""

    left_out: str
    """Family that sensors and rules have not met."""
    tuned: tuple[str, ...]
    played: tuple[str, ...]


WORLDS = (
    World(KNOWN, ("scanner", "botnet", "web_intruder", "brute_forcer", "spoofer"), ("stealth_apt", "worm")),
    World("Web", ("scanner", "botnet"), ("web_intruder", "brute_forcer", "spoofer")),
    World("BruteForce", ("web_intruder", "spoofer"), ("scanner", "botnet", "brute_forcer")),
    World("Spoofing", ("scanner", "botnet", "brute_forcer"), ("web_intruder", "spoofer")),
)
"""Attackers who can do without a family, and such as need it."""


class Silent:
    """An anomaly score that says nothing."""

    def anomaly(self, windows: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N,) one half."""
        return np.full(len(windows), 0.5)

    def tensors(self) -> dict[str, torch.Tensor]:
        """None."""
        return {}

    def stated(self) -> dict[str, Any]:
        """Where the reading comes from."""
        return {"anomaly": "none"}


def sensors(config: Config, known: Dataset, pca: bool) -> dict[str, EnhancedAttackPredictor]:
    """The sensors that are compared, from networks of one training."""
    seed = config.compute.seed
    base, temporal, trained = base_lstm(config, known, seed)[0], temporal_lstm(config, known, seed)[0], autoencoder(config, known, seed)[0]
    detectors: dict[str, Detector] = {WITH: trained, WITHOUT: Silent()}
    if pca:
        trainer = AutoencoderTrainer(config, known)
        fit, calibrate = (torch.from_numpy(trainer.windows(split)) for split in ("fit", "calibrate"))
        detectors[PCA] = BenignSubspace.fit(base.scaler, fit, calibrate)
    return {name: join(config, known, base, temporal, detector) for name, detector in detectors.items()}


def settings(options: PartOptions) -> tuple[Config, Config]:
    """The configuration of the main job on real rows; and the same with shorter trainings, for the worlds in which networks are trained anew."""
    root, small = f"data.root={options.root}", ["lstm.training.epochs=10", "lstm.training.teachers=0", "temporal.training.epochs=6"]
    if options.quick:
        small = ["lstm.training.epochs=1", "lstm.training.teachers=0", "temporal.training.epochs=1", "sae.training.epochs=2", "data.max_rows_per_class=1200"]
        small += ["eval.episodes=20", "eval.tuning_episodes=10"]
    short = load_config(overrides=[root, *small], environ={})
    return short if options.quick else load_config(overrides=[root], environ={}), short


def _against(config: Config, world: World) -> tuple[Config, Config]:
    """The configuration that rules are tuned under, and the one that they play under."""
    cast = config.attackers.model_copy(update={"train": list(world.tuned), "held_out": list(world.played)})
    sides = ("train", "train" if world.left_out == KNOWN else "held_out")
    tuned, played = (config.model_copy(update={"attackers": cast, "env": config.env.model_copy(update={"attackers": side})}) for side in sides)
    return tuned, played


def returns(config: Config, dataset: Dataset, world: World) -> dict[tuple[str, str], NDArray[np.float64]]:
    """(episodes,) returns by sensor and rule; the planner needs no sensor."""
    known = dataset if world.left_out == KNOWN else without_family(dataset, world.left_out)[0]
    tuned, played = _against(config, world)
    found: dict[tuple[str, str], NDArray[np.float64]] = {}
    for name, sensor in sensors(config, known, world.left_out == KNOWN).items():
        bank = build_bank(dataset, sensor, sensor.scale, name=name)
        tuner = BenchmarkRunner(tuned, bank)
        env = BenchmarkRunner(played, bank).env(config.eval.episodes)
        rules: Mapping[str, Any] = {RULES[0]: tuner.tune(), RULES[2]: tuner.tune_bayes()}
        if name != WITHOUT:
            rules = {**rules, RULES[1]: tuner.tune("anomaly")}
        found |= {(name, rule): play(env, policy, TEST_SEED).returns for rule, policy in rules.items()}
        if name == WITH:
            found["none", "planner"] = play(env, Planner(env.simulation), TEST_SEED).returns
    return found


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, Table]]:
    """Play, and compare."""
    config, short = settings(options)
    dataset = load_dataset(config.data, config.compute.seed)
    rng = np.random.default_rng(config.compute.seed)
    how = config.eval.bootstrap, config.eval.confidence, rng
    table: Table = []
    gates: dict[str, Gate] = {}
    new: dict[str, list[NDArray[np.float64]]] = {rule: [] for rule in RULES}
    for world in WORLDS[:2] if options.quick else WORLDS:
        found = returns(config if world.left_out == KNOWN else short, dataset, world)
        for (sensor, rule), values in found.items():
            estimate = mean_estimate(values, *how)
            row: dict[str, Any] = {"family left out": world.left_out, "sensor": sensor, "rule": rule, "return": estimate.value}
            row |= {"low": estimate.low, "high": estimate.high, "minus without": None, "difference low": None, "difference high": None}
            if sensor in (WITH, PCA) and (WITHOUT, rule) in found:
                gain = difference_estimate(values, found[WITHOUT, rule], *how)
                row |= {"minus without": gain.value, "difference low": gain.low, "difference high": gain.high}
                if sensor == WITH and world.left_out != KNOWN:
                    new[rule].append(values - found[WITHOUT, rule])
            table.append(row)
    for rule, key in ((RULES[0], "threshold"), (RULES[2], "bayes")):
        known = next(row for row in table if (row["family left out"], row["sensor"], row["rule"]) == (KNOWN, WITH, rule))
        what = f"return under the {rule}, with the anomaly minus without"
        gates[f"E7.known.{key}"] = Gate(
            f"{what}: attackers and families that were met", known["minus without"], 0.0, ">=", known["difference low"], known["difference high"]
        )
        gain = mean_estimate(np.stack(new[rule]).mean(axis=0), *how)  # the same episode seeds in each world
        families = ", ".join(world.left_out for world in WORLDS[1 : 1 + len(new[rule])])
        gates[f"E7.new.{key}"] = Gate(f"{what}: families that were not met ({families}; mean)", gain.value, 0.0, ">=", gain.low, gain.high)
    return gates, {"return with and without the anomaly": table}
