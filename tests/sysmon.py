"""Made-up Sysmon events in bigbase's exact 44 columns, for tests of reading and training (not of detection)."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from src.data.sysmon import COLUMNS_44


def event(**cells: str) -> dict[str, str]:
    """A row with the given cells set, and a few that every event has."""
    given = {"EventID": "1", "Computer": "PC1", "UtcTime": "2020-06-10 02:50:54.631", "Image": r"C:\Windows\explorer.exe"}
    return {**dict.fromkeys(COLUMNS_44, ""), **given, **cells}


def write_bigbase(path: Path, rows: Sequence[dict[str, str]], label_columns: Sequence[str]) -> Path:
    """One CSV of the 44 columns and those of the label; an empty cell stands as nothing between commas."""
    names = [*COLUMNS_44, *label_columns]
    columns = {name: [row.get(name) or None for row in rows] for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns, schema=dict.fromkeys(names, pl.String)).write_csv(path)
    return path


def make_bigbase(folder: Path, numbers: Sequence[int], rows: int, seed: int = 0) -> Path:
    """Files of the given numbers with two hosts each; from the middle on, some events of one host are an attack's, with commands of their own."""
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        clock = datetime(2020, 1, 1) + timedelta(days=number)
        events = []
        for place in range(rows):
            clock += timedelta(milliseconds=int(rng.integers(1, 4000)))
            host = f"PC{rng.integers(2)}"
            harmful = place > rows // 2 and host == "PC1" and rng.random() < 0.2
            tool = rng.choice(["mimikatz", "psexec"] if harmful else ["chrome", "excel", "svchost"])
            command = rf'"C:\Tools\{tool}.exe" --run {rng.integers(9)}'
            more = {
                "EventID": str(rng.choice([1, 3, 7, 11])),
                "Computer": host,
                "Image": rf"C:\Tools\{tool}.exe",
                "CommandLine": command,
                "User": rf"{host}\bob",
            }
            time = "" if rng.random() < 0.02 else clock.isoformat(" ", "milliseconds")
            tactic = str(rng.choice(["Execution", "lateral movement"])) if harmful else "Normal"
            events.append(event(UtcTime=time, TacticLabel=tactic, **more))
        write_bigbase(folder / f"dataset-{number}.csv", events, ("TacticLabel",))
    return folder
