"""Tests for the benchmark of anomaly scores: p-values, windows of connections, divisions of captures."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.anomaly_trials import LENGTH, from_dataset, iot23
from benchmarks.common import PartOptions
from benchmarks.sae_detection import SAE, Contest, thinned
from benchmarks.sae_false_alarms import Site, p_values, resampled
from src.config import DataConfig
from src.training.anomaly_peers import PEERS

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
HEADER = "#separator \\x09\n#fields\tts\tid.orig_h\tid.resp_p\tproto\tservice\tduration\torig_bytes\tresp_bytes\tconn_state\tmissed_bytes\thistory\t" + (
    "orig_pkts\torig_ip_bytes\tresp_pkts\tresp_ip_bytes\ttunnel_parents   label   detailed-label\n"
)


def log_of(path: Path, benign: int, attacks: int, port: int = 53, began: float = 1e9) -> Path:
    """A log of one host: name service twice a minute, and a flood to port 80 after a while."""
    rng, lines = np.random.default_rng(0), []
    for index in range(benign):
        size = rng.integers(30, 60)
        lines.append((30.0 * index, f"{port}\tudp\tdns\t0.02\t{size}\t{2 * size}\tSF\t0\tDd\t1\t{size + 28}\t1\t{2 * size + 28}\t-   Benign   -"))
    for index in range(attacks):
        lines.append((900.0 + 0.01 * index, "80\ttcp\t-\t-\t-\t-\tS0\t0\tS\t1\t40\t0\t0\t-   Malicious   DDoS"))
    rows = [f"{began + time:.6f}\t10.0.0.2\t{rest}" for time, rest in lines]
    path.write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_p_values_by_hand() -> None:
    """Ties count as at least as large; the score counts itself; weights weigh."""
    reference = np.array([3.0, 1.0, 2.0, 2.0])
    np.testing.assert_allclose(p_values(reference, np.array([0.0, 2.0, 2.5, 9.0])), np.array([5, 4, 2, 1]) / 5)
    weight = np.array([1.0, 1.0, 0.5, 0.5])
    np.testing.assert_allclose(p_values(reference, np.array([2.0, 9.0]), weight, own=0.0), [2 / 3, 0])
    np.testing.assert_allclose(p_values(reference, np.array([9.0]), weight), [1 / 4])


def test_p_values_keep_to_the_target() -> None:
    """Scores like the reference fall below each level as often as the level says."""
    rng = np.random.default_rng(0)
    found = np.concatenate([p_values(rng.normal(size=199), rng.normal(size=50)) for _ in range(400)])
    for level in (0.01, 0.05, 0.1):
        assert (found <= level).mean() == pytest.approx(level, rel=0.15)


def test_resampled_share() -> None:
    """Groups count by their windows, and the interval holds the share."""
    hits, counts = np.array([0.0, 2.0, 10.0]), np.array([10.0, 10.0, 20.0])
    share, low, high = resampled(hits, counts, 500, np.random.default_rng(0))
    assert share == 12 / 40
    assert low == 0
    assert high == 0.5


def test_connections_by_time(tmp_path: Path) -> None:
    """Benign connections go to the sides in time order, attacks to the last two alone; windows never cross services; no port or time is a feature."""
    trial = iot23(log_of(tmp_path / "conn.log.labeled", 200, 60))
    assert {name: Counter(side.marks.attack.tolist()) for name, side in trial.items()} == {
        "fit": {0: 100 - LENGTH + 1},
        "calibrate": {0: 30 - LENGTH + 1},
        "agent": {0: 30 - LENGTH + 1, 1: 30 - LENGTH + 1},
        "test": {0: 40 - LENGTH + 1, 1: 30 - LENGTH + 1},
    }
    benign = [side.marks.time[side.marks.attack == 0] for side in trial.values()]
    assert all(earlier.max() < later.min() for earlier, later in itertools.pairwise(benign))
    later = iot23(log_of(tmp_path / "other.conn.log.labeled", 200, 60, port=79, began=1.1e9))
    np.testing.assert_allclose(trial["test"].windows, later["test"].windows, atol=0.1)  # gaps in ms, of times in s


def test_contest(tmp_path: Path) -> None:
    """Every candidate tells a flood from name service, and its rows say on how many windows."""
    contest = Contest("made", iot23(log_of(tmp_path / "conn.log.labeled", 200, 60)), seeds=2, resamples=20, epochs=1)
    rows = {row["score"]: row for row in contest.rows()}
    assert set(rows) == {SAE, *PEERS}
    assert min(row["auroc"] for row in rows.values()) == 1
    assert rows[SAE]["prevalence"] == pytest.approx(21 / 52)
    gate = contest.gate()
    assert gate.value == 0
    assert gate.met
    events, classes = contest.judged()
    assert {row["detected"] for row in events} == {1}
    assert {row["class"] for row in classes} == {"BenignTraffic", "DDoS"}


@pytest.mark.skipif(not (SHARED / "ciciot39" / "iot_sentinel").is_dir(), reason="captures of IoT Sentinel are not here")
def test_divisions_of_captures() -> None:
    """Halves are drawn of every device; windows of a capture stay together."""
    site = Site(PartOptions(quick=True, root=SHARED / "ciciot2023", shared=SHARED, seeds=1))
    everything = np.ones(len(site.device_of), dtype=bool)
    drawn = site.halves(np.random.default_rng(0), everything)
    for device in range(len(site.devices)):
        mine = site.device_of == device
        assert abs(drawn[mine].sum() - mine.sum() / 2) <= 0.5
    assert len(site.of(drawn)) + len(site.of(~drawn)) == len(site.windows)
    assert np.isfinite(site.windows).all()


@pytest.mark.skipif(not (SHARED / "nbaiot").is_dir(), reason="packets in N-BaIoT's features are not here")
def test_packets_of_two_devices() -> None:
    """Benign windows of every side are of one device, and thinning keeps all of them."""
    trial = from_dataset(DataConfig(root=SHARED / "nbaiot", dataset="nbaiot"), 4)
    few = thinned(trial, 10)
    for name, side in trial.items():
        assert len(few[name].benign) == len(side.benign) > 0
        assert len(few[name].marks) < len(side.marks)
