"""From packets to a decision (requirement B6): are the features equal to the published ones, how fast are they, and what does the watch make of real traffic?

Equality: every row of `ciciot39` (CICIoT2023's published extractor on the captures of IoT-23 and IoT Sentinel) and of `nbaiot`, cell by cell.
Speed: each extractor in a process of its own, on one thread but for NFStream, which starts processes as it does by default; the capture of the infected
device of IoT-23, and the same ten times over. Calibration: each device's first captures to calibrate on, the others to be judged by; four
numbers together, since a sensor that learns to tell two sites apart looks perfect in the first two. The incident: the Hue bridge's ordinary
traffic, and half-way through, the infected device on the same network; both are real, that they meet is not. It is watched with a sensor that was taken
to the bridge's traffic before, and to that of IoT Sentinel's devices, since a few minutes of one device are no site.

The peers are installed into `artifacts/packets-venv` by the first whole run; a quick one leaves them out where they are not there.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.captures import HUE, INFECTED, deviations, first_part, incident, iot23, packets115, read_frames, tiled
from benchmarks.common import RESULTS, ROOT, Gate, PartOptions, cache_folder, launch, parser, write_result
from benchmarks.contest import own_python
from benchmarks.trained import SHORT, World, real_world, train
from src.config import load_config
from src.data.ciciot2023 import FEATURES_39
from src.data.dataset import load_dataset
from src.data.nbaiot import FEATURES_115
from src.data.packets import CaptureReader, open_capture
from src.data.packets39 import Rows
from src.data.site import read_site
from src.data.transplant import divide_captures
from src.training.lstm_trainer import torch_threads
from src.watch.advisor import RULE, Advisor, Trained
from src.watch.calibration import adapted, calibrate, figures, raised, windows
from src.watch.extract import read_captures, windows_of
from src.watch.findings import Finding
from src.watch.observer import Observer
from src.watch.page import Incident, timeline
from src.watch.sensor import SiteSensor, home_bank
from src.watch.site import Roster, Site
from src.watch.watch import Watch

Table = list[dict[str, Any]]
REQUIREMENTS = ROOT / "benchmarks" / "requirements-packets.txt"
BRIDGE, BOT = "00:17:88:75:b3:82", "b8:27:eb:58:91:d2"
"""MAC addresses of the Hue bridge and of the infected device."""
STRIDE = 5
"""Rows between the starts of two windows that are judged."""
RESAMPLES = 1000
AS_TRAINED, FURTHER = "as it was trained", "trained further"


def equality(shared: Path, quick: bool) -> tuple[dict[str, Gate], Table]:
    """Both schemas beside the published rows."""
    types = dict.fromkeys((*FEATURES_39, "window_start"), pl.Float64)
    table: Table = []
    golden = shared / "ciciot39"
    contents: dict[tuple[str, ...], bytes] = {(name,): iot23(shared, name.removesuffix(".pcap")).read_bytes() for name in (f"{HUE}.pcap", f"{INFECTED}.pcap")}
    with tarfile.open(shared / "iot_sentinel" / "iot_sentinel_pcap.tar.gz") as opened:
        for member in (one for one in opened if one.isfile()):
            content = opened.extractfile(member)
            assert content is not None
            contents[Path(member.name).parts[-2:]] = content.read()
    groups = {"IoT-23": [golden / "iot23_34-1_mirai_cc.csv", golden / "iot23_hue_benign.csv"], "IoT Sentinel": sorted((golden / "iot_sentinel").glob("*.csv"))}
    for title, paths in groups.items():
        rows = cells = unequal = captures = 0
        worst = 0.0
        for path in paths[:3] if quick else paths:
            for (name,), part in pl.read_csv(path, schema_overrides=types).group_by("pcap", maintain_order=True):
                content = contents[(str(name),)] if title == "IoT-23" else contents[path.stem, str(name)]
                ours, theirs = _windows(content, str(name)).features, part.select(FEATURES_39).to_numpy()
                same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
                worst = max([worst, *np.abs(ours[~same] - theirs[~same])])
                captures, rows, cells, unequal = captures + 1, rows + len(theirs), cells + theirs.size, unequal + int((~same).sum())
        table.append(
            {
                "features": "ciciot39",
                "captures of": title,
                "captures": captures,
                "rows": rows,
                "cells": cells,
                "unequal": unequal,
                "worst": worst,
                "left out": 0,
            }
        )
    for name, published in ((HUE, "iot23_philips_hue_benign"), (INFECTED, "iot23_34-1_mirai_cc")):
        theirs = pl.read_parquet(shared / "nbaiot" / f"{published}.parquet").select(FEATURES_115).to_numpy()
        away, left = deviations(packets115(iot23(shared, name).read_bytes(), name)[1], theirs)
        beyond, worst = int((away > 1e-6).sum()), float(np.nanmax(away))
        table.append(
            {
                "features": "nbaiot115",
                "captures of": name,
                "captures": 1,
                "rows": len(theirs),
                "cells": away.size,
                "unequal": beyond,
                "worst": worst,
                "left out": left,
            }
        )
    small = [row for row in table if row["features"] == "ciciot39"]
    large = [row for row in table if row["features"] == "nbaiot115"]
    many = f"{sum(row['rows'] for row in small):,} rows of {sum(row['captures'] for row in small)} captures"
    differ, apart = float(sum(row["unequal"] for row in small)), max(row["worst"] for row in large)
    return {
        "B6.ciciot39": Gate(f"cells of CICIoT2023's 39 features that differ from the published extractor's, {many}", differ, 0, "<="),
        "B6.nbaiot115": Gate("largest relative deviation from the published packets in N-BaIoT's 115 features", apart, 1e-6, "<="),
    }, table


def _row(features: str, of: str, captures: int, rows: int, cells: int, unequal: int, worst: float, left: int) -> dict[str, Any]:
    return {"features": features, "captures of": of, "captures": captures, "rows": rows, "cells": cells, "unequal": unequal, "worst": worst, "left out": left}


def _windows(content: bytes, name: str) -> Rows:
    parts = list(windows_of(CaptureReader(io.BytesIO(content), name)))
    return Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def speed(shared: Path, quick: bool, folder: Path) -> tuple[dict[str, Gate], Table]:
    """Packets a second and resident memory of each extractor, once over and ten times over."""
    times = 3 if quick else 10
    short, once, more = iot23(shared, HUE), iot23(shared, INFECTED), folder / "more.pcap"
    count = tiled(once, more, times)
    peers = own_python(Path(load_config().compute.artifacts) / "packets-venv", REQUIREMENTS, install=not quick)
    runs: dict[str, tuple[Path, int]] = {name: (Path(sys.executable), 5) for name in ("ciciot39", "devices39", "nbaiot115")}
    if peers is not None:
        runs |= {"nfstream": (peers, 5), "cicflowmeter": (peers, 1)}
    over, table = f"rate over {times}x the packets, as a share", list[dict[str, Any]]()
    for name, (python, repeats) in runs.items():
        found: list[dict[str, float]] = []
        for capture in [once] if name == "cicflowmeter" else [once, more]:  # which would take minutes
            tries = [_timed(python, name, capture, short) for _ in range(1 if quick else repeats)]
            if all(tries):
                found.append({key: float(np.median([one[key] for one in tries])) for key in ("packets", "seconds", "megabytes")})
        if found:
            rates = [one["packets"] / one["seconds"] for one in found]
            share = rates[-1] / rates[0] if len(rates) > 1 else None
            memory = {"resident MB": found[-1]["megabytes"], "resident MB, once over": found[0]["megabytes"]}
            table.append({"extractor": name, "packets a second": rates[-1], over: share, **memory})
    by_name = {row["extractor"]: row for row in table}
    gates = {}
    for peer in ("nfstream", "cicflowmeter"):
        if peer in by_name:
            for schema in ("ciciot39", "nbaiot115"):
                what = f"packets a second in the features of {schema}, as a multiple of {peer}'s flows"
                gates[f"B6.speed.{schema}.{peer}"] = Gate(what, by_name[schema]["packets a second"] / by_name[peer]["packets a second"], 1.0, ">=")
    for schema in ("ciciot39", "nbaiot115"):
        what = f"packets a second in the features of {schema} over {count:,} packets, as a share of those over {count // times:,}"
        gates[f"B6.growth.{schema}"] = Gate(what, by_name[schema][over], 0.9, ">=")
        larger = by_name[schema]["resident MB"] / by_name[schema]["resident MB, once over"]
        gates[f"B6.memory.{schema}"] = Gate(f"resident memory over {times}x the packets, as a multiple ({schema})", larger, 1.1, "<=")
    return gates, table


def _timed(python: Path, name: str, capture: Path, short: Path) -> dict[str, float]:
    """Packets, seconds and megabytes of one run; nothing where it failed, which is told."""
    done = subprocess.run([python, ROOT / "benchmarks" / "packet_peers.py", name, capture, short], capture_output=True, text=True, check=False, cwd=ROOT)
    found: dict[str, Any]
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        found = {"failed": done.stderr[-300:]}
    if "failed" in found:
        print(f"{name} failed, and is left out: {found['failed']}")
        return {}
    return found


def calibration(options: PartOptions, home: SiteSensor, place: Path) -> tuple[dict[str, Gate], dict[str, Table]]:
    """The four numbers of each sensor at both sites, and false alarms of each device."""
    bank, dataset = home_bank(place), load_dataset(load_config(overrides=[f"data.root={options.root}"], environ={}).data, 0)
    sentinel = read_site(options.shared / "ciciot39" / "iot_sentinel", Counter())
    infected = windows(home, read_captures([str(iot23(options.shared, INFECTED))]), STRIDE)[0]
    sites = {"IoT Sentinel (31 devices)": divide_captures(sentinel, 0.5), "Hue bridge": divide_captures(read_captures([str(iot23(options.shared, HUE))]), 0.5)}
    if options.quick:
        sites = {name: tuple(part[::8] if len(part) > 8 else part for part in parts) for name, parts in sites.items()}  # type: ignore[misc]
    table: Table = []
    devices: Table = []
    gates: dict[str, Gate] = {}
    last = home
    for site, (known, held) in sites.items():
        makers: dict[str, Callable[[], SiteSensor]] = {AS_TRAINED: lambda: home, "its threshold alone": lambda known=known: raised(home, known)}
        makers |= {"calibrated": lambda known=known: calibrate(home, bank, known), FURTHER: lambda known=known: adapted(home, dataset, known)}
        looked_at, of = windows(home, held, STRIDE)
        shares: dict[str, NDArray[np.bool_]] = {}
        for name, make in makers.items():
            last = make()
            shares[name] = last.flagged(looked_at)
            low, high = _interval(shares[name], of)
            numbers = figures(last, bank, looked_at, infected)
            table.append({"site": site, "sensor": name, **numbers, "site flagged, low": low, "site flagged, high": high})
        labels = np.array([held[index].label.removeprefix("Benign:") for index in of])
        for label in sorted(set(labels.tolist())):
            mine = labels == label
            devices.append(
                {"site": site, "device": label, "windows": int(mine.sum()), **{name: float(flagged[mine].mean()) for name, flagged in shares.items()}}
            )
        if not gates:
            gates = _site_gates(site, table)
    return gates, {"calibration": table, "false alarms by device": devices}


def _interval(flagged: NDArray[np.bool_], of: NDArray[np.int64]) -> tuple[float, float]:
    """The 95 % interval of a share of windows, by a bootstrap over captures, or over ten blocks in time of a single one."""
    groups = of if len(np.unique(of)) > 1 else np.arange(len(of)) * 10 // len(of)
    sums = np.array([(flagged[groups == one].sum(), (groups == one).sum()) for one in np.unique(groups)], np.float64)
    drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    total = sums[drawn].sum(axis=1)
    low, high = np.quantile(total[:, 0] / total[:, 1], [0.025, 0.975])
    return float(low), float(high)


def _site_gates(site: str, table: Table) -> dict[str, Gate]:
    before, after = (next(row for row in table if row["sensor"] == name) for name in (AS_TRAINED, FURTHER))
    gained = before["site flagged"] - after["site flagged"]
    shortcut = after["ordinary windows of home flagged"] - before["ordinary windows of home flagged"]
    ends = after["site flagged, low"], after["site flagged, high"]
    return {
        "B6.site.false_alarms": Gate(
            f"share of ordinary windows of held-out captures flagged after calibration, {site}", after["site flagged"], 0.1, "<=", *ends
        ),
        "B6.site.gained": Gate("share flagged before less that after", gained, 0.0, ">"),
        "B6.site.recall": Gate("share of CICIoT2023's attacks flagged after, mean over classes", after["attacks of home flagged"], 0.6, ">="),
        "B6.site.shortcut": Gate("share of CICIoT2023's ordinary windows flagged after, less that before", shortcut, 0.05, "<="),
        "B6.site.infected": Gate("share of windows of the infected device 34-1 flagged after", after["infected device flagged"], 0.6, ">="),
    }


def replay(options: PartOptions, trained: Trained, home: SiteSensor, folder: Path, dataset_root: Path) -> tuple[dict[str, Gate], dict[str, Table]]:
    """The incident, watched with the sensor as it was trained and with one that was taken to the site; and how fast the watch is."""
    capture, calm = folder / "incident.pcap", folder / "calm.pcap"
    begins, joins = incident(options.shared, capture)
    first_part(options.shared, calm)
    site = Site(scenario="home", devices={"hub-1": BRIDGE, "camera-1": BOT})
    dataset = load_dataset(load_config(overrides=[f"data.root={dataset_root}"], environ={}).data, 0)
    others = divide_captures(read_site(options.shared / "ciciot39" / "iot_sentinel", Counter()), 0.5)[0]
    fitted = adapted(home, dataset, [*others, *read_captures([str(calm)], Roster(site))])
    table: Table = []
    rates: list[float] = []
    gates: dict[str, Gate] = {}
    for name, sensor in ((AS_TRAINED, home), (FURTHER, fitted)):
        roster, advisor = Roster(site), Advisor(trained, site, home_bank(trained.sensor), sensor)
        watch, page, found = Watch(Observer(sensor, roster, advisor.features, advisor.seconds), advisor, roster), Incident(), list[Finding]()
        with open_capture(capture) as stream:
            reader = CaptureReader(stream, str(capture))
            began = time.perf_counter()
            for batch in reader.batches():
                found += watch.take(batch)
            found += watch.finish()
            rates.append(reader.report["frames"] / (time.perf_counter() - began))
        page.findings.extend(found)
        for device in ("hub-1", "camera-1"):
            mine = [one for one in found if one.device == device]
            read = [one for one in mine if not one.again]
            orders = {who: [one.time for one in mine if getattr(one, key) != "MONITOR"] for who, key in (("agent", "order"), (RULE, "rule"))}
            table.append({
                "sensor": name, "device": device, "windows": len(read), "flagged": float(np.mean([one.flagged for one in read])) if read else None,
                **{f"orders, {who}": len(times) for who, times in orders.items()},
                **{f"first order, {who}, min after the device joined": (times[0] - joins) / 60 if times else None for who, times in orders.items()},
            })  # fmt: skip
        if sensor is fitted:
            words = {
                "replay": "IoT-23's Hue bridge, joined half-way by its infected device 34-1",
                "sensor": "trained further on the bridge's traffic before and on IoT Sentinel's devices",
            }
            page.write(cache_folder() / "incident.html", "A replayed incident", roster.names, watch.counters, words)
            (RESULTS / f"packets_incident{'.quick' if options.quick else ''}.png").write_bytes(timeline(found, ["hub-1", "camera-1"]))
    frames = len(read_frames(capture))
    gates["B6.watch"] = Gate(f"packets a second of the whole watch over {frames:,} packets, one thread", float(np.median(rates)), 1000.0, ">=")
    return gates, {"incident": table, "watch": [{"packets": frames, "hours": (joins - begins) / 1800, "packets a second": float(np.median(rates))}]}


def main() -> None:
    """Measure all, and write the result."""
    words = parser(__doc__, data=True)
    given = words.parse_args()
    options = PartOptions(quick=given.quick, root=given.root, shared=given.root.parent, seeds=1)
    gates: dict[str, Gate] = {}
    tables: dict[str, Table] = {}
    with torch_threads(options.threads), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found, tables["equality"] = equality(options.shared, options.quick)
        gates |= found
        found, tables["speed"] = speed(options.shared, options.quick, folder)
        gates |= found
        world: World = real_world(options)
        assert world.place is not None
        place = world.place.parent / "predictor"
        steps = {} if options.quick else {"rl.total_timesteps": SHORT, "rl.validation_steps": SHORT // 4}
        agent = train(world, {"agent": steps}, 1)["agent"][0]
        home = SiteSensor.load(place)
        found, more = calibration(options, home, place)
        gates, tables = gates | found, tables | more
        found, more = replay(options, Trained(agent, place, world.config), home, folder, options.root)
        gates, tables = gates | found, tables | more
    write_result("packets", "real", gates, tables, given.quick)


if __name__ == "__main__":
    launch(main)
