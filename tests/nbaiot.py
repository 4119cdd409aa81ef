"""Made-up traffic under N-BaIoT's exact names and header, in both layouts, for tests of reading and training (not of detection)."""

from pathlib import Path

import numpy as np
import polars as pl

from src.data.nbaiot import DEVICES, FEATURES_115, TRAFFIC

FILES = [(botnet, attack) for botnet, attacks in TRAFFIC.items() for attack in attacks]
"""Benign traffic, then each attack."""


def make_frame(device: int, botnet: str, attack: str, rows: int) -> pl.DataFrame:
    """Rows that count up in `MI_dir_L5_weight` from 1; levels differ by attack and, less so, by device. The first row holds the time of capture."""
    kind = FILES.index((botnet, attack))
    rng = np.random.default_rng([device, kind])
    values = rng.lognormal(1 + 0.4 * np.cos(kind + np.arange(len(FEATURES_115)) * (kind + 1)) + 0.1 * np.sin(device + np.arange(115)), 0.2, (rows, 115))
    frame = pl.DataFrame(values.round(6), schema=list(FEATURES_115), orient="row")
    first = pl.int_range(pl.len()) == 0
    return frame.with_columns(
        pl.int_range(1, pl.len() + 1).cast(pl.Float64).alias("MI_dir_L5_weight"),
        pl.when(first).then(1.5e9).otherwise("HH_jit_L5_mean").alias("HH_jit_L5_mean"),
    )


def has(device: int, botnet: str) -> bool:
    """Whether the device has files of that botnet."""
    return botnet != "mirai" or device not in (3, 7)


def write_numbered(folder: Path, rows: int, devices: tuple[int, ...] = (1, 2, 3)) -> Path:
    """`1.benign.csv`, `2.gafgyt.combo.csv`, ... and the files that describe the release."""
    folder.mkdir(parents=True, exist_ok=True)
    for device in devices:
        for botnet, attack in FILES:
            if has(device, botnet):
                make_frame(device, botnet, attack, rows).write_csv(folder / f"{device}.{botnet}{'.' * bool(attack)}{attack}.csv")
    for name in ("features", "device_info", "data_summary"):
        (folder / f"{name}.csv").write_text("a,b\n1,2\n")
    (folder / "demonstrate_structure.csv").write_text(",".join(FEATURES_115) + "\n")
    return folder


def write_named(folder: Path, rows: int, devices: tuple[int, ...] = (1, 2, 3)) -> Path:
    """`Danmini_Doorbell/benign_traffic.csv`, `Danmini_Doorbell/gafgyt_attacks/combo.csv`, ..."""
    for device in devices:
        for botnet, attack in FILES:
            if has(device, botnet):
                home = folder / DEVICES[device - 1]
                path = home / f"{botnet}_attacks" / f"{attack}.csv" if attack else home / "benign_traffic.csv"
                path.parent.mkdir(parents=True, exist_ok=True)
                make_frame(device, botnet, attack, rows).write_csv(path)
    (folder / "demonstrate_structure.csv").write_text(",".join(FEATURES_115) + "\n")
    return folder
