"""A small trace bank with made-up readings, for tests of the rules (not of detection)."""

import numpy as np

from envs.scenarios import FAMILIES
from src.config import EnvConfig
from src.data.bank import SPLITS, TraceBank

CLASSES = {
    "BenignTraffic": "Benign", "DDoS-UDP_Fragmentation": "DDoS", "DoS": "DoS", "Mirai-udpplain": "Mirai", "Recon": "Recon",
    "Spoofing": "Spoofing", "SqlInjection": "Web", "XSS": "Web", "DictionaryBruteForce": "BruteForce",
}  # fmt: skip
SEVERITY = np.array([0.0, 0.8, 0.7, 0.9, 0.3, 0.6, 0.7, 0.5])


def make_bank(windows: int = 120, quality: float = 2.5, seed: int = 0) -> TraceBank:
    """`windows` of each class and split; `quality` is the logit by which the true family stands out."""
    rng = np.random.default_rng(seed)
    families = np.array([FAMILIES.index(f) for f in CLASSES.values()])
    label = np.tile(np.repeat(np.arange(len(CLASSES)), windows), len(SPLITS))
    split = np.repeat(np.arange(len(SPLITS)), windows * len(CLASSES))
    count = len(label)
    logits = rng.normal(size=(count, 8))
    logits[np.arange(count), families[label]] += quality
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    risk = probability @ SEVERITY
    entropy = -(probability * np.log(probability)).sum(1) / np.log(8)
    anomaly = np.where(families[label] == 0, rng.random(count), rng.beta(4, 1, count))
    successor = np.where(np.arange(count) % windows + 10 < windows, np.arange(count) + 10, -1)
    names = tuple(EnvConfig().features)
    return TraceBank(
        features=rng.uniform(-2, 2, (count, len(names))).astype(np.float32),
        sensors=np.column_stack([probability, risk, entropy, anomaly]).clip(0, 1).astype(np.float32),
        successor=successor.astype(np.int32),
        label=label.astype(np.int16),
        split=split.astype(np.int8),
        feature_names=names,
        sensor_names=(*(f"probability:{f}" for f in FAMILIES), "risk", "uncertainty", "anomaly"),
        class_names=tuple(CLASSES),
        class_families=tuple(CLASSES.values()),
        source="made up for tests",
        site="none",
        sensor="made up for tests",
        assembled=(),
    )
