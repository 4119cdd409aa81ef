"""How fast does the autoencoder learn and score, beside the same one in Keras?

The description's default size (encoder 256 128, decoder 128 256) on windows of 50 rows of 39 features, 64 a batch, on one thread each, in turn.
Learning is a whole step: forward, backward, the gradient clipped, Adam. Scoring is the mean squared error of each window's reconstruction, in
single precision; beside it stands what the product's detector does on top, which nobody else does. Keras runs in an environment of its own,
`artifacts/keras-venv`, which is made on the first run; a quick one makes none, and leaves Keras and the gates out where it is not there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import keras_peer
from benchmarks.common import ROOT, Gate, PartOptions
from benchmarks.contest import Rates, Run, Worker, compete, estimate, gate, own_python
from src.config import SAETrainingConfig, load_config
from src.models.loop import seeded
from src.models.lstm_sae import AnomalyDetector, SAEConfig, build_autoencoder
from src.training.sae_trainer import SAETrainer

REQUIREMENTS = ROOT / "benchmarks" / "requirements-keras.txt"
SHAPE = SAEConfig(input_size=39, sequence_length=50, encoder_units=(256, 128), decoder_units=(128, 256), dropout=0.2)
BATCH = 64
OURS, THEIRS = "ours, PyTorch", "Keras"
CALIBRATED = "ours, calibrated anomaly in double precision"


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Windows a second of both, and ours as multiples of theirs, in the same round."""
    rng = np.random.default_rng(0)
    torch.set_num_threads(options.threads)
    python = own_python(Path(load_config().compute.artifacts) / "keras-venv", REQUIREMENTS, install=not options.quick)
    runs, who = ours(), {OURS: {"version": f"PyTorch {torch.__version__}", "parameters": build_autoencoder(SHAPE, 0).count_parameters()}}
    worker = None if python is None else Worker(THEIRS, [python, *command()])
    try:
        if worker is not None:
            who[THEIRS] = worker.answer()
            if "failed" not in who[THEIRS]:
                runs |= {(THEIRS, work): (remote(worker, work), BATCH) for work in ("train", "score")}
        rounds, seconds = (3, 0.5) if options.quick else (15, 2.0)
        rates = {}
        for work in ("train", "score"):  # both of one kind of work in each round
            rates |= {
                (name, work): values
                for name, values in compete({name: run for (name, what), run in runs.items() if what == work}, rounds, seconds, rng).items()
            }
    finally:
        if worker is not None:
            worker.end()
    reason = "no environment: run without --quick, which makes it" if python is None else who.get(THEIRS, {}).get("failed")
    tables = {
        f"windows of {SHAPE.sequence_length} x {SHAPE.input_size}, {BATCH} a batch, synthetic values, one thread": [
            row(name, work, who, rates) for name, work in rates
        ],
        "left out": [] if reason is None else [{"peer": THEIRS, "reason": reason}],
    }
    gates = {}
    if (THEIRS, "train") in rates:
        for work, what in (("train", "a training step"), ("score", "scoring")):
            key, ratio = f"E.speed.{work}", rates[OURS, work] / rates[THEIRS, work]
            gates[key] = gate(f"windows a second of {what} of the autoencoder, as a multiple of Keras ({who[THEIRS]['version']}), one thread", ratio, 1.0, rng)
    return gates, tables


def command() -> list[str | Path]:
    """What the peer's interpreter is to run."""
    units = [",".join(map(str, one)) for one in (SHAPE.encoder_units, SHAPE.decoder_units)]
    return [Path(keras_peer.__file__), str(SHAPE.sequence_length), str(SHAPE.input_size), *units, str(SHAPE.dropout), str(BATCH)]


def remote(worker: Worker, work: str) -> Run:
    """Batches of a kind of work in the peer's process, timed there."""

    def run(windows: int) -> tuple[int, float]:
        said = worker.ask({"work": work, "windows": windows})
        return said["windows"], said["seconds"]

    return run


def ours() -> dict[tuple[str, str], tuple[Run, int]]:
    """Our trainer's step, the mean squared errors of a batch as the peer computes them, and our detector's whole reading, on batches drawn beforehand."""
    rng = np.random.default_rng(0)
    pool = [rng.standard_normal((BATCH, SHAPE.sequence_length, SHAPE.input_size)).astype(np.float32) for _ in range(keras_peer.POOL)]
    model = build_autoencoder(SHAPE, 0)
    trainer = SAETrainer(model, SAETrainingConfig(batch_size=BATCH), device="cpu")
    detector = AnomalyDetector.fit(build_autoencoder(SHAPE, 1), pool[0], pool[1])

    def train(windows: int) -> tuple[int, float]:
        batches = -(-windows // BATCH)
        with seeded(0, 0):
            began = time.perf_counter()
            trainer.train_epoch([(torch.from_numpy(pool[place % len(pool)]),) for place in range(batches)])
            return batches * BATCH, time.perf_counter() - began

    def timed(read: Callable[[NDArray[np.float32]], object]) -> Run:
        def run(windows: int) -> tuple[int, float]:
            batches = -(-windows // BATCH)
            began = time.perf_counter()
            for place in range(batches):
                read(pool[place % len(pool)])
            return batches * BATCH, time.perf_counter() - began

        return run

    plain = build_autoencoder(SHAPE, 1).eval()

    def errors(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            x = torch.from_numpy(windows)
            return (plain(x) - x).square().mean(dim=(1, 2)).numpy()

    return {(OURS, "train"): (train, BATCH), (OURS, "score"): (timed(errors), BATCH), (CALIBRATED, "score"): (timed(detector.anomaly), BATCH)}


def row(name: str, work: str, who: dict[str, dict[str, Any]], rates: dict[tuple[str, str], Rates]) -> dict[str, Any]:
    """A line of the table."""
    mine, others = rates[name, work], rates.get((THEIRS, work))
    ratio = None if others is None else estimate(mine / others, np.random.default_rng(0))
    return {
        "who": name,
        "work": {"train": "training step", "score": "scoring"}[work],
        **who[OURS if name == CALIBRATED else name],
        "windows_a_second": float(np.median(mine)),
        "slowest": float(mine.min()),
        "fastest": float(mine.max()),
        "times_keras": None if ratio is None else ratio[0],
        "low": None if ratio is None else ratio[1],
        "high": None if ratio is None else ratio[2],
    }
