"""Windows as stage 2 leaves them, generated: benign ones follow slow waves, attack ones are noise. Synthetic, and said so in `metadata.json`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from src.artifacts import content_digest, new_artifact
from src.models.lstm_sae import AnomalyDetector, SAEConfig, build_autoencoder
from src.sae.encoding import KIND
from src.sae.layout import Layout

LENGTH, FEATURES = 6, 5
LABELS, GROUPS = ("Benign", "DDoS", "Recon"), ("camp", "farm")


def make_windows(count: int, attack: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, T, F) windows; those of an attack are noise."""
    phase = rng.random((count, 1, FEATURES)) * 2 * np.pi
    waves = np.sin(phase + np.arange(LENGTH)[:, None] / 2) + 0.1 * rng.standard_normal((count, LENGTH, FEATURES))
    return np.where(attack[:, None, None] == 1, 3 * rng.standard_normal(waves.shape), waves).astype(np.float32)


def write_encoded(
    folder: Path,
    sessions: int = 6,
    size: int = 40,
    attacked: int = 3,
    unknown: bool = False,
    timed: bool = True,
    change: Callable[[Path], None] | None = None,
) -> None:
    """Splits of `sessions` sessions of `size` windows a split; in `attacked` of those of test two events happen, of one label each.

    `change` may alter the files before they become an artifact.
    """
    with new_artifact(folder, KIND, {}) as target:
        _write_splits(target, sessions, size, attacked, unknown, timed)
        if change is not None:
            change(target)


def _write_splits(folder: Path, sessions: int, size: int, attacked: int, unknown: bool, timed: bool) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        count = sessions * size
        session, place = np.divmod(np.arange(count), size)
        label = np.zeros(count, np.int32)
        if split == "test":
            label[(session < attacked) & (place >= 10) & (place < 15)] = 1
            label[(session < attacked) & (place >= 25) & (place < 28)] = 2
        attack = np.full(count, -1) if unknown else (label > 0)
        arrays = {
            f"X_{split}_sequences": make_windows(count, label > 0, rng),
            f"y_{split}": attack.astype(np.int8),
            f"label_{split}": label,
            f"session_{split}": session.astype(np.int32),
            f"group_{split}": (session % 2).astype(np.int32),
            f"time_{split}": np.where(timed, 1_700_000_000_000 + 3_600_000 * session + 60_000 * place, -1),
        }
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)
    names = {"labels": LABELS, "groups": GROUPS, "sessions": sessions, "notes": [], "synthetic": True}
    (folder / "metadata.json").write_text(json.dumps(names))
    (folder / "sessions.json").write_text(json.dumps({"sessions": [f"host {i}" for i in range(sessions)]}))


def write_model(layout: Layout, latent: int = 8) -> None:
    """An autoencoder that was not trained, calibrated on what `write_encoded` wrote."""
    model = build_autoencoder(SAEConfig(FEATURES, LENGTH, (latent,), (8,), 0.0), 0)
    train, val = (np.load(layout.encoded / f"X_{split}_sequences.npy") for split in ("train", "val"))
    AnomalyDetector.fit(model, train, val).save(layout.model, {"encoded": {"digest": content_digest(layout.encoded)}})


def make_run(folder: Path, latent: int = 8, **options: Any) -> Layout:
    """A run that stages 4 and 5 can go on from."""
    layout = Layout(folder, "iot23", "v1")
    write_encoded(layout.encoded, **options)
    write_model(layout, latent)
    return layout
