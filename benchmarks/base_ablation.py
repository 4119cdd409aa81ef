"""What does each choice in the base LSTM's recipe add or cost? `python -m benchmarks.base_ablation [--quick]`.

Three seeds of each, on the windows and resamples of the protocol (`benchmarks.part_protocol`), whose trainings of the final recipe are taken over. The
teachers are the last step of the recipe, and each of them is a network trained on labels alone: so the recipe is compared with that network, and that
network with ones that differ from it in one setting. Whatever was trained is kept, so that a run that was cut off goes on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.candidates import BASE, Readout
from benchmarks.common import PartOptions, launch, parser, write_result
from benchmarks.part_protocol import RESAMPLES, SMALL, Protocol
from src.config import Config, changed, load_config
from src.data.dataset import Dataset, load_dataset
from src.evaluation import detection
from src.evaluation.detection import Values

SEEDS = 3
RECIPE, ALONE = "the recipe, with its teachers", "labels alone"
VARIANTS: dict[str, dict[str, Any]] = {
    RECIPE: {},
    ALONE: {},
    "last state alone": {"lstm.model.pooling": "last"},
    "read both ways": {"lstm.model.bidirectional": True},
    "no dropout": {"lstm.model.dropout": 0.0},
    "64 units": {"lstm.model.hidden_size": 64},
    "classes weigh the same": {"lstm.training.class_weights": "none"},
    "classes weigh by inverse frequency": {"lstm.training.class_weights": "balanced"},
    "focal loss": {"lstm.training.loss": "focal"},
    "batches of 256": {"lstm.training.batch_size": 256},
    "12 epochs": {"lstm.training.epochs": 12},
}
"""What is changed of the settings, beside the teachers, which only the recipe has."""
QUICK = (RECIPE, ALONE, "64 units")


def main() -> None:
    """Measure, print and write."""
    given = parser(__doc__, data=True).parse_args()
    torch.set_num_threads(PartOptions.threads)
    small = (*SMALL, "lstm.training.teachers=1", "lstm.training.epochs=3") if given.quick else ()
    config = load_config(overrides=[f"data.root={given.root}", f"compute.threads={PartOptions.threads}", *small])
    dataset = load_dataset(config.data, 0)
    names, seeds, resamples = (QUICK, 2, RESAMPLES // 10) if given.quick else (tuple(VARIANTS), SEEDS, RESAMPLES)
    write_result("base_ablation", "real", {}, {"choices": choices(config, dataset, names, seeds, resamples)}, given.quick)


def settings(name: str) -> dict[str, Any]:
    """What a variant changes of the configuration, by dotted name."""
    return VARIANTS[name] if name == RECIPE else {"lstm.training.teachers": 0, **VARIANTS[name]}


def choices(config: Config, dataset: Dataset, names: tuple[str, ...], seeds: int, resamples: int) -> list[dict[str, Any]]:
    """A row a variant: macro-F1 on `calibrate` and `test`, and how far it lies above what it is compared with, under the same resamples."""
    protocol = Protocol(config, dataset, resamples)
    samples = {"calibrate": protocol.resampled(resamples, detection.BLOCK, "calibrate"), "test": protocol.sample}
    readouts = {name: protocol.read(BASE, seeds, changed(config, settings(name))) for name in names}

    def scores(found: list[Readout], side: str) -> Values:
        counts = (detection.confusions(samples[side], one.probabilities[side].argmax(axis=1), len(protocol.family)) for one in found)
        return np.array([detection.macro_f1(each) for each in counts])  # (S, 1 + R)

    rows: list[dict[str, Any]] = []
    for name, found in readouts.items():
        row: dict[str, Any] = {"variant": name, "settings": ", ".join(f"{key}={value}" for key, value in settings(name).items())}
        other = RECIPE if name == ALONE else ALONE
        for side, sample in samples.items():
            own, against = scores(found, side), scores(readouts[other], side)
            estimates = {side: sample.mean(own), f"{side} change": sample.difference(own, against)}
            for key, one in estimates.items():
                row |= {key: one.value, f"{key} low": one.low, f"{key} high": one.high}
        seconds = float(np.mean([one.seconds for one in found]))
        rows.append({**row, "compared with": other, "parameters": found[0].parameters, "training seconds": seconds, "seeds": seeds})
    return rows


if __name__ == "__main__":
    launch(main)
