"""A small made-up data set that a network can learn in seconds, for tests of training (not of detection)."""

import numpy as np

from src.data.dataset import Dataset, Rows

FEATURES = ("Rate", "IAT", "Std", "Telnet", "Tot size")
CLASSES = ("BenignTraffic", "DDoS-UDP_Fragmentation", "Recon-PortScan", "XSS")
SIZES = {"fit": 120, "calibrate": 60, "agent": 60, "test": 80}
"""Rows of each run; every class has two runs a split."""


def make_rows(size: int, rng: np.random.Generator) -> Rows:
    """Two runs of `size` rows a class: levels differ by class, XSS from benign only by the order of rows; `Telnet` is constant."""
    label = np.repeat(np.arange(len(CLASSES)), 2 * size).astype(np.int16)
    segment = np.repeat(np.arange(2 * len(CLASSES)), size).astype(np.int32)
    level = np.array([[1e3, 1e-3, 5], [1e6, 1e-6, 50], [1e2, 1e-2, 5], [1e3, 1e-3, 5]])[label]  # (N, 3)
    row = np.arange(len(label))
    sign = np.where(label == 3, row // 10 % 2, row % 2) * 2.0 - 1.0  # XSS turns every tenth row, the others every row
    features = np.column_stack([level * rng.lognormal(0, 0.4, level.shape), np.zeros(len(label)), 200 + 100 * sign + rng.normal(0, 30, len(label))])
    clock = np.arange(len(label), dtype=np.float64)
    return Rows(features.astype(np.float32), label, segment, clock, np.ones(len(label)), np.zeros(len(label), dtype=np.int16))


def make_dataset(seed: int = 0) -> Dataset:
    """Four sides drawn apart."""
    rng = np.random.default_rng(seed)
    splits = {name: make_rows(size, rng) for name, size in SIZES.items()}
    return Dataset(FEATURES, CLASSES, splits, "synthetic profile", "nowhere", ("XSS",), f"hash{seed}", {}, ("nowhere",))
