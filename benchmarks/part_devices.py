"""D13, leave one device out: false alarms on a device never seen, with and without domain-adversarial training (D3), in two schemas.

What it is. Benign traffic of the devices of IoT Sentinel (Miettinen et al. 2017, ICDCS), each a domain; one device after the other is
left out of everything that is fitted. The attacks come from elsewhere: in the 39 features from CICIoT2023, in N-BaIoT's 115 from the
infected device 34-1 of IoT-23, packets of the pcaps in those features, since no row of N-BaIoT itself is at hand. The discriminator sees
benign windows alone: attacks have but one site, and to deceive it about that site would be to unlearn the attacks.

What it is not. N-BaIoT leaves out a device that is benign *and* attacked; here no device is both, so a detector may tell sites and not
attacks. Hence beside false alarms on the device left out and recall stand two controls (features.md): benign traffic of the attacks' own
site that is called an attack, and, in the 39 features, the share of 34-1 that is, which no training saw. IoT Sentinel holds set-ups of
devices, minutes long, 34-1 and the Hue bridge hours; in 115 features the longest damped windows show that.

Thresholds: alarms on a tenth of the benign `calibrate` windows of the devices that were trained on, each counting the same. One training a device and
arm, with a seed of its own, so an interval over devices holds the seeds' luck too.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.captures import archive, iot23, packets115
from benchmarks.common import Gate, PartOptions
from src.config import DataConfig, TemporalTrainingConfig
from src.data.ciciot2023 import FEATURES_39, Capture, read_ciciot2023
from src.data.dataset import Dataset, Rows, divide, leave_out, load_dataset
from src.data.nbaiot import FEATURES_115
from src.data.site import RATE, read_site
from src.data.taxonomy import family_index
from src.data.windows import gather, window_starts
from src.evaluation.detection import Blocks, Bootstrap, auroc, confusions, macro_f1
from src.evaluation.statistics import difference_estimate, mean_estimate
from src.models.loop import WindowBatches, seeded
from src.models.temporal_lstm import AdvancedLSTMTemporal, create_model
from src.training.lstm_trainer import torch_threads
from src.training.peers import fit_pooled, fit_statistics
from src.training.temporal_trainer import IGNORED, TemporalTrainer

FALSE_ALARMS = 0.1
"""Share of benign `calibrate` windows that lie above the threshold."""
ARMS = {"without D3": 0.0, "with D3": TemporalTrainingConfig().domain_weight, "with D3, tenfold": 10 * TemporalTrainingConfig().domain_weight}
"""Weight of the discriminator's loss. Gates compare the first two: the default weight, fixed before anything was measured here."""
BATCH = 64
"""Windows a step: few windows are trained on, so that all folds are done in minutes, and small steps make the most of them."""
RESAMPLES = 2000
SEED = 0
INFECTED, HUE = "iot23_34-1_mirai_cc", "iot23_hue_benign"
PCAPS = {INFECTED: "CTU-IoT-Malware-Capture-34-1_192.168.1.195.irc", HUE: "CTU-Honeypot-Capture-4-1_Philips-Hue-Bridge"}


@dataclass(frozen=True)
class Study:
    """What one schema's folds are made of."""

    schema: str
    data: Dataset
    devices: tuple[str, ...]
    """Domains that are left out, one at a time."""
    window: int
    stride: int
    """Rows between two training windows."""
    read: int
    """Rows between two windows that are scored."""
    epochs: int
    controls: Mapping[str, NDArray[np.float32]]
    """(N, F) rows of captures that nothing is fitted on, by the heading of their column."""

    @property
    def benign(self) -> NDArray[np.bool_]:
        """(C,) which classes are benign."""
        return family_index(self.data.class_names) == 0


def joined(device: str, label: str, parts: list[Capture]) -> Capture:
    """Captures of one device, one after another; no run holds two."""
    first = np.cumsum([0, *(int(part.chunk[-1]) + 1 for part in parts[:-1])])
    chunk = np.concatenate([part.chunk + start for part, start in zip(parts, first, strict=True)]).astype(np.int32)
    columns = (np.concatenate([getattr(part, name) for part in parts]) for name in ("features", "start", "duration"))
    values, start, duration = columns
    return Capture(label, True, values, chunk, start, duration, device)


def many_windows(captures: list[Capture], window: int, fewest: int) -> list[Capture]:
    """The devices that have enough for their false alarms to be counted."""
    return [one for one in captures if len(window_starts(one.chunk, window)) >= fewest]


def of_39(options: PartOptions) -> Study:
    """CICIoT2023's attacks and its own benign traffic, and the devices of IoT Sentinel, in CICIoT2023's features."""
    config = DataConfig(root=options.root, max_rows_per_class=600 if options.quick else 1500)
    captures, names, counted = read_ciciot2023(options.root, config.exclude_labels, config.max_rows_per_class)
    sentinel = sorted(read_site(options.shared / "ciciot39" / "iot_sentinel", Counter()), key=lambda one: one.domain)  # stable: in time order
    devices = [joined(device, "BenignTraffic", list(parts)) for device, parts in itertools.groupby(sentinel, key=lambda one: one.domain)]
    devices = many_windows(devices, config.window, 50)
    data = divide([*captures, *devices], names, config, "real", "CICIoT2023 and IoT Sentinel", dict(counted))
    largest = data.splits["fit"].features[:, RATE].max()
    controls = {"34-1 flagged": INFECTED, "Hue elsewhere flagged": HUE}
    frames = {key: pl.read_csv(options.shared / "ciciot39" / f"{name}.csv", infer_schema_length=None) for key, name in controls.items()}
    rows = {key: frame.select(pl.col(FEATURES_39).cast(pl.Float64).fill_null(0)).to_numpy() for key, frame in frames.items()}
    finite = {key: np.where(np.isinf(values), largest, values).astype(np.float32) for key, values in rows.items()}
    return Study("39 features", data, tuple(one.domain for one in devices), config.window, 10 if options.quick else 6, 3, 2 if options.quick else 4, finite)


def of_115(options: PartOptions) -> tuple[Study, list[dict[str, Any]]]:
    """Packets of IoT Sentinel's devices and of 34-1 in N-BaIoT's features; and how near our packets in them are to the published ones."""
    config = DataConfig(dataset="nbaiot", window=30, gap=30)
    known: set[bytes] = set()
    devices: list[Capture] = []
    for device, group in itertools.groupby(archive(options.shared), key=lambda one: one[0]):
        parts = []
        for _, name, content in group:
            time, values = packets115(content, name)
            if len(values) > 1 and values.tobytes() not in known:  # two captures repeat others
                known.add(values.tobytes())
                parts.append(Capture("BenignTraffic", True, values, np.zeros(len(values), np.int32), time, np.zeros(len(values)), device))
        devices.append(joined(device, "BenignTraffic", sorted(parts, key=lambda one: one.start[0])))
    devices = many_windows(devices, config.window, 2000)
    rows, checks = {}, []
    for name, pcap in PCAPS.items():
        rows[name] = packets115(iot23(options.shared, pcap).read_bytes(), pcap)[1]
        published = "iot23_philips_hue_benign" if name == HUE else name
        theirs = pl.read_parquet(options.shared / "nbaiot" / f"{published}.parquet").select(FEATURES_115).to_numpy()
        away = np.abs(rows[name] - theirs) / np.maximum(np.abs(theirs), 1.0)
        checks.append({"capture": name, "packets": len(theirs), "cells": theirs.size, "cells off by more than 1e-5": int((away > 1e-5).sum())})
    infected = rows[INFECTED]
    bot = Capture("C&C", True, infected, np.zeros(len(infected), np.int32), np.full(len(infected), np.nan), np.full(len(infected), np.nan), "34-1")
    data = divide([*devices, bot], FEATURES_115, config, "real", "IoT Sentinel and IoT-23 in N-BaIoT's features", {})
    tested = tuple(one.domain for one in devices)
    controls = {"benign of the attacks' site flagged": rows[HUE]}
    return Study("115 features", data, tested, config.window, 90 if options.quick else 40, 20, 2 if options.quick else 3, controls), checks


def batches(data: Dataset, side: str, window: int, stride: int, train: bool = False, domains: NDArray[np.int64] | None = None) -> WindowBatches:
    """Windows of a side, shuffled for training; `domains` (rows,) go with them."""
    rows = data.splits[side]
    starts = window_starts(rows.segment, window, stride)
    told = None if domains is None else torch.from_numpy(domains[starts])
    label = torch.from_numpy(rows.label[starts].astype(np.int64))
    generator = torch.Generator() if train else None
    return WindowBatches(torch.from_numpy(rows.features), torch.from_numpy(starts), label, window, BATCH if train else 1024, generator, told)


def trained(data: Dataset, study: Study, strength: float, seed: int) -> AdvancedLSTMTemporal:
    """The preset `fast_training` on `fit`; with D3 where `strength` is above 0."""
    rows = data.splits["fit"]
    domains = np.where(study.benign[rows.label], rows.domain, IGNORED).astype(np.int64) if strength else None
    fit = batches(data, "fit", study.window, study.stride, True, domains)
    shape = {"input_size": len(data.feature_names), "num_classes": len(data.class_names), "sequence_length": study.window}
    with seeded(seed, 0):
        model = create_model("fast_training", **shape, num_domains=len(data.domain_names) if strength else 1)
    model.scaler.fit(rows.features)
    counts = np.bincount(fit.labels.numpy(), minlength=len(data.class_names))
    settings = TemporalTrainingConfig(epochs=study.epochs, batch_size=BATCH, domain_weight=strength)
    trainer = TemporalTrainer(model, settings, class_counts=counts, seed=seed, device="cpu")
    trainer.train(fit, batches(data, "calibrate", study.window, study.stride))
    return model.eval()


def risk(model: AdvancedLSTMTemporal, study: Study, rows: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    """(W,) probability of any attack of the windows at `starts`."""
    parts = [
        model.predict_attack_probability(torch.from_numpy(gather(rows, part, study.window))).numpy() for part in np.array_split(starts, len(starts) // 1024 + 1)
    ]
    return 1 - np.concatenate(parts)[:, study.benign].sum(axis=1)


def threshold(model: AdvancedLSTMTemporal, study: Study, data: Dataset) -> float:
    """The risk above which a tenth of the devices' benign `calibrate` windows lie, each device counting the same."""
    rows = data.splits["calibrate"]
    starts = window_starts(rows.segment, study.window, study.read)
    known = [data.domain_names.index(name) for name in study.devices]
    starts = starts[study.benign[rows.label[starts]] & np.isin(rows.domain[starts], known)]
    score, device = risk(model, study, rows.features, starts), rows.domain[starts]
    weight = 1 / np.bincount(device)[device]
    order = np.argsort(-score)
    above = np.cumsum(weight[order]) / weight.sum()
    return float(score[order][np.searchsorted(above, FALSE_ALARMS)])


def fold(study: Study, held: str | None, strength: float, seed: int, taught: Dataset | None = None) -> dict[str, float]:
    """The numbers of one training without the device `held`, on `taught` where that is less than all the others."""
    part = leave_out(study.data, held, study.window) if held else study.data
    model = trained(taught or part, study, strength, seed)
    limit = threshold(model, study, part)

    def flagged(rows: NDArray[np.float32], starts: NDArray[np.int64]) -> float:
        return float((risk(model, study, rows, starts) > limit).mean()) if len(starts) else float("nan")

    test, found = study.data.splits["test"], dict[str, float]()
    starts = window_starts(test.segment, study.window, study.read)
    bad = ~study.benign[test.label[starts]]
    home = test.domain[starts] == test.domain[starts][bad][0]
    mine = part.splits["test"]
    found["device left out flagged"] = flagged(mine.features, window_starts(mine.segment, study.window, study.read)) if held else float("nan")
    found["recall"] = flagged(test.features, starts[bad])
    if (home & ~bad).any():
        found["benign of the attacks' site flagged"] = flagged(test.features, starts[home & ~bad])
        score = risk(model, study, test.features, starts[home])
        found["AUROC of attacks at their site"] = float(roc_auc_score(bad[home], score))
    for name, rows in study.controls.items():
        found[name] = flagged(rows, np.arange(0, len(rows) - study.window + 1, study.read))
    return found


def leave_one_out(study: Study, devices: tuple[str, ...], arms: tuple[str, ...]) -> tuple[Gate, dict[str, list[dict[str, Any]]]]:
    """Each of the devices left out once, in each of the arms."""
    found = {arm: [fold(study, device, ARMS[arm], SEED + 1 + index) for index, device in enumerate(devices)] for arm in arms}
    key, rng = "device left out flagged", np.random.default_rng(SEED)
    numbers = {arm: np.array([one[key] for one in rows]) for arm, rows in found.items()}
    summary = []
    for arm, rows in found.items():
        alarm = mean_estimate(numbers[arm], RESAMPLES, 0.95, rng)
        means = {name: float(np.mean([one[name] for one in rows])) for name in rows[0] if name != key}
        summary.append({"arm": arm, "devices": len(rows), key: alarm.value, "low": alarm.low, "high": alarm.high, "worst device": numbers[arm].max(), **means})
    windows = {device: _windows_of(study, device) for device in devices}
    each = [{"device": device, "windows": windows[device], **{arm: float(numbers[arm][index]) for arm in arms}} for index, device in enumerate(devices)]
    gain = difference_estimate(numbers["with D3"], numbers["without D3"], RESAMPLES, 0.95, rng)
    what = (
        f"{study.schema}: benign windows flagged of a device left out, with D3 less without, mean of {len(devices)} devices at 10 % false alarms on the others"
    )
    title = f"leave one device out, {study.schema}"
    return Gate(what, gain.value, 0.0, "<", gain.low, gain.high, by_interval=True), {title: summary, f"{title}, by device": each}


def _windows_of(study: Study, device: str) -> int:
    chosen = study.data.domain_names.index(device)
    return sum(int((rows.domain[window_starts(rows.segment, study.window)] == chosen).sum()) for rows in study.data.splits.values())


def alone(study: Study) -> list[dict[str, Any]]:
    """The detector of the attacks' site alone, thresholds from the devices' benign `calibrate` windows: what the folds are to be compared with."""
    home = {
        side: Rows(**{field.name: getattr(rows, field.name)[rows.domain == 0] for field in dataclasses.fields(rows)})
        for side, rows in study.data.splits.items()
    }
    found = fold(study, None, 0.0, SEED, dataclasses.replace(study.data, splits=home))
    return [{"trained on": "the attacks' site alone", **{key: value for key, value in found.items() if not np.isnan(value)}}]


def proof(options: PartOptions) -> list[dict[str, Any]]:
    """The temporal LSTM beside LightGBM on IoT-23's packets in N-BaIoT's features: two captures of two devices, contiguous blocks."""
    window = 50
    config = DataConfig(root=options.shared / "nbaiot", dataset="nbaiot", window=window, gap=window)
    data = load_dataset(config, SEED)
    study = Study("", data, (), window, 20 if options.quick else 10, 5, 2 if options.quick else 4, {})
    rows = data.splits["test"]
    starts = window_starts(rows.segment, window, 5)
    windows, truth = gather(rows.features, starts, window), rows.label[starts].astype(np.int64)
    sample = Bootstrap(Blocks.cut(truth, rows.segment[starts], 2 * window // 5), RESAMPLES, SEED)
    model = trained(data, study, 0.0, SEED)
    found = {
        "temporal LSTM (fast_training)": np.concatenate(
            [model.predict_attack_probability(torch.from_numpy(part)).numpy() for part in np.array_split(windows, 8)]
        ),
        "LightGBM, rows pooled over the window": fit_pooled(data, window, SEED).probabilities(windows),
        "LightGBM, window statistics": fit_statistics(data, window, SEED).probabilities(windows),
        "one feature, the best on calibrate": _stump(data, window, windows),
    }
    table = []
    for name, probabilities in found.items():
        score = sample.mean(macro_f1(confusions(sample, probabilities.argmax(axis=1), 2)))
        area = sample.mean(auroc(sample, probabilities[:, 1], truth == 1))
        row = {"model": name, "windows": len(truth), "macro-F1": score.value, "low": score.low, "high": score.high}
        table.append({**row, "AUROC": area.value, "AUROC low": area.low, "AUROC high": area.high})
    return table


def _stump(data: Dataset, window: int, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(W, 2) both classes by the window mean of one feature, chosen and cut half-way between the classes' medians on `calibrate`."""
    rows = data.splits["calibrate"]
    starts = window_starts(rows.segment, window, 5)
    means, label = gather(rows.features, starts, window).mean(axis=1), rows.label[starts]
    areas = np.array([roc_auc_score(label, column) for column in means.T])
    best = int(np.abs(areas - 0.5).argmax())
    sign = np.sign(areas[best] - 0.5)
    middle = np.mean([np.median(means[label == one, best]) for one in (0, 1)])
    spread = means[:, best].std() + 1e-9
    attack = 1 / (1 + np.exp(-np.clip(sign * (windows[:, :, best].mean(axis=1) - middle) / spread, -30, 30)))
    return np.stack([1 - attack, attack], axis=1).astype(np.float32)


def measure(options: PartOptions) -> tuple[dict[str, Gate], dict[str, list[dict[str, Any]]]]:
    """Gates `D13.devices39` and `D13.devices115`, their tables, and what the temporal LSTM makes of N-BaIoT's schema."""
    gates: dict[str, Gate] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    with torch_threads(options.threads):
        tables["two captures in N-BaIoT's features (benign and C&C are also two devices)"] = proof(options)
        study = of_39(options)
        tables[f"leave one device out, {study.schema}, before the devices are seen"] = alone(study)
        gates["D13.devices39"], found = leave_one_out(study, study.devices[::5] if options.quick else study.devices, tuple(ARMS)[: 2 if options.quick else 3])
        tables |= found
        packets, checks = of_115(options)
        gates["D13.devices115"], found = leave_one_out(packets, packets.devices[:: 5 if options.quick else 2], tuple(ARMS)[:2])
        tables |= found
        tables["packets in N-BaIoT's features beside the published ones"] = checks
    return gates, tables
