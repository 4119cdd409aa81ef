"""Makes the small bank that ships with the code: `python -m src.training.bundle`.

Windows are drawn from the embedded synthetic profile, and read by a predictor trained on other such windows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from src.config import load_config
from src.data.bank import BUNDLED
from src.data.dataset import load_dataset
from src.training.fused import train_sensor
from src.training.sensors import build_bank

WINDOWS = 200
"""Of each class and split."""


def main() -> None:
    """Train with the default configuration and write the file."""
    config = load_config(environ={})
    data = load_dataset(config.data, config.compute.seed)
    with tempfile.TemporaryDirectory() as folder:
        trained = train_sensor(config, data, Path(folder))
    bank = build_bank(data, trained.sensor, trained.sensor.scale, name="fused sensor trained on the synthetic profile", cap=WINDOWS)
    bank.bundle(BUNDLED)


if __name__ == "__main__":
    main()
